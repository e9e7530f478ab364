//! The two halves of a fault.

use crate::addr::{Gfn, GfnRange, Level};
use crate::entry::access::Access;
use crate::entry::format::Format;
use crate::entry::state::State;
use crate::fault::{MemoryFault, Outcome, PageFault};
use crate::host::backing::{Backing, Resolution};
use crate::host::host::Host;
use crate::protocol::local::Local;
use crate::protocol::section::Section;
use crate::protocol::watch::Watch;
use crate::state::broken::Broken;
use crate::state::participant::ParticipantWords;
use crate::state::root::{Root, RootName};
use crate::state::slot::{AddressSpace, Source};
use crate::state::slot_set::Hint;
use crate::table::cache::{Cache, MissingPages};
use crate::table::walk::descend;
use crate::tdp::insert::Mapped;
use crate::tdp::recent::Recent;
use crate::tdp::request::{Admission, Refused, Request, ResolvedFault};
use crate::tdp::usable::{is_allowed, is_usable};

/// The answer to a fault's first half.
#[must_use]
#[derive(Debug)]
pub enum FaultStep<'vm> {
    /// Nothing more to do.
    Done(Outcome),
    /// Find the frame, then complete.
    Resolve(Request<'vm>),
    /// Table pages are missing; reserve them and ask again.
    MissingPages(MissingPages),
}

/// A frame that could not be mapped for want of table pages. Nothing is lost: reserve pages and
/// complete again.
#[must_use]
#[derive(Debug)]
pub struct NeedsPages<'vm> {
    /// How many.
    pub need: MissingPages,
    /// The frame, still watched.
    pub frame: ResolvedFault<'vm>,
}

/// What one participant brings to a fault.
pub(crate) struct Faulter<'a, 'p, H: Host> {
    pub local: &'a mut Local<'p, H>,
    pub cache: &'a mut Cache,
    pub hint: &'a mut Hint,
    pub recent: &'a mut Recent,
}

