//! Participants, turns and sections: the chain of borrows on which everything exclusive hangs.
//!
//! ```text
//! Participant > Turn > [Withdrawn >] [Debt >] Section > Page > Entry      Section > Insert
//!               Turn > host()       (the only door to hooks)
//! ```
//!
//! A [`Turn`] is the exclusive right to one participant's line; who has it is in no section. It
//! lends one thing at a time: a section, a debt, a withdrawal, or the host. So no section can be
//! nested in another, no exclusion can start inside one, and no hook can be called from one.
//!
//! Inside a section table pages, slots and roots may be looked at. A section does at most one
//! table page of work; it never sleeps, allocates, frees, calls the host, or waits for a frozen
//! entry it does not own the table of. What a decision rests on is read inside the section that
//! acts on it.

use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};

use crate::Vm;
use crate::addr::{Gfn, Level};
use crate::entry::law::{self, Count, Flush};
use crate::host::{Event, Host};
use crate::line::{Line, WatchPlace};
use crate::shared::Core;
use crate::slot::{AddressSpace, SlotSet};
use crate::tlb::Owed;

/// A registered place among the participants of a VM. Dropping it gives the place back.
#[derive(Debug)]
pub struct Participant<'vm, H: Host>(Turn<'vm, H>);

impl<'vm, H: Host> Participant<'vm, H> {
    pub(crate) fn register(vm: &'vm Vm<H>) -> Option<Self> {
        let place = vm.core.lines.register()?;
        let line = vm.core.line(place)?;
        Some(Participant(Turn { vm, place, line }))
    }
}

impl<'vm, H: Host> Deref for Participant<'vm, H> {
    type Target = Turn<'vm, H>;

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
        self.0.vm.core.lines.unregister(self.0.place);
    }
}

/// The exclusive right to one participant's line.
pub struct Turn<'p, H: Host> {
    pub(crate) vm: &'p Vm<H>,
    pub(crate) place: u32,
    line: &'p Line,
}

impl<H: Host> core::fmt::Debug for Turn<'_, H> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Turn").field("place", &self.place).finish_non_exhaustive()
    }
}

impl<'p, H: Host> Turn<'p, H> {
    /// The same right for as long as this one is borrowed.
    pub(crate) fn lend(&mut self) -> Turn<'_, H> {
        Turn { vm: self.vm, place: self.place, line: self.line }
    }

    #[inline]
    pub(crate) fn core(&self) -> &'p Core {
        &self.vm.core
    }

    #[inline]
    pub(crate) fn line(&self) -> &'p Line {
        self.line
    }

    /// The only door to the hooks: while it is open no section can be.
    pub fn host(&mut self) -> &H {
        &self.vm.host
    }

    /// Opens a section: reading, splitting, inserting with a permit.
    #[inline]
    pub fn section(&mut self) -> Section<'_> {
        Section::open(self.core(), self.line(), Plain)
    }

    /// Opens the section that admits a watch written before: its fence stands between the two.
    #[inline]
    pub(crate) fn section_after_watch(&mut self) -> Section<'_> {
        if defect!(WatchWithoutFence) {
            return Section::unfenced(self.core(), self.line(), Plain);
        }
        self.section()
    }

    /// Waits for the sections of others that are open now, and for nothing else. A grace period.
    pub fn exclude(&mut self) {
        let host = &self.vm.host;
        self.vm.core.lines.exclude(self.place, || host.relax());
        self.line().counters.exclusions.add(1);
        host.event(Event::Excluded);
    }

    /// Opens a watch over the leaf of `level` around `gfn`. `None`: the participant's own is
    /// still out with an earlier request, and so are all spare ones; complete or drop one.
    #[inline]
    pub fn watch(&mut self, space: AddressSpace, gfn: Gfn, level: Level) -> Option<Watch<'p>> {
        let core = self.core();
        let place = core.lines.watch(self.place, space, gfn, level)?;
        Some(Watch { core, place })
    }
}

/// What a section may write; carried by every entry it lends.
pub trait Kind: Copy + sealed::Sealed {
    #[doc(hidden)]
    fn owe(&self, flush: Flush);
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
pub struct Owing<'d>(pub(crate) &'d Owed);

impl Kind for Plain {
    #[inline]
    fn owe(&self, _: Flush) {}
}

impl Kind for Owing<'_> {
    fn owe(&self, flush: Flush) {
        self.0.owe(flush);
    }
}

/// What everything lent by a section needs: the VM, the participant's line, what may be written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Inside<'s, K: Kind> {
    pub core: &'s Core,
    pub line: &'s Line,
    pub kind: K,
    /// Sections, and what they lend, stay on their thread.
    _here: PhantomData<*const ()>,
}

impl<K: Kind> Inside<'_, K> {
    /// Does what the law says about counters and the debt, in the section of the change.
    #[inline]
    pub(crate) fn account(&self, owed: &law::Owed, level: Level) {
        let n = level as usize - 1;
        match owed.leaves {
            Count::Same => {}
            Count::Mapped => {
                if let Some(counter) = self.line.mapped.get(n) {
                    counter.add(1);
                }
            }
            Count::Unmapped => {
                if let Some(counter) = self.line.counters.unmapped.get(n) {
                    counter.add(1);
                }
            }
        }
        if owed.flush != Flush::None {
            self.kind.owe(owed.flush);
        }
    }
}

/// An open section. Dropping it leaves the section.
#[must_use = "a section that is dropped at once protects nothing"]
#[derive(Debug)]
pub struct Section<'s, K: Kind = Plain> {
    pub(crate) inside: Inside<'s, K>,
}

/// A section opened on a debt: its entries can be cleared.
pub type Clearing<'s> = Section<'s, Owing<'s>>;

impl<'s, K: Kind> Section<'s, K> {
    #[inline]
    pub(crate) fn open(core: &'s Core, line: &'s Line, kind: K) -> Self {
        line.enter();
        Section { inside: Inside { core, line, kind, _here: PhantomData } }
    }

    /// A section whose turn is not ordered before what it reads: a defect.
    fn unfenced(core: &'s Core, line: &'s Line, kind: K) -> Self {
        line.enter_unfenced();
        Section { inside: Inside { core, line, kind, _here: PhantomData } }
    }

    /// The slots as they are now.
    #[inline]
    pub(crate) fn slots(&self) -> &SlotSet {
        // SAFETY: the reference borrows the section.
        unsafe { self.inside.core.slots.current() }
    }
}

impl<K: Kind> Drop for Section<'_, K> {
    #[inline]
    fn drop(&mut self) {
        self.inside.line.leave();
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
        if let Some(words) = self.core.lines.watch_words(self.place) {
            words.close();
        }
    }
}
