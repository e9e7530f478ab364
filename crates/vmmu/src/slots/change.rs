//! Changing slots. Every change is made under the slot guard; a failed one has changed nothing.
//!
//! The hazard: worker A swaps the two copies of the set and waits for a grace period, and in that wait
//! a hook of the host unwinds. Worker B takes the guard next and edits the copy that sections may
//! still be reading. Or A begins to delete a slot in steps and is dropped: the slot's number and its
//! frames are taken for ever.
//!
//! The rule: what is left to do stands beside the guard ([`Unfinished`](crate::state::slots::Unfinished)),
//! or in the slot's word, and the next one who takes the guard, or who needs the number or the frames,
//! does it first. When a hook unwinds out of a creation, the slot is dying, and goes with the next
//! change of slots; out of a deletion, it stays dying until somebody deletes it again or needs its
//! place; out of a move, one of the two.

use crate::addr::{Gfn, GfnRange, Level};
use crate::host::host::Host;
use crate::protocol::local::Local;
use crate::protocol::section::Owing;
use crate::revoke::chain::{PausedWalk, Revoked};
use crate::revoke::dying_slot::SlotDying;
use crate::revoke::progress::Progress;
use crate::slots::deletion::Deletion;
use crate::slots::drain::Drain;
use crate::slots::edit::Room;
use crate::slots::error::SlotError;
use crate::slots::guard::SlotGuard;
use crate::state::slot::{SlotId, SlotInfo, SlotSpec, SlotState, Source};
use crate::table::page::Page;

