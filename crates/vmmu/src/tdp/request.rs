//! From a watch to a frame: [`Watch`] → [`Request`] → [`ResolvedFault`], each by value. Dropping
//! one of them, on any thread, closes the watch.

use core::fmt;

use crate::addr::{Gfn, Level, Pfn};
use crate::fault::PageFault;
use crate::host::backing::{Answer, FrameQuery, HostFrame};
use crate::host::host::Host;
use crate::protocol::local::Local;
use crate::protocol::section::{Liability, Section};
use crate::protocol::watch::Watch;
use crate::state::core::Core;
use crate::state::root::RootName;
use crate::state::slot::{SlotWord, Source};
use crate::state::slot_set::{Hint, Region};
use crate::state::watch_name::WatchName;
use crate::table::cache::MissingPages;

/// Why a watch, permit or name was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Refused {
    /// The root is not valid any more.
    Root,
    /// There is no slot: this is not memory.
    NoSlot,
    /// There is a slot: this is memory.
    Slot,
    /// The slot is coming or dying, or has changed since.
    Stale,
    /// A write to a read-only slot.
    ReadOnly,
    /// Pages of the leaf are under invalidation.
    Invalidation,
    /// The watch was hit: the frame is no longer the page's.
    Hit,
    /// No MMIO entry can be told from those of other generations of the slots: the root is of an
    /// older epoch, or the format has no such entries.
    Generation,
    /// It is another VM's.
    Foreign,
    /// No leaf of this level can be here.
    Level,
}

/// An admitted watch: written, fenced, and its range was not under invalidation then.
///
/// Find the frame that [`query`](Request::query) asks for, then [`resolve`](Request::resolve) with the
/// answer to that query. `Send`; it keeps no participant busy.
#[must_use]
#[derive(Debug)]
pub struct Request<'vm> {
    pub(crate) watch: Watch<'vm>,
    pub(crate) admission: Admission,
}

/// What a request is about.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Admission {
    pub fault: PageFault,
    pub root: RootName,
    pub region: Region,
    /// The slot's word at admission.
    pub word: SlotWord,
    /// The largest leaf slot and format allow here.
    pub largest: Level,
}

/// A frame and the watch it was found under.
#[must_use]
#[derive(Debug)]
pub struct ResolvedFault<'vm> {
    pub(crate) watch: Watch<'vm>,
    pub(crate) admission: Admission,
    pub(crate) found: HostFrame,
}

/// A request as a name, for hosts that need it `'static`.
#[must_use = "its watch stays taken until it is unparked or the VM is torn down"]
#[derive(Debug)]
pub struct Parked {
    name: WatchName,
    admission: Admission,
}

/// An answer that was not made for this request: it names a frame of another page, or of an earlier
/// try for this one. Both come back; the request is still good, and the answer may be another's.
#[must_use = "the request is in it"]
#[derive(Debug)]
pub struct WrongAnswer<'vm> {
    /// What was to be resolved.
    pub request: Request<'vm>,
    /// What was asked for by another query.
    pub answer: Answer,
}

impl fmt::Display for WrongAnswer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gfn = self.request.admission.gfn();
        write!(f, "the answer is not to the query of this request for guest frame {gfn}")
    }
}

impl core::error::Error for WrongAnswer<'_> {}

/// Why a parked request was not completed. It comes back, as good as before.
#[must_use = "the request is in it"]
#[derive(Debug)]
pub enum NotCompleted {
    /// Table pages are missing: reserve them and complete it again, with the same answer.
    MissingPages {
        /// How many.
        missing: MissingPages,
        /// The request.
        parked: Parked,
    },
    /// The answer is to another request's query, or to an earlier one of this.
    WrongAnswer {
        /// The request.
        parked: Parked,
        /// The answer.
        answer: Answer,
    },
}

