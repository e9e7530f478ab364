//! Revocations: taking a permission to map away, as a chain of values.
//!
//! The hazard: worker A has to make sure that nothing maps page P. vCPU B has been given a permit to
//! map P and is about to write the entry. If A walks the tables now, finds nothing, and returns, B
//! writes its entry behind A's back. The same happens if B moves leaves from a table that A has yet to
//! visit to a huge leaf above it.
//!
//! The rule is an order, and each step gives the value that the next one needs:
//!
//! ```text
//! local.announce(what) -> Announced -> synchronize() -> Quiesced -> walk(..) -> Walked -> finish() -> Revoked<What>
//! ```
//!
//! *Announce*: from now on permits are refused. *Synchronize*: every section that may have been given
//! one before is over. *Then* walk: nothing is inserted behind the walk any more. *Finish*: if another
//! participant has an open debt over the range, an entry that the walk found empty may still be cached
//! by a processor, because that participant has not flushed yet; so wait for one more grace period and
//! flush, without waiting for that participant.
//!
//! Only `finish` makes a [`Revoked`], which is typed by what was revoked. A walk that ran out of budget
//! gives a [`PausedWalk`], which holds no right of a participant and is resumed.

use crate::addr::GfnRange;
use crate::host::cpus::WaitFor;
use crate::host::host::Host;
use crate::protocol::debt::Due;
use crate::protocol::local::Local;
use crate::protocol::section::Owing;
use crate::revoke::progress::Progress;
use crate::state::core::Core;
use crate::state::slot_set::SlotSet;
use crate::table::page::{Page, Then};
use crate::table::walk::{Cursor, Order, Target, WalkStep};

/// What can be withdrawn.
#[cfg_attr(
    feature = "protocol",
    expect(private_bounds, reason = "only the library makes publications")
)]
pub trait Revocation: Sealed {
    /// Whether the walk's debts owe no flush.
    const WAIVED: bool = false;
}

pub(crate) trait Sealed: Target {
    /// Makes it visible to everybody who asks for a permit, and hits the watches it concerns.
    /// `slots` are those of a section opened after the announcement of what stands in words.
    fn announce(&mut self, core: &Core);

    /// Hits watches; in a section after [`announce`](Self::announce).
    fn hit(&mut self, core: &Core, slots: &SlotSet) {
        let _ = (core, slots);
    }

    /// Guest frames whose debts of others concern the promise.
    fn hull(&self) -> GfnRange;

    /// Announces what the slots that are known now say: a defect.
    #[cfg(feature = "defects")]
    fn in_guest_frames(&mut self, slots: &SlotSet) {
        let _ = slots;
    }
}

/// Announced, not yet synchronized.
#[must_use]
#[derive(Debug)]
pub struct Announced<'p, H: Host, P: Revocation> {
    local: Local<'p, H>,
    what: P,
}

/// GracePeriod: nobody inserts behind a walk that starts now.
#[must_use]
#[derive(Debug)]
pub struct Quiesced<'p, H: Host, P: Revocation> {
    pub(crate) local: Local<'p, H>,
    pub(crate) what: P,
    pub(crate) cursor: Cursor,
}

/// Walked to the end; debts settled.
#[must_use]
#[derive(Debug)]
pub struct Walked<'p, H: Host, P: Revocation> {
    local: Local<'p, H>,
    what: P,
}

/// A walk that stopped before its end. A plain value: it holds no right of a participant.
#[must_use = "the range stays refused until the walk is resumed and finished"]
#[derive(Debug)]
pub struct PausedWalk<P> {
    vm: u64,
    what: P,
    cursor: Cursor,
}

impl<P> PausedWalk<P> {
    /// What is being revoked.
    pub(crate) fn what(&self) -> &P {
        &self.what
    }
}

/// How far a walk with a budget came.
#[must_use]
#[derive(Debug)]
pub enum Walk<'p, H: Host, P: Revocation> {
    /// To the end.
    Whole(Walked<'p, H, P>),
    /// There is more.
    More(PausedWalk<P>),
}

/// What was revoked is gone: from the tables and from every processor.
#[must_use]
#[derive(Debug)]
pub struct Revoked<P> {
    vm: u64,
    what: P,
}

impl<P> Revoked<P> {
    /// What it is about, for the VM it was made by.
    pub(crate) fn open(self, core: &Core) -> Option<P> {
        (self.vm == core.id).then_some(self.what)
    }
}