impl<H: Host> Local<'_, H> {
    /// Makes a slot. When this returns, faults map from it.
    pub(crate) fn create_slot(&mut self, spec: &SlotSpec) -> Result<(), SlotError> {
        self.core().alive().map_err(SlotError::Dead)?;
        self.check(spec)?;
        let mut guard = self.slots();
        self.finish_deletions(&mut guard, |guard| guard.check_add(spec))?;
        while guard.make_room(spec)? == Room::AfterGracePeriod {
            self.quiesce(&mut guard);
        }
        guard.add(spec)?;
        if !defect!(SlotLiveAtOnce) {
            self.quiesce(&mut guard);
        }
        guard.come(spec);
        self.renew(guard);
        Ok(())
    }

    /// Deletes a slot: zaps exactly its leaves, in every root. When this returns, nothing reaches
    /// its pages; requests of vCPUs that still resolve frames of it will be refused, and are not
    /// waited for.
    pub(crate) fn delete_slot(&mut self, id: SlotId) -> Result<(), SlotError> {
        self.core().alive().map_err(SlotError::Dead)?;
        let mut guard = self.slots();
        let dying = guard.dying(id)?;
        self.zap_and_remove(&mut guard, dying);
        self.renew(guard);
        Ok(())
    }

    /// Begins to delete a slot in steps: from now on nothing of it is mapped any more, and nobody
    /// is held up while [`delete_some`](Self::delete_some) takes away what is.
    pub(crate) fn begin_delete(&mut self, id: SlotId) -> Result<Deletion, SlotError> {
        self.core().alive().map_err(SlotError::Dead)?;
        let dying = self.slots().dying(id)?;
        let rest = self.announce(dying).synchronize().pause();
        Ok(Deletion { rest: Some(rest), renewal: None })
    }

    /// Goes on with a deletion for at most `budget` table pages. The slot's number is free when
    /// it is done. A deletion that another VM began is left alone.
    pub(crate) fn delete_some(&mut self, deletion: &mut Deletion, budget: u64) -> Progress {
        let zap = |page: &Page<'_, Owing<'_>>| page.each(|entry| entry.zap());
        // Somebody else may have finished it meanwhile, and the number may be another slot's.
        let is_over = |rest: &PausedWalk<SlotDying>| {
            let SlotDying { vm, id, word, .. } = *rest.what();
            vm == self.core().id && self.core().slots.word(id) != word
        };
        if deletion.rest.as_ref().is_some_and(is_over) {
            deletion.rest = None;
        }
        if let Some(gone) = self.walk_on(&mut deletion.rest, budget, zap) {
            let mut guard = self.slots();
            self.remove(&mut guard, gone);
            deletion.renewal = self.begin_renewal(guard);
        } else if let Some(drain) = &mut deletion.renewal
            && self.drain(drain, budget) == Progress::Done
        {
            deletion.renewal = None;
        }
        if deletion.renewal.is_some() { Progress::More } else { Progress::of(&deletion.rest) }
    }

    /// Moves a slot to another place of its address space; mappings of the old place go.
    pub(crate) fn move_slot(&mut self, id: SlotId, to: Gfn) -> Result<(), SlotError> {
        self.core().alive().map_err(SlotError::Dead)?;
        let mut guard = self.slots();
        let SlotInfo { spec, .. } = guard.info(id)?;
        let frames = self.core().format.frames();
        let range = GfnRange::sized(to, spec.range.pages());
        let range = range.ok_or(SlotError::TooHigh { range: GfnRange::ALL, frames })?;
        let spec = SlotSpec { range, ..spec };
        self.check(&spec)?;
        self.finish_deletions(&mut guard, |guard| guard.check_move(&spec))?;
        let dying = guard.dying(id)?;
        self.zap_and_remove(&mut guard, dying);
        // There is room: that of the same slot at its old place.
        guard.add(&spec)?;
        if !defect!(MovedSlotLiveAtOnce) {
            self.quiesce(&mut guard);
        }
        guard.come(&spec);
        self.renew(guard);
        Ok(())
    }

    /// Changes the largest leaf of a slot. When this returns, no larger one is mapped; faults on
    /// other slots are not held up.
    pub(crate) fn limit_slot(&mut self, id: SlotId, largest: Level) -> Result<(), SlotError> {
        self.core().alive().map_err(SlotError::Dead)?;
        if !largest.can_be_leaf() {
            return Err(SlotError::Largest(largest));
        }
        let mut guard = self.slots();
        let SlotInfo { spec, .. } = guard.info(id)?;
        guard.limit(&SlotSpec { largest, ..spec });
        self.zap_larger(&mut guard);
        Ok(())
    }

    /// The slot of that number, as it stands: looked up in a section, without the guard.
    pub(crate) fn slot(&mut self, id: SlotId) -> Result<SlotInfo, SlotError> {
        let section = self.section();
        let core = section.inside.core;
        let region = section.slots().by_id(id).ok_or(SlotError::Missing(id))?;
        let info = region.describe(core.slots.word(id)).ok_or(SlotError::Missing(id))?;
        if info.state == SlotState::Dying { Err(SlotError::Missing(id)) } else { Ok(info) }
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
            Source::Linear(frames) => {
                let (pfn, memory) = (frames.first(), frames.memory());
                let end = pfn.0.checked_add(range.pages()).ok_or(SlotError::Source(spec.id))?;
                if end > 1 << (core.format.phys_bits() - 12) {
                    return Err(SlotError::Source(spec.id));
                }
                if !core.format.has_memory(memory) {
                    return Err(SlotError::Memory(memory));
                }
                let seen = if defect!(MapsReservedFrames) { pfn.0 + 1 } else { end };
                if let Some((a, b)) = core.reserved.overlapping(pfn.0, seen) {
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
    fn zap_and_remove(&mut self, guard: &mut SlotGuard<'_>, dying: SlotDying) {
        let walked = self.announce(dying).synchronize().walk(|page| page.each(|entry| entry.zap()));
        let gone = walked.finish();
        self.remove(guard, gone);
    }

    fn remove(&mut self, guard: &mut SlotGuard<'_>, gone: Revoked<SlotDying>) {
        if let Some(id) = guard.remove(gone) {
            self.quiesce(guard);
            guard.free_id(id);
        }
    }

    /// Whether something is allowed, after deletions that stand in its way have been brought to their
    /// end: whoever began one may have been dropped.
    fn finish_deletions(
        &mut self,
        guard: &mut SlotGuard<'_>,
        check: impl Fn(&mut SlotGuard<'_>) -> Result<(), SlotError>,
    ) -> Result<(), SlotError> {
        loop {
            let in_the_way = match check(guard) {
                Err(SlotError::Taken(id) | SlotError::Overlap { other: id, .. })
                    if guard.is_dying(id) && !defect!(LeavesDyingSlot) =>
                {
                    id
                }
                checked => return checked,
            };
            let dying = guard.dying(in_the_way)?;
            self.zap_and_remove(guard, dying);
        }
    }

    /// Roots of an older epoch remember no MMIO ([`root`](crate::state::root)): the change that
    /// makes them so, or any later one, begins to replace them. Nothing but speed depends on it.
    fn begin_renewal(&mut self, mut guard: SlotGuard<'_>) -> Option<Drain> {
        let outdated = guard.invalidate_outdated()?;
        Some(self.unload(outdated))
    }

    /// Replaces them, to the end.
    fn renew(&mut self, guard: SlotGuard<'_>) {
        if let Some(mut drain) = self.begin_renewal(guard) {
            while self.drain(&mut drain, u64::MAX) == Progress::More {}
        }
    }
}
