//! What all threads of one run share.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use machine::{Nested, Paging, Processor};
use vmmu::Mmu;
use vmmu::addr::{Gfn, Gpa, Pfn};
use vmmu::entry::Access;
use vmmu::host::Answer;
use vmmu::slot::AddressSpace;
use vmmu::{Busy, Cause, HostRange, MemoryFault, Outcome, PageFault, Parked, Request};

use crate::Violation;
use crate::arena::Arena;
use crate::host::Host;
use crate::model::Pages as From;
use crate::model::{DEVICES, Model, Possible, SITES, Said, TOUCHED, name_of, touched};
use crate::op::{At, Op};
use crate::places::Places;
use crate::store::{Answered, Hands, Store};
use crate::turns::Turns;
use crate::vcpu::Vcpu;

/// See the module.
pub struct Play<'r, 'vm> {
    pub vm: &'vm Arc<Mmu<Host>>,
    pub arena: &'r Arena,
    pub store: &'r Store,
    pub model: &'r Model,
    pub turns: &'r Arc<Turns>,
    pub nested: Nested,
    /// How a vCPU that uses paging does.
    pub paging: Paging,
    pub processors: &'r [Mutex<Processor>],
    /// Faults whose first half is done.
    pub posted: &'r Mutex<VecDeque<Request<'vm>>>,
    /// The same, as names, with the answer once it has been found.
    pub parked: &'r Mutex<VecDeque<(Parked, Option<Answer>)>>,
    /// Invalidations that last; whoever wants ends them.
    pub lasting: &'r Mutex<Vec<HostRange>>,
    pub places: &'r Places,
    /// Operations and accesses done, by everybody.
    pub done: &'r AtomicU64,
    /// Of these, those of the host's threads.
    pub host_done: &'r AtomicU64,
    /// vCPUs' threads that are at work.
    pub guests: &'r AtomicU64,
    /// The host's threads that are.
    pub hosts: &'r AtomicU64,
    pub vcpus: usize,
}

/// A page of guest-physical memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Spot {
    pub space: u8,
    pub gfn: u64,
    /// Site and offset; `None` where there is never a slot.
    pub site: Option<(usize, u64)>,
}

impl Spot {
    pub fn gpa(&self) -> Gpa {
        Gfn(self.gfn).gpa()
    }

    pub fn space(&self) -> AddressSpace {
        AddressSpace::ALL[usize::from(self.space)]
    }

    /// The place that `at` means in an address space.
    pub fn of(space: u8, at: At) -> Spot {
        let sites = SITES.iter().enumerate().filter(|(_, site)| site.space == space);
        let count = sites.clone().count();
        // One in sixteen is a device.
        let chosen =
            if at.site >= 240 { None } else { sites.clone().nth(at.site as usize % count) };
        let Some((n, site)) = chosen else {
            let gfn = DEVICES.start + u64::from(at.page) % (DEVICES.end - DEVICES.start);
            return Spot { space, gfn, site: None };
        };
        let is_huge = matches!(site.views[0].pages, From::Huge);
        let offset = if is_huge {
            touched(at.page as usize % TOUCHED)
        } else {
            u64::from(at.page) % site.pages
        };
        Spot { space, gfn: site.start + offset, site: Some((n, offset)) }
    }
}

/// What was said about a spot before an access.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    spot: Spot,
    said: Option<Said>,
}

/// What may be at a spot.
#[derive(Clone, Copy, Debug)]
pub enum Seen {
    /// Never a slot.
    Device,
    /// These.
    Site(Possible, u64),
}

impl Seen {
    /// Whether this page may be there.
    pub fn may_be(&self, page: usize) -> bool {
        match self {
            Seen::Device => false,
            Seen::Site(possible, offset) => {
                possible.views().any(|view| view.page(*offset) == Some(page))
            }
        }
    }

    /// Whether a page may be there that the host may let share the frame of zeros.
    pub fn may_share(&self) -> bool {
        match self {
            Seen::Device => false,
            Seen::Site(possible, offset) => possible
                .views()
                .any(|view| view.page(*offset).is_some_and(|page| name_of(page).is_some())),
        }
    }

