//! The slot guard: the right to change slots and to invalidate roots.
//!
//! Taken outside of sections and held across them; invalidations by the host never take it. After
//! each call that swaps the copies of the set, the holder waits for a grace period.

use crate::host::cpus::WaitFor;
use crate::host::host::Host;
use crate::protocol::local::Local;
use crate::revoke::chain::Revoked;
use crate::revoke::dying_slot::SlotDying;
use crate::revoke::guest_frames::GuestFrames;
use crate::revoke::roots::RootInvalid;
use crate::slots::edit::{Edit, Room};
use crate::slots::error::SlotError;
use crate::state::core::Core;
use crate::state::root::{PLACES, Phase, Root};
use crate::state::slot::{SlotId, SlotInfo, SlotSpec, SlotState};
use crate::state::slots::Unfinished;
use crate::sync::{MutexGuard, lock_or_wait};

/// Held: nobody else changes slots or invalidates roots.
#[must_use]
pub struct SlotGuard<'g> {
    core: &'g Core,
    unfinished: MutexGuard<'g, Unfinished>,
}

impl core::fmt::Debug for SlotGuard<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("SlotGuard").field("unfinished", &*self.unfinished).finish_non_exhaustive()
    }
}

impl Drop for SlotGuard<'_> {
    /// A slot that is coming here never becomes live: a hook of the host unwinds. Whoever faults in it
    /// would wait until somebody else changes slots, perhaps for ever, so it is dying until it goes.
    fn drop(&mut self) {
        if self.unfinished.coming.is_some() {
            self.edit().give_up();
        }
    }
}

impl<'p, H: Host> Local<'p, H> {
    /// Takes the slot guard; waits for whoever has it. What an earlier change has left to do, because
    /// a hook of the host unwound, is done first.
    pub fn slots(&mut self) -> SlotGuard<'p> {
        let (core, host) = (self.core(), self.hooks());
        let mut waiting = self.waiting(WaitFor::SlotGuard);
        let unfinished = lock_or_wait(&core.slots.guard, || waiting.pass(host));
        let mut guard = SlotGuard { core, unfinished };
        if !defect!(ForgetsGracePeriod) {
            self.finish_left(&mut guard);
        }
        guard
    }

    /// Waits for a grace period if the set has changed since the last one.
    pub(crate) fn quiesce(&mut self, guard: &mut SlotGuard<'_>) {
        if guard.unfinished.owes_grace_period {
            if !defect!(EditsCopyInUse) {
                self.synchronize();
            }
            guard.unfinished.owes_grace_period = false;
        }
    }

    /// A slot that did not become live goes again; what else was begun is brought to its end.
    fn finish_left(&mut self, guard: &mut SlotGuard<'_>) {
        self.quiesce(guard);
        if let Some(coming) = guard.unfinished.coming {
            guard.edit().remove(coming);
            self.quiesce(guard);
        }
        if let Some(removed) = guard.unfinished.removed {
            guard.free_id(removed);
        }
        if guard.unfinished.limited.is_some() {
            self.zap_larger(guard);
        }
    }

    /// Takes away the leaves of a slot whose limit was lowered that are larger than it allows now.
    pub(crate) fn zap_larger(&mut self, guard: &mut SlotGuard<'_>) {
        let Some(id) = guard.unfinished.limited else { return };
        if let Ok(SlotInfo { spec, .. }) = guard.info(id) {
            let changed = GuestFrames::new(spec.space, spec.range);
            let walked = self.announce(changed).synchronize().walk(|page| {
                page.each(|entry| if entry.level() > spec.largest { entry.zap() } else { Ok(()) })
            });
            let _gone = walked.finish();
        }
        guard.unfinished.limited = None;
    }
}

