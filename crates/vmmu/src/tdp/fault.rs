//! The two halves of a fault.

use crate::addr::{Gfn, GfnRange, Level};
use crate::entry::access::Access;
use crate::entry::state::State;
use crate::fault::{Busy, MemoryFault, Outcome, PageFault};
use crate::host::backing::{Backing, Resolution};
use crate::host::cpus::WaitFor;
use crate::host::host::Host;
use crate::protocol::local::Local;
use crate::protocol::section::Section;
use crate::protocol::watch::Watch;
use crate::state::broken::Broken;
use crate::state::participant::ParticipantWords;
use crate::state::reserved::Gap;
use crate::state::root::{Root, RootName};
use crate::state::slot::{AddressSpace, SlotState, SlotWord, Source};
use crate::state::slot_set::Hint;
use crate::table::cache::{Cache, MissingPages, ReservedPages};
use crate::table::walk::descend;
use crate::tdp::insert::{Mapped, may_be_populated};
use crate::tdp::recent::Recent;
use crate::tdp::request::{Admission, Refused, Request, ResolvedFault};
use crate::tdp::usable::{is_allowed, is_usable};

/// The answer to a fault's first half.
#[must_use]
#[derive(Debug)]
pub enum FaultStep<R> {
    /// Nothing more to do.
    Done(Outcome),
    /// Find the frame, then complete.
    Resolve(R),
    /// The vCPU has no valid root: load one and ask again.
    LoadRoot,
    /// Table pages are missing; reserve them and ask again.
    MissingPages(MissingPages),
}

impl<R> FaultStep<R> {
    /// The same with another form of the request.
    pub(crate) fn map<S>(self, form: impl FnOnce(R) -> S) -> FaultStep<S> {
        match self {
            FaultStep::Done(outcome) => FaultStep::Done(outcome),
            FaultStep::Resolve(request) => FaultStep::Resolve(form(request)),
            FaultStep::LoadRoot => FaultStep::LoadRoot,
            FaultStep::MissingPages(pages) => FaultStep::MissingPages(pages),
        }
    }
}

/// A frame that could not be mapped for want of table pages. Nothing is lost: reserve pages and
/// complete again.
#[must_use]
#[derive(Debug)]
pub struct NeedsPages<'vm> {
    /// How many.
    pub missing: MissingPages,
    /// The resolved fault, still watched.
    pub resolved: ResolvedFault<'vm>,
}

/// What to do where a place that is no memory could be remembered if there were table pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum IfShort {
    /// Emulate, and remember nothing.
    Emulate,
    /// Say so: the caller can ask the host.
    Say,
}

/// What one participant brings to a fault.
pub(crate) struct Faulter<'a, 'p, H: Host> {
    pub local: &'a mut Local<'p, H>,
    pub cache: &'a mut Cache,
    pub hint: &'a mut Hint,
    pub recent: &'a mut Recent,
    pub gap: &'a mut Gap,
}

