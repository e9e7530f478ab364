//! MMIO entries: believed under one generation of the slots only, however its low bits come round,
//! and paid for with few table pages.
#![cfg(feature = "protocol")]

mod support;

use std::sync::Mutex;
use std::thread;

use support::hooked::{Hooked, Hooks};
use support::puppet::{Puppet, puppet};
use support::{Frames, TestHost, backed, fault_at, finish, formats, range};
use vmmu::addr::{Gfn, Level};
use vmmu::check::Witness;
use vmmu::entry::{Access, Format};
use vmmu::host::{Event, VcpuId};
use vmmu::slot::SlotId;
use vmmu::{Busy, Config, FaultStep, Mmu, Outcome, Processor, Progress, Role, VcpuMmu};

/// After so many changes of the slots an MMIO entry has the bits of the first generation again.
const ROUND: u64 = 1 << Format::GENERATION_BITS;

const FIXED: Outcome = Outcome::Fixed(Level::Size4K);

fn read(vcpu: &mut VcpuMmu<&Mmu<TestHost>>, gfn: u64) -> Outcome {
    vcpu.handle_fault(&Frames::new(Level::Size4K), fault_at(gfn, Access::READ))
}

fn vm(format: Format) -> Mmu<TestHost> {
    Mmu::new(TestHost::default(), &Config::new(format, 1)).unwrap()
}

/// An MMIO entry of `gfn` that answers now.
fn remembered(vm: &Mmu<TestHost>, gfn: u64) {
    let mut vcpu = vm.vcpu(VcpuId(0)).unwrap();
    assert_eq!(read(&mut vcpu, gfn), Outcome::Emulate);
    let before = vm.stats().emulated_fast;
    assert_eq!(read(&mut vcpu, gfn), Outcome::Emulate);
    assert_eq!(vm.stats().emulated_fast, before + 1, "the entry answers");
}

/// Where an MMIO entry is, and where a slot comes.
const HERE: u64 = 0x1000;

#[test]
fn a_change_by_one_that_crosses_the_wrap_makes_no_old_entry_current() {
    for (name, format) in formats() {
        let mut vm = vm(format);
        remembered(&vm, HERE);
        vm.set_generation(ROUND - 1);
        let mut vcpu = vm.vcpu(VcpuId(0)).unwrap();
        vm.worker().unwrap().create_slot(&backed(1, range(HERE, 1))).unwrap();
        assert_eq!(read(&mut vcpu, HERE), FIXED, "{name}");
        drop(vcpu);
        finish(vm);
    }
}

#[test]
fn a_move_that_crosses_the_wrap_by_two_makes_no_old_entry_current() {
    for (name, format) in formats() {
        let mut vm = vm(format);
        vm.worker().unwrap().create_slot(&backed(1, range(0x8000, 1))).unwrap();
        remembered(&vm, HERE);
        // One change takes the slot away, the other puts it there: the bits are never seen zero.
        vm.set_generation(ROUND - 1);
        let mut vcpu = vm.vcpu(VcpuId(0)).unwrap();
        vm.worker().unwrap().move_slot(SlotId(1), Gfn(HERE)).unwrap();
        assert_eq!(read(&mut vcpu, HERE), FIXED, "{name}");
        drop(vcpu);
        // Once it has loaded a root of this round, what is no memory is remembered again.
        remembered(&vm, 0x8000);
        finish(vm);
    }
}

