//! Participants, turns and sections: the chain of borrows on which everything exclusive hangs.
//!
//! ```text
//! Participant > Local > [Quiesced >] [Debt >] Section > Page > Entry      Section > Insert
//!               Local > host()       (the only door to hooks)
//! ```
//!
//! A [`Local`] is the exclusive right to one participant's line; who has it is in no section. It
//! lends one thing at a time: a section, a debt, a withdrawal, or the host. So no section can be
//! nested in another, no exclusion can start inside one, and no hook can be called from one.
//!
//! Inside a section table pages, slots and roots may be looked at. A section does at most one
//! table page of work; it never sleeps, allocates, frees, calls the host, or waits for a frozen
//! entry it does not own the table of. What a decision rests on is read inside the section that
//! acts on it.

use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};

use crate::Mmu;
use crate::addr::{Gfn, Level};
use crate::entry::law::{self, Count, FlushDue};
use crate::host::{Event, Host};
use crate::line::{ParticipantWords, WatchPlace};
use crate::shared::Core;
use crate::slot::{AddressSpace, SlotSet};
use crate::tlb::Outstanding;

/// A registered place among the participants of a VM. Dropping it gives the place back.
#[derive(Debug)]
pub struct Participant<'vm, H: Host>(Local<'vm, H>);

impl<'vm, H: Host> Participant<'vm, H> {
    pub(crate) fn register(vm: &'vm Mmu<H>) -> Option<Self> {
        let place = vm.core.participants.register()?;
        let words = vm.core.participant(place)?;
        Some(Participant(Local { vm, place, words }))
    }
}

impl<'vm, H: Host> Deref for Participant<'vm, H> {
    type Target = Local<'vm, H>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl<H: Host> DerefMut for Participant<'_, H> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0
    }
}

impl<H: Host> Drop for Participant<'_, H> {
    #[inline]
    fn drop(&mut self) {
        self.0.vm.core.participants.unregister(self.0.place);
    }
}

/// The exclusive right to one participant's line.
pub struct Local<'p, H: Host> {
    pub(crate) vm: &'p Mmu<H>,
    pub(crate) place: u32,
    words: &'p ParticipantWords,
}

impl<H: Host> core::fmt::Debug for Local<'_, H> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Local").field("place", &self.place).finish_non_exhaustive()
    }
}

impl<'p, H: Host> Local<'p, H> {
    /// The same right for as long as this one is borrowed.
    pub(crate) fn lend(&mut self) -> Local<'_, H> {
        Local { vm: self.vm, place: self.place, words: self.words }
    }

    #[inline]
    pub(crate) fn core(&self) -> &'p Core {
        &self.vm.core
    }

    #[inline]
    pub(crate) fn words(&self) -> &'p ParticipantWords {
        self.words
    }

    /// The only door to the hooks: while it is open no section can be.
    pub fn host(&mut self) -> &H {
        &self.vm.host
    }

    /// Opens a section: reading, splitting, inserting with a permit.
    #[inline]
    pub fn section(&mut self) -> Section<'_> {
        Section::open(self.core(), self.words(), Plain)
    }

    /// Opens the section that admits a watch written before: its fence stands between the two.
    #[inline]
    pub(crate) fn section_after_watch(&mut self) -> Section<'_> {
        if defect!(WatchWithoutFence) {
            return Section::unfenced(self.core(), self.words(), Plain);
        }
        self.section()
    }

    /// Waits for the sections of others that are open now, and for nothing else. A grace period.
    pub fn synchronize(&mut self) {
        let host = &self.vm.host;
        self.vm.core.participants.synchronize(self.place, || host.relax());
        self.words().counters.grace_periods.add(1);
        host.event(Event::GracePeriod);
    }

    /// Opens a watch over the leaf of `level` around `gfn`. `None`: the participant's own is
    /// still out with an earlier request, and so are all spare ones; complete or drop one.
    #[inline]
    pub fn watch(&mut self, space: AddressSpace, gfn: Gfn, level: Level) -> Option<Watch<'p>> {
        let core = self.core();
        let place = core.participants.watch(self.place, space, gfn, level)?;
        Some(Watch { core, place })
    }
}

/// What a section may write; carried by every entry it lends.
pub trait Liability: Copy + sealed::Sealed {
    #[doc(hidden)]
    fn owe(&self, flush: FlushDue);
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::Plain {}
    impl Sealed for super::Owing<'_> {}
}

/// Nothing that owes a flush.
#[derive(Clone, Copy, Debug)]
pub struct Plain;

/// Whatever the debt covers.
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

/// What everything lent by a section needs: the VM, the participant's line, what may be written.
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
}

/// A section opened on a debt: its entries can be cleared.
pub type Clearing<'s> = Section<'s, Owing<'s>>;

impl<'s, L: Liability> Section<'s, L> {
    #[inline]
    pub(crate) fn open(core: &'s Core, words: &'s ParticipantWords, kind: L) -> Self {
        words.enter();
        Section { inside: Inside { core, words, kind, _here: PhantomData } }
    }

    /// A section whose turn is not ordered before what it reads: a defect.
    fn unfenced(core: &'s Core, words: &'s ParticipantWords, kind: L) -> Self {
        words.enter_unfenced();
        Section { inside: Inside { core, words, kind, _here: PhantomData } }
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
    }
}

/// A written watch: invalidations that overlap its frames will hit it.
///
/// It borrows the VM, not the participant, and can be sent to another thread. Dropping it, or the
/// request or frame it has become, closes it.
#[must_use]
#[derive(Debug)]
pub struct Watch<'vm> {
    pub(crate) core: &'vm Core,
    pub(crate) place: WatchPlace,
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        if let Some(words) = self.core.participants.watch_words(self.place) {
            words.close();
        }
    }
}
