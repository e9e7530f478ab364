//! The two halves of a fault.

use crate::addr::{Gfn, GfnRange, Level};
use crate::entry::{Access, State};
use crate::host::{Backing, Found, Host};
use crate::line::Line;
use crate::root::{Root, RootName};
use crate::section::{Section, Turn};
use crate::shared::Broken;
use crate::slot::{AddressSpace, Hint, Source};
use crate::table::{Cache, NeedPages, descend};

use super::request::About;
use super::{Ask, Frame, Mapped, MemoryFault, Outcome, Refused, Request, is_allowed, is_usable};

/// The answer to a fault's first half.
#[must_use]
#[derive(Debug)]
pub enum Step<'vm> {
    /// Nothing more to do.
    Done(Outcome),
    /// Find the frame, then complete.
    Resolve(Request<'vm>),
    /// Table pages are missing; reserve them and ask again.
    NeedPages(NeedPages),
}

/// A frame that could not be mapped for want of table pages. Nothing is lost: reserve pages and
/// complete again.
#[must_use]
#[derive(Debug)]
pub struct Short<'vm> {
    /// How many.
    pub need: NeedPages,
    /// The frame, still watched.
    pub frame: Frame<'vm>,
}

/// What one participant brings to a fault.
pub(crate) struct Faulter<'a, 'p, H: Host> {
    pub turn: &'a mut Turn<'p, H>,
    pub cache: &'a mut Cache,
    pub hint: &'a mut Hint,
}

impl<'p, H: Host> Faulter<'_, 'p, H> {
    /// First half: watch, then one section.
    #[inline]
    pub(crate) fn fault(&mut self, name: RootName, space: AddressSpace, ask: Ask) -> Step<'p> {
        let core = self.turn.core();
        let line = self.turn.line();
        if let Some(broken) = core.broken() {
            return Step::Done(Outcome::Dead(broken));
        }
        let gfn = ask.gpa.gfn();
        if gfn.0 >= core.format.frames() {
            return done(line, Outcome::Fault(MemoryFault::TooHigh));
        }
        let Some(watch) = self.turn.watch(space, gfn, core.largest) else {
            return done(line, Outcome::Retry);
        };
        let section = self.turn.section_after_watch();
        let Some(root) = core.roots.get(name).filter(|root| root.role.space == space) else {
            return done(line, Outcome::Retry);
        };
        if let Some(outcome) = present(&section, line, &root, ask) {
            return done(line, outcome);
        }
        let Some(region) = section.slots().find(space, gfn, self.hint) else {
            return emulate(&section, self.cache, line, name, ask);
        };
        let word = core.slots.word(region.id);
        if word.is_read_only() && ask.access.contains(Access::WRITE) && word.is_live() {
            return done(line, Outcome::WriteProtected);
        }
        match region.source {
            Source::Linear { .. } => {
                let full = match self.cache.full() {
                    Ok(full) => full,
                    Err(need) => return Step::NeedPages(need),
                };
                let outcome = match section.permit_linear(&root, region, word, ask) {
                    Ok(permit) => outcome(permit.map(full)),
                    Err(_) => Outcome::Retry,
                };
                done(line, outcome)
            }
            Source::Backed { .. } => {
                let about = About { ask, root: name, region: *region, word, largest: Level::K4 };
                match section.admit_in(watch, about) {
                    Ok(request) => Step::Resolve(request),
                    Err(_) => done(line, Outcome::Retry),
                }
            }
        }
    }

    /// Second half, on whatever participant has the frame. The watch closes after the section.
    #[expect(clippy::result_large_err, reason = "the frame comes back; a box would allocate")]
    #[inline]
    pub(crate) fn complete<'f>(&mut self, frame: Frame<'f>) -> Result<Outcome, Short<'f>> {
        let line = self.turn.line();
        let core = self.turn.core();
        if let Some(broken) = core.broken() {
            return Ok(Outcome::Dead(broken));
        }
        let full = match self.cache.full() {
            Ok(full) => full,
            Err(need) => return Err(Short { need, frame }),
        };
        let (root, ask) = (frame.about.root, frame.about.ask);
        // A frame of another VM is judged by that one; the permit refuses it here.
        if core::ptr::eq(core, frame.watch.core) {
            if !is_usable(&core.format, &frame.found) {
                core.kill(Broken::FrameUnusable);
                return Ok(Outcome::Dead(Broken::FrameUnusable));
            }
            if !is_allowed(&core.format, frame.found.access, ask.access) {
                return Ok(counted(line, Outcome::Fault(MemoryFault::Denied)));
            }
        }
        let mapped = {
            let section = self.turn.section();
            let level = frame.level();
            let smaller = |refused: Refused| match refused {
                Refused::Invalidation if level > Level::K4 => section.permit(&frame, Level::K4),
                refused => Err(refused),
            };
            match section.permit(&frame, level).or_else(smaller) {
                Ok(permit) => permit.map(full),
                Err(_) => Mapped::Busy,
            }
        };
        if mapped == Mapped::Conflict {
            self.give_way(root, ask);
        }
        Ok(counted(line, outcome(mapped)))
    }

    /// Takes away a leaf that stands in the way of what the host says now: another frame, or a
    /// permission that must not grow in place. Zapped and flushed, so that the next fault maps
    /// anew (invariant 14).
    fn give_way(&mut self, root: RootName, ask: Ask) {
        let gfn: Gfn = ask.gpa.gfn();
        let range: GfnRange = gfn.leaf(self.turn.core().largest);
        let mut debt = self.turn.debt(range);
        {
            let section = debt.section();
            let mut entry = section.entry(root, gfn, Level::K4);
            while let Some(leaf) = entry.filter(|e| e.is_leaf() && !e.allows(ask.access)) {
                entry = leaf.zap().err();
            }
        }
        debt.settle();
    }

    /// Both halves, with a backing in between.
    pub(crate) fn fault_with(
        &mut self,
        backing: &dyn Backing,
        root: RootName,
        space: AddressSpace,
        ask: Ask,
    ) -> Outcome {
        loop {
            let request = match self.fault(root, space, ask) {
                Step::Done(outcome) => return outcome,
                Step::NeedPages(_) if self.fill() => continue,
                Step::NeedPages(_) => return counted(self.turn.line(), Outcome::OutOfMemory),
                Step::Resolve(request) => request,
            };
            let line = self.turn.line();
            let found = match backing.find(&request.frame_ask()) {
                Found::Frame(found) => found,
                Found::Hole => return counted(line, Outcome::Fault(MemoryFault::Hole)),
                Found::Poisoned => return counted(line, Outcome::Fault(MemoryFault::Poisoned)),
                Found::Pending => return counted(line, Outcome::Pending),
                Found::Retry => continue,
            };
            let mut frame = request.provide(found);
            loop {
                match self.complete(frame) {
                    Ok(outcome) => return outcome,
                    Err(short) if self.fill() => frame = short.frame,
                    Err(_) => return counted(self.turn.line(), Outcome::OutOfMemory),
                }
            }
        }
    }

    /// A fault that ended before it began.
    pub(crate) fn refuse(&mut self, outcome: Outcome) -> Outcome {
        counted(self.turn.line(), outcome)
    }

    fn fill(&mut self) -> bool {
        let core = self.turn.core();
        self.cache.fill(self.turn.host(), core, 0).is_ok()
    }
}

