//! Ports the sweeps leave out, because a write there ends the machine or answers in a way of its
//! own. Each has a test of its own in the table of cases, or ends the guest by design.

/// Bytes one port access moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Width {
    /// One byte.
    One,
    /// Two bytes.
    Two,
    /// Four bytes.
    Four,
}

impl Width {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::One, Self::Two, Self::Four];

    /// Number of bytes, which is also the number of ports the access touches.
    pub const fn bytes(self) -> u32 {
        match self {
            Self::One => 1,
            Self::Two => 2,
            Self::Four => 4,
        }
    }
}

/// First and last port of a range that is not written by a sweep, and why.
pub const LEFT_OUT: [(u16, u16, &str); 6] = [
    (0x64, 0x64, "keyboard controller: command 0xfe is a reset"),
    (0x92, 0x92, "fast reset"),
    (0xb2, 0xb3, "system management interrupt"),
    (0xf4, 0xf7, "exit"),
    (0x604, 0x605, "power-off"),
    (0xcf9, 0xcf9, "reset"),
];

/// Whether a sweep may write `width` bytes at `port`.
pub fn writable(port: u16, width: Width) -> bool {
    let first = u32::from(port);
    let last = first + width.bytes() - 1;
    LEFT_OUT.iter().all(|&(start, end, _)| last < u32::from(start) || u32::from(end) < first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_access_that_touches_a_left_out_port_is_left_out() {
        assert!(writable(0xcf8, Width::One));
        assert!(!writable(0xcf8, Width::Two));
        assert!(!writable(0xcf6, Width::Four));
        assert!(writable(0xcf5, Width::Four));
        assert!(!writable(0xf7, Width::One));
        assert!(writable(0xf8, Width::One));
        assert!(writable(0xffff, Width::Four));
    }
}
