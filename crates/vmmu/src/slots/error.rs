//! Why a change of the slots is refused.

use core::fmt;

use crate::addr::{GfnRange, Level};
use crate::entry::access::MemoryType;
use crate::error::NoMemory;
use crate::state::broken::Broken;
use crate::state::slot::SlotId;

/// Why a change of the slots was refused. Nothing has changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum SlotError {
    /// The number is not below the configured count.
    Id(SlotId),
    /// The number is in use.
    Taken(SlotId),
    /// No slot has this number, or it is being deleted.
    Missing(SlotId),
    /// A slot needs at least one page.
    Empty(SlotId),
    /// The frames go beyond what the tables can translate.
    TooHigh {
        /// The slot's range.
        range: GfnRange,
        /// Number of frames the tables can translate.
        frames: u64,
    },
    /// The frames of an existing slot overlap.
    Overlap {
        /// The slot that was asked for.
        id: SlotId,
        /// Its range.
        range: GfnRange,
        /// The slot that is there.
        other: SlotId,
        /// The range of that one.
        other_range: GfnRange,
    },
    /// The host has reserved frames of a linear slot (its own memory, for instance).
    Reserved {
        /// The slot that was asked for.
        id: SlotId,
        /// First host frame of the slot.
        first: u64,
        /// Host frame after its last.
        end: u64,
        /// First reserved host frame of the range in the way.
        reserved_first: u64,
        /// Host frame after the last reserved one.
        reserved_end: u64,
    },
    /// The host frames go beyond the physical address width, or the pages of the backing beyond
    /// 64 bits.
    Source(SlotId),
    /// The format has no code for this memory type.
    Memory(MemoryType),
    /// A leaf of this level does not exist.
    Largest(Level),
    /// Memory ran out.
    NoMemory,
    /// The MMU is dead.
    Dead(Broken),
}

impl From<NoMemory> for SlotError {
    fn from(_: NoMemory) -> Self {
        SlotError::NoMemory
    }
}

impl fmt::Display for SlotError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SlotError::Id(id) => write!(f, "slot {}: number too large for this VM", id.0),
            SlotError::Taken(id) => write!(f, "slot {} exists: delete or move it", id.0),
            SlotError::Missing(id) => write!(f, "slot {} does not exist", id.0),
            SlotError::Empty(id) => write!(f, "slot {} has no page", id.0),
            SlotError::TooHigh { range, frames } => {
                write!(f, "{range} ends beyond frame {frames:#x}, the last the tables reach")
            }
            SlotError::Overlap { id, range, other, other_range } => {
                write!(f, "slot {} at {range} overlaps slot {} at {other_range}", id.0, other.0)
            }
            SlotError::Reserved { id, first, end, reserved_first, reserved_end } => write!(
                f,
                "slot {} on host frames {first:#x}..{end:#x} overlaps the host's reserved frames \
                 {reserved_first:#x}..{reserved_end:#x}",
                id.0
            ),
            SlotError::Source(id) => {
                write!(f, "slot {}: its host frames or backing pages end beyond the width", id.0)
            }
            SlotError::Memory(memory) => write!(f, "no code for memory type {memory:?}"),
            SlotError::Largest(level) => write!(f, "no leaf of {level} exists"),
            SlotError::NoMemory => f.write_str("out of memory; nothing has changed"),
            SlotError::Dead(broken) => write!(f, "the MMU is dead: {broken}"),
        }
    }
}

impl core::error::Error for SlotError {}