impl SlotGuard<'_> {
    fn edit(&mut self) -> Edit<'_> {
        Edit::new(&self.core.slots, &mut self.unfinished)
    }

    /// The slot of that number.
    pub fn info(&mut self, id: SlotId) -> Result<SlotInfo, SlotError> {
        self.edit().info(id)
    }

    /// Makes room for a new slot: a step, after which the caller may have to wait for a grace period
    /// and ask again. Without it, deleting this slot or another may need memory.
    pub fn make_room(&mut self, spec: &SlotSpec) -> Result<Room, SlotError> {
        self.edit().make_room(spec)
    }

    /// Announces a new slot as coming. Wait for a grace period, then let it [`come`](Self::come).
    pub fn add(&mut self, spec: &SlotSpec) -> Result<(), SlotError> {
        self.edit().add(spec)
    }

    /// Whether a slot could be made where `spec` says.
    pub(crate) fn check_add(&mut self, spec: &SlotSpec) -> Result<(), SlotError> {
        self.edit().check_add(spec)
    }

    /// Whether a slot could be moved to where `spec` says.
    pub fn check_move(&mut self, spec: &SlotSpec) -> Result<(), SlotError> {
        self.edit().check_move(spec)
    }

    /// Coming to live.
    pub fn come(&mut self, spec: &SlotSpec) {
        self.edit().come(spec);
    }

    /// Live with another limit. Requests admitted under the old one are refused from now on; what is
    /// mapped and larger is taken away by `zap_larger`.
    pub(crate) fn limit(&mut self, spec: &SlotSpec) {
        self.unfinished.limited = Some(spec.id);
        self.edit().revise(spec);
    }

    /// Whether a slot is being deleted, by somebody who may have been dropped.
    pub(crate) fn is_dying(&mut self, id: SlotId) -> bool {
        self.edit().any(id).is_ok_and(|info| info.state == SlotState::Dying)
    }

    /// Live to dying: what to revoke. The deletion of a slot that is dying already is taken over.
    pub fn dying(&mut self, id: SlotId) -> Result<SlotDying, SlotError> {
        let SlotInfo { spec, state } = self.edit().any(id)?;
        if state != SlotState::Dying {
            self.edit().die(&spec);
        } else if defect!(LeavesDyingSlot) {
            return Err(SlotError::Missing(id));
        }
        let word = self.core.slots.word(id);
        if defect!(SlotGoneBeforeLeaves) {
            self.edit().remove(id);
        }
        Ok(SlotDying { vm: self.core.id, id, word, space: spec.space, range: spec.range })
    }

    /// Takes a dying slot out of the set, now that nothing of it is mapped; `quiesce`, then
    /// [`free_id`](Self::free_id) it. Gives its number, or `None` if somebody else has deleted it
    /// meanwhile, or if the slot or the revocation is another MMU's.
    pub fn remove(&mut self, gone: Revoked<SlotDying>) -> Option<SlotId> {
        let SlotDying { vm, id, word, .. } = gone.open(self.core)?;
        let is_same = self.core.slots.word(id) == word || defect!(RemovesSuccessor);
        if vm != self.core.id || !is_same {
            return None;
        }
        self.edit().remove(id);
        Some(id)
    }

    /// Makes the number of a removed slot free again.
    pub fn free_id(&mut self, id: SlotId) {
        self.edit().free_id(id);
    }

    /// Makes every root invalid that is valid now: what to revoke. vCPUs make new ones while
    /// this goes on; those stay, or it would never end.
    pub fn invalidate(&mut self) -> RootInvalid {
        self.invalidate_some(PLACES, |_| true)
    }

    /// Makes roots invalid that were born in an older epoch, if there are any: what to revoke. To be
    /// asked after the grace period that follows a change; before it, a root of the epoch before may
    /// still be born. Only as many as there are free places for their successors: such a root
    /// serves memory, and a vCPU without a root would wait for whoever drains this one.
    pub fn invalidate_outdated(&mut self) -> Option<RootInvalid> {
        let core = self.core;
        let (tag, epoch) = self.edit().generation();
        if defect!(LooksForTagZero) {
            return (tag == 0).then(|| self.invalidate());
        }
        let is_outdated = |root: &Root| core.roots.epoch(root) != epoch;
        let outdated = self.invalidate_some(core.roots.free_places(), is_outdated);
        outdated.names.iter().any(Option::is_some).then_some(outdated)
    }

    /// Makes at most `most` of those valid roots invalid.
    fn invalidate_some(&mut self, most: usize, which: impl Fn(&Root) -> bool) -> RootInvalid {
        let mut names = [None; PLACES];
        let is_meant = |root: &Root| root.phase == Phase::Valid && which(root);
        let roots = self.core.roots.iter().filter(is_meant).take(most);
        for (place, root) in names.iter_mut().zip(roots) {
            *place = self.core.roots.invalidate(root.name).then_some(root.name);
        }
        RootInvalid { names }
    }
}