#[test]
fn a_deletion_in_steps_that_crosses_the_wrap_makes_no_old_entry_current() {
    for (name, format) in formats() {
        let mut vm = vm(format);
        {
            let mut vcpu = vm.vcpu(VcpuId(0)).unwrap();
            vm.worker().unwrap().create_slot(&backed(1, range(0x8000, 1))).unwrap();
            assert_eq!(read(&mut vcpu, 0x8000), FIXED);
        }
        remembered(&vm, HERE);
        vm.set_generation(ROUND - 1);
        let mut vcpu = vm.vcpu(VcpuId(0)).unwrap();
        let mut deletion = vm.worker().unwrap().begin_delete(SlotId(1)).unwrap();
        let mut steps = 0;
        while vm.worker().unwrap().delete_some(&mut deletion, 1) == Progress::More {
            steps += 1;
        }
        assert!(steps > 3, "{name}: the renewal is in steps too, not {steps}");
        vm.worker().unwrap().create_slot(&backed(1, range(HERE, 1))).unwrap();
        assert_eq!(read(&mut vcpu, HERE), FIXED, "{name}");
        drop(vcpu);
        remembered(&vm, 0x8000);
        finish(vm);
    }
}

#[test]
fn a_deletion_dropped_where_it_crosses_the_wrap_leaves_the_vm_right_and_running() {
    for (name, format) in formats() {
        let mut vm = vm(format);
        {
            let mut vcpu = vm.vcpu(VcpuId(0)).unwrap();
            vm.worker().unwrap().create_slot(&backed(1, range(0x8000, 1))).unwrap();
            vm.worker().unwrap().create_slot(&backed(2, range(0x9000, 1))).unwrap();
            assert_eq!(read(&mut vcpu, 0x8000), FIXED);
        }
        remembered(&vm, HERE);
        vm.set_generation(ROUND - 1);
        let mut vcpu = vm.vcpu(VcpuId(0)).unwrap();
        let mut deletion = vm.worker().unwrap().begin_delete(SlotId(1)).unwrap();
        while vm.worker().unwrap().slot(SlotId(1)).is_ok()
            || vm.worker().unwrap().create_slot(&backed(1, range(HERE, 1))).is_err()
        {
            let _ = vm.worker().unwrap().delete_some(&mut deletion, 1);
        }
        drop(deletion);
        assert_eq!(read(&mut vcpu, HERE), FIXED, "{name}");
        assert_eq!(read(&mut vcpu, 0x9000), FIXED, "{name}");
        drop(vcpu);
        remembered(&vm, 0x8000);
        finish(vm);
    }
}

/// Drains that were begun and dropped hold every place but one, and the last is needed: the wrap
/// must neither take it away nor let old entries speak.
#[test]
fn a_wrap_while_dropped_drains_hold_the_places_leaves_the_last_root_alone() {
    for (name, format) in formats() {
        let mut vm = vm(format);
        vm.worker().unwrap().create_slot(&backed(1, range(0x8000, 1))).unwrap();
        {
            let mut vcpu = vm.vcpu(VcpuId(0)).unwrap();
            for _ in 0..15 {
                vcpu.load_root().unwrap();
                drop(vcpu.before_enter(Processor(0)).unwrap());
                drop(vm.worker().unwrap().invalidate_roots());
            }
        }
        remembered(&vm, HERE);
        vm.set_generation(ROUND - 1);
        let mut vcpu = vm.vcpu(VcpuId(0)).unwrap();
        vcpu.load_root().unwrap();
        let root = vcpu.before_enter(Processor(0)).unwrap().root();
        vm.worker().unwrap().move_slot(SlotId(1), Gfn(HERE)).unwrap();
        assert_eq!(read(&mut vcpu, HERE), FIXED, "{name}");
        assert_eq!(read(&mut vcpu, 0x8000), Outcome::Emulate, "{name}");
        // There is no place for a successor, so it stays; what is no memory is not remembered.
        vcpu.load_root().unwrap();
        assert_eq!(vcpu.before_enter(Processor(0)).unwrap().root(), root, "{name}");
        let fast = vm.stats().emulated_fast;
        assert_eq!(read(&mut vcpu, 0x8000), Outcome::Emulate, "{name}");
        assert_eq!(vm.stats().emulated_fast, fast, "{name}");
        drop(vcpu);
        finish(vm);
    }
}