/// What the entry that is there already says, if it settles the matter.
#[inline]
fn present(section: &Section<'_>, line: &Line, root: &Root, ask: Ask) -> Option<Outcome> {
    let core = section.inside.core;
    let entry = descend(section.inside, root, ask.gpa.gfn(), Level::K4);
    if entry.value() == core.format.empty() {
        return None;
    }
    if entry.allows(ask.access) {
        return Some(Outcome::Spurious);
    }
    if entry.is_frozen() {
        return Some(Outcome::Retry);
    }
    match entry.state() {
        State::Mmio { generation } => {
            let mask = (1 << crate::entry::Format::GENERATION_BITS) - 1;
            // Stale: somebody may have put a slot here since.
            if generation != section.slots().generation & mask {
                return None;
            }
            line.count_emulated_fast();
            Some(Outcome::Emulate)
        }
        State::Corrupt => {
            core.kill(crate::Broken::Corrupt);
            Some(Outcome::Dead(crate::Broken::Corrupt))
        }
        _ => None,
    }
}

/// No slot: remember that in an MMIO entry, if the format has such, and emulate.
fn emulate<'p>(
    section: &Section<'_>,
    cache: &mut Cache,
    line: &Line,
    root: RootName,
    ask: Ask,
) -> Step<'p> {
    match section.permit_mmio(root, ask) {
        Ok(permit) => {
            let full = match cache.full() {
                Ok(full) => full,
                Err(need) => return Step::NeedPages(need),
            };
            match permit.map(full) {
                Mapped::Busy => done(line, Outcome::Retry),
                Mapped::Done(_) | Mapped::Spurious | Mapped::Conflict => {
                    done(line, Outcome::Emulate)
                }
            }
        }
        Err(Refused::Generation) => done(line, Outcome::Emulate),
        Err(_) => done(line, Outcome::Retry),
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
fn done<'p>(line: &Line, outcome: Outcome) -> Step<'p> {
    Step::Done(counted(line, outcome))
}

/// Counts an outcome. A mapped leaf has been counted by the law.
#[inline]
fn counted(line: &Line, outcome: Outcome) -> Outcome {
    let counters = &line.counters;
    match outcome {
        Outcome::Fixed(_) | Outcome::Dead(_) => {}
        Outcome::Spurious => line.count_spurious(),
        Outcome::Retry => line.count_retry(),
        Outcome::Emulate => line.count_emulated(),
        Outcome::WriteProtected => counters.write_protected.add(1),
        Outcome::Pending => counters.pending.add(1),
        Outcome::Fault(_) => counters.faulted.add(1),
        Outcome::OutOfMemory => counters.out_of_memory.add(1),
    }
    outcome
}
