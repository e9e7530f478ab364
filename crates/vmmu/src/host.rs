//! What a hypervisor provides: small instance traits, no statics, so that two VMs with different
//! hosts live in one process.
//!
//! No hook is ever called inside a section. A hook may take its time, and all but
//! [`Cpus::relax`] may sleep; the library holds no lock of its own over them except the slot
//! guard, which the caller took.
//!
//! | hook | called from | may sleep | may allocate | may call the library |
//! |---|---|---|---|---|
//! | [`TablePages::take`] | refilling a cache, before a fault's or range operation's section | yes | yes | with a participant of its own |
//! | [`TablePages::release`] | settling a debt, teardown | yes | no | no |
//! | [`Cpus::kick`] | a flush, an invalidation of roots | no | no | no |
//! | [`Cpus::relax`] | any wait | no | no | no |
//! | [`Backing::find`] | between the two sections of a fault | yes | yes | with a participant of its own |
//! | [`Backing::bytes`] | reads and writes of guest memory | yes | yes | no |
//! | [`Observer::event`] | after an operation, outside of sections | no | no | no |

use core::ptr::NonNull;

use crate::addr::{Gfn, Level, Pfn};
use crate::entry::{Access, MemoryType};
use crate::slot::SlotId;

/// Number of a vCPU of one VM, below [`Config::vcpus`](crate::Config::vcpus).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct VcpuId(pub u32);

/// Everything a VM needs of its host at all times. Implemented for whatever implements the three.
pub trait Host: TablePages + Cpus + Observer {}

impl<T: TablePages + Cpus + Observer> Host for T {}

/// What the library wants of a table page.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Placement {
    /// The page must end at or below this host-physical address in bytes. `None`: anywhere.
    pub below: Option<u64>,
    /// NUMA node to prefer.
    pub node: Option<u32>,
}

/// Whether a page came zeroed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Contents {
    /// All bytes are zero.
    Zeroed,
    /// Anything.
    Unknown,
}

/// A page that becomes a table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TablePage {
    /// Its frame. ResolvedFault 0 is never used.
    pub pfn: Pfn,
    /// What is in it.
    pub contents: Contents,
}

/// Pages for tables.
///
/// # Safety
///
/// The library reads and writes table pages through pointers made from what this trait says:
///
/// * a page returned by [`take`](Self::take) is 4096 bytes of memory that is readable and
///   writable at virtual address `pfn * 4096 + window()` (wrapping) until it is released, and
///   that nobody else uses meanwhile except hardware walkers of this VM;
/// * [`window`](Self::window) never changes;
/// * the virtual addresses come from memory whose provenance was exposed (memory outside of
///   Rust's allocator, such as a direct map, always is).
pub unsafe trait TablePages: Sync {
    /// Difference between the virtual and the host-physical address of every table page.
    fn window(&self) -> u64;

    /// Gives a page, or `None`: the operation that needed it says so and changes nothing.
    fn take(&self, placement: Placement) -> Option<TablePage>;

    /// Takes a page back. No walker of hardware or software can reach it any more.
    fn release(&self, page: Pfn);
}

/// The processors the vCPUs run on.
pub trait Cpus: Sync {
    /// Makes the vCPU leave the guest soon. Asynchronous and idempotent; may hit the processor it
    /// is called on; must not be lost if the vCPU is just about to enter (an interrupt that stays
    /// pending until entry does). The library kicks only vCPUs whose mode word says "in the
    /// guest".
    fn kick(&self, vcpu: VcpuId);

    /// Passes the time in a wait for other processors.
    fn relax(&self) {
        core::hint::spin_loop();
    }
}

/// Something that happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Event {
    /// A vCPU's fault was answered.
    Fault {
        /// Who.
        vcpu: VcpuId,
        /// Where.
        gfn: Gfn,
        /// What the access wanted.
        access: Access,
        /// How it ended.
        outcome: crate::tdp::Outcome,
    },
    /// A withdrawal began to wait for the sections open now.
    GracePeriod,
    /// A flush reached every vCPU it had to.
    Flushed {
        /// vCPUs interrupted.
        sent: u32,
        /// vCPUs that were outside the guest and see it at their next entry.
        elided: u32,
    },
}

/// Hears of events. Does nothing by default, at no cost.
pub trait Observer: Sync {
    /// Something happened.
    #[inline]
    fn event(&self, event: Event) {
        let _ = event;
    }
}

/// What a fault wants to know.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameQuery {
    /// The slot.
    pub slot: SlotId,
    /// The backing the slot was created with.
    pub backing: u64,
    /// The page of the backing, in 4 KiB pages: the slot's first plus the offset in the slot.
    pub page: u64,
    /// The guest frame.
    pub gfn: Gfn,
    /// What the access wants.
    pub access: Access,
    /// The largest leaf slot and format allow here; a larger answer is cut down.
    pub largest: Level,
}

/// A host frame for a guest frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HostFrame {
    /// The frame behind the very page asked for.
    pub pfn: Pfn,
    /// The naturally aligned block of this size around `pfn` backs the block of this size around
    /// the page asked for.
    pub level: Level,
    /// What the host allows. Must contain what was asked for.
    pub access: Access,
    /// Memory type of the mapping.
    pub memory: MemoryType,
}

/// The answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Resolution {
    /// Here it is.
    Frame(HostFrame),
    /// Nothing backs this page: the fault ends as [`Outcome::Fault`](crate::tdp::Outcome::Fault).
    Hole,
    /// The page is broken (uncorrectable memory error).
    Poisoned,
    /// Not now; the caller is told and asks again when he likes.
    Pending,
    /// PageFault again at once.
    Retry,
}

/// Finds host frames for `handle_fault` and for the library's own reads and writes of guest memory.
///
/// # Contract
///
/// While no invalidation covers a page, the answer for it does not name another frame: a frame
/// changes only between `invalidate` of its old place and the end of that invalidation.
pub trait Backing {
    /// Finds the frame. May sleep, may allocate.
    fn find(&self, query: &FrameQuery) -> Resolution;

    /// Where the 4096 bytes of `pfn` can be reached by this processor, if at all. The pointer
    /// stays valid until an invalidation that covers the frame has returned.
    fn bytes(&self, pfn: Pfn) -> Option<NonNull<u8>> {
        let _ = pfn;
        None
    }
}
