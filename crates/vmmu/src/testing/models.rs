//! Doors for models and benchmarks: parts of an MMU that no hypervisor needs to name.

use crate::addr::Gfn;
use crate::api::hold::Hold;
use crate::api::mmu::Mmu;
use crate::api::worker::Worker;
use crate::host::host::Host;
use crate::protocol::local::{Local, Participant};
use crate::state::participant::ParticipantWords;
use crate::state::root::{Role, RootName};
use crate::state::slot::AddressSpace;
use crate::state::slot_set::Hint;
#[cfg(feature = "protocol")]
use crate::table::cache::Cache;

impl<H: Host> Mmu<H> {
    /// A bare participant.
    pub fn participant(&self) -> Option<Participant<'_, H>> {
        Participant::register(&self.core, self.host())
    }

    /// Says that the slots have changed so often before. So that a test need not change them half a
    /// million times to see the bits of the generation come round that an MMIO entry has.
    pub fn set_generation(&mut self, generation: u64) {
        self.core.slots.set_generation(generation);
    }

    /// How many sections have been opened, and how many of them are open.
    pub fn sections(&self) -> (u64, u64) {
        let counts = self.core.participants.iter().map(ParticipantWords::sections);
        counts.fold((0, 0), |(all, open), count| (all + count.div_ceil(2), open + (count & 1)))
    }

    /// The name of the valid root of a role.
    pub fn root(&self, role: Role) -> Option<RootName> {
        self.core.roots.find(role).map(|root| root.name)
    }
}

impl<M: Hold> Worker<M> {
    /// Its right to take part, and its table pages.
    pub fn parts(&mut self) -> (Local<'_, M::Host>, &mut Cache) {
        (self.seat.local(), &mut self.cache)
    }

    /// How many of these frames are memory, looked up in one section.
    pub fn look_up(&mut self, frames: &[Gfn]) -> u64 {
        let mut hint = Hint::default();
        let mut local = self.seat.local();
        let section = local.section();
        let (slots, space) = (section.slots(), AddressSpace::Normal);
        let is_memory = |gfn: &&Gfn| slots.find(space, **gfn, &mut hint).is_some();
        frames.iter().filter(is_memory).count() as u64
    }
}
