//! A thread of the host: it takes pages back, changes slots, zaps, drains, and reads and writes
//! guest memory.

use vmmu::addr::{Gfn, GfnRange, Level, Pfn};
use vmmu::entry::MemoryType;
use vmmu::host::FrameQuery;
use vmmu::slot::{AddressSpace, LinearFrames, Mutability, SlotError, SlotId, SlotSpec, Source};
use vmmu::{
    AccessError, AccessFailure, Deletion, Drain, Mmu, NotCompleted, Outcome, Progress, Role,
    Worker, Zap,
};

use crate::Violation;
use crate::arena::{Arena, BLOCKS};
use crate::guest_tables;
use crate::host::Host;
use crate::model::{BLOCK_BACKING, HUGE_BACKING, Pages, SITES, TOUCHED, View, touched};
use crate::notifier::pages_at;
use crate::notify::Through;
use crate::op::{self, Begun, Leaving, Op};
use crate::places::{Occupant, Place, Places};
use crate::play::{
    Actor, DELETION_MET_CHANGE, DRAIN_MET_CHANGE, SEALED, SECOND_SLOTS, SECOND_ZAPS, Spot,
    WRONG_ANSWER, ZAP_MET_CHANGE,
};
use crate::store::{Answered, block_of};

/// A thread of the host, and what it has begun.
pub struct Keeper<'p, 'r, 'vm> {
    pub actor: Actor<'p, 'r, 'vm>,
    pub worker: Worker<&'vm Mmu<Host>>,
    begun: Walks<'r>,
    /// What was put aside half done.
    aside: Vec<Aside>,
    /// Pages that it has made read-only.
    protected: Vec<usize>,
}

/// What is done in steps.
#[derive(Default)]
struct Walks<'r> {
    deletion: Option<InSteps<(Deletion, Place<'r>, Occupant)>>,
    zap: Option<InSteps<Zap>>,
    drain: Option<InSteps<Drain>>,
}

/// A walk whose next step comes late, if at all.
enum Aside {
    Zap(Zap),
    Drain(Drain),
    Deletion(Deletion),
}

/// The most that one thread puts aside.
const ASIDE: usize = 4;

/// A walk in steps, with what is judged of it: that it ends, whatever is changed between its steps.
struct InSteps<W> {
    walk: W,
    /// Changes of slots up to its last step.
    changes: u64,
    /// Table pages that it may still visit.
    left: u64,
}

/// Table pages and waits that a walk over so many frames takes at most: in every root, each table of
/// leaves, what lies between two of them, and the tables above.
fn most_visits(frames: u64) -> u64 {
    16 * (2 * (frames / 512 + 2) + 8) + 2000
}

impl<W> InSteps<W> {
    fn new(walk: W, places: &Places, visits: u64) -> Self {
        InSteps { walk, changes: places.changes(), left: visits }
    }

    /// A step begins. Whether a slot has come or gone since the last one.
    fn met_change(&mut self, places: &Places) -> bool {
        let before = std::mem::replace(&mut self.changes, places.changes());
        self.changes != before
    }

    /// A step has ended before the walk has. `false`: it must have ended.
    fn may_go_on(&mut self, budget: u64) -> bool {
        self.left = self.left.saturating_sub(budget);
        self.left > 0
    }
}

/// Guest frames of slots that nobody uses.
const UNUSED: u64 = 0x7100;

/// The two sites between which a slot moves.
const SWAPPED: [usize; 2] = [1, 8];

fn largest(n: u8) -> Level {
    Level::LEAVES[[2, 2, 1, 0][n as usize % 4]]
}

fn spec(id: SlotId, site: usize, view: View, largest: Level) -> SlotSpec {
    let place = SITES[site];
    let source = match view.pages {
        Pages::Blocks(first) => Source::Backed { backing: BLOCK_BACKING, first },
        Pages::Huge => Source::Backed { backing: HUGE_BACKING, first: 0 },
        // SAFETY: the arena has these frames for the linear slot and for nothing else.
        Pages::Linear => Source::Linear(unsafe {
            LinearFrames::new(Pfn(Arena::LINEAR_HOME), MemoryType::WriteBack)
        }),
    };
    let mutability = if view.read_only { Mutability::ReadOnly } else { Mutability::ReadWrite };
    let range = GfnRange::sized(Gfn(place.start), place.pages).expect("sites are short");
    SlotSpec {
        id,
        space: AddressSpace::ALL[usize::from(place.space)],
        range,
        source,
        mutability,
        largest,
    }
}

/// The number of a site; of any, where there is never a slot.
fn site_at(site: op::Where) -> usize {
    let spot = Spot::of(site.space & 1, site.at);
    spot.site.map_or(site.at.page as usize % SITES.len(), |(site, _)| site)
}