impl<'p, H: Host> Faulter<'_, 'p, H> {
    /// First half: watch, then one section, or a second one if the watch is a spare one.
    #[inline]
    pub(crate) fn begin_fault(
        &mut self,
        name: RootName,
        space: AddressSpace,
        fault: PageFault,
        if_short: IfShort,
    ) -> FaultStep<Request<'p>> {
        let core = self.local.core();
        let words = self.local.words();
        if let Some(broken) = core.broken() {
            return FaultStep::Done(Outcome::Dead(broken));
        }
        let gfn = fault.gpa.gfn();
        // No slot is there, and no entry says so: the tables would take it for a low address.
        if gfn.0 >= core.format.frames() {
            return done(words, Outcome::Emulate);
        }
        self.recent.look(core, &words.watch);
        let mut level = self.recent.level(gfn, core.largest);
        if defect!(WidensInSection) {
            level = Level::Size4K;
        }
        let by = self.local.place;
        let mut watch = self.local.own_watch(space, gfn, level);
        if watch.is_none() && defect!(WatchesBeforeLooking) {
            watch = self.local.spare_watch(space, gfn, level);
            if watch.is_none() {
                return done(words, Outcome::Busy(Busy::Requests));
            }
        }
        loop {
            let section = self.local.section_after_watch();
            let is_fit = |root: &Root| root.role.space == space && may_be_populated(root);
            let Some(root) = core.roots.get(name).filter(is_fit) else { return load_root(words) };
            if let Some(outcome) = present(&section, words, &root, fault) {
                return done(words, outcome);
            }
            let Some(region) = section.slots().find(space, gfn, self.hint) else {
                return emulate(&section, self.cache, words, name, fault, if_short);
            };
            let word = core.slots.word(region.id);
            if word.is_read_only() && fault.access.contains(Access::WRITE) && word.is_live() {
                return done(words, Outcome::WriteProtected);
            }
            match region.source {
                Source::Linear(_) => {
                    let full = match self.cache.reserved() {
                        Ok(full) => full,
                        Err(need) => return FaultStep::MissingPages(need),
                    };
                    return match section.permit_linear(&root, region, word, fault) {
                        Ok(permit) => done(words, outcome(permit.map(full))),
                        Err(Refused::Root) => load_root(words),
                        Err(why) => done(words, refused(why, word)),
                    };
                }
                Source::Backed { .. } => {
                    if watch.is_none() && defect!(AdmitsWhereOpened) {
                        watch = Watch::spare(core, by, space, gfn, level);
                    }
                    let Some(watch) = watch.take() else {
                        drop(section);
                        // Only here a fault needs one that is shared. What was read is read again, in a
                        // section that begins after the watch was opened.
                        watch = self.local.spare_watch(space, gfn, level);
                        if watch.is_none() {
                            return done(words, Outcome::Busy(Busy::Requests));
                        }
                        continue;
                    };
                    let admission = Admission {
                        fault,
                        root: name,
                        region: *region,
                        word,
                        largest: Level::Size4K,
                    };
                    return match section.admit_in(watch, admission) {
                        Ok(request) => {
                            self.recent.remember(&request.watch, gfn);
                            FaultStep::Resolve(request)
                        }
                        Err(why) => done(words, refused(why, word)),
                    };
                }
            }
        }
    }

    /// Second half, on whatever participant has the frame. The watch closes after the section.
    #[expect(clippy::result_large_err, reason = "the frame comes back; a box would allocate")]
    #[inline]
    pub(crate) fn complete<'f>(
        &mut self,
        frame: ResolvedFault<'f>,
    ) -> Result<Outcome, NeedsPages<'f>> {
        let words = self.local.words();
        let core = self.local.core();
        if let Some(broken) = core.broken() {
            return Ok(Outcome::Dead(broken));
        }
        let full = match self.cache.reserved() {
            Ok(full) => full,
            Err(missing) => return Err(NeedsPages { missing, resolved: frame }),
        };
        let fault = frame.admission.fault;
        // A frame of another VM is judged by that one; the permit refuses it here.
        if core::ptr::eq(core, frame.watch.core) {
            if !is_usable(&core.format, &frame.found) {
                core.kill(Broken::FrameUnusable);
                return Ok(Outcome::Dead(Broken::FrameUnusable));
            }
            let block = frame.block();
            if !core.reserved.is_free(block.0, block.1, self.gap) && !defect!(MapsReservedAnswers) {
                return Ok(counted(words, Outcome::Fault(MemoryFault::Reserved)));
            }
            if !is_allowed(&core.format, frame.found.access, fault.access) {
                return Ok(counted(words, Outcome::Fault(MemoryFault::Denied)));
            }
        }
        let mapped = match map_frame(self.local, &frame, full) {
            Ok(Mapped::Conflict) => self.replace_conflicting_leaf(&frame),
            mapped => mapped,
        };
        Ok(counted(words, mapped.map_or_else(|why| refused(why, frame.admission.word), outcome)))
    }

    /// Maps a frame in place of what stands in its way. What the first try split has its table by
    /// now, so what is left in stock is enough.
    #[cold]
    fn replace_conflicting_leaf(&mut self, frame: &ResolvedFault<'_>) -> Result<Mapped, Refused> {
        self.zap_conflicting_leaf(frame.admission.root, frame.admission.fault);
        map_frame(self.local, frame, self.cache.in_stock())
    }

    /// Takes away a leaf that stands in the way of what the host says now: another frame, or a
    /// permission that must not grow in place. Zapped and flushed before anything else is mapped
    /// there (invariant 14).
    fn zap_conflicting_leaf(&mut self, root: RootName, fault: PageFault) {
        let gfn: Gfn = fault.gpa.gfn();
        let range: GfnRange = gfn.leaf(self.local.core().largest);
        let mut debt = self.local.debt(range);
        {
            let section = debt.section();
            let mut entry = section.entry(root, gfn, Level::Size4K);
            while let Some(leaf) = entry.filter(|e| e.is_leaf() && !e.allows(fault.access)) {
                entry = leaf.zap().err();
            }
        }
        debt.settle();
    }

    /// Both halves, with a backing in between, until the fault has an outcome that does not end by
    /// itself. What others end in a few steps is waited for through the host, outside of sections.
    ///
    /// `None`: the root has gone since it was loaded.
    pub(crate) fn handle_fault(
        &mut self,
        backing: &dyn Backing,
        root: RootName,
        space: AddressSpace,
        fault: PageFault,
    ) -> Option<Outcome> {
        let mut waiting = self.local.waiting(WaitFor::PageChange);
        let mut if_short = IfShort::Say;
        loop {
            match self.begin_fault(root, space, fault, if_short) {
                FaultStep::Done(Outcome::Retry) => {}
                FaultStep::Done(outcome) => return Some(outcome),
                FaultStep::LoadRoot => return None,
                FaultStep::MissingPages(_) if self.fill() => continue,
                // What is no memory needs no pages.
                FaultStep::MissingPages(_) if if_short == IfShort::Say => {
                    if_short = IfShort::Emulate;
                    continue;
                }
                FaultStep::MissingPages(_) => {
                    return Some(counted(self.local.words(), Outcome::OutOfMemory));
                }
                FaultStep::Resolve(request) => match self.resolve(backing, request) {
                    Outcome::Retry => {}
                    outcome => return Some(outcome),
                },
            }
            waiting.pass(self.local.host());
        }
    }

    /// Asks the backing for a request's frame, and completes it.
    #[inline]
    fn resolve(&mut self, backing: &dyn Backing, request: Request<'_>) -> Outcome {
        let words = self.local.words();
        let found = match backing.find(&request.question()) {
            Resolution::Frame(found) => found,
            Resolution::Hole => return counted(words, Outcome::Fault(MemoryFault::Hole)),
            Resolution::Poisoned => return counted(words, Outcome::Fault(MemoryFault::Poisoned)),
            Resolution::Pending => return counted(words, Outcome::Busy(Busy::Pending)),
            Resolution::Retry => return counted(words, Outcome::Retry),
        };
        let mut frame = request.answered(found);
        loop {
            match self.complete(frame) {
                Ok(outcome) => return outcome,
                Err(needs) if self.fill() => frame = needs.resolved,
                Err(_) => return counted(words, Outcome::OutOfMemory),
            }
        }
    }

    /// A fault of a vCPU that has no root and gets none now. What is no memory needs none.
    pub(crate) fn without_root(
        &mut self,
        space: AddressSpace,
        fault: PageFault,
        otherwise: Outcome,
    ) -> Outcome {
        let (words, gfn) = (self.local.words(), fault.gpa.gfn());
        let is_memory = self.local.section().slots().find(space, gfn, self.hint).is_some();
        counted(words, if is_memory { otherwise } else { Outcome::Emulate })
    }

    fn fill(&mut self) -> bool {
        let core = self.local.core();
        self.cache.fill(self.local.host(), core, 0).is_ok()
    }
}

