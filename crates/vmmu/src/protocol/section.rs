//! Sections: the time in which table pages, slots and roots may be looked at.
//!
//! A section is what RCU calls a read-side critical section: what it can reach is not freed before it
//! ends. But it also changes entries, by compare-exchange. Which changes it may make is its
//! [`Liability`]: a [`Plain`] one may not clear anything, because nobody would flush; one opened on a
//! debt ([`Owing`]) may.
//!
//! A section does at most one table page of work. It never sleeps, allocates, frees, calls the host,
//! or waits for a frozen entry it does not own the table of. What a decision rests on is read inside
//! the section that acts on it; what was read in an earlier one is compared again.

use core::marker::PhantomData;

use crate::addr::Level;
use crate::entry::law;
use crate::entry::law::{Count, FlushDue};
use crate::host::cpus::{Cpus, Preemption};
use crate::protocol::outstanding::Outstanding;
use crate::state::core::Core;
use crate::state::participant::ParticipantWords;
use crate::state::slot_set::SlotSet;

/// What a section may write, and who notes the flushes that this owes.
pub trait Liability: Copy + sealed::Sealed {
    #[doc(hidden)]
    fn owe(&self, flush: FlushDue);
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::Plain {}
    impl Sealed for super::Owing<'_> {}
}

/// A section that may write nothing that owes a flush.
#[derive(Clone, Copy, Debug)]
pub struct Plain;

/// A section that may write whatever its debt covers.
#[derive(Clone, Copy, Debug)]
pub struct Owing<'d>(pub(crate) &'d Outstanding);

impl Liability for Plain {
    #[inline]
    fn owe(&self, _: FlushDue) {}
}

impl Liability for Owing<'_> {
    fn owe(&self, flush: FlushDue) {
        self.0.owe(flush);
    }
}

/// What everything lent by a section needs: what is shared, the participant's words, and what may
/// be written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Inside<'s, L: Liability> {
    pub core: &'s Core,
    pub words: &'s ParticipantWords,
    pub kind: L,
    /// Sections, and what they lend, stay on their thread.
    _here: PhantomData<*const ()>,
}

impl<L: Liability> Inside<'_, L> {
    /// Does what the law says about counters and the debt, in the section of the change.
    #[inline]
    pub(crate) fn account(&self, owed: &law::Consequences, level: Level) {
        let n = level as usize - 1;
        match owed.leaves {
            Count::Same => {}
            Count::Mapped => {
                if let Some(counter) = self.words.mapped.get(n) {
                    counter.add(1);
                }
            }
            Count::Unmapped => {
                if let Some(counter) = self.words.counters.unmapped.get(n) {
                    counter.add(1);
                }
            }
        }
        if owed.flush != FlushDue::Never {
            self.kind.owe(owed.flush);
        }
    }
}

/// An open section. Dropping it leaves the section.
#[must_use = "a section that is dropped at once protects nothing"]
#[derive(Debug)]
pub struct Section<'s, L: Liability = Plain> {
    pub(crate) inside: Inside<'s, L>,
    /// What holds preemption off as long as it is open.
    preemption: Option<Preemption>,
}

/// A section opened on a debt: its entries can be cleared.
pub type Clearing<'s> = Section<'s, Owing<'s>>;

impl<'s, L: Liability> Section<'s, L> {
    #[inline]
    pub(crate) fn open<C: Cpus>(core: &'s Core, words: &'s ParticipantWords, kind: L) -> Self {
        let preemption = C::PREEMPTION;
        if let Some(preemption) = preemption {
            (preemption.disable)();
        }
        words.enter();
        Section { inside: Inside { core, words, kind, _here: PhantomData }, preemption }
    }

    /// A section whose count is not ordered before what it reads. Only a defect opens one.
    pub(crate) fn unfenced(core: &'s Core, words: &'s ParticipantWords, kind: L) -> Self {
        words.enter_unfenced();
        let inside = Inside { core, words, kind, _here: PhantomData };
        Section { inside, preemption: None }
    }

    /// The slots as they are now.
    #[inline]
    pub(crate) fn slots(&self) -> &SlotSet {
        // SAFETY: the reference borrows the section.
        unsafe { self.inside.core.slots.current() }
    }
}

impl<L: Liability> Drop for Section<'_, L> {
    #[inline]
    fn drop(&mut self) {
        self.inside.words.leave();
        if let Some(preemption) = self.preemption {
            (preemption.enable)();
        }
    }
}