impl fmt::Display for NotCompleted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NotCompleted::MissingPages { missing, .. } => {
                write!(
                    f,
                    "{} table pages are missing: reserve them and complete it again",
                    missing.0
                )
            }
            NotCompleted::WrongAnswer { parked, .. } => {
                let gfn = parked.admission.gfn();
                write!(f, "the answer is not to the query of this request for guest frame {gfn}")
            }
        }
    }
}

impl core::error::Error for NotCompleted {}

impl Admission {
    fn query(&self) -> FrameQuery {
        let Admission { region, largest, fault, .. } = *self;
        let gfn = fault.gpa.gfn();
        let offset = gfn.0.saturating_sub(region.range.start().0);
        let (backing, page) = match region.source {
            Source::Backed { backing, first } => (backing, first.saturating_add(offset)),
            // Never admitted: a linear slot needs no request.
            Source::Linear(frames) => (0, frames.first().0.saturating_add(offset)),
        };
        let access = fault.access;
        FrameQuery { slot: region.id, backing, page, gfn, access, largest, name: None }
    }

    pub(crate) fn gfn(&self) -> Gfn {
        self.fault.gpa.gfn()
    }
}

impl<'vm> Request<'vm> {
    /// What the access was.
    pub fn ask(&self) -> PageFault {
        self.admission.fault
    }

    /// What to ask a [`Backing`](crate::host::Backing).
    pub fn query(&self) -> FrameQuery {
        FrameQuery { name: Some(self.watch.name()), ..self.question() }
    }

    /// The same for who takes the answer before it asks anything else: it needs no name.
    #[inline]
    pub(crate) fn question(&self) -> FrameQuery {
        self.admission.query()
    }

    /// The frame has been found: `answer` was made from this request's [`query`](Self::query), see
    /// [`FrameQuery::answer`].
    #[expect(clippy::result_large_err, reason = "the request comes back; a box would allocate")]
    pub fn resolve(self, answer: Answer) -> Result<ResolvedFault<'vm>, WrongAnswer<'vm>> {
        if answer.name != Some(self.watch.name()) && !defect!(TakesAnyAnswer) {
            return Err(WrongAnswer { request: self, answer });
        }
        Ok(self.answered(answer.frame))
    }

    /// The same for who has just asked by this very request.
    #[inline]
    pub(crate) fn answered(self, found: HostFrame) -> ResolvedFault<'vm> {
        ResolvedFault { watch: self.watch, admission: self.admission, found }
    }

    /// Becomes a name without a borrow. The watch stays written.
    pub fn park(self) -> Parked {
        let Request { watch, admission } = self;
        let parked = Parked { name: watch.name(), admission };
        core::mem::forget(watch);
        parked
    }
}

impl Parked {
    /// What to ask a [`Backing`](crate::host::Backing).
    pub fn query(&self) -> FrameQuery {
        FrameQuery { name: Some(self.name), ..self.admission.query() }
    }
}

impl<'p, H: Host> Local<'p, H> {
    /// Makes a request of its name again, or gives the name back if it is another VM's.
    pub fn unpark(&mut self, parked: Parked) -> Result<Request<'p>, Parked> {
        let core: &'p Core = self.core();
        let WatchName { mmu, place, count } = parked.name;
        let words = core.participants.watch_words(place).filter(|_| core.id == mmu);
        if words.is_none_or(|words| !words.is_open() || words.count() != count) {
            return Err(parked);
        }
        Ok(Request { watch: Watch { core, place }, admission: parked.admission })
    }
}

impl<'vm> ResolvedFault<'vm> {
    /// The request again, without the frame.
    pub(crate) fn reopen(self) -> Request<'vm> {
        Request { watch: self.watch, admission: self.admission }
    }

    /// The largest leaf this frame can make here.
    #[inline]
    pub fn level(&self) -> Level {
        let admission = &self.admission;
        let mut level = self.found.level.min(admission.largest);
        while level > Level::Size4K && !congruent(self.found.pfn, admission.gfn(), level) {
            level = level.below().unwrap_or(Level::Size4K);
        }
        level
    }
}

