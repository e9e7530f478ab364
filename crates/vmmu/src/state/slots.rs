//! All slots: two copies of the set, of which one is current, and the words.
//!
//! The hazard: vCPU A searches the set while worker B changes it.
//!
//! The rule: sections read the current copy only. Whoever holds the slot guard edits the other copy,
//! makes it current, and waits for a grace period before anybody edits again; by then no section reads
//! the copy that was current before.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::cell::UnsafeCell;
use core::fmt;

use crate::error::NoMemory;
use crate::state::slot::{SlotId, SlotWord, load};
use crate::state::slot_set::SlotSet;
use crate::sync::{AtomicU64, Mutex, Ordering};

/// What a change of the slots has left to do, so that the next holder of the guard can do it if a
/// hook of the host unwinds in the middle; and the last revision given out.
#[derive(Debug, Default)]
pub(crate) struct Unfinished {
    pub revision: u64,
    /// The copies have been swapped, and sections may still read the one that was current before.
    pub owes_grace_period: bool,
    /// A slot that was announced and has not become live.
    pub coming: Option<SlotId>,
    /// A slot that is not in the set any more, and whose number is not free yet.
    pub removed: Option<SlotId>,
    /// A slot whose limit was lowered, and of which larger leaves may still be mapped.
    pub limited: Option<SlotId>,
}

/// All slots of an MMU.
pub struct Slots {
    sets: [UnsafeCell<SlotSet>; 2],
    current: AtomicU64,
    words: Box<[AtomicU64]>,
    /// What the holder of the guard knows. Holding this lock is what the slot guard is.
    pub(crate) guard: Mutex<Unfinished>,
}

// SAFETY: the sets are the only part that is not Sync by itself. The current one is only read,
// and only inside sections (`current`); the other one is only touched by the holder of the guard
// (`Edit`), who waits for a grace period between making a set current and touching its predecessor.
unsafe impl Sync for Slots {}
// SAFETY: plain owned data.
unsafe impl Send for Slots {}

impl fmt::Debug for Slots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slots").field("capacity", &self.words.len()).finish_non_exhaustive()
    }
}

impl Slots {
    pub(crate) fn new(capacity: usize) -> Result<Self, NoMemory> {
        let mut words = Vec::new();
        words.try_reserve_exact(capacity).map_err(|_| NoMemory)?;
        words.extend((0..capacity).map(|_| AtomicU64::new(0)));
        Ok(Slots {
            sets: Default::default(),
            current: AtomicU64::new(0),
            words: words.into_boxed_slice(),
            guard: Mutex::new(Unfinished::default()),
        })
    }

    /// The set as it is now.
    ///
    /// # Safety
    ///
    /// The reference must not outlive the section it was taken in, or nothing else may run
    /// (`&mut Mmu`).
    #[inline]
    pub(crate) unsafe fn current(&self) -> &SlotSet {
        let [a, b] = &self.sets;
        let set = if self.current.load(Ordering::Acquire) & 1 == 0 { a } else { b };
        // SAFETY: only the set that is not current is ever written (`Edit::swap`), and only after
        // a grace period that ends every section in which it may have been current.
        unsafe { &*set.get() }
    }

    /// The current copy, which anybody may be reading, and the other one, to be edited.
    ///
    /// # Safety
    ///
    /// The caller holds the slot guard, no other borrow from this function lives, and a grace
    /// period has ended since the last [`swap`](Self::swap): so no section reads the second copy.
    #[expect(clippy::mut_from_ref, reason = "the guard is what makes the borrow exclusive")]
    pub(crate) unsafe fn copies(&self) -> (&SlotSet, &mut SlotSet) {
        let [a, b] = &self.sets;
        let current_is_a = self.current.load(Ordering::Relaxed) & 1 == 0;
        let (now, next) = if current_is_a { (a, b) } else { (b, a) };
        // SAFETY: `now` is only read by anyone; `next` is only the caller's, by its promise.
        unsafe { (&*now.get(), &mut *next.get()) }
    }

    /// Makes the edited copy current. For the holder of the slot guard, who waits for a grace
    /// period next.
    pub(crate) fn swap(&self) {
        let current = self.current.load(Ordering::Relaxed);
        self.current.store((current & 1) ^ 1, Ordering::Release);
    }

    /// Sets the generation of the current copy, while nothing else runs.
    #[cfg(feature = "protocol")]
    pub(crate) fn set_generation(&mut self, generation: u64) {
        let current = self.current.load(Ordering::Relaxed) & 1;
        if let Some(set) = self.sets.get_mut(current as usize) {
            set.get_mut().generation = generation;
        }
    }

    /// How many slot numbers there are.
    pub(crate) fn capacity(&self) -> usize {
        self.words.len()
    }

    /// Replaces the word of a slot number. For the holder of the slot guard.
    pub(crate) fn set_word(&self, id: SlotId, word: SlotWord) {
        if let Some(place) = self.words.get(id.0 as usize) {
            place.store(word.0, Ordering::Release);
        }
    }

    /// State, flags and revision of a slot now.
    #[inline]
    pub(crate) fn word(&self, id: SlotId) -> SlotWord {
        load(&self.words, id)
    }
}
