//! Roots: shared, invalidated, drained.

mod support;

use support::{Frames, TestHost, backed, fault_at, finish, half, npt, pages, range};
use vmmu::addr::Level;
use vmmu::entry::Access;
use vmmu::host::VcpuId;
use vmmu::slot::{AddressSpace, SlotSpec};
use vmmu::{Busy, Outcome};
use vmmu::{Config, EnterError, Flush, Mmu, Processor, Progress, Role};

#[test]
fn roots_outlive_their_vcpus_and_are_shared_by_role() {
    let vm = Mmu::new(TestHost::default(), &Config::new(npt(), 2)).unwrap();
    let frames = Frames::new(Level::Size4K);
    let mut a = vm.vcpu(VcpuId(0)).unwrap();
    vm.worker().unwrap().create_slot(&backed(1, range(0, 0x1000))).unwrap();
    assert_eq!(a.handle_fault(&frames, fault_at(5, Access::READ)), Outcome::Fixed(Level::Size4K));
    a.load_root().unwrap();
    let root = a.before_enter(Processor(0)).unwrap().root();
    drop(a);
    let mut b = vm.vcpu(VcpuId(1)).unwrap();
    b.load_root().unwrap();
    assert_eq!(b.before_enter(Processor(1)).unwrap().root(), root);
    assert_eq!(b.handle_fault(&frames, fault_at(5, Access::READ)), Outcome::Spurious);
    // Another role and back: nothing is rebuilt.
    let tables = vm.stats().tables;
    for _ in 0..100 {
        b.set_role(Role { space: AddressSpace::Normal, flavour: 1 });
        b.load_root().unwrap();
        assert_ne!(b.before_enter(Processor(1)).unwrap().root(), root);
        b.set_role(Role::PLAIN);
        b.load_root().unwrap();
        assert_eq!(b.before_enter(Processor(1)).unwrap().root(), root);
    }
    assert_eq!((vm.stats().tables, vm.stats().roots), (tables, 2));
    assert_eq!(b.handle_fault(&frames, fault_at(5, Access::READ)), Outcome::Spurious);
    drop(b);
    finish(vm);
}

#[test]
fn invalid_roots_are_drained_in_steps_while_invalidations_still_see_them() {
    let vm = Mmu::new(TestHost::default(), &Config::new(npt(), 1)).unwrap();
    let frames = Frames::new(Level::Size4K);
    let mut vcpu = vm.vcpu(VcpuId(0)).unwrap();
    let mut worker = vm.worker().unwrap();
    worker.create_slot(&backed(1, range(0, 0x10_0000))).unwrap();
    worker.reserve(8).unwrap();
    for n in 0..16 {
        let outcome = vcpu.handle_fault(&frames, fault_at(n * 0x200, Access::WRITE));
        assert_eq!(outcome, Outcome::Fixed(Level::Size4K));
    }
    vcpu.load_root().unwrap();
    let old = vcpu.before_enter(Processor(0)).unwrap().root();
    let (request, found) = half(&mut vcpu, &frames, 0x7);
    let mut drain = worker.invalidate_roots();
    assert_eq!(worker.complete(support::resolve(request, found)).unwrap(), Outcome::Retry);
    assert_eq!(vm.stats().leaves, [16, 0, 0], "invalid, not yet zapped");
    // The vCPU's next entry is on a new root, and flushes.
    {
        vcpu.load_root().unwrap();
        let entry = vcpu.before_enter(Processor(0)).unwrap();
        assert_ne!(entry.root(), old);
        assert_eq!(entry.flush(), Flush::Needed);
        entry.after_exit();
    }
    assert_eq!(worker.drain(&mut drain, 4), Progress::More);
    assert_eq!(vm.stats().leaves, [12, 0, 0]);
    // The host takes a page back that only the draining root maps.
    drop(vm.invalidate_range(pages(15 * 0x200, 1)));
    assert_eq!(vm.stats().leaves, [11, 0, 0]);
    let mut steps = 1;
    while worker.drain(&mut drain, 4) == Progress::More {
        steps += 1;
    }
    // 16 tables of leaves, one of each level above: 18 below the root, four a step.
    assert_eq!(steps, 4);
    assert_eq!(vm.stats().leaves, [0, 0, 0]);
    assert_eq!((vm.stats().tables, vm.stats().roots), (0, 1));
    let again = vcpu.handle_fault(&frames, fault_at(0x7, Access::WRITE));
    assert_eq!(again, Outcome::Fixed(Level::Size4K));
    drop((vcpu, worker));
    finish(vm);
}