impl ResolvedFault<'_> {
    /// The first host frame of the largest leaf that this frame can make here, and the one after its
    /// last.
    #[inline]
    pub(crate) fn block(&self) -> (u64, u64) {
        let pages = self.level().pages();
        let start = self.found.pfn.0 & !(pages - 1);
        (start, start + pages)
    }
}

/// Whether frame and guest frame lie at the same place of their blocks of `level`.
#[inline]
pub(crate) fn congruent(pfn: Pfn, gfn: Gfn, level: Level) -> bool {
    let level = if defect!(ComparesWithinTwoMegabytes) { level.min(Level::Size2M) } else { level };
    (pfn.0 ^ gfn.0) & (level.pages() - 1) == 0
}

impl<L: Liability> Section<'_, L> {
    /// Admits a watch: the slot is live, allows the access, and the frames are not under
    /// invalidation. The fence that opened this section orders the watch before these reads, so an
    /// invalidation that is not seen here sees the watch.
    pub fn admit<'vm>(
        &self,
        watch: Watch<'vm>,
        root: RootName,
        fault: PageFault,
    ) -> Result<Request<'vm>, Refused> {
        let core = self.inside.core;
        if !core::ptr::eq(core, watch.core) {
            return Err(Refused::Foreign);
        }
        let role = core.roots.get(root).ok_or(Refused::Root)?.role;
        let gfn = fault.gpa.gfn();
        let mut hint = Hint::default();
        let region = *self.slots().find(role.space, gfn, &mut hint).ok_or(Refused::NoSlot)?;
        let word = core.slots.word(region.id);
        self.admit_in(watch, Admission { fault, root, region, word, largest: Level::Size4K })
    }

    /// The same for a slot that has been found in this section.
    #[inline]
    pub(crate) fn admit_in<'vm>(
        &self,
        watch: Watch<'vm>,
        mut admission: Admission,
    ) -> Result<Request<'vm>, Refused> {
        let core = self.inside.core;
        if !admission.word.is_live() {
            return Err(Refused::Stale);
        }
        if !admission.word.access().contains(admission.fault.access) {
            return Err(Refused::ReadOnly);
        }
        let gfn = admission.gfn();
        let words = core.participants.watch_words(watch.place).ok_or(Refused::Foreign)?;
        if defect!(WidensInSection)
            && let Some(watched) = words.watched()
        {
            words.narrow(watched.space, gfn, core.largest);
        }
        let watched = words.watched().ok_or(Refused::Foreign)?;
        let page = admission.region.host_range(admission.gfn().leaf(Level::Size4K));
        let page = page.ok_or(Refused::NoSlot)?;
        if !watched.range.contains(gfn) {
            return Err(Refused::Foreign);
        }
        if !defect!(AdmitsUnderInvalidation) && core.invalidations.covers(&page) {
            return Err(Refused::Invalidation);
        }
        let largest = admission.word.largest().min(core.largest).min(watched.level);
        admission.largest = admission.region.level_at(gfn, largest);
        // What is found from here on is believed for whole leaves up to this size. An invalidation
        // of another page of such a leaf that has hit the watches already will not hit this one.
        let is_taken = |level| {
            let pages = admission.region.host_range(admission.gfn().leaf(level));
            pages.is_none_or(|pages| core.invalidations.covers(&pages))
        };
        let mut largest = admission.largest;
        while largest > Level::Size4K && is_taken(largest) && !defect!(BelievesWholeBlock) {
            largest = largest.below().unwrap_or(Level::Size4K);
        }
        admission.largest = largest;
        // No page beyond this leaf will be mapped, so none of them need refuse what is found.
        if largest < watched.level && !defect!(WatchStaysWide) {
            words.narrow(watched.space, gfn, largest);
        }
        if defect!(WatchNarrowerThanLeaf) {
            words.narrow(watched.space, gfn, Level::Size4K);
        }
        if defect!(SignExtendsRevision) {
            admission.word = SlotWord(i64::from(admission.word.0 as i16) as u64);
        }
        Ok(Request { watch, admission })
    }
}
