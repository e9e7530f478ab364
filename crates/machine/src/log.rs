//! Intel's page-modification log (Intel SDM volume 3, chapter "VMX Support for Address Translation",
//! "Page-Modification Logging").
//!
//! * Whenever a dirty flag of the extended page tables becomes set, the guest-physical address,
//!   with bits 0 to 11 clear, is written to the log and the index counts down.
//! * Before an accessed or a dirty flag is set the index is looked at: if it is not below 512 the
//!   guest exits, the flag is not set and the access is not made.
//! * Pages of the guest's tables are logged too, since reading those counts as writing.
//! * Without accessed and dirty flags there is no log.

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