/// Drains dropped half way once kept their places, and after sixteen of them no vCPU found one.
#[test]
fn drains_that_are_dropped_or_forgotten_are_finished_by_who_needs_their_places() {
    let vm = Mmu::new(TestHost::default(), &Config::new(npt(), 1)).unwrap();
    let frames = Frames::new(Level::Size4K);
    let mut vcpu = vm.vcpu(VcpuId(0)).unwrap();
    let mut worker = vm.worker().unwrap();
    worker.create_slot(&backed(1, range(0, 0x1000))).unwrap();
    let mut late = Vec::new();
    for n in 0..100 {
        for gfn in [0, 0x200, 0x400] {
            let outcome = vcpu.handle_fault(&frames, fault_at(gfn, Access::WRITE));
            assert_eq!(outcome, Outcome::Fixed(Level::Size4K), "round {n}");
        }
        let mut drain = worker.invalidate_roots();
        match n % 3 {
            0 => {}
            1 => {
                let _ = worker.drain(&mut drain, 1);
            }
            _ => late.push(drain),
        }
        assert!(vm.stats().roots <= 16);
    }
    // Who was merely slow finds the work done, or does what is left of it.
    for mut drain in late {
        while worker.drain(&mut drain, 1) == Progress::More {}
    }
    drop((vcpu, worker));
    finish(vm);
}

#[test]
fn a_fault_that_finds_every_place_for_a_root_taken_by_other_roles_is_busy() {
    let vm = Mmu::new(TestHost::default(), &Config::new(npt(), 1)).unwrap();
    let frames = Frames::new(Level::Size4K);
    let mut vcpu = vm.vcpu(VcpuId(0)).unwrap();
    let mut worker = vm.worker().unwrap();
    worker.create_slot(&backed(1, range(0, 0x1000))).unwrap();
    let role = |flavour| Role { flavour, ..Role::PLAIN };
    for flavour in 0..16 {
        vcpu.set_role(role(flavour));
        vcpu.load_root().unwrap();
    }
    vcpu.set_role(role(16));
    // Not out of memory: there is nothing the host could give.
    assert_eq!(vcpu.handle_fault(&frames, fault_at(0, Access::WRITE)), Outcome::Busy(Busy::Roots));
    assert_eq!(vcpu.before_enter(Processor(0)).map(drop), Err(vmmu::EnterError::LoadRoot));
    assert_eq!(vcpu.load_root(), Err(vmmu::LoadError::RootsBusy));
    worker.zap_all();
    assert_eq!(
        vcpu.handle_fault(&frames, fault_at(0, Access::WRITE)),
        Outcome::Fixed(Level::Size4K)
    );
    drop((vcpu, worker));
    finish(vm);
}

#[test]
fn the_big_hammer_ends_while_vcpus_fault_and_roots_never_run_out() {
    let vm = Mmu::new(TestHost::default(), &Config::new(npt(), 1)).unwrap();
    let frames = Frames::new(Level::Size4K);
    let mut vcpu = vm.vcpu(VcpuId(0)).unwrap();
    let mut worker = vm.worker().unwrap();
    worker.create_slot(&backed(1, range(0, 0x1000))).unwrap();
    for n in 0..100 {
        let outcome = vcpu.handle_fault(&frames, fault_at(n, Access::WRITE));
        assert_eq!(outcome, Outcome::Fixed(Level::Size4K));
        worker.zap_all();
        assert_eq!(vm.stats().leaves, [0, 0, 0]);
    }
    drop((vcpu, worker));
    finish(vm);
}

