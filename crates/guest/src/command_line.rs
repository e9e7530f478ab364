//! The command line: words `key=value`, in any order, separated by blanks. A word without `=`
//! (the kernel's own path, which loaders put first) is passed over.

/// A command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommandLine<'a>(&'a str);

/// A value that is not what its key wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadNumber<'a> {
    /// The key.
    pub key: &'a str,
    /// What stands there.
    pub value: &'a str,
}

impl<'a> CommandLine<'a> {
    /// Wraps the text the boot loader gave.
    pub const fn new(text: &'a str) -> Self {
        Self(text)
    }

    /// The whole text.
    pub const fn text(&self) -> &'a str {
        self.0
    }

    /// Value of the last word with this key, or nothing.
    pub fn value(&self, key: &str) -> Option<&'a str> {
        self.0
            .split_ascii_whitespace()
            .filter_map(|word| word.split_once('='))
            .filter(|(name, _)| *name == key)
            .map(|(_, value)| value)
            .next_back()
    }

    /// Name of the test to run.
    pub fn test(&self) -> &'a str {
        self.value("test").unwrap_or("builtin")
    }

    /// Number behind a key, or `default` if the key is not there.
    ///
    /// # Errors
    /// The value is there and is not a number.
    pub fn number<'k>(&self, key: &'k str, default: u64) -> Result<u64, BadNumber<'k>>
    where
        'a: 'k,
    {
        match self.value(key) {
            None => Ok(default),
            Some(value) => number(value).ok_or(BadNumber { key, value }),
        }
    }
}

/// A number: decimal or `0x...`, with an optional suffix K, M, G or T (powers of 1024).
pub fn number(text: &str) -> Option<u64> {
    let (digits, shift) = match text.bytes().last()? {
        b'K' | b'k' => (&text[..text.len() - 1], 10),
        b'M' | b'm' => (&text[..text.len() - 1], 20),
        b'G' | b'g' => (&text[..text.len() - 1], 30),
        b'T' | b't' => (&text[..text.len() - 1], 40),
        _ => (text, 0),
    };
    let value = match digits.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok()?,
        None => digits.parse().ok()?,
    };
    value.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_found_and_the_last_one_counts() {
        let line = CommandLine::new("/boot/guest  test=sparse seed=3 seed=0x10 quiet");
        assert_eq!(line.test(), "sparse");
        assert_eq!(line.number("seed", 1), Ok(16));
        assert_eq!(line.number("cpus", 1), Ok(1));
        assert_eq!(line.value("quiet"), None);
    }

    #[test]
    fn no_test_means_the_builtin_guest() {
        assert_eq!(CommandLine::new("").test(), "builtin");
    }

    #[test]
    fn numbers_have_suffixes_and_refuse_nonsense() {
        assert_eq!(number("64M"), Some(64 << 20));
        assert_eq!(number("0x10K"), Some(16 << 10));
        assert_eq!(number("1T"), Some(1 << 40));
        for nonsense in ["", "M", "0x", "-1", "16777216T", "1q", "ä"] {
            assert_eq!(number(nonsense), None, "{nonsense}");
        }
        let line = CommandLine::new("cpus=two");
        assert_eq!(line.number("cpus", 1), Err(BadNumber { key: "cpus", value: "two" }));
    }
}
