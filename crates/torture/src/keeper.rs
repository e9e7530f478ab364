//! A thread of the host: it takes pages back, changes slots, zaps, drains, and reads and writes
//! guest memory.

use vmmu::addr::{Gfn, GfnRange, Level, Pfn};
use vmmu::entry::MemoryType;
use vmmu::slot::{AddressSpace, LinearFrames, Mutability, SlotId, SlotSpec, Source};
use vmmu::{
    AccessError, AccessFailure, Deletion, Drain, HostRange, Mmu, Progress, Role, Worker, Zap,
};

use crate::Violation;
use crate::arena::{Arena, BLOCKS};
use crate::host::Host;
use crate::model::{BLOCK_BACKING, HUGE_BACKING, Pages, SITES, TOUCHED, View, name_of};
use crate::op::{self, Op};
use crate::play::{Actor, Place, Spot};
use crate::store::{Answered, Change};

/// A thread of the host, and what it has begun.
pub struct Keeper<'p, 'r, 'vm> {
    pub actor: Actor<'p, 'r, 'vm>,
    pub worker: Worker<&'vm Mmu<Host>>,
    pub long: Option<HostRange>,
    pub deletion: Option<(Deletion, Place<'r>, SlotId)>,
    pub zap: Option<Zap>,
    pub drain: Option<Drain>,
}

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

