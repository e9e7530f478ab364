//! Family i: what was remembered to be no memory, while the bits that say since when come round.

use loom::thread::spawn;
use vmmu::addr::{Gfn, GfnRange, Level};
use vmmu::entry::Format;
use vmmu::host::VcpuId;
use vmmu::internals::Defect;
use vmmu::slot::{SlotId, SlotSpec, Source};
use vmmu::{Config, Mmu, Outcome, Processor, Role};

use crate::explore::{Model, saw};
use crate::guest::read;
use crate::machine::{Machine, format};
use crate::rig::{PAGE, Rig, memory};

/// Where no slot ever is.
const HOLE: Gfn = Gfn(16);

/// A VM one change before the wrap, whose slot has come since an MMIO entry was written at its page
/// with the tag that comes next.
fn before_the_wrap(vcpus: u32) -> Rig {
    let mut config = Config::new(format(), vcpus);
    config.workers = 1;
    config.notifiers = 0;
    config.slots = 2;
    let mut vm = Mmu::new(Machine::new(), &config).expect("a small VM");
    {
        let mut vcpu = vm.vcpu(VcpuId(0)).expect("a place");
        vcpu.reserve(8).expect("pages");
        vcpu.load_root().expect("a root");
        for _ in 0..2 {
            let step = vcpu.begin_fault(read(PAGE));
            assert!(matches!(step, vmmu::FaultStep::Done(Outcome::Emulate)));
        }
        assert_eq!(vm.stats().emulated_fast, 1, "the entry answers");
        let mut worker = vm.worker().expect("a place");
        worker.create_slot(&memory()).expect("the first slot");
    }
    vm.set_generation((1 << Format::GENERATION_BITS) - 1);
    Rig::of(vm)
}

/// Another slot, far from the first.
fn other() -> SlotSpec {
    let range = GfnRange::sized(Gfn(32), 4).expect("short");
    SlotSpec { id: SlotId(1), range, source: Source::Backed { backing: 1, first: 0 }, ..memory() }
}

/// A vCPU touches memory while a worker makes the slot that makes the tag come round.
fn fault_against_wrap() {
    let rig = before_the_wrap(1);
    let machine = rig.vm.host();
    let (mut guest, mut worker) = (rig.guest(), rig.worker());
    let faulting = spawn(move || {
        if guest.fault(read(PAGE), Level::Size4K) == Outcome::Emulate {
            machine.complain(TAKEN_FOR_MMIO);
        }
        guest
    });
    let changing = spawn(move || {
        worker.create_slot(&other()).expect("there is room");
        worker
    });
    let guest = faulting.join().expect("a fault");
    let worker = changing.join().expect("a slot");
    drop((guest, worker));
    rig.end();
}

/// A vCPU loads its first root of another role while the tag comes round: when the change is over, a
/// root that vCPUs load remembers what is no memory.
fn birth_against_wrap() {
    let rig = before_the_wrap(2);
    let (vm, machine) = (rig.vm, rig.vm.host());
    let mut worker = rig.worker();
    // There are but two places, and a root is replaced only if there is one for its successor.
    worker.zap_all();
    let loading = spawn(move || {
        let mut vcpu = vm.vcpu(VcpuId(1)).expect("a place");
        vcpu.reserve(8).expect("pages");
        vcpu.set_role(Role { flavour: 1, ..Role::PLAIN });
        vcpu.load_root().unwrap();
        drop(vcpu.before_enter(Processor(0)));
        vcpu
    });
    let changing = spawn(move || {
        worker.create_slot(&other()).expect("there is room");
        worker
    });
    let mut vcpu = loading.join().expect("a root");
    let worker = changing.join().expect("a slot");
    drop(worker);
    vcpu.load_root().unwrap();
    if vcpu.before_enter(Processor(0)).is_ok() {
        vcpu.reserve(8).expect("pages");
        for _ in 0..2 {
            let step = vcpu.begin_fault(read(HOLE));
            assert!(matches!(step, vmmu::FaultStep::Done(Outcome::Emulate)));
        }
        if rig.vm.stats().emulated_fast < 2 {
            machine.complain(FORGETS);
        }
        saw("loaded");
    }
    drop(vcpu);
    rig.end();
}

const TAKEN_FOR_MMIO: &str = "memory is taken for a device";
const FORGETS: &str = "a root of now remembers no MMIO";

const I1: Model = Model::new("i1", 3, fault_against_wrap);
const I4: Model = Model::new("i4", 3, birth_against_wrap);

#[test]
fn memory_is_memory_while_the_tag_comes_round() {
    I1.holds(&["fixed", "retry"]);
}

#[test]
fn entries_of_the_round_before_that_are_believed_take_it_for_a_device() {
    I1.fails("i2", Defect::BelievesAcrossWrap, TAKEN_FOR_MMIO);
}

#[test]
fn entries_that_go_when_the_tag_is_zero_are_met_before_they_have_gone() {
    I1.fails("i3", Defect::LooksForTagZero, TAKEN_FOR_MMIO);
}

#[test]
fn a_root_born_beside_the_wrap_is_of_the_new_epoch_or_is_replaced() {
    I4.holds(&["loaded"]);
}

#[test]
fn a_root_born_after_the_section_that_read_its_epoch_is_neither() {
    I4.fails("i5", Defect::BornOutsideSection, FORGETS);
}
