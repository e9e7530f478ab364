//! Doors for models and benchmarks: parts of an MMU that no hypervisor needs to name.

use crate::addr::Gfn;
use crate::api::mmu::Mmu;
use crate::api::worker::Worker;
use crate::host::host::Host;
use crate::protocol::local::Participant;
use crate::state::root::{Role, RootName};
use crate::state::slot::AddressSpace;
use crate::state::slot_set::Hint;
#[cfg(feature = "protocol")]
use crate::table::cache::Cache;

impl<H: Host> Mmu<H> {
    /// A bare participant.
    pub fn participant(&self) -> Option<Participant<'_, H>> {
        Participant::register(&self.core, &self.host)
    }

    /// The name of the valid root of a role.
    pub fn root(&self, role: Role) -> Option<RootName> {
        self.core.roots.find(role).map(|root| root.name)
    }
}

impl<'vm, H: Host> Worker<'vm, H> {
    /// Its right to take part, and its table pages.
    #[cfg(feature = "protocol")]
    pub fn parts(&mut self) -> (&mut Participant<'vm, H>, &mut Cache) {
        (&mut self.participant, &mut self.cache)
    }

    /// How many of these frames are memory, looked up in one section.
    pub fn look_up(&mut self, frames: &[Gfn]) -> u64 {
        let mut hint = Hint::default();
        let section = self.participant.section();
        let (slots, space) = (section.slots(), AddressSpace(0));
        let is_memory = |gfn: &&Gfn| slots.find(space, **gfn, &mut hint).is_some();
        frames.iter().filter(is_memory).count() as u64
    }
}