impl<'r, 'vm> Keeper<'_, 'r, 'vm> {
    /// Does one operation.
    pub fn act(&mut self, op: &Op) -> Result<(), Violation> {
        let play = self.actor.play;
        let turns = play.turns;
        let done = match op {
            Op::Change { pages, change } => {
                let through = Through::Worker(&mut self.worker);
                self.actor.change(through, *pages, *change)?
            }
            Op::Protect { pages, budget, wide } => self.protect(pages, u64::from(*budget), *wide),
            Op::Contend { at, pages, deletes } => self.contend(*at, u64::from(*pages), *deletes)?,
            Op::Long { pages, again } => {
                self.actor.begins(Through::Worker(&mut self.worker), *pages, *again)?
            }
            Op::End { which } => self.actor.ends(*which)?,
            Op::WrongEnd { pages } => self.actor.ends_none(*pages)?,
            Op::Abandon { what, how } => self.abandon(*what, *how)?,
            Op::FindParked => self.find_parked()?,
            Op::CompleteParked => self.complete_parked()?,
            Op::Create { site, view, largest } => {
                let _guard = turns.guard();
                self.create(site_at(*site), *view, self::largest(*largest))?
            }
            Op::Delete { site } => {
                let _guard = turns.guard();
                self.delete(site_at(*site))?
            }
            Op::DeleteSome { site, budget } => {
                let _guard = turns.guard();
                self.delete_some(site_at(*site), u64::from(*budget))?
            }
            Op::MoveSlot => {
                let _guard = turns.guard();
                self.move_slot()?
            }
            Op::Limit { site, largest } => {
                let _guard = turns.guard();
                self.limit(site_at(*site), self::largest(*largest))?
            }
            Op::Impossible { site, which } => {
                let _guard = turns.guard();
                self.impossible(site_at(*site), *which)?
            }
            Op::Zap { at, pages } => {
                let spot = Spot::of(at.site & 1, *at);
                let range = GfnRange::sized(Gfn(spot.gfn), u64::from(*pages)).expect("short");
                self.worker.zap(spot.space(), range);
                self.actor.note_space(spot.space, SECOND_ZAPS);
                true
            }
            Op::ZapSome { at, pages, budget } => {
                if self.begun.zap.is_none() {
                    let (spot, pages) = (Spot::of(at.site & 1, *at), u64::from(*pages));
                    let range = GfnRange::sized(Gfn(spot.gfn), pages).expect("short");
                    let zap = self.worker.begin_zap(spot.space(), range);
                    self.begun.zap = Some(InSteps::new(zap, play.places, most_visits(pages)));
                    self.actor.note_space(spot.space, SECOND_ZAPS);
                }
                self.zap_some(u64::from(*budget))?
            }
            Op::Roots { budget } => {
                if self.begun.drain.is_none() {
                    let _guard = turns.guard();
                    let drain = self.worker.invalidate_roots();
                    self.begun.drain = Some(InSteps::new(drain, play.places, u64::MAX));
                }
                self.drain_some(u64::from(*budget))
            }
            Op::Continue { budget } => self.go_on(u64::from(*budget))?,
            Op::ZapAll => {
                let _guard = turns.guard();
                self.worker.zap_all();
                true
            }
            Op::Complete => self.complete()?,
            Op::Look => {
                let stats = play.vm.stats();
                if stats.debts_leaked > 0 {
                    return Err(self.actor.bad("a debt was leaked"));
                }
                let mut text = String::new();
                let dumped = self.worker.dump(&mut text);
                dumped.map_err(|why| self.actor.bad(format!("no dump: {why:?}")))?;
                true
            }
            Op::Starve { at, huge, .. } => self.starve(*at, *huge)?,
            op => {
                let space = match op {
                    Op::Read { at, .. } | Op::Write { at } | Op::Exchange { at } => at.page as u8,
                    _ => 0,
                };
                return self.actor.access_by_library(&mut self.worker, space & 1, op);
            }
        };
        self.actor.did(op, done);
        Ok(())
    }

    /// The next steps of the zap, if there is one.
    fn zap_some(&mut self, budget: u64) -> Result<bool, Violation> {
        let Some(zap) = &mut self.begun.zap else { return Ok(false) };
        if zap.met_change(self.actor.play.places) {
            self.actor.note(ZAP_MET_CHANGE);
        }
        if self.worker.zap_some(&mut zap.walk, budget) != (Progress::More {}) {
            self.begun.zap = None;
        } else if !zap.may_go_on(budget) {
            return Err(self.actor.bad("a zap in steps does not end"));
        }
        Ok(true)
    }

    /// Those of the drain.
    fn drain_some(&mut self, budget: u64) -> bool {
        let Some(drain) = &mut self.begun.drain else { return false };
        if drain.met_change(self.actor.play.places) {
            self.actor.note(DRAIN_MET_CHANGE);
        }
        if self.worker.drain(&mut drain.walk, budget) != (Progress::More {}) {
            self.begun.drain = None;
        }
        true
    }

    /// The next steps of whatever was begun.
    fn go_on(&mut self, budget: u64) -> Result<bool, Violation> {
        let mut any = false;
        if self.begun.deletion.is_some() {
            let _guard = self.actor.play.turns.guard();
            any = self.delete_some(0, budget)?;
        }
        any |= self.zap_some(budget)?;
        any |= self.drain_some(budget);
        if budget.is_multiple_of(2) && !self.aside.is_empty() {
            let _guard = self.actor.play.turns.guard();
            let mut late = self.aside.remove(0);
            let worker = &mut self.worker;
            let progress = match &mut late {
                Aside::Zap(zap) => worker.zap_some(zap, budget),
                Aside::Drain(drain) => worker.drain(drain, budget),
                Aside::Deletion(deletion) => worker.delete_some(deletion, budget),
            };
            if progress == (Progress::More {}) {
                self.aside.push(late);
            } else {
                self.actor.met("ended late");
            }
            any = true;
        }
        Ok(any)
    }

    /// Leaves something half done.
    fn abandon(&mut self, what: Begun, how: Leaving) -> Result<bool, Violation> {
        if what == Begun::Deletion && self.begun.deletion.is_none() {
            // There is seldom one just then.
            let play = self.actor.play;
            let _guard = play.turns.guard();
            let site = play.done.load(std::sync::atomic::Ordering::Relaxed) as usize % SITES.len();
            self.delete_some(site, 1)?;
        }
        let left = match what {
            Begun::Zap => self.begun.zap.take().map(|zap| Aside::Zap(zap.walk)),
            Begun::Drain => self.begun.drain.take().map(|drain| Aside::Drain(drain.walk)),
            Begun::Deletion => self.begun.deletion.take().map(|deletion| {
                let (deletion, place, occupant) = deletion.walk;
                place.set(Some(Occupant { is_dying: true, ..occupant }));
                Aside::Deletion(deletion)
            }),
            Begun::Parked => {
                let parked = self.actor.play.parked.lock().expect("no panic under it").pop_front();
                let is_some = parked.is_some();
                leave(parked, how);
                return Ok(is_some);
            }
        };
        let Some(left) = left else { return Ok(false) };
        match how {
            Leaving::Aside if self.aside.len() < ASIDE => self.aside.push(left),
            how => leave(left, how),
        }
        Ok(true)
    }

    /// A walk with the smallest steps and a change of the slots between any two: it ends all the
    /// same.
    fn contend(&mut self, at: op::At, pages: u64, deletes: bool) -> Result<bool, Violation> {
        let play = self.actor.play;
        if deletes {
            if self.begun.deletion.is_some() {
                return Ok(false);
            }
            let mut is_begun = {
                let _guard = play.turns.guard();
                self.delete_some(at.page as usize % SITES.len(), 1)?
            };
            let is_done = is_begun;
            while is_begun && self.begun.deletion.is_some() {
                self.come_and_go()?;
                let _guard = play.turns.guard();
                is_begun = self.delete_some(0, 1)?;
            }
            return Ok(is_done);
        }
        if self.begun.zap.is_some() {
            return Ok(false);
        }
        let spot = Spot::of(at.site & 1, at);
        let range = GfnRange::sized(Gfn(spot.gfn), pages).expect("short");
        let zap = self.worker.begin_zap(spot.space(), range);
        self.begun.zap = Some(InSteps::new(zap, play.places, most_visits(pages)));
        while self.zap_some(1)? && self.begun.zap.is_some() {
            self.come_and_go()?;
        }
        Ok(true)
    }

    /// A slot that nobody uses comes and goes.
    fn come_and_go(&mut self) -> Result<(), Violation> {
        let _guard = self.actor.play.turns.guard();
        let n = (self.actor.number - self.actor.play.vcpus) as u32;
        let id = SlotId(guest_tables::SLOT.0 + 1 + n);
        let range = GfnRange::sized(Gfn(UNUSED + u64::from(n)), 1).expect("short");
        let spec = SlotSpec { range, ..spec(id, 0, SITES[0].views[0], Level::Size4K) };
        let changed = self.worker.create_slot(&spec).and_then(|()| self.worker.delete_slot(id));
        changed.map_err(|why| self.actor.bad(format!("{spec:?}: {why}")))
    }

    /// Makes pages read-only by a zap of every frame where they may be; those of before may be
    /// written again.
    fn protect(&mut self, pages: &op::Pages, budget: u64, wide: bool) -> bool {
        let play = self.actor.play;
        let protection = &play.store.protection;
        for page in self.protected.drain(..) {
            protection.open(page, block_of(page));
        }
        let Some(mut pages) = pages_at(pages, usize::MAX) else { return false };
        if wide && pages.start < BLOCKS as usize {
            // Two blocks: more than one request can be about.
            let first = pages.start & !511;
            pages = first..(first + 1024).min(BLOCKS as usize);
        }
        let closing =
            pages.filter_map(|page| protection.close(page, block_of(page)).map(|c| (page, c)));
        let closing: Vec<_> = closing.collect();
        self.protected.extend(closing.iter().map(|(page, _)| *page));
        let (Some(&first), Some(&last)) = (self.protected.first(), self.protected.last()) else {
            return false;
        };
        for (space, range) in frames_of(first..last + 1) {
            let space = AddressSpace::ALL[usize::from(space)];
            if budget == 0 {
                self.worker.zap(space, range);
                continue;
            }
            let mut zap = self.worker.begin_zap(space, range);
            while self.worker.zap_some(&mut zap, budget) == (Progress::More {}) {
                play.turns.point();
            }
        }
        let sealed = closing.into_iter().filter(|(_, closing)| protection.seal(*closing)).count();
        if sealed > 0 {
            self.actor.note(SEALED);
        }
        true
    }

    /// The next site from this one on for which something is true of what is in it, and that nobody
    /// is changing.
    fn a_place(&self, site: usize, is: impl Fn(Option<Occupant>) -> bool) -> Option<Place<'r>> {
        let sites = (site..SITES.len()).chain(0..site);
        let places = self.actor.play.places;
        let mut places = sites.filter_map(|n| places.occupy(n));
        places.find(|place| is(place.occupant()))
    }

    /// The same for one without a slot. One of the two that can change places stays empty.
    fn an_empty_place(&self, site: usize) -> Option<Place<'r>> {
        let sites = (site..SITES.len()).chain(0..site);
        let places = self.actor.play.places;
        let is_kept = |site: usize| {
            let partner = SWAPPED.iter().position(|n| *n == site).map(|n| SWAPPED[1 - n]);
            partner.is_some_and(|site| places.has_slot(site))
        };
        let mut places = sites.filter(|n| !is_kept(*n)).filter_map(|n| places.occupy(n));
        places.find(|place| place.occupant().is_none())
    }

    fn create(&mut self, site: usize, view: u8, largest: Level) -> Result<bool, Violation> {
        let play = self.actor.play;
        let is_dying = |occupant: Option<Occupant>| occupant.is_some_and(|o| o.is_dying);
        if view % 2 == 1
            && let Some(place) = self.a_place(site, is_dying)
        {
            return self.replace(&place, largest);
        }
        let Some(place) = self.an_empty_place(site) else { return Ok(false) };
        let site = place.site;
        let Some(id) = place.number() else { return Ok(false) };
        let n = view as usize / 2 % SITES[site].views.len();
        let spec = spec(id, site, SITES[site].views[n], largest);
        play.model.begin(site, Some(n));
        let made = self.worker.create_slot(&spec);
        play.model.end(site, made.is_ok());
        match made {
            Ok(()) => place.set(Some(Occupant { id, largest, is_dying: false })),
            Err(why) => return Err(self.actor.bad(format!("{spec:?}: {why}"))),
        }
        self.actor.note_space(SITES[site].space, SECOND_SLOTS);
        Ok(true)
    }

    /// A slot is made where one is dying that nobody is at: its deletion is finished first. The new
    /// one shows what the old one did, so what may be there stays what the model says.
    fn replace(&mut self, place: &Place<'r>, largest: Level) -> Result<bool, Violation> {
        let (play, site) = (self.actor.play, place.site);
        let (Some(old), Some(id)) = (place.occupant(), place.number()) else { return Ok(false) };
        let n = play.model.look(site).old().expect("a dying slot was there");
        let spec = spec(id, site, SITES[site].views[n], largest);
        let made = self.worker.create_slot(&spec);
        made.map_err(|why| self.actor.bad(format!("over a dying one, {spec:?}: {why}")))?;
        play.model.end(site, false);
        place.set(Some(Occupant { id, largest, is_dying: false }));
        place.free(old.id);
        self.actor.met("created over a dying slot");
        Ok(true)
    }

    /// A slot is gone, with whatever its deletion left to do.
    fn gone(&self, place: &Place<'r>, id: SlotId) {
        self.actor.play.model.end(place.site, true);
        place.set(None);
        place.free(id);
        self.actor.note_space(SITES[place.site].space, SECOND_SLOTS);
    }

    fn delete(&mut self, site: usize) -> Result<bool, Violation> {
        let Some(place) = self.a_place(site, |occupant| occupant.is_some()) else {
            return Ok(false);
        };
        let Some(occupant) = place.occupant() else { return Ok(false) };
        let id = occupant.id;
        if !occupant.is_dying {
            self.actor.play.model.begin(place.site, None);
        }
        match self.worker.delete_slot(id) {
            Ok(()) => {}
            // Whoever had put its deletion aside has ended it.
            Err(SlotError::Missing(_)) if occupant.is_dying => {}
            Err(why) => return Err(self.actor.bad(format!("deleting {id:?}: {why}"))),
        }
        if occupant.is_dying {
            self.actor.met("deleted a dying slot");
        }
        self.gone(&place, id);
        Ok(true)
    }

    fn delete_some(&mut self, site: usize, budget: u64) -> Result<bool, Violation> {
        let play = self.actor.play;
        if self.begun.deletion.is_none() {
            let Some(place) = self.a_place(site, |occupant| occupant.is_some()) else {
                return Ok(false);
            };
            let Some(occupant) = place.occupant() else { return Ok(false) };
            let id = occupant.id;
            if !occupant.is_dying {
                play.model.begin(place.site, None);
            }
            // Guests use a few areas of the largest.
            let visits = most_visits(SITES[place.site].pages.min(64 * 512));
            match self.worker.begin_delete(id) {
                Ok(deletion) => {
                    let walk = (deletion, place, occupant);
                    self.begun.deletion = Some(InSteps::new(walk, play.places, visits));
                }
                Err(SlotError::Missing(_)) if occupant.is_dying => {
                    self.gone(&place, id);
                    return Ok(true);
                }
                Err(why) => return Err(self.actor.bad(format!("deleting {id:?}: {why}"))),
            }
        }
        let Some(begun) = &mut self.begun.deletion else { return Ok(false) };
        if begun.met_change(play.places) {
            self.actor.note(DELETION_MET_CHANGE);
        }
        if self.worker.delete_some(&mut begun.walk.0, budget) == (Progress::More {}) {
            if !begun.may_go_on(budget) {
                return Err(self.actor.bad("a deletion in steps does not end"));
            }
        } else if let Some(InSteps { walk: (_, place, occupant), .. }) = self.begun.deletion.take()
        {
            self.gone(&place, occupant.id);
        }
        Ok(true)
    }

    fn move_slot(&mut self) -> Result<bool, Violation> {
        let play = self.actor.play;
        let [mut from, mut to] = SWAPPED;
        if play.places.has_slot(to) {
            (from, to) = (to, from);
        }
        let (Some(source), Some(target)) = (play.places.occupy(from), play.places.occupy(to))
        else {
            return Ok(false);
        };
        let (Some(id), None) = (source.slot(), target.occupant()) else { return Ok(false) };
        let moving = source.occupant();
        let info = self.worker.slot(id);
        let info = info.map_err(|why| self.actor.bad(format!("{id:?}: {why}")))?;
        let Source::Backed { first, .. } = info.spec.source else { return Ok(false) };
        let same = |view: &View| view.pages == Pages::Blocks(first);
        let view = SITES[to].views.iter().position(same).expect("1 and 8 have the same views");
        play.model.begin(from, None);
        play.model.begin(to, Some(view));
        let moved = self.worker.move_slot(id, Gfn(SITES[to].start));
        play.model.end(from, moved.is_ok());
        play.model.end(to, moved.is_ok());
        moved.map_err(|why| self.actor.bad(format!("moving {id:?}: {why}")))?;
        source.set(None);
        target.set(moving);
        Ok(true)
    }

    fn limit(&mut self, site: usize, largest: Level) -> Result<bool, Violation> {
        let Some(place) = self.actor.play.places.occupy(site) else { return Ok(false) };
        let Some(id) = place.slot() else { return Ok(false) };
        let limited = self.worker.limit_slot(id, largest);
        limited.map_err(|why| self.actor.bad(format!("limiting {id:?}: {why}")))?;
        place.set(Some(Occupant { id, largest, is_dying: false }));
        Ok(true)
    }

    /// What cannot be is refused, and nothing changes.
    fn impossible(&mut self, site: usize, which: u8) -> Result<bool, Violation> {
        let Some(place) = self.actor.play.places.occupy(site) else { return Ok(false) };
        let Some(id) = place.slot() else { return Ok(false) };
        let before = self.worker.slot(id);
        let Some(other) = place.number() else { return Ok(false) };
        let good = spec(other, site, SITES[site].views[0], Level::Size4K);
        let refused = match which % 5 {
            // Over one that is there.
            0 => self.worker.create_slot(&good),
            // The number is taken.
            1 => {
                let range = GfnRange::sized(Gfn(0x7000), 1).expect("short");
                self.worker.create_slot(&SlotSpec { id, range, ..good })
            }
            2 => self.worker.create_slot(&SlotSpec { range: GfnRange::EMPTY, ..good }),
            3 => self.worker.move_slot(id, Gfn(1 << 51)),
            _ => self.worker.delete_slot(other),
        };
        place.free(other);
        if refused.is_ok() || self.worker.slot(id) != before {
            return Err(self.actor.bad(format!("an impossible change ({which}): {refused:?}")));
        }
        Ok(true)
    }

    /// A slot is made, and pages are reserved, while the host has no tables.
    fn starve(&mut self, at: op::At, huge: bool) -> Result<bool, Violation> {
        let host = self.actor.host();
        let worker = &mut self.worker;
        if huge {
            let (reserved, starved) = host.starving(0, || worker.reserve(8));
            let is_right = reserved.is_err() == starved;
            let why = || self.actor.bad(format!("reserving: {reserved:?}, refused: {starved}"));
            return if is_right { Ok(starved) } else { Err(why()) };
        }
        // What allocates nothing cannot starve.
        let spot = Spot::of(at.site & 1, at);
        let range = GfnRange::sized(Gfn(spot.gfn), 1).expect("short");
        let ((), starved) = host.starving(0, || worker.zap(spot.space(), range));
        if starved { Err(self.actor.bad("a zap wanted tables")) } else { Ok(false) }
    }

    /// The host finds the frame for a fault that a vCPU parked.
    fn find_parked(&mut self) -> Result<bool, Violation> {
        let all = self.actor.play.parked;
        let parked = {
            let mut all = all.lock().expect("no panic under it");
            let first = all.iter().position(|(_, answer)| answer.is_none());
            first.and_then(|n| all.remove(n))
        };
        let Some((parked, _)) = parked else { return Ok(false) };
        let query = parked.query();
        let found = vmmu::host::Backing::find(&self.actor.hands, &query);
        let vmmu::host::Resolution::Frame(frame) = found else {
            drop(self.worker.unpark(parked));
            return Ok(false);
        };
        let answered = (parked, Some(query.answer(frame)));
        all.lock().expect("no panic under it").push_back(answered);
        Ok(true)
    }

    /// The second half of a fault that a vCPU parked and whose frame was found some time ago.
    fn complete_parked(&mut self) -> Result<bool, Violation> {
        let (taken, other) = {
            let mut all = self.actor.play.parked.lock().expect("no panic under it");
            let first = all.iter().position(|(_, answer)| answer.is_some());
            let taken = first.and_then(|n| all.remove(n));
            (taken, all.iter().find_map(|(_, answer)| *answer))
        };
        let Some((mut parked, Some(answer))) = taken else { return Ok(false) };
        // One that was found for another request, or for none, is refused, and nothing is lost.
        let FrameQuery { slot, backing, page, gfn, access, largest, .. } = parked.query();
        let nobody = FrameQuery::of_nobody(slot, (backing, page), gfn, access, largest);
        let other = other.unwrap_or_else(|| nobody.answer(answer.frame));
        match self.worker.complete_parked(parked, other) {
            Err(NotCompleted::WrongAnswer { parked: again, .. }) => parked = again,
            Ok(Outcome::Retry) => return Ok(true),
            ended => return Err(self.actor.bad(format!("another's answer: {ended:?}"))),
        }
        self.actor.note(WRONG_ANSWER);
        loop {
            match self.worker.complete_parked(parked, answer) {
                Ok(Outcome::Dead(why)) => {
                    return Err(self.actor.bad(format!("completing {answer:?}: {why}")));
                }
                Ok(outcome) => {
                    self.actor.met(outcome.name());
                    return Ok(true);
                }
                Err(NotCompleted::WrongAnswer { .. }) => {
                    return Err(self.actor.bad("a request refused its own answer"));
                }
                Err(NotCompleted::MissingPages { parked: again, .. }) => {
                    parked = again;
                    let reserved = self.worker.reserve(0);
                    reserved.map_err(|why| self.actor.bad(format!("no tables: {why}")))?;
                }
            }
        }
    }

    /// The second half of a fault that a vCPU posted.
    fn complete(&mut self) -> Result<bool, Violation> {
        let posted = self.actor.play.posted.lock().expect("no panic under it").pop_front();
        let Some(request) = posted else { return Ok(false) };
        let fault = request.query();
        let found = vmmu::host::Backing::find(&self.actor.hands, &fault);
        let vmmu::host::Resolution::Frame(found) = found else { return Ok(false) };
        let mut frame =
            request.resolve(fault.answer(found)).map_err(|why| self.actor.bad(why.to_string()))?;
        loop {
            match self.worker.complete(frame) {
                Ok(outcome) => {
                    self.actor.met(outcome.name());
                    return match outcome {
                        vmmu::Outcome::Dead(_) => {
                            Err(self.actor.bad(format!("completing {fault:?}: {outcome:?}")))
                        }
                        _ => Ok(true),
                    };
                }
                Err(short) => {
                    frame = short.resolved;
                    self.worker
                        .reserve(0)
                        .map_err(|why| self.actor.bad(format!("no tables: {why}")))?;
                }
            }
        }
    }
}