    /// Whether there may be no memory.
    pub fn nothing(&self) -> bool {
        match self {
            Seen::Device => true,
            Seen::Site(possible, _) => possible.nothing(),
        }
    }

    /// Whether there may be memory that (cannot) be written.
    pub fn some(&self, read_only: bool) -> bool {
        match self {
            Seen::Device => false,
            Seen::Site(possible, _) => possible.views().any(|view| view.read_only == read_only),
        }
    }

    /// Whether all that may be there is memory of a backing, of which the host is asked.
    pub fn is_backed(&self) -> bool {
        match self {
            Seen::Device => false,
            Seen::Site(possible, _) => {
                !possible.nothing() && possible.views().all(|view| view.pages != From::Linear)
            }
        }
    }

    /// The one page that was there all the time.
    pub fn only(&self) -> Option<usize> {
        match self {
            Seen::Device => None,
            Seen::Site(possible, offset) => possible.only()?.page(*offset),
        }
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut all = Vec::new();
        if let Seen::Site(possible, offset) = self {
            all.extend(possible.views().map(|view| {
                let page = view.page(*offset).map_or("?".to_owned(), |page| page.to_string());
                format!("page {page}{}", if view.read_only { " (read-only)" } else { "" })
            }));
        }
        all.extend(self.nothing().then(|| "nothing".to_owned()));
        f.write_str(&all.join(" or "))
    }
}

/// What has to happen in every run, beside each operation.
pub const NOTES: &[&str] = &[
    ZAP_MET_CHANGE,
    DRAIN_MET_CHANGE,
    DELETION_MET_CHANGE,
    BEYOND_PLACES,
    MAPPED_BEYOND_PLACES,
    CHANGED_BEYOND_PLACES,
    WRONG_END_BEYOND_PLACES,
    SECOND_ACCESSES,
    SECOND_FAULTS,
    SECOND_ZAPS,
    SECOND_SLOTS,
    SECOND_INVALIDATIONS,
    BY_NO_WORKER,
    SEALED,
    WRONG_ANSWER,
];
/// A slot came or went between two steps of one zap.
pub const ZAP_MET_CHANGE: &str = "slots changed within a zap";
/// Of one drain.
pub const DRAIN_MET_CHANGE: &str = "slots changed within a drain";
/// Of the deletion of another slot.
pub const DELETION_MET_CHANGE: &str = "slots changed within a deletion";
/// An invalidation began while there were more than places.
pub const BEYOND_PLACES: &str = "invalidation beyond the places";
/// A page of a backing was mapped meanwhile.
pub const MAPPED_BEYOND_PLACES: &str = "mapped beside one beyond the places";
/// A fault on one was to be tried again meanwhile.
pub const REFUSED_BEYOND_PLACES: &str = "busy beside one beyond the places";
/// Pages were moved in such an invalidation.
pub const CHANGED_BEYOND_PLACES: &str = "moved in one beyond the places";
/// What was never begun was ended meanwhile.
pub const WRONG_END_BEYOND_PLACES: &str = "wrong end beside one beyond the places";
/// A guest was in the second address space.
pub const SECOND_ACCESSES: &str = "second space: accesses";
/// It faulted there.
pub const SECOND_FAULTS: &str = "second space: faults";
/// A zap was there.
pub const SECOND_ZAPS: &str = "second space: zaps";
/// A slot came or went there.
pub const SECOND_SLOTS: &str = "second space: slots changed";
/// Pages that a slot there may show were taken back.
pub const SECOND_INVALIDATIONS: &str = "second space: invalidations";
/// Pages were taken back by a thread that has no worker.
pub const BY_NO_WORKER: &str = "pages taken back without a worker";
/// A request was given what was found for another one.
pub const WRONG_ANSWER: &str = "answers to others refused";
/// A page was made read-only by a zap.
pub const SEALED: &str = "pages sealed by a zap";

/// Steps of everybody for one of the host's.
const SHARE: u64 = 6;
/// Steps by which guests may be ahead of that.
const AHEAD: u64 = 100;

