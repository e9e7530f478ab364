//! Dropping whole roots: invalidate, wait until no vCPU runs on one, take their tables apart in
//! steps.
//!
//! The hazard: worker A begins to drain all roots and is dropped, or never called again, before it
//! has come to the end. The places of these roots stay taken, and in the end vCPU B finds none for
//! the root it needs.
//!
//! The rule: what is left to do for a root stands in its place ([`root`](crate::state::root)), not in
//! A's handle. A [`Drain`] only names the roots, so that A can go on with them. Who needs a place
//! goes on with any drain that nobody is at just now; A finds the root gone when it comes back. A
//! root that is only *invalid* is waited out first by whoever adopts it, because vCPUs may still run
//! on it.

use crate::host::cpus::WaitFor;
use crate::host::host::Host;
use crate::protocol::local::Local;
use crate::protocol::section::Owing;
use crate::revoke::chain::Walk;
use crate::revoke::progress::Progress;
use crate::revoke::roots::RootInvalid;
use crate::state::root::{PLACES, Phase, RootName};
use crate::table::page::Page;

/// Invalid roots that are being taken apart. Dropped half way, the rest is done by whoever needs
/// their places.
#[must_use = "the tables below the invalid roots stay until they are drained"]
#[derive(Debug)]
pub struct Drain {
    mmu: u64,
    names: [Option<RootName>; PLACES],
}

impl<H: Host> Local<'_, H> {
    /// Invalidates every root and waits until no vCPU runs on one: the first half of the big
    /// hammer. vCPUs load new roots at their next entry. [`drain`](Self::drain) the old ones.
    pub(crate) fn invalidate_roots(&mut self) -> Drain {
        let mut guard = self.slots();
        let invalid = guard.invalidate();
        self.unload(invalid)
    }

    /// Waits until no vCPU runs on roots that have become invalid.
    pub(crate) fn unload(&mut self, invalid: RootInvalid) -> Drain {
        let drain = Drain { mmu: self.core().id, names: invalid.names };
        // What is to be done now stands in the roots' phases.
        let _ = self.announce(invalid).synchronize().unload();
        drain
    }

    /// Takes at most `budget` tables of invalid roots apart and gives them back to the host. A
    /// drain that another MMU began is left alone.
    pub(crate) fn drain(&mut self, drain: &mut Drain, budget: u64) -> Progress {
        if drain.mmu != self.core().id {
            return Progress::More;
        }
        let mut left = budget.max(1);
        for place in &mut drain.names {
            let Some(name) = *place else { continue };
            if left == 0 {
                return Progress::More;
            }
            if self.drain_root(name, &mut left) == Progress::Done {
                *place = None;
            }
        }
        let is_done = drain.names.iter().all(Option::is_none);
        if is_done { Progress::Done } else { Progress::More }
    }

    /// Goes on with any drain that nobody is at, to its end. `false`: there is none.
    pub(crate) fn adopt_drain(&mut self) -> bool {
        if defect!(AdoptsNoDrain) {
            return false;
        }
        let core = self.core();
        let left_over = |place| core.roots.at(place).filter(|root| root.phase != Phase::Valid);
        let mut roots = (0..PLACES).filter_map(left_over);
        let mut unlimited = u64::MAX;
        roots.any(|root| self.drain_root(root.name, &mut unlimited) == Progress::Done)
    }

    /// Goes on with the drain of one root. *Done*: it is gone, whoever has seen to that.
    fn drain_root(&mut self, name: RootName, left: &mut u64) -> Progress {
        let core = self.core();
        let Some(draining) = core.roots.begin_drain(name) else {
            // Waiting spends the budget too.
            self.waiting(WaitFor::Drain).pass(self.hooks());
            *left = left.saturating_sub(1);
            return Progress::More;
        };
        while let Some(root) = core.roots.draining(&draining, name) {
            match root.phase {
                Phase::Valid => break,
                Phase::Invalid if defect!(AdoptsUnderGuest) => {
                    core.roots.unload(name);
                }
                Phase::Invalid => {
                    let _ = self.announce(RootInvalid::one(name)).synchronize().unload();
                }
                Phase::Unloaded => {
                    let detach = |page: &Page<'_, Owing<'_>>| page.each(|entry| entry.detach());
                    let Some(quiesced) = self.unloaded(&root) else { break };
                    match quiesced.walk_within(left, detach) {
                        Walk::Whole(walked) => {
                            let _gone = walked.finish();
                            core.roots.retire(name);
                        }
                        Walk::More(_) => return Progress::More,
                    }
                }
                Phase::Retiring => {
                    self.synchronize();
                    if defect!(ReleasesBeforeFree) {
                        self.host().release(root.top);
                    }
                    // The place first: if the hook unwinds, nobody releases the table again.
                    core.roots.free(name);
                    if !defect!(ReleasesBeforeFree) {
                        self.host().release(root.top);
                    }
                }
            }
        }
        Progress::Done
    }

    /// The big hammer: drops every mapping of the VM. Cost follows the VM, not the change.
    pub(crate) fn zap_all(&mut self) {
        let mut drain = self.invalidate_roots();
        while self.drain(&mut drain, 64) == Progress::More {}
    }
}
