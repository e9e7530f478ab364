//! Edits of the slots, for the holder of the slot guard.
//!
//! Only creating a slot can need memory: before it is announced, room for it is made in both copies of
//! the set. So each copy has room at all times for what the current one holds, and what comes after the
//! creation, a move or the deletion of any slot, allocates nothing.

use crate::slots::error::SlotError;
use crate::state::slot::{SlotId, SlotInfo, SlotSpec, SlotState, SlotWord};
use crate::state::slot_set::{Region, SlotSet};
use crate::state::slots::{Slots, Unfinished};

/// Whether there is room for a slot that is to be made.
#[must_use]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Room {
    /// There is.
    There,
    /// In one of two copies: synchronize, and ask again.
    AfterGracePeriod,
}

/// Changes under the slot guard: the caller holds it and waits for a grace period after each.
pub(crate) struct Edit<'g> {
    slots: &'g Slots,
    unfinished: &'g mut Unfinished,
}

impl<'g> Edit<'g> {
    /// `unfinished` is what the guard of `slots` holds, which proves that it is held.
    pub(crate) fn new(slots: &'g Slots, unfinished: &'g mut Unfinished) -> Self {
        Edit { slots, unfinished }
    }

    /// The current copy, and the other one, which is to become current.
    fn copies(&mut self) -> (&SlotSet, &mut SlotSet) {
        // SAFETY: the guard is held, and `&mut self` lends its two copies once at a time. The
        // holder waits for a grace period after each change.
        unsafe { self.slots.copies() }
    }

    /// Makes the edited copy current; a grace period is owed from now on.
    fn swap(&mut self) {
        self.unfinished.owes_grace_period = true;
        self.slots.swap();
    }

    fn set_word(&mut self, id: SlotId, state: SlotState, spec: &SlotSpec) -> SlotWord {
        self.unfinished.revision += 1;
        let word = SlotWord::new(state, spec, self.unfinished.revision);
        self.slots.set_word(id, word);
        word
    }

    /// The slot of that number, dying or not.
    pub(crate) fn any(&mut self, id: SlotId) -> Result<SlotInfo, SlotError> {
        let word = self.slots.word(id);
        let (now, _) = self.copies();
        let region = now.by_id(id).ok_or(SlotError::Missing(id))?;
        region.describe(word).ok_or(SlotError::Missing(id))
    }

    /// The slot of that number that is not dying.
    pub(crate) fn info(&mut self, id: SlotId) -> Result<SlotInfo, SlotError> {
        let info = self.any(id)?;
        if info.state == SlotState::Dying { Err(SlotError::Missing(id)) } else { Ok(info) }
    }

    /// Whether a slot could be where `spec` says if it were not where it is.
    pub(crate) fn check_move(&mut self, spec: &SlotSpec) -> Result<(), SlotError> {
        let (now, _) = self.copies();
        let mut at = spec.range.start();
        while let Some(other) = now.next(spec.space, at) {
            if !other.range.overlaps(spec.range) {
                break;
            }
            if other.id != spec.id {
                return Err(overlap(spec, other));
            }
            at = other.range.end();
        }
        Ok(())
    }

    /// Makes room for a slot in both copies. [`Room::AfterGracePeriod`]: one copy has it and is now
    /// current; synchronize, and ask again.
    pub(crate) fn make_room(&mut self, spec: &SlotSpec) -> Result<Room, SlotError> {
        self.check_add(spec)?;
        let (now, next) = self.copies();
        next.reserve(now, spec)?;
        if now.has_room(spec) {
            return Ok(Room::There);
        }
        next.rebuild(now, None, None);
        // Nothing has changed.
        next.generation = now.generation;
        self.swap();
        Ok(Room::AfterGracePeriod)
    }

    pub(crate) fn check_add(&mut self, spec: &SlotSpec) -> Result<(), SlotError> {
        if spec.id.0 as usize >= self.slots.capacity() {
            return Err(SlotError::Id(spec.id));
        }
        if self.slots.word(spec.id) != SlotWord::NONE {
            return Err(SlotError::Taken(spec.id));
        }
        let (now, _) = self.copies();
        match now.overlapping(spec.space, spec.range) {
            Some(other) => Err(overlap(spec, other)),
            None => Ok(()),
        }
    }

    /// Announces a new slot as coming. Checked against everything but the host's reservations.
    pub(crate) fn add(&mut self, spec: &SlotSpec) -> Result<(), SlotError> {
        self.check_add(spec)?;
        let region =
            Region { range: spec.range, space: spec.space, id: spec.id, source: spec.source };
        let (now, next) = self.copies();
        next.reserve(now, spec)?;
        next.rebuild(now, None, Some(region));
        self.unfinished.coming = Some(spec.id);
        self.set_word(spec.id, SlotState::Coming, spec);
        self.swap();
        Ok(())
    }

    /// Coming to live, after the grace period that followed [`add`](Self::add).
    pub(crate) fn come(&mut self, spec: &SlotSpec) {
        self.set_word(spec.id, SlotState::Live, spec);
        self.unfinished.coming = None;
    }

    /// Coming to dying, if a slot is coming. By its word alone, because sections may still be reading
    /// either copy.
    pub(crate) fn give_up(&mut self) {
        if let Some(id) = self.unfinished.coming {
            self.unfinished.revision += 1;
            let word = self.slots.word(id).dying(self.unfinished.revision);
            self.slots.set_word(id, word);
        }
    }

    /// Live with other flags, under a new revision.
    pub(crate) fn revise(&mut self, spec: &SlotSpec) {
        self.set_word(spec.id, SlotState::Live, spec);
    }

    /// Live to dying.
    pub(crate) fn die(&mut self, spec: &SlotSpec) {
        self.set_word(spec.id, SlotState::Dying, spec);
    }

    /// Takes a dying slot whose leaves are gone out of the set. The caller waits for a grace period, then
    /// [`free_id`](Self::free_id)s it.
    pub(crate) fn remove(&mut self, id: SlotId) {
        let (now, next) = self.copies();
        next.rebuild(now, Some(id), None);
        self.unfinished.removed = Some(id);
        self.unfinished.coming = self.unfinished.coming.filter(|coming| *coming != id);
        self.swap();
    }

    /// Makes the number of a removed slot free again.
    pub(crate) fn free_id(&mut self, id: SlotId) {
        self.slots.set_word(id, SlotWord::NONE);
        self.unfinished.removed = None;
    }

    /// Tag and epoch of the current set.
    pub(crate) fn generation(&mut self) -> (u64, u64) {
        let (now, _) = self.copies();
        (now.tag(), now.epoch())
    }
}

fn overlap(spec: &SlotSpec, other: &Region) -> SlotError {
    SlotError::Overlap { id: spec.id, range: spec.range, other: other.id, other_range: other.range }
}
