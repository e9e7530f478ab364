//! A guest's page fault, and how it ended.

use core::fmt;

use crate::addr::{Gpa, Level};
use crate::entry::access::Access;
use crate::state::broken::Broken;

/// An access of the guest's for which the tables have no translation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageFault {
    /// Where, in bytes.
    pub gpa: Gpa,
    /// What the access wants. A guest's page-table walk is a read, or a write where it sets A or
    /// D; hardware says so.
    pub access: Access,
    /// Who wants it.
    pub cause: Cause,
}

/// Who wants a mapping.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cause {
    /// The guest's access: it will be repeated at once, so A may be set.
    Guest,
    /// The hypervisor, before the guest needs it: A is not set, so nothing counts as used.
    Prefault,
}

/// Why something cannot be done just now, though nothing is wrong. The library does not wait for
/// these to end, because the caller may be the one who has to end them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Busy {
    /// The page is under an invalidation by the host: it can be had after the invalidation's end.
    Invalidation,
    /// The backing has the page later ([`Resolution::Pending`](crate::host::Resolution::Pending)).
    Pending,
    /// The slot is being deleted.
    SlotDying,
    /// Too many requests are out: complete or drop one.
    Requests,
    /// Every place for a root is taken, by roots of other roles or by drains that other threads are
    /// at just now.
    Roots,
}

impl fmt::Display for Busy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Busy::Invalidation => "under an invalidation by the host",
            Busy::Pending => "the backing has it later",
            Busy::SlotDying => "its slot is being deleted",
            Busy::Requests => "too many requests are out: complete or drop one",
            Busy::Roots => "all places for roots are taken",
        })
    }
}

/// How a fault ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Outcome {
    /// Mapped. Let the guest repeat the access.
    Fixed(Level),
    /// The tables allowed the access already. Let the guest repeat it.
    Spurious,
    /// Not now, for a reason that may last: let the guest repeat the access, and let run whoever
    /// has to end the reason. What others end in a few steps is tried again inside the call.
    Busy(Busy),
    /// What was found out is no longer so: begin the fault again, or let the guest repeat the
    /// access. Only the two halves of a fault answer this, because they wait for nobody;
    /// [`handle_fault`](crate::VcpuMmu::handle_fault) begins again by itself.
    Retry,
    /// No memory here: emulate the access as MMIO. So is every address beyond what the tables can
    /// translate, where no slot can be.
    Emulate,
    /// A write to a read-only slot: emulate it or drop it.
    WriteProtected,
    /// The VMM has to decide: the page cannot be had.
    Fault(MemoryFault),
    /// Table pages ran out. Nothing has changed; handle the fault again when the host has some.
    OutOfMemory,
    /// The MMU is dead.
    Dead(Broken),
}

/// Why a page cannot be had.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MemoryFault {
    /// A slot covers it, but its backing has nothing there.
    Hole,
    /// The host's page is broken.
    Poisoned,
    /// The backing does not allow the access.
    Denied,
    /// The backing names a frame that the host has reserved for itself
    /// ([`Config::reserved`](crate::Config::reserved)): its books are wrong.
    Reserved,
}

impl Outcome {
    /// The name used in statistics.
    pub const fn name(&self) -> &'static str {
        match self {
            Outcome::Fixed(_) => "fixed",
            Outcome::Spurious => "spurious",
            Outcome::Retry => "retry",
            Outcome::Emulate => "emulate",
            Outcome::WriteProtected => "write-protected",
            Outcome::Busy(Busy::Pending) => "pending",
            Outcome::Busy(_) => "busy",
            Outcome::Fault(_) => "memory-fault",
            Outcome::OutOfMemory => "out-of-memory",
            Outcome::Dead(_) => "dead",
        }
    }
}

impl fmt::Display for MemoryFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            MemoryFault::Hole => "the slot's backing has nothing there",
            MemoryFault::Poisoned => "the host's page is broken",
            MemoryFault::Denied => "the backing does not allow the access",
            MemoryFault::Reserved => "the backing names a frame that the host has reserved",
        })
    }
}
