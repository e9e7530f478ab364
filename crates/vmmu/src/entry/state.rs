//! What an entry can be.

use crate::addr::Pfn;
use crate::entry::leaf::Leaf;

/// What an entry is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum State {
    /// Nothing.
    Empty,
    /// No memory here as of `generation`: emulate.
    Mmio {
        /// The low [`GENERATION_BITS`](crate::entry::Format::GENERATION_BITS) of the generation of
        /// the slots when it was written.
        generation: u64,
    },
    /// Frozen within one section.
    Hold {
        /// Participant, of [`OWNER_BITS`](crate::entry::Format::OWNER_BITS).
        owner: u64,
    },
    /// Frozen for longer than a section.
    Claim {
        /// Participant, of [`OWNER_BITS`](crate::entry::Format::OWNER_BITS).
        owner: u64,
    },
    /// In a detached table.
    Dead {
        /// In entry 0, the next table that waits for the same flush.
        next: Option<Pfn>,
    },
    /// A pointer to a table of the level below.
    Table(Pfn),
    /// A mapping.
    Leaf(Leaf),
    /// Nothing the library writes: memory corruption.
    Corrupt,
}

impl State {
    /// Whether the library regards it as a translation.
    pub const fn is_present(&self) -> bool {
        matches!(self, State::Table(_) | State::Leaf(_))
    }
}
