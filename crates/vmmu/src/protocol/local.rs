//! A participant's own right to its words, and the chain of borrows that hangs on it.
//!
//! The hazard: a thread that waits for a grace period inside a section of its own waits for itself, for
//! ever. A thread that calls a hook of the host inside a section may sleep there, and everybody who
//! waits for a grace period waits with it.
//!
//! The rule is in the types. A [`Local`] is the exclusive right to one participant's words (the name is
//! crossbeam-epoch's). It lends one thing at a time: a section, a debt, a revocation, or the host. So
//! no section is nested in another, no grace period can be waited for inside one, and no hook can be
//! called from one.
//!
//! ```text
//! Participant > Local > [Quiesced >] [Debt >] Section > Page > Entry      Section > Insert
//!               Local > host()        (the only door to hooks)
//! ```

use core::ops::{Deref, DerefMut};

use crate::addr::{Gfn, Level};
use crate::host::cpus::WaitFor;
use crate::host::host::Host;
use crate::host::observer::Event;
use crate::protocol::section::{Plain, Section};
use crate::protocol::waiting::Waiting;
use crate::protocol::watch::Watch;
use crate::state::core::Core;
use crate::state::participant::{ParticipantWords, WatchPlace};
use crate::state::slot::AddressSpace;

/// A registered place among the participants of an MMU. Dropping it gives the place back.
#[derive(Debug)]
pub struct Participant<'vm, H: Host>(Local<'vm, H>);

impl<'vm, H: Host> Participant<'vm, H> {
    pub(crate) fn register(core: &'vm Core, host: &'vm H) -> Option<Self> {
        let place = core.participants.register()?;
        Some(Participant(Local::at(core, host, place, core.participants.at(place))))
    }

    /// One of the MMU's own.
    pub(crate) fn register_own(core: &'vm Core, host: &'vm H, may_sleep: bool) -> Option<Self> {
        let place = core.participants.register_own()?;
        let local = Local::at(core, host, place, core.participants.at(place));
        Some(Participant(Local { may_sleep, ..local }))
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
        self.0.core.participants.unregister(self.0.place);
    }
}

/// The exclusive right to one participant's words.
pub struct Local<'p, H: Host> {
    core: &'p Core,
    host: &'p H,
    pub(crate) place: u32,
    words: &'p ParticipantWords,
    /// Whether the host may put the thread to sleep in a wait.
    may_sleep: bool,
}

impl<H: Host> core::fmt::Debug for Local<'_, H> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Local").field("place", &self.place).finish_non_exhaustive()
    }
}

impl<'p, H: Host> Local<'p, H> {
    /// The right to the words of a place that the caller has registered. There must be one at a
    /// time: whoever keeps a place as a number lends this from a `&mut` of its own.
    #[inline]
    pub(crate) fn at(core: &'p Core, host: &'p H, place: u32, words: &'p ParticipantWords) -> Self {
        Local { core, host, place, words, may_sleep: true }
    }

    /// The same right for as long as this one is borrowed.
    pub(crate) fn lend(&mut self) -> Local<'_, H> {
        Local { ..*self }
    }

    /// A wait that the host passes.
    pub(crate) fn waiting(&self, on: WaitFor) -> Waiting {
        Waiting::on(on, self.may_sleep)
    }

    #[inline]
    pub(crate) fn core(&self) -> &'p Core {
        self.core
    }

    #[inline]
    pub(crate) fn words(&self) -> &'p ParticipantWords {
        self.words
    }

    /// The only door to the hooks: while it is open no section can be.
    pub fn host(&mut self) -> &H {
        self.host
    }

    /// The hooks, for those whose exclusive right is elsewhere: the caller is in no section.
    pub(crate) fn hooks(&self) -> &'p H {
        self.host
    }

    /// Opens a section: reading, splitting, inserting with a permit.
    #[inline]
    pub fn section(&mut self) -> Section<'_> {
        Section::open::<H>(self.core(), self.words(), Plain)
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
        let host = self.host;
        let mut waiting = self.waiting(WaitFor::GracePeriod);
        self.core.participants.synchronize(self.place, || waiting.pass(host));
        self.words().counters.grace_periods.add(1);
        host.event(Event::GracePeriod);
    }

    /// Opens the participant's own watch over the leaf of `level` around `gfn`. `None`: it is still
    /// out with an earlier request.
    #[inline]
    pub(crate) fn own_watch(
        &mut self,
        space: AddressSpace,
        gfn: Gfn,
        level: Level,
    ) -> Option<Watch<'p>> {
        let words = &self.words.watch;
        if words.is_open() {
            return None;
        }
        words.open(space, gfn, level);
        Some(Watch { core: self.core, place: WatchPlace::Own(self.place) })
    }

    /// Opens a spare one. `None`: all are out.
    ///
    /// No section is open while this borrows the participant, so whichever admits the watch begins
    /// after it, with a fence between the two.
    pub(crate) fn spare_watch(
        &mut self,
        space: AddressSpace,
        gfn: Gfn,
        level: Level,
    ) -> Option<Watch<'p>> {
        Watch::spare(self.core, space, gfn, level)
    }

    /// Opens a watch over the leaf of `level` around `gfn`. `None`: the participant's own is
    /// still out with an earlier request, and so are all spare ones; complete or drop one.
    pub fn watch(&mut self, space: AddressSpace, gfn: Gfn, level: Level) -> Option<Watch<'p>> {
        self.own_watch(space, gfn, level).or_else(|| self.spare_watch(space, gfn, level))
    }
}