impl Play<'_, '_> {
    /// Neither side leaves the other behind: guests alone meet nobody, and with too much of the
    /// host's they only fault. The host holds back between two operations; a guest stays in the
    /// guest meanwhile, with all that its processor remembers.
    pub fn is_ahead(&self, is_host: bool) -> bool {
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let (host, all) = (count(self.host_done) * SHARE, count(self.done));
        !self.turns.is_over()
            && if is_host {
                count(self.guests) > 0 && host > all
            } else {
                count(self.hosts) > 0 && all > host + AHEAD
            }
    }

    pub fn look(&self, spot: Spot) -> Look {
        Look { spot, said: spot.site.map(|(site, _)| self.model.look(site)) }
    }

    pub fn since(&self, look: Look) -> Seen {
        match (look.spot.site, look.said) {
            (Some((site, offset)), Some(said)) => {
                Seen::Site(self.model.between(site, said, self.model.look(site)), offset)
            }
            _ => Seen::Device,
        }
    }

    /// Whether a fault may have ended like this.
    pub fn judge(
        &self,
        outcome: Outcome,
        access: Access,
        seen: &Seen,
        answered: Answered,
        starved: bool,
    ) -> Result<(), Violation> {
        let is_write = access.contains(Access::WRITE);
        let is_right = match outcome {
            Outcome::Fixed(_) => seen.some(false) || seen.some(true) && !is_write,
            Outcome::Spurious | Outcome::Retry => true,
            Outcome::Emulate => seen.nothing(),
            Outcome::WriteProtected => is_write && seen.some(true),
            Outcome::Busy(Busy::Pending) => answered == Answered::Pending,
            Outcome::Busy(_) => true,
            Outcome::Fault(MemoryFault::Hole) => answered == Answered::Hole,
            Outcome::OutOfMemory => starved,
            Outcome::Fault(_) | Outcome::Dead(_) => false,
        };
        if is_right {
            return Ok(());
        }
        Err(Violation::new(format!(
            "a fault ended as {outcome:?} for {access:?}; there may have been {seen}; the host answered \
             {answered:?}"
        )))
    }
}

pub fn fault_at(spot: Spot, access: Access, cause: Cause) -> PageFault {
    PageFault { gpa: spot.gpa(), access, cause }
}

/// What one thread brings: its number, its way to the store, and its counts.
pub struct Actor<'p, 'r, 'vm> {
    pub play: &'p Play<'r, 'vm>,
    /// Number among all threads, and the word it writes less one.
    pub number: usize,
    pub hands: Hands<'r, 'vm>,
    pub tally: RefCell<Tally>,
    /// The number it wrote last.
    pub value: u64,
}

/// What a thread counted, and what repeats with the seed.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    pub operations: BTreeMap<&'static str, u64>,
    pub outcomes: BTreeMap<&'static str, u64>,
    pub digest: u64,
}

