//! Roots: shared, invalidated, drained.

mod support;

use support::{Frames, TestHost, backed, fault_at, finish, half, npt, pages, range};
use vmmu::Outcome;
use vmmu::addr::Level;
use vmmu::entry::Access;
use vmmu::host::VcpuId;
use vmmu::slot::AddressSpace;
use vmmu::{Config, Flush, Mmu, Processor, Progress, Role};

#[test]
fn roots_outlive_their_vcpus_and_are_shared_by_role() {
    let vm = Mmu::new(TestHost::default(), &Config::new(npt(), 2)).unwrap();
    let frames = Frames::new(Level::Size4K);
    let mut a = vm.vcpu(VcpuId(0)).unwrap();
    a.create_slot(&backed(1, range(0, 0x1000))).unwrap();
    assert_eq!(a.handle_fault(&frames, fault_at(5, Access::READ)), Outcome::Fixed(Level::Size4K));
    let root = a.before_enter(Processor(0)).unwrap().root();
    drop(a);
    let mut b = vm.vcpu(VcpuId(1)).unwrap();
    assert_eq!(b.before_enter(Processor(1)).unwrap().root(), root);
    assert_eq!(b.handle_fault(&frames, fault_at(5, Access::READ)), Outcome::Spurious);
    // Another role and back: nothing is rebuilt.
    let tables = vm.stats().tables;
    for _ in 0..100 {
        b.set_role(Role { space: AddressSpace(0), flavour: 1 });
        assert_ne!(b.before_enter(Processor(1)).unwrap().root(), root);
        b.set_role(Role::PLAIN);
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
    let old = vcpu.before_enter(Processor(0)).unwrap().root();
    let (request, found) = half(&mut vcpu, &frames, 0x7);
    let mut drain = worker.invalidate_roots();
    assert_eq!(worker.complete(support::resolve(request, found)).unwrap(), Outcome::Retry);
    assert_eq!(vm.stats().leaves, [16, 0, 0], "invalid, not yet zapped");
    // The vCPU's next entry is on a new root, and flushes.
    {
        let entry = vcpu.before_enter(Processor(0)).unwrap();
        assert_ne!(entry.root(), old);
        assert_eq!(entry.flush(), Flush::Needed);
        entry.after_exit();
    }
    assert_eq!(worker.drain(&mut drain, 4), Progress::More);
    assert_eq!(vm.stats().leaves, [12, 0, 0]);
    // The host takes a page back that only the draining root maps.
    drop(worker.invalidate_range(pages(15 * 0x200, 1)));
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

#[test]
fn a_fault_that_finds_every_place_for_a_root_taken_by_drains_retries() {
    let vm = Mmu::new(TestHost::default(), &Config::new(npt(), 1)).unwrap();
    let frames = Frames::new(Level::Size4K);
    let mut vcpu = vm.vcpu(VcpuId(0)).unwrap();
    let mut worker = vm.worker().unwrap();
    worker.create_slot(&backed(1, range(0, 0x1000))).unwrap();
    let mut drains = Vec::new();
    let outcome = loop {
        match vcpu.handle_fault(&frames, fault_at(0, Access::WRITE)) {
            Outcome::Fixed(_) => drains.push(worker.invalidate_roots()),
            outcome => break outcome,
        }
    };
    // Not out of memory: there is nothing the host could give.
    assert_eq!(outcome, Outcome::Retry);
    assert_eq!(vm.stats().roots, drains.len() as u64);
    let busy = vcpu.before_enter(Processor(0)).map(drop);
    assert_eq!(busy, Err(vmmu::EnterError::RootsBusy));
    while worker.drain(&mut drains[0], 8) == Progress::More {}
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
