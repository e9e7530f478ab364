//! Where the host finds the frames of a backed slot.

use crate::addr::{Gfn, Level, Pfn};
use crate::entry::access::{Access, MemoryType};
use crate::state::slot::SlotId;
use crate::state::watch_name::WatchName;

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
    /// Under which watch it is asked. `None`: within one call, or for nobody.
    pub(crate) name: Option<WatchName>,
}

impl FrameQuery {
    /// A query of no request, to test a backing with: no request takes the answer to it.
    pub const fn of_nobody(
        slot: SlotId,
        (backing, page): (u64, u64),
        gfn: Gfn,
        access: Access,
        largest: Level,
    ) -> FrameQuery {
        FrameQuery { slot, backing, page, gfn, access, largest, name: None }
    }

    /// The answer to this query, for the request that asks it: see
    /// [`Request::resolve`](crate::Request::resolve). A fault in one call needs none: what its
    /// [`Backing`] finds is the answer.
    pub const fn answer(&self, frame: HostFrame) -> Answer {
        Answer { frame, name: self.name }
    }
}

/// A host frame, and which query it answers. A plain value: it can be found on another thread, and
/// come back later. Only the request that asked takes it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Answer {
    /// What was found.
    pub frame: HostFrame,
    pub(crate) name: Option<WatchName>,
}

/// A host frame, as an answer.
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
    /// Nothing backs this page: the fault ends as [`Outcome::Fault`](crate::Outcome::Fault).
    Hole,
    /// The page is broken (uncorrectable memory error).
    Poisoned,
    /// Not now. The fault ends as [`Busy::Pending`](crate::Busy::Pending), and the guest may
    /// fault again at any time.
    Pending,
    /// Ask again: the library does so after one step of [`Cpus::wait`](crate::host::Cpus::wait).
    Retry,
}

/// Finds the host frames behind the pages of a backing: for
/// [`VcpuMmu::handle_fault`](crate::VcpuMmu::handle_fault) and for the library's own reads and
/// writes of guest memory.
///
/// # Safety
///
/// A guest reaches every frame that is named here. So an implementation promises:
///
/// * what [`find`](Self::find) names belongs to the guest: neither table pages nor memory that this
///   program uses for anything else are ever named. As a second line of defence the library refuses
///   an answer whose leaf would map a frame that the configuration says is
///   [reserved](crate::Config::reserved). So the pages that
///   [`TablePages::take`](crate::host::TablePages::take) gives belong into those ranges: no fault
///   compares an answer with the tables themselves, only the [checker](crate::Mmu::check) does,
///   which reads all of them;
/// * while no invalidation covers a page, the answer for it does not name another frame. A frame
///   changes only between the begin of an invalidation that covers its page and the end of it.
///
/// An implementation may answer less than it could (a smaller block, less access, *retry* for
/// ever). Then the guest is slow or stands still, and nothing worse happens.
pub unsafe trait Backing {
    /// Finds the frame. May sleep, may allocate.
    fn find(&self, query: &FrameQuery) -> Resolution;
}