impl<H: Host> Local<'_, H> {
    /// Announces a revocation.
    pub fn announce<P: Revocation>(&mut self, mut what: P) -> Announced<'_, H, P> {
        #[cfg(feature = "defects")]
        self.spoil(&mut what);
        what.announce(self.core());
        if !defect!(HitsBeforeAnnouncement) {
            self.hit(&mut what);
        }
        Announced { local: self.lend(), what }
    }

    /// The fence that opens the section stands between the announcement and the look at the
    /// watches: a watch that is not seen here is admitted after it and sees the range.
    fn hit<P: Revocation>(&mut self, what: &mut P) {
        let section = self.section();
        if !defect!(HitsNoWatch) {
            what.hit(section.inside.core, section.slots());
        }
    }

    /// What defects do before the announcement.
    #[cfg(feature = "defects")]
    fn spoil<P: Revocation>(&mut self, what: &mut P) {
        if defect!(HitsBeforeAnnouncement) {
            self.hit(what);
        }
        if defect!(AnnouncesInGuestFrames) {
            what.in_guest_frames(self.section().slots());
        }
    }

    /// Goes on with a paused walk, or gives it back if it is another VM's.
    pub fn resume<P: Revocation>(
        &mut self,
        rest: PausedWalk<P>,
    ) -> Result<Quiesced<'_, H, P>, PausedWalk<P>> {
        if rest.vm != self.core().id {
            return Err(rest);
        }
        let mut cursor = rest.cursor;
        if defect!(SkipsAfterRestart) {
            cursor.skip();
        }
        Ok(Quiesced { local: self.lend(), what: rest.what, cursor })
    }

    /// Goes on with what is left of a walk, if it is this VM's, for at most `budget` pages. At its
    /// end nothing is left, and the promise is made.
    pub(crate) fn walk_on<P: Revocation>(
        &mut self,
        left: &mut Option<PausedWalk<P>>,
        budget: u64,
        visit: impl FnMut(&Page<'_, Owing<'_>>) -> Then,
    ) -> Option<Revoked<P>> {
        match self.resume(left.take()?) {
            Ok(quiesced) => match quiesced.walk_some(budget, visit) {
                Walk::Whole(walked) => return Some(walked.finish()),
                Walk::More(rest) => *left = Some(rest),
            },
            Err(foreign) => *left = Some(foreign),
        }
        None
    }
}

impl<'p, H: Host, P: Revocation> Announced<'p, H, P> {
    /// What is announced.
    pub(crate) fn what(&self) -> &P {
        &self.what
    }

    /// Waits for the sections that are open now.
    pub fn synchronize(mut self) -> Quiesced<'p, H, P> {
        let left_out = match self.what.order() {
            Order::Leaves => defect!(WalkWithoutGracePeriod),
            Order::TablesBottomUp => defect!(DrainWithoutGracePeriod),
        };
        if !left_out {
            self.local.synchronize();
        }
        Quiesced { local: self.local, what: self.what, cursor: Cursor::begin() }
    }
}

impl<'p, H: Host, P: Revocation> Quiesced<'p, H, P> {
    /// Visits everything that is concerned, one table page a section, under one debt. A visitor
    /// that pauses is simply called again.
    pub fn walk(mut self, mut visit: impl FnMut(&Page<'_, Owing<'_>>) -> Then) -> Walked<'p, H, P> {
        let mut unlimited = u64::MAX;
        while self.go(&mut unlimited, &mut visit) == Progress::More {}
        Walked { local: self.local, what: self.what }
    }

    /// Visits at most `budget` pages, then says where to go on. A page at which somebody has to be
    /// waited for counts each time that it is looked at in vain.
    pub fn walk_some(
        self,
        mut budget: u64,
        visit: impl FnMut(&Page<'_, Owing<'_>>) -> Then,
    ) -> Walk<'p, H, P> {
        self.walk_within(&mut budget, visit)
    }

    /// The same with a budget that several walks share.
    pub(crate) fn walk_within(
        mut self,
        left: &mut u64,
        mut visit: impl FnMut(&Page<'_, Owing<'_>>) -> Then,
    ) -> Walk<'p, H, P> {
        match self.go(left, &mut visit) {
            Progress::Done => Walk::Whole(Walked { local: self.local, what: self.what }),
            Progress::More => Walk::More(self.pause()),
        }
    }

    /// Stops before the first page.
    pub fn pause(self) -> PausedWalk<P> {
        PausedWalk { vm: self.local.core().id, what: self.what, cursor: self.cursor }
    }

    fn go(
        &mut self,
        left: &mut u64,
        visit: &mut dyn FnMut(&Page<'_, Owing<'_>>) -> Then,
    ) -> Progress {
        let due = if P::WAIVED { Due::Waived } else { Due::Yes };
        let host = self.local.hooks();
        let mut waiting = self.local.waiting(WaitFor::Entry);
        let mut debt = self.local.lend().into_debt(self.what.hull(), due);
        let progress = loop {
            let step = debt.section().step(&mut self.cursor, &self.what, visit);
            match step {
                WalkStep::Done => break Progress::Done,
                WalkStep::Pause => break Progress::More,
                WalkStep::Wait => waiting.pass(host),
                WalkStep::Visited | WalkStep::VisitedLast => {}
            }
            // Waiting spends the budget too, or whoever is waited for decides when the call returns.
            *left = left.saturating_sub(1);
            if step == WalkStep::VisitedLast {
                break Progress::Done;
            }
            if *left == 0 {
                break Progress::More;
            }
        };
        if progress == Progress::More && defect!(DropsFlushAtPause) {
            debt.forget_flush();
        }
        debt.settle();
        progress
    }
}

impl<H: Host, P: Revocation> Walked<'_, H, P> {
    /// Makes sure that no debt of others stands between the walk and the promise.
    pub fn finish(mut self) -> Revoked<P> {
        let core = self.local.core();
        if !P::WAIVED
            && !defect!(IgnoresForeignDebts)
            && core.participants.owes(self.local.place, self.what.hull())
        {
            self.local.synchronize();
            let words = self.local.words();
            words.counters.foreign_debts.add(1);
            self.local.flush();
        }
        Revoked { vm: core.id, what: self.what }
    }
}