impl<'p, H: Host> Faulter<'_, 'p, H> {
    /// First half: watch, then one section, or a second one if the watch is a spare one.
    #[inline]
    pub(crate) fn begin_fault(
        &mut self,
        name: RootName,
        space: AddressSpace,
        fault: PageFault,
    ) -> FaultStep<'p> {
        let core = self.local.core();
        let words = self.local.words();
        if let Some(broken) = core.broken() {
            return FaultStep::Done(Outcome::Dead(broken));
        }
        let gfn = fault.gpa.gfn();
        if gfn.0 >= core.format.frames() {
            return done(words, Outcome::Fault(MemoryFault::TooHigh));
        }
        self.recent.look(core, &words.watch);
        let mut level = self.recent.level(gfn, core.largest);
        if defect!(WidensInSection) {
            level = Level::Size4K;
        }
        let mut watch = self.local.own_watch(space, gfn, level);
        if watch.is_none() && defect!(WatchesBeforeLooking) {
            watch = self.local.spare_watch(space, gfn, level);
            if watch.is_none() {
                return done(words, Outcome::Retry);
            }
        }
        loop {
            let section = self.local.section_after_watch();
            let Some(root) = core.roots.get(name).filter(|root| root.role.space == space) else {
                return done(words, Outcome::Retry);
            };
            if let Some(outcome) = present(&section, words, &root, fault) {
                return done(words, outcome);
            }
            let Some(region) = section.slots().find(space, gfn, self.hint) else {
                return emulate(&section, self.cache, words, name, fault);
            };
            let word = core.slots.word(region.id);
            if word.is_read_only() && fault.access.contains(Access::WRITE) && word.is_live() {
                return done(words, Outcome::WriteProtected);
            }
            match region.source {
                Source::Linear { .. } => {
                    let full = match self.cache.reserved() {
                        Ok(full) => full,
                        Err(need) => return FaultStep::MissingPages(need),
                    };
                    let outcome = match section.permit_linear(&root, region, word, fault) {
                        Ok(permit) => outcome(permit.map(full)),
                        Err(_) => Outcome::Retry,
                    };
                    return done(words, outcome);
                }
                Source::Backed { .. } => {
                    if watch.is_none() && defect!(AdmitsWhereOpened) {
                        watch = Watch::spare(core, space, gfn, level);
                    }
                    let Some(watch) = watch.take() else {
                        drop(section);
                        // Only here a fault needs one that is shared. What was read is read again, in a
                        // section that begins after the watch was opened.
                        watch = self.local.spare_watch(space, gfn, level);
                        if watch.is_none() {
                            return done(words, Outcome::Retry);
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
                        Err(_) => done(words, Outcome::Retry),
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
            Err(need) => return Err(NeedsPages { need, frame }),
        };
        let (root, fault) = (frame.admission.root, frame.admission.fault);
        // A frame of another VM is judged by that one; the permit refuses it here.
        if core::ptr::eq(core, frame.watch.core) {
            if !is_usable(&core.format, &frame.found) {
                core.kill(Broken::FrameUnusable);
                return Ok(Outcome::Dead(Broken::FrameUnusable));
            }
            if !is_allowed(&core.format, frame.found.access, fault.access) {
                return Ok(counted(words, Outcome::Fault(MemoryFault::Denied)));
            }
        }
        let mapped = {
            let section = self.local.section();
            let level = frame.level();
            let smaller = |refused: Refused| match refused {
                Refused::Invalidation if level > Level::Size4K => {
                    section.permit(&frame, Level::Size4K)
                }
                refused => Err(refused),
            };
            match section.permit(&frame, level).or_else(smaller) {
                Ok(permit) => permit.map(full),
                Err(_) => Mapped::Busy,
            }
        };
        if mapped == Mapped::Conflict {
            self.zap_conflicting_leaf(root, fault);
        }
        Ok(counted(words, outcome(mapped)))
    }

    /// Takes away a leaf that stands in the way of what the host says now: another frame, or a
    /// permission that must not grow in place. Zapped and flushed, so that the next fault maps
    /// anew (invariant 14).
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

    /// Both halves, with a backing in between.
    pub(crate) fn handle_fault(
        &mut self,
        backing: &dyn Backing,
        root: RootName,
        space: AddressSpace,
        fault: PageFault,
    ) -> Outcome {
        loop {
            let request = match self.begin_fault(root, space, fault) {
                FaultStep::Done(outcome) => return outcome,
                FaultStep::MissingPages(_) if self.fill() => continue,
                FaultStep::MissingPages(_) => {
                    return counted(self.local.words(), Outcome::OutOfMemory);
                }
                FaultStep::Resolve(request) => request,
            };
            let words = self.local.words();
            let found = match backing.find(&request.question()) {
                Resolution::Frame(found) => found,
                Resolution::Hole => return counted(words, Outcome::Fault(MemoryFault::Hole)),
                Resolution::Poisoned => {
                    return counted(words, Outcome::Fault(MemoryFault::Poisoned));
                }
                Resolution::Pending => return counted(words, Outcome::Pending),
                Resolution::Retry => continue,
            };
            let mut frame = request.answered(found);
            loop {
                match self.complete(frame) {
                    Ok(outcome) => return outcome,
                    Err(short) if self.fill() => frame = short.frame,
                    Err(_) => return counted(self.local.words(), Outcome::OutOfMemory),
                }
            }
        }
    }

    /// A fault that ended before it began.
    pub(crate) fn refuse(&mut self, outcome: Outcome) -> Outcome {
        counted(self.local.words(), outcome)
    }

    fn fill(&mut self) -> bool {
        let core = self.local.core();
        self.cache.fill(self.local.host(), core, 0).is_ok()
    }
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
            let mask = (1 << Format::GENERATION_BITS) - 1;
            // Stale: somebody may have put a slot here since.
            if generation != section.slots().generation & mask {
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

/// No slot: remember that in an MMIO entry, if the format has such, and emulate.
fn emulate<'p>(
    section: &Section<'_>,
    cache: &mut Cache,
    words: &ParticipantWords,
    root: RootName,
    fault: PageFault,
) -> FaultStep<'p> {
    match section.permit_mmio(root, fault) {
        Ok(permit) => {
            let full = match cache.reserved() {
                Ok(full) => full,
                Err(need) => return FaultStep::MissingPages(need),
            };
            match permit.map(full) {
                Mapped::Busy => done(words, Outcome::Retry),
                Mapped::Done(_) | Mapped::Spurious | Mapped::Conflict => {
                    done(words, Outcome::Emulate)
                }
            }
        }
        Err(Refused::Generation) => done(words, Outcome::Emulate),
        Err(_) => done(words, Outcome::Retry),
    }
}

fn outcome(mapped: Mapped) -> Outcome {
    match mapped {
        Mapped::Done(level) => Outcome::Fixed(level),
        Mapped::Spurious => Outcome::Spurious,
        Mapped::Busy | Mapped::Conflict => Outcome::Retry,
    }
}

#[inline]
fn done<'p>(words: &ParticipantWords, outcome: Outcome) -> FaultStep<'p> {
    FaultStep::Done(counted(words, outcome))
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
        Outcome::Pending => counters.pending.add(1),
        Outcome::Fault(_) => counters.faulted.add(1),
        Outcome::OutOfMemory => counters.out_of_memory.add(1),
    }
    outcome
}
