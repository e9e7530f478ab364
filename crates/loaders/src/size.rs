//! Amounts of memory as people write them.

use std::{fmt, str::FromStr};

/// A number of bytes, written `512M`, `4G`, `0x1000` or `1048576`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

/// One kibibyte, mebibyte and gibibyte in bytes.
pub const KIB: u64 = 1 << 10;
/// See [`KIB`].
pub const MIB: u64 = 1 << 20;
/// See [`KIB`].
pub const GIB: u64 = 1 << 30;
/// Smallest page, in bytes.
pub const PAGE: u64 = 4 * KIB;

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no size; write bytes or a number with K, M, G or T");
        let body = text.strip_suffix("iB").or(text.strip_suffix('B')).unwrap_or(text);
        if let Some(hex) = body.strip_prefix("0x") {
            return u64::from_str_radix(hex, 16).map(Size).map_err(|_| wrong());
        }
        let digits = body.trim_end_matches(['K', 'M', 'G', 'T', 'k', 'm', 'g', 't']);
        let shift = match body[digits.len()..].to_ascii_uppercase().as_str() {
            "" => 0,
            "K" => 10,
            "M" => 20,
            "G" => 30,
            "T" => 40,
            _ => return Err(wrong()),
        };
        let number: u64 = digits.parse().map_err(|_| wrong())?;
        number.checked_mul(1 << shift).map(Size).ok_or_else(wrong)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (value, unit) = match self.0 {
            bytes if bytes >= GIB && bytes.is_multiple_of(GIB) => (bytes / GIB, "GiB"),
            bytes if bytes >= MIB && bytes.is_multiple_of(MIB) => (bytes / MIB, "MiB"),
            bytes if bytes >= KIB && bytes.is_multiple_of(KIB) => (bytes / KIB, "KiB"),
            bytes if bytes >= 10 * MIB => (bytes / MIB, "MiB"),
            bytes if bytes >= 10 * KIB => (bytes / KIB, "KiB"),
            bytes => (bytes, "B"),
        };
        write!(f, "{value} {unit}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_their_unit() {
        for (text, bytes) in [
            ("512M", 512 * MIB),
            ("4G", 4 * GIB),
            ("4GiB", 4 * GIB),
            ("1T", 1024 * GIB),
            ("64k", 64 * KIB),
            ("0x1000", 4096),
            ("17", 17),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused_by_name() {
        for text in ["", "M", "12Q", "1MM", "-1", "99999999999T", "0xzz"] {
            let refusal = text.parse::<Size>().unwrap_err();
            assert!(refusal.contains(&format!("`{text}`")), "{refusal}");
        }
    }
}
