//! Why an MMU is dead.

use core::fmt;

use crate::entry::law;

/// Why an MMU is dead. Its calls return errors, and no vCPU enters any more; the host lives on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Broken {
    /// The library was about to make a change of an entry that the law forbids.
    Law(law::Illegal),
    /// A table entry holds what the library never writes: memory corruption.
    Corrupt,
    /// The host answered with less access than was asked for, a memory type the format lacks, or
    /// a frame beyond the address width.
    FrameUnusable,
    /// The host gave a table page beyond the address width, or frame 0.
    TableUnusable,
    /// A thread that has a vCPU in the guest called something that needs a flush, and would have
    /// waited for itself. Leave the guest first.
    FlushInGuest,
}

impl Broken {
    const ILLEGAL: [law::Illegal; 10] = [
        law::Illegal::Corrupt,
        law::Illegal::Frame,
        law::Illegal::HostWritable,
        law::Illegal::Memory,
        law::Illegal::Record,
        law::Illegal::Relink,
        law::Illegal::Dead,
        law::Illegal::Clean,
        law::Illegal::Frozen,
        law::Illegal::Mmio,
    ];

    pub(crate) fn pack(self) -> u64 {
        match self {
            Broken::Corrupt => 1,
            Broken::FrameUnusable => 3,
            Broken::TableUnusable => 4,
            Broken::FlushInGuest => 5,
            Broken::Law(illegal) => {
                16 + Self::ILLEGAL.iter().position(|c| *c == illegal).unwrap_or(0) as u64
            }
        }
    }

    #[cold]
    pub(crate) fn unpack(word: u64) -> Option<Broken> {
        match word {
            0 => None,
            1 => Some(Broken::Corrupt),
            3 => Some(Broken::FrameUnusable),
            4 => Some(Broken::TableUnusable),
            5 => Some(Broken::FlushInGuest),
            _ => {
                let illegal = Self::ILLEGAL.get(word.wrapping_sub(16) as usize);
                Some(illegal.map_or(Broken::Corrupt, |illegal| Broken::Law(*illegal)))
            }
        }
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Broken::Law(illegal) => write!(f, "an illegal change of a table entry ({illegal:?})"),
            Broken::Corrupt => f.write_str("a corrupt table entry"),
            Broken::FrameUnusable => {
                f.write_str("the host found a frame that cannot be mapped as asked")
            }
            Broken::TableUnusable => {
                f.write_str("the host gave a table page that no entry can point at")
            }
            Broken::FlushInGuest => f.write_str(
                "a thread that has a vCPU in the guest asked for a flush of that vCPU: end the \
                 entry first",
            ),
        }
    }
}

impl core::error::Error for Broken {}
