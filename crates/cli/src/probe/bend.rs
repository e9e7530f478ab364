//! Rules left out of the software walker, to see that the comparison notices.

use clap::ValueEnum;

use super::stage::bit;

/// A rule the walker does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Bend {
    /// No entry forbids execution
    Nx,
    /// Every entry is a user's
    User,
    /// Every entry allows writing
    Writable,
    /// No address is beyond the physical width
    Width,
    /// Nothing needs its dirty flag set
    Dirty,
}

impl Bend {
    /// A present entry as the walker is shown it.
    pub fn word(self, value: u64) -> u64 {
        match self {
            Self::Nx => value & !bit::NX,
            Self::User => value | bit::U,
            Self::Writable => value | bit::W,
            Self::Width => value,
            Self::Dirty => value | bit::D,
        }
    }

    /// The physical address width as the walker is told it.
    pub fn width(self, phys_bits: u8) -> u8 {
        if self == Self::Width { 52 } else { phys_bits }
    }
}
