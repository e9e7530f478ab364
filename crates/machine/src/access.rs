//! What an access wants, and what an entry allows.

use bitflags::bitflags;

/// What the guest does with an address. Whether it does it as user or as supervisor is a state of
/// the guest: [`Long::user`](crate::Long::user).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Access {
    /// Reads data.
    Read,
    /// Writes data, or reads and writes it in one (a locked add).
    Write,
    /// Fetches an instruction.
    Fetch,
}

bitflags! {
    /// What a chain of entries allows.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
    pub(crate) struct Allows: u8 {
        /// Data may be read.
        const READ = 1;
        /// Data may be written.
        const WRITE = 1 << 1;
        /// Instructions may be fetched.
        const FETCH = 1 << 2;
        /// User accesses are allowed.
        const USER = 1 << 3;
    }
}