/// The page of the model that may be where `pages` begins, if the host may change it.
fn page_at(pages: &op::Pages) -> Option<usize> {
    let (site, offset) = Spot::of(pages.view & 1, pages.at).site?;
    let views = SITES[site].views;
    let page = views[pages.view as usize / 2 % views.len()].page(offset)?;
    name_of(page).map(|_| page)
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
            Op::Change { pages, change } => self.change(*pages, *change)?,
            Op::Long { pages } => self.lasting(*pages)?,
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
                true
            }
            Op::ZapSome { at, pages, budget } => {
                let worker = &mut self.worker;
                let zap = self.zap.get_or_insert_with(|| {
                    let spot = Spot::of(at.site & 1, *at);
                    let range = GfnRange::sized(Gfn(spot.gfn), u64::from(*pages)).expect("short");
                    worker.begin_zap(spot.space(), range)
                });
                if worker.zap_some(zap, u64::from(*budget)) != (Progress::More {}) {
                    self.zap = None;
                }
                true
            }
            Op::Roots { budget } => {
                let worker = &mut self.worker;
                let drain = self.drain.get_or_insert_with(|| {
                    let _guard = turns.guard();
                    worker.invalidate_roots()
                });
                if worker.drain(drain, u64::from(*budget)) != (Progress::More {}) {
                    self.drain = None;
                }
                true
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

    fn change(&mut self, pages: op::Pages, change: op::Change) -> Result<bool, Violation> {
        let play = self.actor.play;
        let all = BLOCKS as usize + TOUCHED;
        let Some(mut first) = page_at(&pages) else { return Ok(false) };
        let mut count = pages.count as usize;
        if count == 512 {
            first &= !511;
        }
        // Pages of one backing.
        let end = if first < BLOCKS as usize { BLOCKS as usize } else { all };
        if change == Change::Punch {
            count = count.min(2);
        }
        let pages = first..end.min(first + count);
        play.store.change(&mut self.worker, play.vm.host(), play.model, pages, change)
    }

    /// The next steps of whatever was begun.
    fn go_on(&mut self, budget: u64) -> Result<bool, Violation> {
        let mut any = false;
        if self.deletion.is_some() {
            let _guard = self.actor.play.turns.guard();
            any = self.delete_some(0, budget)?;
        }
        if let Some(zap) = &mut self.zap {
            if self.worker.zap_some(zap, budget) != (Progress::More {}) {
                self.zap = None;
            }
            any = true;
        }
        if let Some(drain) = &mut self.drain {
            if self.worker.drain(drain, budget) != (Progress::More {}) {
                self.drain = None;
            }
            any = true;
        }
        if self.long.is_some() && budget == 1 {
            any = self.lasting(op::Pages { at: op::At { site: 0, page: 0 }, view: 0, count: 0 })?;
        }
        Ok(any)
    }

    fn lasting(&mut self, pages: op::Pages) -> Result<bool, Violation> {
        if let Some(range) = self.long.take() {
            let ended = self.worker.invalidate_end(range);
            return ended.map(|()| true).map_err(|why| self.actor.bad(why.to_string()));
        }
        let name = page_at(&pages).and_then(name_of);
        let Some((backing, first)) = name else { return Ok(false) };
        let range = HostRange { backing, first, pages: u64::from(pages.count) };
        self.worker.invalidate_begin(range);
        self.long = Some(range);
        Ok(true)
    }

    /// The next site from this one on that has a slot, or has none, and that nobody is changing.
    fn a_place(&self, site: usize, with_slot: bool) -> Option<Place<'r>> {
        let sites = (site..SITES.len()).chain(0..site);
        let places = &self.actor.play.places;
        // One of the two that can change places stays empty.
        let is_kept = |site: usize| {
            let partner = SWAPPED.iter().position(|n| *n == site).map(|n| SWAPPED[1 - n]);
            !with_slot && partner.is_some_and(|site| places.has_slot(site))
        };
        let mut places = sites.filter(|n| !is_kept(*n)).filter_map(|n| places.occupy(n));
        places.find(|place| place.slot().is_some() == with_slot)
    }

    fn create(&mut self, site: usize, view: u8, largest: Level) -> Result<bool, Violation> {
        let play = self.actor.play;
        let Some(place) = self.a_place(site, false) else { return Ok(false) };
        let site = place.site;
        let Some(id) = place.number() else { return Ok(false) };
        let n = view as usize % SITES[site].views.len();
        let spec = spec(id, site, SITES[site].views[n], largest);
        play.model.begin(site, Some(n));
        let made = self.worker.create_slot(&spec);
        play.model.end(site, made.is_ok());
        match made {
            Ok(()) => place.set(Some(id)),
            Err(why) => return Err(self.actor.bad(format!("{spec:?}: {why}"))),
        }
        Ok(true)
    }

    fn delete(&mut self, site: usize) -> Result<bool, Violation> {
        let play = self.actor.play;
        let Some(place) = self.a_place(site, true) else { return Ok(false) };
        let site = place.site;
        let Some(id) = place.slot() else { return Ok(false) };
        play.model.begin(site, None);
        let deleted = self.worker.delete_slot(id);
        play.model.end(site, deleted.is_ok());
        deleted.map_err(|why| self.actor.bad(format!("deleting {id:?}: {why}")))?;
        place.set(None);
        place.free(id);
        Ok(true)
    }

    fn delete_some(&mut self, site: usize, budget: u64) -> Result<bool, Violation> {
        let play = self.actor.play;
        if self.deletion.is_none() {
            let Some(place) = self.a_place(site, true) else { return Ok(false) };
            let Some(id) = place.slot() else { return Ok(false) };
            play.model.begin(place.site, None);
            match self.worker.begin_delete(id) {
                Ok(deletion) => self.deletion = Some((deletion, place, id)),
                Err(why) => return Err(self.actor.bad(format!("deleting {id:?}: {why}"))),
            }
        }
        let Some((deletion, place, id)) = &mut self.deletion else { return Ok(false) };
        if self.worker.delete_some(deletion, budget) != (Progress::More {}) {
            play.model.end(place.site, true);
            place.set(None);
            place.free(*id);
            self.deletion = None;
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
        let (Some(id), None) = (source.slot(), target.slot()) else { return Ok(false) };
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
        target.set(Some(id));
        Ok(true)
    }

    fn limit(&mut self, site: usize, largest: Level) -> Result<bool, Violation> {
        let Some(place) = self.actor.play.places.occupy(site) else { return Ok(false) };
        let Some(id) = place.slot() else { return Ok(false) };
        let limited = self.worker.limit_slot(id, largest);
        limited.map_err(|why| self.actor.bad(format!("limiting {id:?}: {why}")))?;
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

/// Ends what a thread of the host has begun.
pub fn finish(mut keeper: Keeper<'_, '_, '_>) -> Result<crate::play::Tally, Violation> {
    if let Some(range) = keeper.long.take() {
        let ended = keeper.worker.invalidate_end(range);
        ended.map_err(|why| keeper.actor.bad(why.to_string()))?;
    }
    while keeper.deletion.is_some() {
        let _guard = keeper.actor.play.turns.guard();
        keeper.delete_some(0, u64::MAX)?;
    }
    if let Some(mut zap) = keeper.zap.take() {
        while keeper.worker.zap_some(&mut zap, u64::MAX) == Progress::More {}
    }
    if let Some(mut drain) = keeper.drain.take() {
        while keeper.worker.drain(&mut drain, u64::MAX) == Progress::More {}
    }
    Ok(keeper.actor.tally.take())
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
