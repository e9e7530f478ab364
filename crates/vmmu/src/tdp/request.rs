//! From a watch to a frame: [`Watch`] → [`Request`] → [`Frame`], each by value. Whoever drops one,
//! on any thread, closes the watch.

use crate::addr::{Gfn, GfnRange, Level, Pfn};
use crate::host::{FrameAsk, Host, HostFrame};
use crate::line::WatchPlace;
use crate::root::RootName;
use crate::section::{Kind, Section, Turn, Watch};
use crate::shared::Core;
use crate::slot::{Region, Source, Word};

use super::Ask;

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
    /// The generation of the slots has changed.
    Generation,
    /// It is another VM's.
    Foreign,
    /// No leaf of this level can be here.
    Level,
}

/// An admitted watch: written, fenced, and its range was not under invalidation then.
///
/// Find the frame, then [`provide`](Request::provide) it. `Send`; it keeps no participant busy.
#[must_use]
#[derive(Debug)]
pub struct Request<'vm> {
    pub(crate) watch: Watch<'vm>,
    pub(crate) about: About,
}

/// What a request is about.
#[derive(Clone, Copy, Debug)]
pub(crate) struct About {
    pub ask: Ask,
    pub root: RootName,
    pub region: Region,
    /// The slot's word at admission.
    pub word: Word,
    /// The largest leaf slot and format allow here.
    pub largest: Level,
}

/// A frame and the watch it was found under.
#[must_use]
#[derive(Debug)]
pub struct Frame<'vm> {
    pub(crate) watch: Watch<'vm>,
    pub(crate) about: About,
    pub(crate) found: HostFrame,
}

/// A request as a name, for hosts that need it `'static`.
#[must_use = "its watch stays taken until it is unparked or the VM is torn down"]
#[derive(Debug)]
pub struct Parked {
    vm: u64,
    place: WatchPlace,
    count: u64,
    about: About,
}

impl About {
    pub(crate) fn gfn(&self) -> Gfn {
        self.ask.gpa.gfn()
    }
}

impl<'vm> Request<'vm> {
    /// What the access was.
    pub fn ask(&self) -> Ask {
        self.about.ask
    }

    /// What to ask a [`Backing`](crate::host::Backing).
    pub fn frame_ask(&self) -> FrameAsk {
        let About { region, largest, ask, .. } = self.about;
        let gfn = ask.gpa.gfn();
        let offset = gfn.0.saturating_sub(region.range.start().0);
        let (backing, page) = match region.source {
            Source::Backed { backing, first } => (backing, first.saturating_add(offset)),
            // Never admitted: a linear slot needs no request.
            Source::Linear { pfn, .. } => (0, pfn.0.saturating_add(offset)),
        };
        FrameAsk { slot: region.id, backing, page, gfn, access: ask.access, largest }
    }

    /// The frame has been found.
    #[inline]
    pub fn provide(self, found: HostFrame) -> Frame<'vm> {
        Frame { watch: self.watch, about: self.about, found }
    }

    /// Becomes a name without a borrow. The watch stays written.
    pub fn park(self) -> Parked {
        let Request { watch, about } = self;
        let count = watch.core.lines.watch_words(watch.place).map_or(0, |words| words.count());
        let parked = Parked { vm: watch.core.id, place: watch.place, count, about };
        core::mem::forget(watch);
        parked
    }
}

impl<'p, H: Host> Turn<'p, H> {
    /// Makes a request of its name again, or gives the name back if it is another VM's.
    pub fn unpark(&mut self, parked: Parked) -> Result<Request<'p>, Parked> {
        let core: &'p Core = self.core();
        let words = core.lines.watch_words(parked.place).filter(|_| core.id == parked.vm);
        if words.is_none_or(|words| !words.is_open() || words.count() != parked.count) {
            return Err(parked);
        }
        Ok(Request { watch: Watch { core, place: parked.place }, about: parked.about })
    }
}

impl Frame<'_> {
    /// The largest leaf this frame can make here.
    #[inline]
    pub fn level(&self) -> Level {
        let about = &self.about;
        let mut level = self.found.level.min(about.largest);
        while level > Level::K4 && !congruent(self.found.pfn, about.gfn(), level) {
            level = level.below().unwrap_or(Level::K4);
        }
        level
    }
}

/// Whether frame and guest frame lie at the same place of their blocks of `level`.
#[inline]
pub(crate) fn congruent(pfn: Pfn, gfn: Gfn, level: Level) -> bool {
    (pfn.0 ^ gfn.0) & (level.pages() - 1) == 0
}

impl<K: Kind> Section<'_, K> {
    /// Admits a watch: the slot is live, allows the access, and the frames are not under
    /// invalidation. The fence that opened this section orders the watch before these reads, so an
    /// invalidation that is not seen here sees the watch.
    pub fn admit<'vm>(
        &self,
        watch: Watch<'vm>,
        root: RootName,
        ask: Ask,
    ) -> Result<Request<'vm>, Refused> {
        let core = self.inside.core;
        if !core::ptr::eq(core, watch.core) {
            return Err(Refused::Foreign);
        }
        let role = core.roots.get(root).ok_or(Refused::Root)?.role;
        let gfn = ask.gpa.gfn();
        let mut hint = crate::slot::Hint::default();
        let region = *self.slots().find(role.space, gfn, &mut hint).ok_or(Refused::NoSlot)?;
        let word = core.slots.word(region.id);
        self.admit_in(watch, About { ask, root, region, word, largest: Level::K4 })
    }

    /// The same for a slot that has been found in this section.
    #[inline]
    pub(crate) fn admit_in<'vm>(
        &self,
        watch: Watch<'vm>,
        mut about: About,
    ) -> Result<Request<'vm>, Refused> {
        let core = self.inside.core;
        if !about.word.is_live() {
            return Err(Refused::Stale);
        }
        if !about.word.access().contains(about.ask.access) {
            return Err(Refused::ReadOnly);
        }
        let watched = core.lines.watch_words(watch.place).and_then(|words| words.watched());
        let watched = watched.map_or(GfnRange::EMPTY, |watched| watched.range);
        let page = about.region.host_range(about.gfn().leaf(Level::K4));
        let page = page.ok_or(Refused::NoSlot)?;
        if !watched.contains(about.gfn()) {
            return Err(Refused::Foreign);
        }
        if !defect!(AdmitsUnderInvalidation) && core.active.covers(&page) {
            return Err(Refused::Invalidation);
        }
        let mut largest = about.word.largest().min(core.largest);
        while largest > Level::K4 && !watched.covers(about.gfn().leaf(largest)) {
            largest = largest.below().unwrap_or(Level::K4);
        }
        about.largest = about.region.level_at(about.gfn(), largest);
        // What is found from here on is believed for whole leaves up to this size. An invalidation
        // of another page of such a leaf that has hit the watches already will not hit this one.
        let is_taken = |level| {
            let pages = about.region.host_range(about.gfn().leaf(level));
            pages.is_none_or(|pages| core.active.covers(&pages))
        };
        let mut largest = about.largest;
        while largest > Level::K4 && is_taken(largest) && !defect!(BelievesWholeBlock) {
            largest = largest.below().unwrap_or(Level::K4);
        }
        about.largest = largest;
        if defect!(SignExtendsRevision) {
            about.word = Word(i64::from(about.word.0 as i16) as u64);
        }
        Ok(Request { watch, about })
    }
}
