//! A mapping of memory, and in which ways it may be written and records its use.

use crate::addr::{Level, Pfn};
use crate::entry::access::MemoryType;

/// The four legal ways in which host, library and hardware agree about writing.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Writable {
    /// The host does not allow it.
    Never,
    /// The host allows it, the library must not: somebody relies on the protection.
    Hard,
    /// The library allows it; W is clear only to see the next write, whose fault sets W without
    /// asking the host.
    Soft,
    /// Hardware writes.
    Yes,
}

impl Writable {
    /// All four, least first.
    pub const ALL: [Writable; 4] = [Writable::Never, Writable::Hard, Writable::Soft, Writable::Yes];

    /// Whether the host allows writing.
    pub const fn by_host(self) -> bool {
        !matches!(self, Writable::Never)
    }

    /// Whether the library allows writing, now or by a soft fix.
    pub const fn by_library(self) -> bool {
        matches!(self, Writable::Soft | Writable::Yes)
    }
}

/// How a leaf records that it was used.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Record {
    /// Hardware sets A and D.
    Hardware,
    /// Hardware sets neither: aging takes R and X away, dirty logging takes W away.
    Software,
    /// Hardware sets A and D, but dirty logging must take W away (the log would hold addresses of
    /// a nested guest).
    WriteProtect,
}

impl Record {
    /// All three.
    pub const ALL: [Record; 3] = [Record::Hardware, Record::Software, Record::WriteProtect];
}

/// Whether aging has taken a leaf's R and X away ([`Record::Software`] only).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Tracked {
    /// Hardware reads as the leaf says.
    No,
    /// R and X are saved in software bits; the next access faults.
    Yes,
}

/// A mapping of memory.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Leaf {
    /// First frame; aligned to the level of the entry.
    pub pfn: Pfn,
    /// Whether it may be read. Saved in a software bit while tracked.
    pub read: bool,
    /// Whether instructions may be fetched. Saved in a software bit while tracked.
    pub exec: bool,
    /// Who allows writing.
    pub writable: Writable,
    /// A.
    pub accessed: bool,
    /// D.
    pub dirty: bool,
    /// How use is recorded.
    pub record: Record,
    /// Whether aging hides it from hardware.
    pub tracked: Tracked,
    /// Memory type.
    pub memory: MemoryType,
}

/// The leaf a split puts at `index` below a huge leaf of `level`: everything is inherited, so
/// that any mixture of old and new translations is the same mapping (invariant 42).
pub fn split_child(parent: &Leaf, level: Level, index: u64) -> Option<Leaf> {
    let below = level.below()?;
    Some(Leaf { pfn: Pfn(parent.pfn.0 + index * below.pages()), ..*parent })
}