/// Lets a value go. None of those that are left has a drop today, so it is the same either way;
/// should one get a drop, it is met with it and without.
fn leave<T>(value: T, how: Leaving) {
    match how {
        Leaving::Forget => std::mem::forget(value),
        Leaving::Drop | Leaving::Aside => drop(value),
    }
}

/// A thread of the host that has begun nothing.
pub fn new<'p, 'r, 'vm>(
    actor: Actor<'p, 'r, 'vm>,
    worker: Worker<&'vm Mmu<Host>>,
) -> Keeper<'p, 'r, 'vm> {
    let (begun, aside, protected) = (Walks::default(), Vec::new(), Vec::new());
    Keeper { actor, worker, begun, aside, protected }
}

/// Guest frames where pages may be, by address space.
fn frames_of(pages: std::ops::Range<usize>) -> Vec<(u8, GfnRange)> {
    let mut all = Vec::new();
    for site in SITES {
        for view in site.views {
            let at = |offset: &u64| view.page(*offset).is_some_and(|page| pages.contains(&page));
            let offsets: Vec<u64> = match view.pages {
                Pages::Linear => continue,
                Pages::Huge => (0..TOUCHED).map(touched).filter(at).collect(),
                Pages::Blocks(_) => (0..site.pages).filter(at).collect(),
            };
            if let (Some(first), Some(last)) = (offsets.first(), offsets.last()) {
                let range = GfnRange::sized(Gfn(site.start + first), last - first + 1);
                all.extend(range.map(|range| (site.space, range)));
            }
        }
    }
    all
}

