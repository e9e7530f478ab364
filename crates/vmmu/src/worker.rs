//! A worker: a participant with a stock of table pages. It changes slots, answers the host's
//! invalidations, drains roots, and completes faults for vCPUs. A vCPU is a worker too.

use core::fmt;

use crate::active::{ActivePlace, HostRange};
use crate::addr::{GfnRange, Level};
use crate::entry::Format;
use crate::host::Host;
use crate::section::Participant;
use crate::shared::{Broken, Core};
use crate::slot::{AddressSpace, Hint, SlotError, SlotGuard, SlotId, SlotInfo, SlotSpec, Source};
use crate::table::{Cache, Then};
use crate::tdp::{Faulter, Frame, Outcome, Parked, Request, Short};
use crate::withdraw::{GuestFrames, HostPages, Paused, Promise, SlotDying, Unloaded, Walk};
use crate::{NoMemory, Vm};

/// A participant with table pages; see the module.
#[derive(Debug)]
pub struct Worker<'vm, H: Host> {
    pub(crate) participant: Participant<'vm, H>,
    pub(crate) cache: Cache,
    pub(crate) hint: Hint,
}

/// A range under invalidation: until this is dropped, nothing can be mapped from it.
#[must_use = "dropping it ends the invalidation"]
#[derive(Debug)]
pub struct Invalidation<'vm> {
    core: &'vm Core,
    place: ActivePlace,
}

impl Drop for Invalidation<'_> {
    fn drop(&mut self) {
        self.core.active.withdraw(self.place);
    }
}

/// No invalidation of exactly this range is under way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NotInvalidating(pub HostRange);

impl fmt::Display for NotInvalidating {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let HostRange { backing, first, .. } = self.0;
        let end = self.0.end();
        write!(
            f,
            "no invalidation of backing {backing}, pages {first:#x}..{end:#x} is under way: end \
             exactly what was begun"
        )
    }
}

impl core::error::Error for NotInvalidating {}

/// Invalid roots that are being taken apart.
#[must_use = "the tables below the invalid roots stay until they are drained"]
#[derive(Debug)]
pub struct Drain {
    rest: Option<Paused<Unloaded>>,
}

/// Whether a drain has come to its end.
#[must_use]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Drained {
    /// All tables are back with the host.
    All,
    /// Call again.
    More,
}

impl<'vm, H: Host> Worker<'vm, H> {
    pub(crate) fn new(vm: &'vm Vm<H>) -> Option<Self> {
        let cache = Cache::new(vm.core.format.top()).ok()?;
        let participant = Participant::register(vm)?;
        Some(Worker { participant, cache, hint: Hint::default() })
    }

    pub(crate) fn faulter(&mut self) -> Faulter<'_, 'vm, H> {
        Faulter { turn: &mut self.participant, cache: &mut self.cache, hint: &mut self.hint }
    }