/// All places are held when the wrap comes, by drains that were dropped: nobody can enter, before
/// and after, and the change of the slots ends.
#[test]
fn a_wrap_while_dropped_drains_hold_all_places_ends() {
    for (name, format) in formats() {
        let mut vm = vm(format);
        let mut drains = Vec::new();
        {
            let mut vcpu = vm.vcpu(VcpuId(0)).unwrap();
            vm.worker().unwrap().create_slot(&backed(1, range(0x8000, 1))).unwrap();
            for n in 0..16 {
                vcpu.load_root().unwrap();
                drop(vcpu.before_enter(Processor(0)).unwrap());
                if n == 0 {
                    drains.push(vm.worker().unwrap().invalidate_roots());
                } else {
                    drop(vm.worker().unwrap().invalidate_roots());
                }
            }
        }
        vm.set_generation(ROUND - 1);
        let mut vcpu = vm.vcpu(VcpuId(0)).unwrap();
        vm.worker().unwrap().move_slot(SlotId(1), Gfn(HERE)).unwrap();
        vcpu.load_root().unwrap();
        while vm.worker().unwrap().drain(&mut drains[0], 1) == Progress::More {}
        assert_eq!(read(&mut vcpu, HERE), FIXED, "{name}");
        drop(vcpu);
        remembered(&vm, 0x8000);
        finish(vm);
    }
}

/// A vCPU of another thread faults each time a grace period has ended.
#[derive(Debug, Default)]
struct Gaps {
    faulting: Mutex<Option<Puppet>>,
}

impl Hooks for Gaps {
    fn event(&self, event: Event) {
        if event == Event::GracePeriod
            && let Some(faulting) = &*self.faulting.lock().unwrap()
        {
            faulting.step(());
        }
    }
}

/// The set of the next round is current and the roots of the last one are valid still: a page that
/// has long been memory is not taken for MMIO.
#[test]
fn a_fault_between_the_wrap_and_the_renewal_finds_memory() {
    for (name, format) in formats() {
        let mut vm = Mmu::new(Hooked::<Gaps>::default(), &Config::new(format, 1)).unwrap();
        let frames = Frames::new(Level::Size4K);
        let fault = fault_at(HERE, Access::READ);
        {
            // An entry of generation 0; then the slot comes, and nobody touches it.
            let mut vcpu = vm.vcpu(VcpuId(0)).unwrap();
            assert_eq!(vcpu.handle_fault(&frames, fault), Outcome::Emulate);
            vm.worker().unwrap().create_slot(&backed(1, range(HERE, 1))).unwrap();
        }
        vm.set_generation(ROUND - 1);
        let (faulting, strings) = puppet();
        *vm.host().hooks.faulting.lock().unwrap() = Some(faulting);
        let mut met = Vec::new();
        thread::scope(|scope| {
            let (mut vcpu, mut worker) = (vm.vcpu(VcpuId(0)).unwrap(), vm.worker().unwrap());
            let (frames, met) = (&frames, &mut met);
            scope.spawn(move || {
                while strings.cue().is_some() {
                    met.push(vcpu.handle_fault(frames, fault));
                    strings.done(());
                }
            });
            worker.create_slot(&backed(2, range(0x8000, 1))).unwrap();
            *vm.host().hooks.faulting.lock().unwrap() = None;
        });
        assert!(met.len() > 2, "{name}: {met:?}");
        assert_eq!(met[0], FIXED, "{name}: {met:?}");
        assert!(!met.contains(&Outcome::Emulate), "{name}: {met:?}");
        let checked = vm.check(|_, _| Witness::Unknown).unwrap();
        assert!(checked.is_clean(), "{:#?}", checked.violations);
        assert_eq!(vm.teardown().pages.in_use(), 0);
    }
}

/// Frames so far apart that each needs a table of leaves of its own.
const APART: u64 = 0x200;

