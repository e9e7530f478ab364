//! One 64-bit entry of a table: what it can be ([`State`]), how each processor writes that down
//! ([`Format`]), and what changing it obliges to ([`law`]).
//!
//! ## States
//!
//! | state | present for the library | what hardware sees |
//! |---|---|---|
//! | `Empty` | no | not present |
//! | `Mmio` | no | a misconfiguration (EPT) or a reserved bit (NPT) |
//! | `Hold`, `Claim`, `Dead` (*frozen*) | no | not present |
//! | `Table` | yes | a pointer to the next table |
//! | `Leaf` | yes | a mapping; not readable while access-tracked |
//!
//! "Present" is software bit 11 and independent of what hardware may do with the entry.
//!
//! ## Frozen values
//!
//! A *hold* begins and ends inside one section, and its owner may be waited for only by the owner
//! of a detached table, downwards. A *claim* outlives its section; whoever meets one leaves his
//! section and comes back. *Dead* entries fill a table that has been detached: nothing replaces
//! them, and the first of them links the tables that wait for one flush. No frozen value has a W,
//! D or A bit, so nothing that looks for those can take it for a leaf.
//!
//! ## Writable states
//!
//! Of the eight combinations of *host allows writing*, *library allows writing* and the hardware
//! W bit four are legal, and [`Writable`] has only these.

pub mod ept;
mod format;
pub mod law;
pub mod npt;
// Models shrink the tables; what hardware walks is judged without them.
#[cfg(all(test, not(any(loom, shuttle))))]
mod tests;

use core::fmt;

use bitflags::bitflags;

use crate::addr::{Level, Pfn};
use crate::sync::{AtomicU64, Ordering};

pub use format::{Format, FormatError};

bitflags! {
    /// What an access wants, or what an entry allows.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
    pub struct Access: u8 {
        /// Read data.
        const READ = 1;
        /// Write data.
        const WRITE = 2;
        /// Fetch instructions.
        const EXEC = 4;
    }
}

/// The bits of one entry, as hardware and library see them.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Value(pub u64);

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#018x}", self.0)
    }
}

/// The four legal ways in which host, library and hardware agree about writing.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Writable {
    /// The host does not allow it.
    Never,
    /// The host allows it, the library must not: somebody relies on the protection.
    Hard,
    /// The library allows it; W is clear only to see the next write. Fixable without asking.
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

/// Memory type of a mapping (Intel SDM volume 3, 13.3; AMD APM volume 2, 7.4).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum MemoryType {
    /// UC.
    Uncached,
    /// WC.
    WriteCombining,
    /// WT.
    WriteThrough,
    /// WP.
    WriteProtected,
    /// WB.
    WriteBack,
}

impl MemoryType {
    /// All five.
    pub const ALL: [MemoryType; 5] = [
        MemoryType::Uncached,
        MemoryType::WriteCombining,
        MemoryType::WriteThrough,
        MemoryType::WriteProtected,
        MemoryType::WriteBack,
    ];
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

/// What an entry is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum State {
    /// Nothing.
    Empty,
    /// No memory here as of `generation`: emulate.
    Mmio {
        /// The generation of the slots when it was written, [`Format::GENERATION_BITS`] of it.
        generation: u64,
    },
    /// Frozen within one section.
    Hold {
        /// Participant, less than two to the power of [`Format::OWNER_BITS`].
        owner: u64,
    },
    /// Frozen for longer than a section.
    Claim {
        /// Participant, less than two to the power of [`Format::OWNER_BITS`].
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

/// The word in a table page. It changes only by compare-exchange from a value seen, or by
/// exchange by the owner of a detached or not yet linked table. Writes release, reads acquire.
#[derive(Debug)]
#[repr(transparent)]
pub struct Cell(AtomicU64);

impl Cell {
    /// A word outside of any table page; models build their tables from these.
    pub fn new(value: Value) -> Self {
        Cell(AtomicU64::new(value.0))
    }

    /// What is there now.
    #[inline]
    pub(crate) fn get(&self) -> Value {
        Value(self.0.load(Ordering::Acquire))
    }

    /// Replaces `seen` by `new`, or says what is there instead.
    #[inline]
    pub(crate) fn change(&self, seen: Value, new: Value) -> Result<(), Value> {
        if defect!(OverwritesBlindly) {
            self.0.store(new.0, Ordering::Release);
            return Ok(());
        }
        match self.0.compare_exchange(seen.0, new.0, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => Ok(()),
            Err(now) => Err(Value(now)),
        }
    }

    /// Takes what is there away, whatever it is: only for values the law does not know.
    #[cold]
    pub(crate) fn exchange(&self, new: Value) -> Value {
        Value(self.0.swap(new.0, Ordering::AcqRel))
    }

    /// Overwrites a dead entry of a table that the caller has detached: only hardware may still
    /// read it.
    #[inline]
    pub(crate) fn set_dead(&self, value: Value) {
        self.0.store(value.0, Ordering::Release);
    }

    /// Writes a table that nobody else can reach: before it is linked, or after retirement.
    #[inline]
    pub(crate) fn set_private(&self, value: Value) {
        self.0.store(value.0, Ordering::Relaxed);
    }
}

/// The leaf a split puts at `index` below a huge leaf of `level`: everything is inherited, so
/// that any mixture of old and new translations is the same mapping (invariant 42).
pub fn split_child(parent: &Leaf, level: Level, index: u64) -> Option<Leaf> {
    let below = level.below()?;
    Some(Leaf { pfn: Pfn(parent.pfn.0 + index * below.pages()), ..*parent })
}
