//! The library's own reads and writes of guest memory, and translation.
//!
//! They take the same watch as a fault, and copy inside a section in which slot, invalidations and
//! hits have been checked again. So an invalidation, which waits for sections, never returns while
//! a copy to or from its pages is under way.

use core::fmt;
use core::ptr::NonNull;

use crate::addr::{Gfn, GfnRange, Gpa, Hpa, Level, PAGE_SIZE, Pfn};
use crate::entry::access::Access;
use crate::fault::{Busy, Cause, PageFault};
use crate::host::backing::{Backing, HostFrame, Resolution};
use crate::host::cpus::WaitFor;
use crate::host::host::Host;
use crate::host::memory::{GuestMemory, GuestPage};
use crate::protocol::local::Local;
use crate::protocol::section::Section;
use crate::state::broken::Broken;
use crate::state::reserved::Gap;
use crate::state::root::{Role, RootName};
use crate::state::slot::{AddressSpace, SlotState, Source};
use crate::state::slot_set::Hint;
use crate::sync::{GuestU32, GuestU64, Ordering};
use crate::tdp::recent::Recent;
use crate::tdp::request::{Admission, Refused, ResolvedFault};

/// Where a guest address leads, as the tables say now. It may be gone the next moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Translation {
    /// The host-physical byte.
    pub hpa: Hpa,
    /// What hardware may do with it.
    pub access: Access,
    /// Size of the leaf.
    pub level: Level,
}

/// Guest memory could not be read or written to the end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AccessError {
    /// The first byte that was not copied.
    pub gpa: Gpa,
    /// Bytes copied before it.
    pub done: usize,
    /// Why.
    pub why: AccessFailure,
}

/// Why guest memory could not be read or written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AccessFailure {
    /// No slot is there.
    NoMemory,
    /// A write to a read-only slot, or one that the backing does not allow.
    ReadOnly,
    /// The backing has nothing there, or something broken.
    Hole,
    /// The backing names a frame that the host has reserved for itself
    /// ([`Config::reserved`](crate::Config::reserved)).
    Reserved,
    /// The host cannot reach the frame by an address of its own
    /// ([`GuestMemory::bytes`] gave `None`).
    Unreachable,
    /// Not now: try again when what it names is over.
    Busy(Busy),
    /// The MMU is dead.
    Dead(Broken),
    /// The range runs over the end of the address space.
    TooHigh,
    /// An atomic word has to be aligned to its size.
    Unaligned,
}

/// A word of guest memory that can be exchanged atomically: `u32` or `u64`.
pub trait GuestWord: Copy + sealed::Sealed {
    #[doc(hidden)]
    /// # Safety
    ///
    /// `word` is aligned, and readable and writable memory.
    unsafe fn exchange_at(word: NonNull<Self>, seen: Self, new: Self) -> Result<Self, Self>;
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for u32 {}
    impl Sealed for u64 {}
}

macro_rules! guest_word {
    ($word:ident, $atomic:ident) => {
        impl GuestWord for $word {
            unsafe fn exchange_at(
                word: NonNull<Self>,
                seen: Self,
                new: Self,
            ) -> Result<Self, Self> {
                // SAFETY: aligned memory by the caller's promise; a guest accesses it atomically
                // or bears the consequences.
                let word = unsafe { $atomic::from_ptr(word.as_ptr()) };
                word.compare_exchange(seen, new, Ordering::AcqRel, Ordering::Acquire)
            }
        }
    };
}

guest_word!(u32, GuestU32);
guest_word!(u64, GuestU64);

impl fmt::Display for AccessError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let why = match &self.why {
            AccessFailure::NoMemory => "no slot is there",
            AccessFailure::ReadOnly => "the memory is read-only",
            AccessFailure::Hole => "the backing has nothing there",
            AccessFailure::Reserved => "the backing names a frame that the host has reserved",
            AccessFailure::Unreachable => "the host has no address for the frame",
            AccessFailure::Busy(why) => {
                return write!(f, "guest memory at {}: {why} ({} bytes done)", self.gpa, self.done);
            }
            AccessFailure::Dead(why) => {
                return write!(f, "guest memory at {}: the MMU is dead: {why}", self.gpa);
            }
            AccessFailure::TooHigh => "beyond the end of the address space",
            AccessFailure::Unaligned => "an atomic word must be aligned to its size",
        };
        write!(f, "guest memory at {}: {why} ({} bytes done)", self.gpa, self.done)
    }
}