/// Maps a frame in a section of its own, as a small leaf if the rest of the large one is being taken
/// back.
#[inline]
fn map_frame<H: Host>(
    local: &mut Local<'_, H>,
    frame: &ResolvedFault<'_>,
    pages: ReservedPages<'_>,
) -> Result<Mapped, Refused> {
    let section = local.section();
    let level = frame.level();
    match section.permit(frame, level) {
        Ok(permit) => Ok(permit.map(pages)),
        Err(Refused::Invalidation) if level > Level::Size4K => map_small(&section, frame, pages),
        Err(why) => Err(why),
    }
}

/// Maps only the page, because the rest of the leaf is being taken back.
#[cold]
fn map_small(
    section: &Section<'_>,
    frame: &ResolvedFault<'_>,
    pages: ReservedPages<'_>,
) -> Result<Mapped, Refused> {
    Ok(section.permit(frame, Level::Size4K)?.map(pages))
}

/// What the entry that is there already says, if it settles the matter.
#[inline]
fn present(
    section: &Section<'_>,
    words: &ParticipantWords,
    root: &Root,
    fault: PageFault,
) -> Option<Outcome> {
    let core = section.inside.core;
    let entry = descend(section.inside, root, fault.gpa.gfn(), Level::Size4K);
    if entry.value() == core.format.empty() {
        return None;
    }
    if entry.allows(fault.access) {
        return Some(Outcome::Spurious);
    }
    if entry.is_frozen() {
        return Some(Outcome::Retry);
    }
    match entry.state() {
        State::Mmio { generation } => {
            // Stale: somebody may have put a slot here since.
            if !section.slots().wrote(core.roots.epoch(root), generation) {
                return None;
            }
            words.count_emulated_fast();
            Some(Outcome::Emulate)
        }
        State::Corrupt => {
            core.kill(Broken::Corrupt);
            Some(Outcome::Dead(Broken::Corrupt))
        }
        _ => None,
    }
}

