//! A fault of AMD's nested page tables. It stands below the format that finds it, because an exit
//! carries it too.

/// What VMEXIT_NPF tells.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Fault {
    /// EXITINFO1: the error code with bit 32 or 33.
    pub code: u64,
    /// EXITINFO2: the guest-physical address, in bytes.
    pub gpa: u64,
}

impl Fault {
    /// The entry was present.
    pub const PRESENT: u64 = 1;
    /// It was a write, or the guest's tables were read.
    pub const WRITE: u64 = 1 << 1;
    /// It was a user access, as all are.
    pub const USER: u64 = 1 << 2;
    /// A reserved bit was set.
    pub const RESERVED: u64 = 1 << 3;
    /// It was an instruction fetch.
    pub const FETCH: u64 = 1 << 4;
    /// The guest's final address was being translated.
    pub const FINAL: u64 = 1 << 32;
    /// The address of one of the guest's tables was being translated.
    pub const TABLE: u64 = 1 << 33;
}
