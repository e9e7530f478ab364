//! A VM ready for a model: one slot over most of the backing.

use vmmu::addr::Pfn;
use vmmu::addr::{Gfn, GfnRange, Level};
use vmmu::check::Witness;
use vmmu::entry::Access;
use vmmu::host::VcpuId;
use vmmu::slot::{AddressSpace, Mutability, SlotId, SlotSpec, Source};
use vmmu::{Config, Mmu, Worker};

use crate::explore::saw;
use crate::guest::Guest;
use crate::machine::{BLOCK, MEMORY, Machine, OTHER, PAGES, format};

/// A VM that threads of a model borrow for ever, until [`end`](Self::end) takes it back.
pub struct Rig {
    pub vm: &'static Mmu<Machine>,
    raw: *mut Mmu<Machine>,
}

/// The slot every model has.
fn memory() -> SlotSpec {
    SlotSpec {
        id: SlotId(0),
        space: AddressSpace::Normal,
        range: GfnRange::sized(Gfn(0), MEMORY).expect("short"),
        source: Source::Backed { backing: 0, first: 0 },
        mutability: Mutability::ReadWrite,
        largest: Level::Size2M,
    }
}

/// The slot that comes and goes.
pub fn other() -> SlotSpec {
    SlotSpec {
        id: SlotId(1),
        range: GfnRange::sized(OTHER.0, 2 * BLOCK).expect("short"),
        source: Source::Backed { backing: 0, first: OTHER.1 },
        ..memory()
    }
}

impl Rig {
    /// A VM with the slot.
    pub fn new(vcpus: u32, workers: u32) -> Rig {
        let mut config = Config::new(format(), vcpus);
        config.workers = workers;
        config.notifiers = 0;
        config.slots = 2;
        let vm = Mmu::new(Machine::new(), &config).expect("a small VM");
        let raw = Box::into_raw(Box::new(vm));
        // SAFETY: it lives until `end`, which is given everything that borrows it.
        let rig = Rig { vm: unsafe { &*raw }, raw };
        rig.worker().create_slot(&memory()).expect("the first slot");
        rig
    }

    pub fn worker(&self) -> Worker<&'static Mmu<Machine>> {
        self.vm.worker().expect("a place")
    }

    /// A vCPU.
    pub fn guest(&self, id: u32) -> Guest<'static> {
        Guest::new(self.vm.vcpu(VcpuId(id)).expect("a place"), self.vm.host())
    }

    /// Everything that borrowed the VM is gone: checks it, takes it down and looks at what is
    /// left.
    pub fn end(self) {
        // SAFETY: from `Box::into_raw` in `new`; the caller has given back what borrowed it.
        let mut vm = *unsafe { Box::from_raw(self.raw) };
        if let Some(broken) = vm.broken() {
            vm.host().complain(&format!("the MMU is dead: {broken}"));
        }
        if vm.stats().retries > 0 {
            saw("tried again");
        }
        let frames: Vec<u64> = (0..PAGES).map(|page| vm.host().frame(page)).collect();
        let witness = |_, page| Witness::Frame(Pfn(frames[page as usize]), Access::all());
        let checked = vm.check(witness).expect("memory");
        if let Some(violation) = checked.violations.first() {
            vm.host().complain(&format!("the checker: {violation}"));
        }
        vm.teardown().verdict();
    }
}