/// A vCPU on a root, with so many table pages in stock and none to be had.
fn starved(vm: &Mmu<TestHost>) -> VcpuMmu<&Mmu<TestHost>> {
    let mut vcpu = vm.vcpu(VcpuId(0)).unwrap();
    vm.host().budget.set(1);
    let _ = vcpu.reserve(1);
    vcpu.load_root().unwrap();
    drop(vcpu.before_enter(Processor(0)).unwrap());
    vcpu
}

#[test]
fn mmio_needs_no_table_pages() {
    for (name, format) in formats() {
        let vm = vm(format);
        let mut vcpu = starved(&vm);
        for n in 0..4 {
            assert_eq!(read(&mut vcpu, HERE + n * APART), Outcome::Emulate, "{name}");
            let step = vcpu.begin_fault(fault_at(HERE, Access::WRITE));
            assert!(matches!(step, FaultStep::Done(Outcome::Emulate)), "{name}: {step:?}");
        }
        assert_eq!((vm.stats().tables, vm.stats().emulated_fast), (0, 0), "{name}");
        // Memory needs them.
        vm.worker().unwrap().create_slot(&backed(1, range(HERE, 1))).unwrap();
        assert_eq!(read(&mut vcpu, HERE), Outcome::OutOfMemory, "{name}");
        // As soon as there are pages, a whole fault takes them, for MMIO too.
        vm.host().budget.set(u64::MAX);
        assert_eq!(read(&mut vcpu, 2 * HERE), Outcome::Emulate, "{name}");
        assert_eq!(read(&mut vcpu, 2 * HERE), Outcome::Emulate, "{name}");
        assert_eq!(vm.stats().emulated_fast, 1, "{name}");
        assert_eq!(read(&mut vcpu, HERE), FIXED, "{name}");
        drop(vcpu);
        finish(vm);
    }
}

/// The roots have gone, and there is neither a page nor a place for another.
#[test]
fn mmio_needs_no_root() {
    for (name, format) in formats() {
        let vm = vm(format);
        let mut vcpu = starved(&vm);
        vm.worker().unwrap().zap_all();
        vm.worker().unwrap().create_slot(&backed(1, range(HERE, 1))).unwrap();
        assert_eq!(read(&mut vcpu, 2 * HERE), Outcome::Emulate, "{name}");
        assert_eq!(read(&mut vcpu, HERE), Outcome::OutOfMemory, "{name}");
        let beyond = read(&mut vcpu, format.frames());
        assert_eq!(beyond, Outcome::Emulate, "{name}");
        vm.host().budget.set(u64::MAX);
        for flavour in 1..17 {
            vcpu.set_role(Role { flavour, ..Role::PLAIN });
            vcpu.load_root().unwrap();
        }
        vcpu.set_role(Role::PLAIN);
        assert_eq!(read(&mut vcpu, 2 * HERE), Outcome::Emulate, "{name}");
        assert_eq!(read(&mut vcpu, HERE), Outcome::Busy(Busy::Roots), "{name}");
        drop(vcpu);
        finish(vm);
    }
}

/// A table that is there takes an entry, however few pages there are in stock.
#[test]
fn mmio_is_remembered_in_a_table_that_is_there_without_pages_in_stock() {
    for (name, format) in formats() {
        let vm = vm(format);
        let mut vcpu = vm.vcpu(VcpuId(0)).unwrap();
        assert_eq!(read(&mut vcpu, HERE), Outcome::Emulate, "{name}");
        vm.host().budget.set(0);
        for n in [1, 1, 2, 2] {
            let step = vcpu.begin_fault(fault_at(HERE + n, Access::READ));
            assert!(matches!(step, FaultStep::Done(Outcome::Emulate)), "{name}: {step:?}");
        }
        assert_eq!(vm.stats().emulated_fast, 2, "{name}");
        drop(vcpu);
        finish(vm);
    }
}

