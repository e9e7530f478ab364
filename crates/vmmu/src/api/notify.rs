//! What a host's memory notifier calls: invalidations on the MMU itself.
//!
//! The hazard: the host takes pages back on a thread that owns no vCPU and no worker, perhaps in
//! the middle of something else, and must not be told that there is no place for it.
//!
//! The rule: the MMU has participants of its own for this
//! ([`Config::notifiers`](crate::Config::notifiers)). A notifier takes one for the duration of the
//! call; when all are in use, it waits until one is free. So a begin never fails.

use core::fmt;

use crate::addr::HostRange;
use crate::api::mmu::Mmu;
use crate::host::cpus::WaitFor;
use crate::host::host::Host;
use crate::protocol::local::Participant;
use crate::protocol::waiting::Waiting;
use crate::revoke::host_pages::HostPages;
use crate::revoke::invalidation::{Invalidation, NotInvalidating};

/// All participants of the MMU's own are busy, and the caller may not wait.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WouldWait;

impl fmt::Display for WouldWait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("all notifiers are busy, and this caller may not wait; nothing has begun")
    }
}

impl core::error::Error for WouldWait {}

impl<H: Host> Mmu<H> {
    /// The host takes pages back. When this returns, no vCPU reaches them by any translation, in
    /// any root, also not by a huge leaf that overlaps them by one page; and while the result
    /// lives nothing is mapped from them.
    ///
    /// Takes no lock, and does not wait for a vCPU that is looking up a frame. It waits for
    /// sections, for vCPUs to leave the guest, and, when all [notifiers](crate::Config::notifiers)
    /// are busy, for one of them. A range without a page is taken back at once, and nobody is
    /// refused.
    pub fn invalidate_range(&self, range: HostRange) -> Invalidation<'_> {
        let place = self.own().invalidate(HostPages::new(range));
        Invalidation::new(&self.core, place)
    }

    /// The same for notifiers with separate callbacks: [`invalidate_end`](Self::invalidate_end)
    /// with the same range follows, as often as this was called.
    ///
    /// Any number may be under way. Beyond [`Config::invalidations`](crate::Config::invalidations) of
    /// them, each refuses the blocks its range touches instead of its pages alone.
    pub fn invalidate_begin(&self, range: HostRange) {
        self.own().invalidate(HostPages::named(range));
    }

    /// The same where the caller may not sleep. It still waits, without sleeping, for sections and
    /// for vCPUs to leave the guest ([`Wait::may_sleep`](crate::host::Wait::may_sleep)).
    ///
    /// `Err`: all notifiers are busy, and nothing has begun.
    pub fn try_invalidate_begin(&self, range: HostRange) -> Result<(), WouldWait> {
        let mut own = Participant::register_own(&self.core, self.host(), false).ok_or(WouldWait)?;
        own.invalidate(HostPages::named(range));
        Ok(())
    }

    /// Ends what [`invalidate_begin`](Self::invalidate_begin) began, on any thread. Waits for
    /// nobody. For a range without a page there is nothing to end, and it is never an error.
    ///
    /// End exactly what was begun: an end of a range that nobody began is a mistake of the host, and
    /// most of them are found. An error has changed nothing. It is certain while each that is under way found
    /// a place when it began, which it does unless
    /// [`Config::invalidations`](crate::Config::invalidations) others had one then: those are known by
    /// their ranges. Of the others only the blocks they touch are known, as counts. So an end
    /// of a range that was never begun is taken for that of another one beyond the places whose range
    /// counts in the same blocks, or in blocks that fall on the same counter; that one's pages may
    /// then be mapped before it ends, and its own end is an error. An [`Invalidation`] is never ended
    /// by this.
    pub fn invalidate_end(&self, range: HostRange) -> Result<(), NotInvalidating> {
        if range.is_empty() || self.core.invalidations.end(&range) {
            Ok(())
        } else {
            Err(NotInvalidating(range))
        }
    }

    /// A participant of the MMU's own.
    fn own(&self) -> Participant<'_, H> {
        let mut waiting = Waiting::on(WaitFor::OwnParticipant, true);
        loop {
            if let Some(own) = Participant::register_own(&self.core, self.host(), true) {
                return own;
            }
            waiting.pass(self.host());
        }
    }
}
