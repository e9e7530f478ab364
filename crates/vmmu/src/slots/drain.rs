//! Dropping whole roots: invalidate, wait until no vCPU runs on one, take their tables apart in
//! steps.

use crate::host::host::Host;
use crate::protocol::local::Local;
use crate::protocol::section::Owing;
use crate::revoke::chain::{PausedWalk, Revoked};
use crate::revoke::progress::Progress;
use crate::revoke::roots::{RootInvalid, Unloaded};
use crate::table::page::Page;

/// Invalid roots that are being taken apart.
#[must_use = "the tables below the invalid roots stay until they are drained"]
#[derive(Debug)]
pub struct Drain {
    pub(crate) rest: Option<PausedWalk<Unloaded>>,
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
        let unloaded = self.announce(invalid).synchronize().unload();
        Drain { rest: Some(unloaded.pause()) }
    }

    /// Takes at most `budget` tables of invalid roots apart and gives them back to the host. A
    /// drain that another VM began is left alone.
    pub(crate) fn drain(&mut self, drain: &mut Drain, budget: u64) -> Progress {
        let detach = |page: &Page<'_, Owing<'_>>| page.each(|entry| entry.detach());
        if let Some(drained) = self.walk_on(&mut drain.rest, budget, detach) {
            self.retire(drained);
        }
        Progress::of(&drain.rest)
    }

    /// Gives the top tables of drained roots back.
    fn retire(&mut self, drained: Revoked<Unloaded>) {
        let core = self.core();
        let names = drained.open(core).map(Unloaded::names).unwrap_or_default();
        let mut tops = names.map(|name| name.and_then(|name| core.roots.get(name)));
        for top in &mut tops {
            *top = top.filter(|root| core.roots.retire(root.name));
        }
        self.synchronize();
        for root in tops.into_iter().flatten() {
            self.host().release(root.top);
            core.roots.free(root.name);
        }
    }

    /// The big hammer: drops every mapping of the VM. Cost follows the VM, not the change.
    pub(crate) fn zap_all(&mut self) {
        let mut drain = self.invalidate_roots();
        while self.drain(&mut drain, 64) == Progress::More {}
    }
}