impl Tally {
    fn note(&mut self, name: &str) {
        for byte in name.bytes() {
            self.digest = (self.digest ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
    }
}

impl<'vm> Actor<'_, '_, 'vm> {
    pub fn ran(&self, name: &'static str) {
        let mut tally = self.tally.borrow_mut();
        tally.note(name);
        *tally.operations.entry(name).or_default() += 1;
        self.play.done.fetch_add(1, Ordering::Relaxed);
        if self.number >= self.play.vcpus {
            self.play.host_done.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Something that must have happened in a run. It is no step of its own.
    pub fn note(&self, name: &'static str) {
        debug_assert!(NOTES.contains(&name), "{name}");
        let mut tally = self.tally.borrow_mut();
        tally.note(name);
        *tally.operations.entry(name).or_default() += 1;
    }

    /// It was done to the second address space.
    pub fn note_space(&self, space: u8, name: &'static str) {
        if space == 1 {
            self.note(name);
        }
    }

    /// An operation ran, or found nothing it could be done to.
    pub fn did(&self, op: &Op, is_done: bool) {
        if is_done { self.ran(op.name()) } else { self.met("nothing to do") }
    }

    pub fn met(&self, name: &'static str) {
        let mut tally = self.tally.borrow_mut();
        tally.note(name);
        *tally.outcomes.entry(name).or_default() += 1;
    }

    /// The word of each page that only this thread writes.
    pub fn word(&self) -> usize {
        1 + self.number
    }

    pub fn next_value(&mut self) -> u64 {
        self.value += 1;
        self.value
    }

    pub fn host(&self) -> &'vm Host {
        self.play.vm.host()
    }

    pub fn bad(&self, what: impl Into<String>) -> Violation {
        Violation::new(what.into())
    }

    /// A whole fault by a vCPU, judged.
    pub fn fault(
        &self,
        vcpu: &mut Vcpu<'vm>,
        spot: Spot,
        access: Access,
        cause: Cause,
        tables: Option<u64>,
    ) -> Result<Outcome, Violation> {
        let look = self.play.look(spot);
        let overflow = self.host().open().overflow();
        self.hands.answered.set(Answered::Nothing);
        let fault = fault_at(spot, access, cause);
        let (outcome, starved) = match tables {
            Some(tables) => self.host().starving(tables, || vcpu.handle_fault(&self.hands, fault)),
            None => (vcpu.handle_fault(&self.hands, fault), false),
        };
        let seen = self.play.since(look);
        self.note_space(spot.space, SECOND_FAULTS);
        if overflow.is_some_and(|overflow| self.host().open().is_still(overflow)) {
            match outcome {
                Outcome::Fixed(_) if seen.is_backed() => self.note(MAPPED_BEYOND_PLACES),
                Outcome::Busy(Busy::Invalidation) if seen.is_backed() => {
                    self.met(REFUSED_BEYOND_PLACES)
                }
                _ => {}
            }
        }
        self.met(match outcome {
            Outcome::Busy(_) if seen.only().is_none() => "busy while slots change",
            outcome => outcome.name(),
        });
        if outcome == Outcome::Retry {
            return Err(self.bad(format!("a whole fault is to be tried again for {access:?}")));
        }
        self.play.judge(outcome, access, &seen, self.hands.answered.get(), starved)?;
        Ok(outcome)
    }

    /// Whether a frame may be what a guest reaches at a spot; gives the page.
    pub fn judge_frame(&self, pfn: Pfn, seen: &Seen) -> Result<Option<usize>, Violation> {
        match self.play.arena.owner(pfn.0) {
            Some(crate::arena::Owner::Page(page)) if seen.may_be(page) => Ok(Some(page)),
            Some(crate::arena::Owner::Zeros) if seen.may_share() => Ok(None),
            owner => Err(self.bad(format!(
                "reached frame {:#x}, which is {}; there may have been {seen}",
                pfn.0,
                owner.map_or("no memory".to_owned(), |owner| owner.to_string()),
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What may be at the first page of a site during nothing but what `change` does to the model.
    fn seen(site: usize, change: impl FnOnce(&Model)) -> Seen {
        let model = Model::new();
        change(&model);
        let said = model.look(site);
        Seen::Site(model.between(site, said, said), 0)
    }

    #[test]
    fn what_may_be_there_is_said_in_words() {
        assert_eq!(Seen::Device.to_string(), "nothing");
        assert_eq!(seen(1, |_| {}).to_string(), "nothing");
        let made = |model: &Model| {
            model.begin(3, Some(0));
            model.end(3, true);
        };
        assert_eq!(seen(3, made).to_string(), "page 1536 (read-only)");
        let changing = |model: &Model| {
            made(model);
            model.begin(3, Some(1));
        };
        let both = "page 1536 (read-only) or page 1536";
        assert_eq!(seen(3, changing).to_string(), both);
    }

    #[test]
    fn the_frame_of_zeros_is_shared_by_pages_of_the_host_alone() {
        let make = |model: &Model, site: usize| {
            model.begin(site, Some(0));
            model.end(site, true);
        };
        let linear = SITES.iter().position(|site| site.views[0].pages == From::Linear).unwrap();
        assert!(seen(1, |model| make(model, 1)).may_share());
        assert!(!seen(linear, |model| make(model, linear)).may_share(), "its frames are fixed");
        assert!(!seen(1, |_| {}).may_share(), "there is no slot");
        let gone = |model: &Model| {
            make(model, 1);
            model.begin(1, None);
        };
        assert!(seen(1, gone).may_share(), "the slot is going");
        assert!(!Seen::Device.may_share());
    }
}