#[test]
fn mmio_alone_links_no_more_tables_than_configured() {
    for (name, format) in formats() {
        let upper = format.top() as u64 - 2;
        let limits = [64, 7, upper + 1, 1, 0];
        for limit in limits {
            let config = Config { mmio_tables: limit as u32, ..Config::new(format, 1) };
            let vm = Mmu::new(TestHost::default(), &config).unwrap();
            let mut vcpu = vm.vcpu(VcpuId(0)).unwrap();
            for n in 0..10_000 {
                assert_eq!(read(&mut vcpu, HERE + n * APART), Outcome::Emulate, "{name}");
            }
            // The upper tables, one of leaves for each place; and no upper one without a lower.
            let linked = if limit > upper { limit } else { 0 };
            assert_eq!(vm.stats().tables, linked, "{name}, {limit}");
            let before = vm.stats().emulated_fast;
            for n in 0..10_000 {
                assert_eq!(read(&mut vcpu, HERE + n * APART), Outcome::Emulate, "{name}");
            }
            let fast = linked.saturating_sub(upper);
            assert_eq!(vm.stats().emulated_fast, before + fast, "{name}, {limit}");
            drop(vcpu);
            finish(vm);
        }
    }
}

/// Memory links as many tables as it needs, and counts for nothing; what is no memory is remembered
/// in them.
#[test]
fn memory_is_not_concerned_by_what_mmio_may_link() {
    for (name, format) in formats() {
        let config = Config { mmio_tables: 0, ..Config::new(format, 1) };
        let vm = Mmu::new(TestHost::default(), &config).unwrap();
        let mut vcpu = vm.vcpu(VcpuId(0)).unwrap();
        for n in 0..100u32 {
            let slot = backed(n, range(u64::from(n) * APART, 1));
            vm.worker().unwrap().create_slot(&slot).unwrap();
        }
        for n in 0..100 {
            assert_eq!(read(&mut vcpu, n * APART), FIXED, "{name}");
            assert_eq!(read(&mut vcpu, n * APART + 1), Outcome::Emulate, "{name}");
            assert_eq!(read(&mut vcpu, n * APART + 1), Outcome::Emulate, "{name}");
        }
        assert_eq!(vm.stats().emulated_fast, 100, "{name}");
        drop(vcpu);
        finish(vm);
    }
}

#[test]
fn each_root_counts_its_own_tables_from_zero() {
    for (name, format) in formats() {
        let vm = vm(format);
        let mut vcpu = vm.vcpu(VcpuId(0)).unwrap();
        let fill = |vcpu: &mut VcpuMmu<&Mmu<TestHost>>| {
            let before = vm.stats().tables;
            for n in 0..100 {
                assert_eq!(read(vcpu, HERE + n * APART), Outcome::Emulate, "{name}");
            }
            assert_eq!(vm.stats().tables, before + 64, "{name}");
        };
        fill(&mut vcpu);
        vcpu.set_role(Role { flavour: 1, ..Role::PLAIN });
        fill(&mut vcpu);
        vm.worker().unwrap().zap_all();
        // The same places, other tenants.
        fill(&mut vcpu);
        vcpu.set_role(Role::PLAIN);
        fill(&mut vcpu);
        drop(vcpu);
        finish(vm);
    }
}

/// Many vCPUs that link for MMIO at the same time do not exceed the limit together.
#[test]
fn the_limit_holds_for_all_vcpus_together() {
    let format = formats()[1].1;
    let vm = Mmu::new(TestHost::default(), &Config::new(format, 4)).unwrap();
    thread::scope(|scope| {
        for id in 0..4 {
            let mut vcpu = vm.vcpu(VcpuId(id)).unwrap();
            scope.spawn(move || {
                for n in 0..200 {
                    let place = n ^ u64::from(id);
                    let outcome = read(&mut vcpu, HERE + place * APART);
                    assert_eq!(outcome, Outcome::Emulate);
                }
            });
        }
    });
    assert_eq!(vm.stats().tables, 64);
    finish(vm);
}
