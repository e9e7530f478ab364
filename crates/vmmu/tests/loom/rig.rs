//! A VM ready for a model: one slot, one root, whatever is mapped already.

use vmmu::addr::{Gfn, GfnRange, Level};
use vmmu::host::VcpuId;
use vmmu::internals::Participant;
use vmmu::slot::{AddressSpace, Mutability, SlotId, SlotSpec, Source};
use vmmu::{Config, HostRange, Mmu, Worker};

use crate::guest::Guest;
use crate::machine::{Machine, format};

/// The first page of the guest's memory.
pub const PAGE: Gfn = Gfn(0);

/// The guest frames of the slot: one huge leaf.
pub const MEMORY: u64 = 4;

/// Table pages that a fault wants to have in stock: one for each level below the top.
pub const TABLES: usize = 3;

/// A VM that threads of a model borrow for ever, until [`end`](Self::end) takes it back.
pub struct Rig {
    pub vm: &'static Mmu<Machine>,
    raw: *mut Mmu<Machine>,
}

/// The slot every model has: pages 0 to 3 of backing 0 at guest frames 0 to 3.
pub fn memory() -> SlotSpec {
    SlotSpec {
        id: SlotId(0),
        space: AddressSpace::Normal,
        range: GfnRange::sized(Gfn(0), MEMORY).expect("short"),
        source: Source::Backed { backing: 0, first: 0 },
        mutability: Mutability::ReadWrite,
        largest: Level::Size2M,
    }
}

/// `pages` of backing 0, from `first`.
pub fn pages(first: u64, pages: u64) -> HostRange {
    HostRange { backing: 0, first, pages }
}

/// A vCPU on a root, with pages for another root and for one leaf in an area without tables. Each page
/// costs the checker time in every execution; one that is missing costs executions.
pub fn guest_of(vm: &'static Mmu<Machine>, id: VcpuId) -> Guest<'static> {
    let mut vcpu = vm.vcpu(id).expect("a place");
    vcpu.reserve(TABLES + 2).expect("pages");
    vcpu.load_root().expect("a root");
    Guest::new(vcpu, vm.host())
}

impl Rig {
    /// A VM with the slot, and a place for one invalidation.
    pub fn new(vcpus: u32, workers: u32) -> Rig {
        Rig::with_places(vcpus, workers, 1)
    }

    /// The same with so many places for invalidations.
    pub fn with_places(vcpus: u32, workers: u32, invalidations: u32) -> Rig {
        let mut config = Config::new(format(), vcpus);
        config.workers = workers;
        config.notifiers = 0;
        config.slots = 2;
        config.invalidations = invalidations;
        let vm = Mmu::new(Machine::new(), &config).expect("a small VM");
        vm.worker().expect("a place").create_slot(&memory()).expect("the first slot");
        Rig::of(vm)
    }

    /// That VM.
    pub fn of(vm: Mmu<Machine>) -> Rig {
        let raw = Box::into_raw(Box::new(vm));
        // SAFETY: it lives until `end`, which is given everything that borrows it.
        Rig { vm: unsafe { &*raw }, raw }
    }

    pub fn worker(&self) -> Worker<&'static Mmu<Machine>> {
        self.vm.worker().expect("a place")
    }

    /// A participant without anything.
    pub fn participant(&self) -> Participant<'static, Machine> {
        self.vm.participant().expect("a place")
    }

    /// The vCPU.
    pub fn guest(&self) -> Guest<'static> {
        guest_of(self.vm, VcpuId(0))
    }

    /// Everything that borrowed the VM is gone: takes it down and looks at what is left.
    pub fn end(self) {
        if let Some(broken) = self.vm.broken() {
            self.vm.host().complain(&format!("the MMU is dead: {broken}"));
        }
        if self.vm.stats().debts_leaked > 0 {
            self.vm.host().complain("a debt was leaked");
        }
        // SAFETY: from `Box::into_raw` in `new`; the caller has given back what borrowed it.
        let vm = unsafe { Box::from_raw(self.raw) };
        vm.teardown().verdict();
    }
}