/// Ends what a thread of the host has begun.
pub fn finish(mut keeper: Keeper<'_, '_, '_>) -> Result<crate::play::Tally, Violation> {
    while keeper.begun.deletion.is_some() {
        let _guard = keeper.actor.play.turns.guard();
        keeper.delete_some(0, 1 << 20)?;
    }
    if let Some(InSteps { walk: mut zap, .. }) = keeper.begun.zap.take() {
        while keeper.worker.zap_some(&mut zap, u64::MAX) == Progress::More {}
    }
    if let Some(InSteps { walk: mut drain, .. }) = keeper.begun.drain.take() {
        while keeper.worker.drain(&mut drain, u64::MAX) == Progress::More {}
    }
    Ok(keeper.actor.tally.take())
}

/// Ends what all of them have begun and left, when nothing else runs.
pub fn settle(mut keeper: Keeper<'_, '_, '_>) -> Result<(), Violation> {
    let play = keeper.actor.play;
    while keeper.actor.ends(0)? {}
    loop {
        let parked = play.parked.lock().expect("no panic under it").pop_front();
        let Some((parked, _)) = parked else { break };
        drop(keeper.worker.unpark(parked));
    }
    for site in 0..SITES.len() {
        if play.places.occupant(site).is_some_and(|occupant| occupant.is_dying) {
            keeper.delete(site)?;
        }
    }
    Ok(())
}

