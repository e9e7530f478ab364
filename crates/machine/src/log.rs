//! Intel's page-modification log.

/// A page-modification log: 512 words in a page of host memory.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Log {
    /// Host-physical address of the page, in bytes.
    pub address: u64,
    /// The next place to be written. It counts down; above 511 the log is full.
    pub index: u16,
}

impl Log {
    /// An empty log in the page at `address`.
    pub const fn empty(address: u64) -> Self {
        Log { address, index: 511 }
    }
}