impl core::error::Error for AccessError {}

/// A page of guest memory that may be copied once its section has checked it again.
struct Reach<'vm> {
    admission: Admission,
    bytes: NonNull<GuestPage>,
    /// The frame of a backed slot, watched. A linear slot needs none.
    frame: Option<ResolvedFault<'vm>>,
}

/// Why an attempt to reach a page failed.
enum Attempt {
    /// Somebody else was changing the page or its slot, and will have done so in a moment.
    Again,
    /// This call cannot reach the page.
    Failed(AccessFailure),
}

/// What one participant brings to a look-up or a copy.
pub(crate) struct Copier<'a, 'p, H: Host> {
    pub local: &'a mut Local<'p, H>,
    pub hint: &'a mut Hint,
    pub recent: &'a mut Recent,
    pub gap: &'a mut Gap,
}

impl<'p, H: Host> Copier<'_, 'p, H> {
    /// Where the tables of `role` lead for `gpa` now, if they lead anywhere.
    pub(crate) fn translate(&mut self, role: Role, gpa: Gpa) -> Option<Translation> {
        let core = self.local.core();
        let gfn = gpa.gfn();
        // The tables would take a larger frame number for a small one.
        if gfn.0 >= core.format.frames() && !defect!(TranslatesBeyondTables) {
            return None;
        }
        let section = self.local.section();
        let root = core.roots.find(role)?.name;
        let entry = section.entry(root, gfn, Level::Size4K)?;
        if !entry.is_leaf() {
            return None;
        }
        let level = entry.level();
        let inner = gfn.0 & (level.pages() - 1);
        let pfn = Pfn(core.format.pfn(entry.value()).0 | inner);
        let allowed = |access: &Access| core.format.allows(entry.value(), *access);
        let access = [Access::READ, Access::WRITE, Access::EXEC].into_iter().filter(allowed);
        Some(Translation { hpa: Hpa(pfn.hpa().0 | gpa.offset()), access: access.collect(), level })
    }

    /// Exchanges an aligned word.
    pub(crate) fn compare_exchange<W: GuestWord>(
        &mut self,
        memory: &(impl Backing + GuestMemory + ?Sized),
        space: AddressSpace,
        gpa: Gpa,
        seen: W,
        new: W,
    ) -> Result<Result<W, W>, AccessError> {
        let error = |why| AccessError { gpa, done: 0, why };
        if !gpa.0.is_multiple_of(size_of::<W>() as u64) {
            return Err(error(AccessFailure::Unaligned));
        }
        let exchange = |page: NonNull<GuestPage>| {
            // SAFETY: as in `copy`; the word is aligned to its size, so it lies within the page,
            // and the page is aligned, so the word is.
            unsafe {
                W::exchange_at(page.cast::<u8>().add(gpa.offset() as usize).cast(), seen, new)
            }
        };
        self.on_page(memory, space, gpa, Access::WRITE, exchange).map_err(error)
    }

    /// Copies from or to guest memory, page by page.
    pub(crate) fn copy(
        &mut self,
        memory: &(impl Backing + GuestMemory + ?Sized),
        space: AddressSpace,
        gpa: Gpa,
        mut bytes: Bytes<'_>,
    ) -> Result<(), AccessError> {
        let len = bytes.len();
        let mut done = 0;
        while done < len {
            let error = |why| AccessError { gpa: Gpa(gpa.0.wrapping_add(done as u64)), done, why };
            let at = gpa.0.checked_add(done as u64).ok_or_else(|| error(AccessFailure::TooHigh))?;
            let at = Gpa(at);
            let offset = at.offset() as usize;
            let room = PAGE_SIZE as usize - offset;
            let part = done..done.saturating_add(room).min(len);
            let access = bytes.access();
            let copy = |page: NonNull<GuestPage>| {
                // SAFETY: the host says that the page's 4096 bytes are there until an invalidation
                // of the page, or the deletion of its slot, has returned; both wait for the section
                // in which this runs and in which the page has just been found to be under neither.
                // `part` ends within the page.
                unsafe { bytes.copy_at(page.cast(), offset, part.clone()) }
            };
            self.on_page(memory, space, at, access, copy).map_err(error)?;
            done = part.end;
        }
        Ok(())
    }

    /// Does something with the page around `gpa`, in a section in which the page is known to be
    /// the guest's. What others end in a moment is waited for.
    fn on_page<R>(
        &mut self,
        memory: &(impl Backing + GuestMemory + ?Sized),
        space: AddressSpace,
        gpa: Gpa,
        access: Access,
        work: impl FnOnce(NonNull<GuestPage>) -> R,
    ) -> Result<R, AccessFailure> {
        let mut waiting = self.local.waiting(WaitFor::PageChange);
        loop {
            self.local.core().alive().map_err(AccessFailure::Dead)?;
            match self.reach(memory, space, gpa, access) {
                Ok(reach) => {
                    let section = self.local.section();
                    if section.still_reaches(&reach).is_ok() {
                        return Ok(work(reach.bytes));
                    }
                }
                Err(Attempt::Again) => {}
                Err(Attempt::Failed(why)) => return Err(why),
            }
            waiting.pass(self.local.host());
        }
    }

    /// Finds the frame behind a page and where the host can touch it.
    fn reach(
        &mut self,
        memory: &(impl Backing + GuestMemory + ?Sized),
        space: AddressSpace,
        gpa: Gpa,
        access: Access,
    ) -> Result<Reach<'p>, Attempt> {
        let failed = |why| Attempt::Failed(why);
        let core = self.local.core();
        let gfn = gpa.gfn();
        let fault = PageFault { gpa, access, cause: Cause::Prefault };
        self.recent.look(core, &self.local.words().watch);
        let mut watch = self.local.own_watch(space, gfn, Level::Size4K);
        let (admission, request) = loop {
            let section = self.local.section_after_watch();
            let region = section.slots().find(space, gfn, self.hint);
            let region = *region.ok_or(failed(AccessFailure::NoMemory))?;
            let word = core.slots.word(region.id);
            match word.state() {
                Some(SlotState::Live) => {}
                Some(SlotState::Dying) => {
                    return Err(failed(AccessFailure::Busy(Busy::SlotDying)));
                }
                Some(SlotState::Coming) | None => return Err(Attempt::Again),
            }
            if !word.access().contains(access) {
                return Err(failed(AccessFailure::ReadOnly));
            }
            let root = RootName::NONE;
            let admission = Admission { fault, root, region, word, largest: Level::Size4K };
            match region.source {
                Source::Linear(_) => break (admission, None),
                Source::Backed { .. } => {
                    let Some(watch) = watch.take() else {
                        drop(section);
                        // As for a fault: only what is backed takes a spare one.
                        let spare = self.local.spare_watch(space, gfn, Level::Size4K);
                        watch = Some(spare.ok_or(failed(AccessFailure::Busy(Busy::Requests)))?);
                        continue;
                    };
                    match section.admit_in(watch, admission) {
                        Ok(request) => break (admission, Some(request)),
                        Err(Refused::ReadOnly) => return Err(failed(AccessFailure::ReadOnly)),
                        Err(Refused::Invalidation) => {
                            return Err(failed(AccessFailure::Busy(Busy::Invalidation)));
                        }
                        Err(_) => return Err(Attempt::Again),
                    }
                }
            }
        };
        let (pfn, frame) = match (request, admission.region.source) {
            (None, Source::Linear(frames)) => {
                (Pfn(frames.first().0 + (gfn.0 - admission.region.range.start().0)), None)
            }
            (Some(request), _) => match memory.find(&request.question()) {
                Resolution::Frame(found) if !found.access.contains(access) => {
                    return Err(failed(AccessFailure::ReadOnly));
                }
                Resolution::Frame(HostFrame { pfn: Pfn(pfn), .. })
                    if !core.reserved.is_free(pfn, pfn.saturating_add(1), self.gap)
                        && !defect!(MapsReservedAnswers) =>
                {
                    return Err(failed(AccessFailure::Reserved));
                }
                Resolution::Frame(found) => (found.pfn, Some(request.answered(found))),
                Resolution::Hole | Resolution::Poisoned => return Err(failed(AccessFailure::Hole)),
                Resolution::Pending => {
                    return Err(failed(AccessFailure::Busy(Busy::Pending)));
                }
                Resolution::Retry => return Err(Attempt::Again),
            },
            (None, Source::Backed { .. }) => return Err(Attempt::Again),
        };
        let bytes = memory.bytes(pfn).ok_or(failed(AccessFailure::Unreachable))?;
        Ok(Reach { admission, bytes, frame })
    }
}