#[test]
fn an_entry_that_is_refused_leaves_the_vcpu_outside() {
    let vm = Mmu::new(TestHost::default(), &Config::new(npt(), 1)).unwrap();
    let frames = Frames::new(Level::Size4K);
    let (mut vcpu, mut worker) = (vm.vcpu(VcpuId(0)).unwrap(), vm.worker().unwrap());
    worker.create_slot(&backed(1, range(0, 0x1000))).unwrap();
    vcpu.load_root().unwrap();
    assert_eq!(
        vcpu.handle_fault(&frames, fault_at(3, Access::WRITE)),
        Outcome::Fixed(Level::Size4K)
    );
    let _ = worker.invalidate_roots();
    let refused = vcpu.before_enter(Processor(0));
    assert!(matches!(refused, Err(EnterError::LoadRoot)));
    drop(refused);
    std::thread::scope(|scope| {
        let flush = scope.spawn(|| worker.zap_all());
        // Whoever waited for this vCPU would have kicked it, and would wait until it is dropped.
        while !flush.is_finished() && vm.host().kicks(0) == 0 {
            std::thread::yield_now();
        }
        let kicks = vm.host().kicks(0);
        drop(vcpu);
        flush.join().unwrap();
        assert_eq!(kicks, 0, "a vCPU outside was kicked");
    });
    drop(worker);
    finish(vm);
}

#[test]
fn a_drain_of_several_roots_keeps_to_its_budget() {
    let vm = Mmu::new(TestHost::default(), &Config::new(npt(), 1)).unwrap();
    let frames = Frames::new(Level::Size4K);
    let (mut vcpu, mut worker) = (vm.vcpu(VcpuId(0)).unwrap(), vm.worker().unwrap());
    worker.create_slot(&backed(1, range(0, 0x1000))).unwrap();
    for budget in [1, 3, 100] {
        for flavour in 0..4 {
            vcpu.set_role(Role { flavour, ..Role::PLAIN });
            for block in 0..8 {
                let outcome = vcpu.handle_fault(&frames, fault_at(block * 0x200, Access::READ));
                assert_eq!(outcome, Outcome::Fixed(Level::Size4K));
            }
        }
        let mut drain = worker.invalidate_roots();
        loop {
            let before = vm.stats().tables;
            let progress = worker.drain(&mut drain, budget);
            let taken = before - vm.stats().tables;
            assert!(taken <= budget, "{taken} tables within {budget}");
            if progress == Progress::Done {
                break;
            }
        }
    }
    drop((vcpu, worker));
    finish(vm);
}

/// Also where the two address spaces disagree about what is memory.
#[test]
fn a_fault_without_a_root_looks_for_a_slot_in_its_own_address_space() {
    let vm = Mmu::new(TestHost::default(), &Config::new(npt(), 1)).unwrap();
    let frames = Frames::new(Level::Size4K);
    let (mut vcpu, mut worker) = (vm.vcpu(VcpuId(0)).unwrap(), vm.worker().unwrap());
    worker.create_slot(&backed(1, range(0, 0x100))).unwrap();
    let smm = SlotSpec { space: AddressSpace::Smm, ..backed(2, range(0x100, 0x100)) };
    worker.create_slot(&smm).unwrap();
    for flavour in 0..16 {
        vcpu.set_role(Role { flavour, ..Role::PLAIN });
        vcpu.load_root().unwrap();
    }
    let busy = Outcome::Busy(Busy::Roots);
    for (space, here, there) in [
        (AddressSpace::Normal, busy, Outcome::Emulate),
        (AddressSpace::Smm, Outcome::Emulate, busy),
    ] {
        vcpu.set_role(Role { space, flavour: 16 });
        let outcome = vcpu.handle_fault(&frames, fault_at(3, Access::READ));
        assert_eq!(outcome, here, "{space:?}, the slot of the normal one");
        let outcome = vcpu.handle_fault(&frames, fault_at(0x103, Access::READ));
        assert_eq!(outcome, there, "{space:?}, the slot of the other one");
    }
    drop((vcpu, worker));
    finish(vm);
}