/// No slot: emulate, and remember it in an MMIO entry if the format has such, the root is of this
/// epoch, and a table is there or may be linked.
fn emulate<'p>(
    section: &Section<'_>,
    cache: &mut Cache,
    words: &ParticipantWords,
    root: RootName,
    fault: PageFault,
    if_short: IfShort,
) -> FaultStep<Request<'p>> {
    match section.permit_mmio(root, fault) {
        Ok(permit) => match permit.map(cache.in_stock()) {
            Mapped::Busy => done(words, Outcome::Retry),
            Mapped::NoPages if if_short == IfShort::Say => FaultStep::MissingPages(cache.missing()),
            Mapped::Done(_)
            | Mapped::Spurious
            | Mapped::Conflict
            | Mapped::NoTable
            | Mapped::NoPages => done(words, Outcome::Emulate),
        },
        Err(Refused::Generation) => done(words, Outcome::Emulate),
        Err(_) => done(words, Outcome::Retry),
    }
}

/// What a refusal means for the fault: whether the reason for it ends by itself.
#[cold]
fn refused(why: Refused, word: SlotWord) -> Outcome {
    match why {
        Refused::Invalidation => Outcome::Busy(Busy::Invalidation),
        // A deletion in steps lasts as long as its owner likes.
        Refused::Stale if word.state() == Some(SlotState::Dying) => Outcome::Busy(Busy::SlotDying),
        _ => Outcome::Retry,
    }
}

fn outcome(mapped: Mapped) -> Outcome {
    match mapped {
        Mapped::Done(level) => Outcome::Fixed(level),
        Mapped::Spurious => Outcome::Spurious,
        Mapped::Busy | Mapped::Conflict | Mapped::NoTable | Mapped::NoPages => Outcome::Retry,
    }
}

#[inline]
fn done<'p>(words: &ParticipantWords, outcome: Outcome) -> FaultStep<Request<'p>> {
    FaultStep::Done(counted(words, outcome))
}

/// The root has gone: nothing can be mapped until the vCPU has loaded another.
fn load_root<R>(words: &ParticipantWords) -> FaultStep<R> {
    words.count_retry();
    FaultStep::LoadRoot
}

/// Counts an outcome. A mapped leaf has been counted by the law.
#[inline]
fn counted(words: &ParticipantWords, outcome: Outcome) -> Outcome {
    let counters = &words.counters;
    match outcome {
        Outcome::Fixed(_) | Outcome::Dead(_) => {}
        Outcome::Spurious => words.count_spurious(),
        Outcome::Retry => words.count_retry(),
        Outcome::Emulate => words.count_emulated(),
        Outcome::WriteProtected => counters.write_protected.add(1),
        Outcome::Busy(Busy::Pending) => counters.pending.add(1),
        Outcome::Busy(_) => counters.busy.add(1),
        Outcome::Fault(_) => counters.faulted.add(1),
        Outcome::OutOfMemory => counters.out_of_memory.add(1),
    }
    outcome
}