impl Section<'_> {
    /// Whether what was found outside of the section is still so.
    fn still_reaches(&self, reach: &Reach<'_>) -> Result<(), Refused> {
        match &reach.frame {
            Some(frame) => self.holds(frame, page(reach.admission.fault.gpa.gfn())),
            None if self.inside.core.slots.word(reach.admission.region.id)
                == reach.admission.word
                || defect!(CopiesWithoutLook) =>
            {
                Ok(())
            }
            None => Err(Refused::Stale),
        }
    }
}

fn page(gfn: Gfn) -> GfnRange {
    gfn.leaf(Level::Size4K)
}

/// The caller's buffer, and which way the bytes go.
pub(crate) enum Bytes<'b> {
    /// From the guest.
    Out(&'b mut [u8]),
    /// To the guest.
    In(&'b [u8]),
}

impl Bytes<'_> {
    fn len(&self) -> usize {
        match self {
            Bytes::Out(buffer) => buffer.len(),
            Bytes::In(bytes) => bytes.len(),
        }
    }

    fn access(&self) -> Access {
        match self {
            Bytes::Out(_) => Access::READ,
            Bytes::In(_) => Access::WRITE,
        }
    }

    /// Copies one part of the buffer from or to a page.
    ///
    /// The accesses are volatile: a guest may use the same bytes at the same time, and what it
    /// then sees or leaves is its own affair.
    ///
    /// # Safety
    ///
    /// `page` points at 4096 readable and writable bytes, and `offset` plus the length of `part`
    /// is at most 4096.
    unsafe fn copy_at(&mut self, page: NonNull<u8>, offset: usize, part: core::ops::Range<usize>) {
        const WORD: usize = size_of::<u64>();
        let mut at = offset;
        match self {
            Bytes::Out(buffer) => {
                let buffer = buffer.get_mut(part).unwrap_or_default();
                let mut words = buffer.chunks_exact_mut(WORD);
                for word in &mut words {
                    // SAFETY: within the page by the caller's promise.
                    let value = unsafe { page.add(at).cast::<[u8; WORD]>().read_volatile() };
                    word.copy_from_slice(&value);
                    at += WORD;
                }
                for byte in words.into_remainder() {
                    // SAFETY: within the page by the caller's promise.
                    *byte = unsafe { page.add(at).read_volatile() };
                    at += 1;
                }
            }
            Bytes::In(bytes) => {
                let bytes = bytes.get(part).unwrap_or_default();
                let (words, rest) = bytes.as_chunks::<WORD>();
                for word in words {
                    // SAFETY: within the page by the caller's promise.
                    unsafe { page.add(at).cast::<[u8; WORD]>().write_volatile(*word) };
                    at += WORD;
                }
                for byte in rest {
                    // SAFETY: within the page by the caller's promise.
                    unsafe { page.add(at).write_volatile(*byte) };
                    at += 1;
                }
            }
        }
    }
}
