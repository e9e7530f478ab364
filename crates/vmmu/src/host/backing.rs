//! Where the host finds the frames of a backed slot.

use crate::addr::{Gfn, Level, Pfn};
use crate::entry::access::{Access, MemoryType};
use crate::state::slot::SlotId;

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
/// What a safe `find` of a correct implementation may still do is answer too little (a smaller
/// block, less access, *retry* for ever): then the guest is slow or stands still, and nothing else.
pub unsafe trait Backing {
    /// Finds the frame. May sleep, may allocate.
    fn find(&self, query: &FrameQuery) -> Resolution;
}