impl Actor<'_, '_, '_> {
    /// The library reads, writes, exchanges or translates on its own.
    pub fn access_by_library(
        &mut self,
        worker: &mut Worker<&Mmu<Host>>,
        space: u8,
        op: &Op,
    ) -> Result<(), Violation> {
        let is_done = match op {
            Op::Read { at, word } => self.library_reads(worker, Spot::of(space, *at), *word)?,
            Op::Write { at } => self.library_writes(worker, Spot::of(space, *at))?,
            Op::Exchange { at } => self.library_exchanges(worker, Spot::of(space, *at))?,
            Op::Translate { at } => {
                let spot = Spot::of(space, *at);
                let role = Role { space: spot.space(), flavour: 0 };
                if let Some(there) = worker.translate(role, spot.gpa()) {
                    self.met(if there.level == Level::Size4K {
                        "translated 4K"
                    } else {
                        "translated"
                    });
                }
                true
            }
            other => return Err(self.bad(format!("no thread does {}", other.name()))),
        };
        self.did(op, is_done);
        Ok(())
    }

    fn library_reads(
        &mut self,
        worker: &mut Worker<&Mmu<Host>>,
        spot: Spot,
        word: u8,
    ) -> Result<bool, Violation> {
        let word = word as usize % 16;
        let look = self.play.look(spot);
        let page = self.play.since(look).only();
        let before = page.map(|page| self.play.model.pages[page].before(word));
        self.hands.answered.set(Answered::Nothing);
        let gpa = vmmu::addr::Gpa(spot.gpa().0 + 8 * word as u64);
        let mut bytes = [0; 8];
        let read = worker.read(&self.hands, spot.space(), gpa, &mut bytes);
        let seen = self.play.since(look);
        self.judge_library(read, spot, &seen, false)?;
        if let (Ok(()), Some(page), Some(before)) = (read, page, before)
            && seen.only() == Some(page)
        {
            let value = u64::from_le_bytes(bytes);
            let judged = self.play.model.pages[page].judge(word, before, value);
            judged.map_err(|what| self.bad(format!("the library read page {page}: {what}")))?;
        }
        Ok(read.is_ok())
    }

    fn library_writes(
        &mut self,
        worker: &mut Worker<&Mmu<Host>>,
        spot: Spot,
    ) -> Result<bool, Violation> {
        // Which page it writes is known only while nobody changes the slot.
        let (word, value) = (self.word(), self.next_value());
        let look = self.play.look(spot);
        let Some(page) = self.play.since(look).only() else { return Ok(false) };
        let Some(_place) = spot.site.and_then(|(site, _)| self.play.places.occupy(site)) else {
            return Ok(false);
        };
        if self.play.since(look).only() != Some(page) {
            return Ok(false);
        }
        let words = &self.play.model.pages[page];
        let epoch = words.start(word, value);
        self.hands.answered.set(Answered::Nothing);
        let gpa = vmmu::addr::Gpa(spot.gpa().0 + 8 * word as u64);
        let wrote = worker.write(&self.hands, spot.space(), gpa, &value.to_le_bytes());
        self.judge_library(wrote, spot, &self.play.since(look), true)?;
        if wrote.is_ok() {
            words.complete(word, value, epoch);
        }
        Ok(wrote.is_ok())
    }

    fn library_exchanges(
        &mut self,
        worker: &mut Worker<&Mmu<Host>>,
        spot: Spot,
    ) -> Result<bool, Violation> {
        let (word, value) = (self.word(), self.next_value());
        let look = self.play.look(spot);
        let Some(_place) = spot.site.and_then(|(site, _)| self.play.places.occupy(site)) else {
            return Ok(false);
        };
        let Some(page) = self.play.since(look).only() else { return Ok(false) };
        let words = &self.play.model.pages[page];
        let seen = words.before(word).value();
        let epoch = words.start(word, value);
        self.hands.answered.set(Answered::Nothing);
        let gpa = vmmu::addr::Gpa(spot.gpa().0 + 8 * word as u64);
        let exchanged = worker.compare_exchange(&self.hands, spot.space(), gpa, seen, value);
        let result = exchanged.map(drop);
        self.judge_library(result, spot, &self.play.since(look), true)?;
        match exchanged {
            Ok(Ok(_)) => words.complete(word, value, epoch),
            Ok(Err(now)) => {
                // The host may have emptied the page meanwhile, or a late write of this thread's
                // own may stand in an epoch that began before it.
                self.met("exchange lost");
                let before = words.before(word);
                let judged = words.judge(word, before, now);
                judged.map_err(|what| self.bad(format!("exchange in page {page}: {what}")))?;
            }
            Err(_) => {}
        }
        Ok(matches!(exchanged, Ok(Ok(_))))
    }

    fn judge_library(
        &self,
        result: Result<(), AccessError>,
        spot: Spot,
        seen: &crate::play::Seen,
        is_write: bool,
    ) -> Result<(), Violation> {
        let Err(error) = result else {
            if seen.some(false) || seen.some(true) && !is_write {
                return Ok(());
            }
            return Err(self.bad(format!("the library reached {spot:x?}, and there was {seen:?}")));
        };
        let is_right = match error.why {
            AccessFailure::NoMemory => seen.nothing(),
            AccessFailure::ReadOnly => is_write && seen.some(true),
            AccessFailure::Hole => self.hands.answered.get() == Answered::Hole,
            AccessFailure::Busy(_) => true,
            _ => false,
        };
        if is_right {
            return Ok(());
        }
        Err(self.bad(format!("{error}; there may have been {seen:?}")))
    }
}