    pub(crate) fn core(&self) -> &'vm Core {
        self.participant.core()
    }

    fn alive(&self) -> Result<(), Broken> {
        self.core().broken().map_or(Ok(()), Err)
    }

    /// Takes table pages from the host ahead, so that the next operations need not: at least
    /// `pages`, and at least what one leaf may need.
    pub fn reserve(&mut self, pages: usize) -> Result<(), NoMemory> {
        let core = self.core();
        self.cache.fill(self.participant.host(), core, pages)
    }

    /// Maps a frame that was found for a request, whoever faulted. `Err`: table pages are
    /// missing; the frame comes back, [`reserve`](Self::reserve) and complete it again.
    #[expect(clippy::result_large_err, reason = "the frame comes back; a box would allocate")]
    pub fn complete<'f>(&mut self, frame: Frame<'f>) -> Result<Outcome, Short<'f>> {
        self.faulter().complete(frame)
    }

    /// Makes a request of its name again, or gives the name back if it is another VM's.
    pub fn unpark(&mut self, parked: Parked) -> Result<Request<'vm>, Parked> {
        self.participant.unpark(parked)
    }

    /// Makes a slot. When this returns, faults map from it.
    pub fn create_slot(&mut self, spec: &SlotSpec) -> Result<(), SlotError> {
        self.alive().map_err(SlotError::Dead)?;
        self.check(spec)?;
        let mut guard = self.participant.slots();
        guard.add(spec)?;
        self.participant.exclude();
        guard.come(spec);
        self.renew_if_wrapped(guard);
        Ok(())
    }

    /// Deletes a slot: zaps exactly its leaves, in every root. When this returns, nothing reaches
    /// its pages; requests of vCPUs that still resolve frames of it will be refused, and are not
    /// waited for.
    pub fn delete_slot(&mut self, id: SlotId) -> Result<(), SlotError> {
        self.alive().map_err(SlotError::Dead)?;
        let mut guard = self.participant.slots();
        let dying = guard.dying(id)?;
        self.bury(&mut guard, dying);
        self.renew_if_wrapped(guard);
        Ok(())
    }

    /// Moves a slot to another place of its address space; mappings of the old place go.
    pub fn move_slot(&mut self, id: SlotId, to: crate::addr::Gfn) -> Result<(), SlotError> {
        self.alive().map_err(SlotError::Dead)?;
        let mut guard = self.participant.slots();
        let SlotInfo { spec, .. } = guard.info(id)?;
        let frames = self.core().format.frames();
        let range = GfnRange::sized(to, spec.range.pages());
        let range = range.ok_or(SlotError::TooHigh { range: GfnRange::ALL, frames })?;
        let spec = SlotSpec { range, ..spec };
        self.check(&spec)?;
        guard.check_move(&spec)?;
        let dying = guard.dying(id)?;
        self.bury(&mut guard, dying);
        guard.add(&spec)?;
        self.participant.exclude();
        guard.come(&spec);
        self.renew_if_wrapped(guard);
        Ok(())
    }

    /// Changes the largest leaf of a slot. When this returns, no larger one is mapped; faults on
    /// other slots are not held up.
    pub fn limit_slot(&mut self, id: SlotId, largest: Level) -> Result<(), SlotError> {
        self.alive().map_err(SlotError::Dead)?;
        if !largest.can_be_leaf() {
            return Err(SlotError::Largest(largest));
        }
        let mut guard = self.participant.slots();
        let SlotInfo { spec, .. } = guard.info(id)?;
        guard.revise(&SlotSpec { largest, ..spec });
        let changed = GuestFrames::new(spec.space, spec.range);
        let withdrawn = self.participant.publish(changed).exclude();
        if largest < spec.largest {
            let walked = withdrawn.walk(|page| {
                page.each(|entry| if entry.level() > largest { entry.zap() } else { Ok(()) })
            });
            let _gone = walked.finish();
        }
        Ok(())
    }

    /// The slot of that number, as it stands.
    pub fn slot(&mut self, id: SlotId) -> Result<SlotInfo, SlotError> {
        self.participant.slots().info(id)
    }

    /// What a slot must fulfil by itself.
    fn check(&self, spec: &SlotSpec) -> Result<(), SlotError> {
        let core = self.core();
        let (range, frames) = (spec.range, core.format.frames());
        if range.is_empty() {
            return Err(SlotError::Empty(spec.id));
        }
        if range.end().0 > frames {
            return Err(SlotError::TooHigh { range, frames });
        }
        if !spec.largest.can_be_leaf() {
            return Err(SlotError::Largest(spec.largest));
        }
        match spec.source {
            Source::Linear { pfn, memory } => {
                let end = pfn.0.checked_add(range.pages()).ok_or(SlotError::Source(spec.id))?;
                if end > 1 << (core.format.phys_bits() - 12) {
                    return Err(SlotError::Source(spec.id));
                }
                if !core.format.has_memory(memory) {
                    return Err(SlotError::Memory(memory));
                }
                let hit = core.reserved.iter().find(|(a, b)| a.0 < end && pfn.0 < b.0);
                if let Some((a, b)) = hit {
                    return Err(SlotError::Reserved {
                        id: spec.id,
                        first: pfn.0,
                        end,
                        reserved_first: a.0,
                        reserved_end: b.0,
                    });
                }
            }
            Source::Backed { first, .. } => {
                first.checked_add(range.pages()).ok_or(SlotError::Source(spec.id))?;
            }
        }
        Ok(())
    }

    /// Zaps a dying slot's leaves, takes it out of the set and frees its number.
    fn bury(&mut self, guard: &mut SlotGuard<'_>, dying: SlotDying) {
        let walked =
            self.participant.publish(dying).exclude().walk(|page| page.each(|entry| entry.zap()));
        let removed = guard.remove(walked.finish());
        self.participant.exclude();
        if let Some(id) = removed {
            guard.bury(id);
        }
    }

    /// MMIO entries carry only the low bits of the generation: when those come round, every old
    /// entry goes.
    fn renew_if_wrapped(&mut self, mut guard: SlotGuard<'_>) {
        let mask = (1 << Format::GENERATION_BITS) - 1;
        if guard.generation() & mask == 0 {
            let mut drain = self.invalidate(&mut guard);
            while self.drain(&mut drain, u64::MAX) == Drained::More {}
        }
    }

    /// The host takes pages back. When this returns, no vCPU reaches them by any translation, in
    /// any root, also not by a huge leaf that overlaps them by one page; and while the result
    /// lives nothing is mapped from them.
    ///
    /// Takes no sleeping lock, waits for no vCPU's resolving.
    pub fn invalidate_range(&mut self, range: HostRange) -> Invalidation<'vm> {
        let core = self.core();
        let place = self.withdraw_pages(range);
        Invalidation { core, place }
    }

    /// The same for notifiers with separate callbacks: [`invalidate_end`](Self::invalidate_end)
    /// with the same range follows.
    pub fn invalidate_begin(&mut self, range: HostRange) {
        self.withdraw_pages(range);
    }

    /// Ends what [`invalidate_begin`](Self::invalidate_begin) began.
    pub fn invalidate_end(&mut self, range: HostRange) -> Result<(), NotInvalidating> {
        let core = self.core();
        let place = core.active.find(&range).ok_or(NotInvalidating(range))?;
        core.active.withdraw(place);
        Ok(())
    }

    fn withdraw_pages(&mut self, range: HostRange) -> ActivePlace {
        let core = self.core();
        self.participant.line().counters.invalidations.add(1);
        let walked = self
            .participant
            .publish(HostPages::new(range))
            .exclude()
            .walk(|page| page.each(|entry| entry.zap()));
        let promise = walked.finish();
        // It is this VM's promise, of a range that was published.
        promise.open(core).and_then(|pages| pages.place()).unwrap_or(ActivePlace::Overflow)
    }

    /// Drops every mapping of guest frames, so that faults make them anew: leaves only, and an
    /// overlapping huge leaf goes whole. Requests under way are refused. Call it after changing
    /// what a mapping would say.
    pub fn zap(&mut self, space: AddressSpace, range: GfnRange) {
        let walked = self
            .participant
            .publish(GuestFrames::new(space, range))
            .exclude()
            .walk(|page| page.each(|entry| entry.zap()));
        let _gone = walked.finish();
    }

    /// Invalidates every root and waits until no vCPU runs on one: the first half of the big
    /// hammer. vCPUs load new roots at their next entry. [`drain`](Self::drain) the old ones.
    pub fn invalidate_roots(&mut self) -> Drain {
        let mut guard = self.participant.slots();
        self.invalidate(&mut guard)
    }

    fn invalidate(&mut self, guard: &mut SlotGuard<'_>) -> Drain {
        let unloaded = self.participant.publish(guard.invalidate()).exclude().unload();
        // Nothing is visited yet: a drain is made of steps.
        match unloaded.walk_some(1, |_| Then::Pause) {
            Walk::More(rest) => Drain { rest: Some(rest) },
            Walk::Whole(walked) => {
                let promise = walked.finish();
                self.retire(promise);
                Drain { rest: None }
            }
        }
    }

    /// Takes at most `budget` tables of invalid roots apart and gives them back to the host. A
    /// drain that another VM began is left alone.
    pub fn drain(&mut self, drain: &mut Drain, budget: u64) -> Drained {
        let Some(rest) = drain.rest.take() else { return Drained::All };
        match self.participant.resume(rest) {
            Ok(unloaded) => {
                match unloaded.walk_some(budget, |page| page.each(|entry| entry.detach())) {
                    Walk::More(rest) => drain.rest = Some(rest),
                    Walk::Whole(walked) => {
                        let promise = walked.finish();
                        self.retire(promise);
                    }
                }
            }
            Err(foreign) => drain.rest = Some(foreign),
        }
        if drain.rest.is_some() { Drained::More } else { Drained::All }
    }

    /// Gives the top tables of drained roots back.
    fn retire(&mut self, drained: Promise<Unloaded>) {
        let core = self.core();
        let names = drained.open(core).map(Unloaded::names).unwrap_or_default();
        let mut tops = names.map(|name| name.and_then(|name| core.roots.get(name)));
        for top in &mut tops {
            *top = top.filter(|root| core.roots.retire(root.name));
        }
        self.participant.exclude();
        for root in tops.into_iter().flatten() {
            self.participant.host().release(root.top);
            core.roots.free(root.name);
        }
    }

    /// The big hammer: drops every mapping of the VM. Cost follows the VM, not the change.
    pub fn zap_all(&mut self) {
        let mut drain = self.invalidate_roots();
        while self.drain(&mut drain, 64) == Drained::More {}
    }
}

impl<H: Host> Drop for Worker<'_, H> {
    fn drop(&mut self) {
        self.cache.drain(self.participant.host());
    }
}
