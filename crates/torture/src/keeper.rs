//! A thread of the host: it takes pages back, changes slots, zaps, drains, and reads and writes
//! guest memory.

use vmmu::addr::{Gfn, GfnRange, Level, Pfn};
use vmmu::entry::MemoryType;
use vmmu::slot::{AddressSpace, LinearFrames, Mutability, SlotError, SlotId, SlotSpec, Source};
use vmmu::{Mmu, Progress, Worker};

use crate::Violation;
use crate::arena::{Arena, BLOCKS};
use crate::guest_tables;
use crate::host::Host;
use crate::model::{BLOCK_BACKING, HUGE_BACKING, Pages, SITES, TOUCHED, View, touched};
use crate::notifier::pages_at;
use crate::notify::Through;
use crate::op::{self, Begun, Leaving, Op};
use crate::places::{Occupant, Place};
use crate::play::{Actor, SEALED, SECOND_SLOTS, SECOND_ZAPS, Spot, Tally};
use crate::store::block_of;
use crate::walks::Walks;

/// A thread of the host, and what it has begun.
pub struct Keeper<'p, 'r, 'vm> {
    pub actor: Actor<'p, 'r, 'vm>,
    pub worker: Worker<&'vm Mmu<Host>>,
    walks: Walks<'r>,
    /// Pages that it has made read-only.
    protected: Vec<usize>,
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
            Op::FindParked => self.actor.find_parked(&mut self.worker)?,
            Op::CompleteParked => self.actor.complete_parked(&mut self.worker)?,
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
                if !self.walks.is_zapping() {
                    self.begin_zap(*at, u64::from(*pages));
                }
                self.walks.zap_some(&self.actor, &mut self.worker, u64::from(*budget))?
            }
            Op::Roots { budget } => {
                if !self.walks.is_draining() {
                    let _guard = turns.guard();
                    let drain = self.worker.invalidate_roots();
                    self.walks.begin_drain(drain, play.places);
                }
                self.walks.drain_some(&self.actor, &mut self.worker, u64::from(*budget))
            }
            Op::Continue { budget } => self.go_on(u64::from(*budget))?,
            Op::ZapAll => {
                let _guard = turns.guard();
                self.worker.zap_all();
                true
            }
            Op::Complete => self.actor.complete_posted(&mut self.worker)?,
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

    /// The next steps of whatever was begun.
    fn go_on(&mut self, budget: u64) -> Result<bool, Violation> {
        let mut any = false;
        if self.walks.is_deleting() {
            let _guard = self.actor.play.turns.guard();
            any = self.delete_some(0, budget)?;
        }
        any |= self.walks.zap_some(&self.actor, &mut self.worker, budget)?;
        any |= self.walks.drain_some(&self.actor, &mut self.worker, budget);
        if budget.is_multiple_of(2) {
            any |= self.walks.go_on_late(&self.actor, &mut self.worker, budget);
        }
        Ok(any)
    }

    /// Leaves something half done.
    fn abandon(&mut self, what: Begun, how: Leaving) -> Result<bool, Violation> {
        // There is seldom one just then.
        let play = self.actor.play;
        let any = play.done.load(std::sync::atomic::Ordering::Relaxed);
        match what {
            Begun::Deletion if !self.walks.is_deleting() => {
                let _guard = play.turns.guard();
                self.delete_some(any as usize % SITES.len(), 1)?;
            }
            Begun::Drain if !self.walks.is_draining() => {
                let _guard = play.turns.guard();
                let drain = self.worker.invalidate_roots();
                self.walks.begin_drain(drain, play.places);
            }
            Begun::Zap if !self.walks.is_zapping() => {
                self.begin_zap(op::At { site: any as u8, page: any as u32 }, 1000);
            }
            _ => {}
        }
        Ok(match what {
            Begun::Zap => self.walks.leave_zap(how),
            Begun::Drain => self.walks.leave_drain(how),
            Begun::Deletion => self.walks.leave_deletion(how),
            Begun::Parked => self.actor.leave_parked(how),
        })
    }

    /// Begins a zap that is done in steps.
    fn begin_zap(&mut self, at: op::At, pages: u64) {
        let spot = Spot::of(at.site & 1, at);
        let range = GfnRange::sized(Gfn(spot.gfn), pages).expect("short");
        let zap = self.worker.begin_zap(spot.space(), range);
        self.walks.begin_zap(zap, pages, self.actor.play.places);
        self.actor.note_space(spot.space, SECOND_ZAPS);
    }

    /// A walk with the smallest steps and a change of the slots between any two: it ends all the
    /// same.
    fn contend(&mut self, at: op::At, pages: u64, deletes: bool) -> Result<bool, Violation> {
        let play = self.actor.play;
        if deletes {
            if self.walks.is_deleting() {
                return Ok(false);
            }
            let mut is_begun = {
                let _guard = play.turns.guard();
                self.delete_some(at.page as usize % SITES.len(), 1)?
            };
            let is_done = is_begun;
            while is_begun && self.walks.is_deleting() {
                self.come_and_go()?;
                let _guard = play.turns.guard();
                is_begun = self.delete_some(0, 1)?;
            }
            return Ok(is_done);
        }
        if self.walks.is_zapping() {
            return Ok(false);
        }
        self.begin_zap(at, pages);
        while self.walks.zap_some(&self.actor, &mut self.worker, 1)? && self.walks.is_zapping() {
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
        if !self.walks.is_deleting() {
            let Some(place) = self.a_place(site, |occupant| occupant.is_some()) else {
                return Ok(false);
            };
            let Some(occupant) = place.occupant() else { return Ok(false) };
            let id = occupant.id;
            if !occupant.is_dying {
                play.model.begin(place.site, None);
            }
            // Guests use a few areas of the largest.
            let frames = SITES[place.site].pages.min(64 * 512);
            match self.worker.begin_delete(id) {
                Ok(deletion) => {
                    self.walks.begin_deletion(deletion, place, occupant, frames, play.places);
                }
                Err(SlotError::Missing(_)) if occupant.is_dying => {
                    self.gone(&place, id);
                    return Ok(true);
                }
                Err(why) => return Err(self.actor.bad(format!("deleting {id:?}: {why}"))),
            }
        }
        let ended = self.walks.delete_some(&self.actor, &mut self.worker, budget)?;
        if let Some((place, occupant)) = ended {
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
}

/// A thread of the host that has begun nothing.
pub fn new<'p, 'r, 'vm>(
    actor: Actor<'p, 'r, 'vm>,
    worker: Worker<&'vm Mmu<Host>>,
) -> Keeper<'p, 'r, 'vm> {
    Keeper { actor, worker, walks: Walks::default(), protected: Vec::new() }
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
pub fn finish(mut keeper: Keeper<'_, '_, '_>) -> Result<Tally, Violation> {
    while keeper.walks.is_deleting() {
        let _guard = keeper.actor.play.turns.guard();
        keeper.delete_some(0, 1 << 20)?;
    }
    keeper.walks.end(&mut keeper.worker);
    Ok(keeper.actor.tally.take())
}

/// Ends what all of them have begun and left, when nothing else runs.
pub fn settle(mut keeper: Keeper<'_, '_, '_>) -> Result<(), Violation> {
    let play = keeper.actor.play;
    while keeper.actor.ends(0)? {}
    keeper.actor.unpark_all(&mut keeper.worker);
    for site in 0..SITES.len() {
        if play.places.occupant(site).is_some_and(|occupant| occupant.is_dying) {
            keeper.delete(site)?;
        }
    }
    Ok(())
}
