//! Taking back: invalidations, zaps, flushes.

mod support;

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use support::hooked::{Hooked, Hooks};
use support::puppet::{Puppet, puppet};
use support::{Frames, TestHost, backed, ept, fault_at, finish, half, npt, pages, range};
use vmmu::addr::{Gpa, Level, Pfn};
use vmmu::entry::Access;
use vmmu::host::VcpuId;
use vmmu::slot::{AddressSpace, SlotId, SlotSpec, Source};
use vmmu::{Busy, Outcome};
use vmmu::{Config, Flush, HostRange, Mmu, NotInvalidating, Processor, Progress, Role, VcpuMmu};

#[test]
fn an_invalidation_takes_an_overlapping_huge_leaf_whole_and_refuses_until_its_end() {
    for format in [ept(), npt()] {
        let vm = Mmu::new(TestHost::default(), &Config::new(format, 1)).unwrap();
        let frames = Frames::new(Level::Size2M);
        let mut vcpu = vm.vcpu(VcpuId(0)).unwrap();
        let mut worker = vm.worker().unwrap();
        worker.create_slot(&backed(1, range(0, 0x1000))).unwrap();
        for gfn in [0, 0x200, 0x400] {
            let outcome = vcpu.handle_fault(&frames, fault_at(gfn, Access::WRITE));
            assert_eq!(outcome, Outcome::Fixed(Level::Size2M));
        }
        let invalidation = vm.invalidate_range(pages(17, 1));
        assert_eq!(vm.stats().leaves, [0, 2, 0]);
        assert_eq!(
            vcpu.handle_fault(&frames, fault_at(17, Access::READ)),
            Outcome::Busy(Busy::Invalidation)
        );
        // Beside the range: the huge leaf would overlap it, a small one does not.
        assert_eq!(
            vcpu.handle_fault(&frames, fault_at(16, Access::READ)),
            Outcome::Fixed(Level::Size4K)
        );
        frames.move_page(17, 0x77_7777);
        drop(invalidation);
        assert_eq!(
            vcpu.handle_fault(&frames, fault_at(17, Access::READ)),
            Outcome::Fixed(Level::Size4K)
        );
        let there = vcpu.translate(Gpa(17 << 12)).unwrap();
        assert_eq!(there.hpa.pfn(), Pfn(0x77_7777));
        drop((vcpu, worker));
        finish(vm);
    }
}

#[test]
fn a_frame_found_before_an_invalidation_is_refused_after_it() {
    let vm = Mmu::new(TestHost::default(), &Config::new(npt(), 1)).unwrap();
    let frames = Frames::new(Level::Size4K);
    let mut vcpu = vm.vcpu(VcpuId(0)).unwrap();
    let mut worker = vm.worker().unwrap();
    worker.create_slot(&backed(1, range(0, 0x10_0000))).unwrap();
    worker.reserve(8).unwrap();
    vcpu.load_root().unwrap();
    drop(vcpu.before_enter(Processor(0)).unwrap());
    let (request, found) = half(&mut vcpu, &frames, 5);
    drop(vm.invalidate_range(pages(5, 1)));
    assert_eq!(worker.complete(support::resolve(request, found)).unwrap(), Outcome::Retry);
    // An invalidation of other pages hits nobody.
    let (request, found) = half(&mut vcpu, &frames, 5);
    drop(vm.invalidate_range(pages(0x8_0000, 0x1000)));
    let outcome = worker.complete(support::resolve(request, found)).unwrap();
    assert_eq!(outcome, Outcome::Fixed(Level::Size4K));
    drop((vcpu, worker));
    finish(vm);
}

#[test]
fn a_block_found_while_a_page_of_it_was_under_invalidation_is_not_mapped_whole() {
    let vm = Mmu::new(TestHost::default(), &Config::new(npt(), 1)).unwrap();
    let frames = Frames::new(Level::Size2M);
    let mut vcpu = vm.vcpu(VcpuId(0)).unwrap();
    let mut worker = vm.worker().unwrap();
    worker.create_slot(&backed(1, range(0, 0x1000))).unwrap();
    worker.reserve(8).unwrap();
    vcpu.load_root().unwrap();
    drop(vcpu.before_enter(Processor(0)).unwrap());
    let invalidation = vm.invalidate_range(pages(17, 1));
    // Page 16 is under no invalidation, and the host still has it in one block with page 17.
    let (request, found) = half(&mut vcpu, &frames, 16);
    assert_eq!((found.level, request.query().largest), (Level::Size2M, Level::Size4K));
    frames.move_page(17, 0x77_7777);
    drop(invalidation);
    // The invalidation is over and has not hit the watch, which it did not see.
    let outcome = worker.complete(support::resolve(request, found)).unwrap();
    assert_eq!(outcome, Outcome::Fixed(Level::Size4K));
    assert_eq!(vcpu.translate(Gpa(17 << 12)), None);
    drop((vcpu, worker));
    finish(vm);
}

#[test]
fn invalidations_beyond_the_places_miss_nothing() {
    let vm = Mmu::new(TestHost::default(), &Config::new(npt(), 1)).unwrap();
    let frames = Frames::new(Level::Size4K);
    let mut vcpu = vm.vcpu(VcpuId(0)).unwrap();
    let mut worker = vm.worker().unwrap();
    worker.create_slot(&backed(1, range(0, 0x1000))).unwrap();
    let begun: Vec<_> = (0..20).map(|n| vm.invalidate_range(pages(n, 1))).collect();
    for gfn in [0, 15, 16, 19] {
        assert_eq!(
            vcpu.handle_fault(&frames, fault_at(gfn, Access::READ)),
            Outcome::Busy(Busy::Invalidation)
        );
    }
    drop(begun);
    for gfn in [0, 15, 16, 19] {
        let outcome = vcpu.handle_fault(&frames, fault_at(gfn, Access::READ));
        assert_eq!(outcome, Outcome::Fixed(Level::Size4K));
    }
    // The same with separate callbacks.
    for n in 0..20 {
        vm.invalidate_begin(pages(n, 1));
    }
    for n in 0..20 {
        vm.invalidate_end(pages(n, 1)).unwrap();
    }
    let unknown = vm.invalidate_end(pages(3, 9)).unwrap_err();
    assert!(unknown.to_string().contains("pages 0x3..0xc"), "{unknown}");
    assert_eq!(
        vcpu.handle_fault(&frames, fault_at(1, Access::READ)),
        Outcome::Fixed(Level::Size4K)
    );
    drop((vcpu, worker));
    finish(vm);
}

#[test]
fn an_invalidation_finds_aliases_in_both_address_spaces() {
    let vm = Mmu::new(TestHost::default(), &Config::new(npt(), 2)).unwrap();
    let frames = Frames::new(Level::Size4K);
    let mut plain = vm.vcpu(VcpuId(0)).unwrap();
    let mut other = vm.vcpu(VcpuId(1)).unwrap();
    other.set_role(Role { space: AddressSpace::Smm, flavour: 3 });
    let source = Source::Backed { backing: 7, first: 0x100 };
    vm.worker().unwrap().create_slot(&SlotSpec { source, ..backed(1, range(0, 0x100)) }).unwrap();
    vm.worker()
        .unwrap()
        .create_slot(&SlotSpec { source, ..backed(2, range(0x5000, 0x80)) })
        .unwrap();
    let spec = SlotSpec { source, space: AddressSpace::Smm, ..backed(3, range(0, 0x100)) };
    vm.worker().unwrap().create_slot(&spec).unwrap();
    for gfn in [0x20, 0x5020] {
        assert_eq!(
            plain.handle_fault(&frames, fault_at(gfn, Access::READ)),
            Outcome::Fixed(Level::Size4K)
        );
    }
    assert_eq!(
        other.handle_fault(&frames, fault_at(0x20, Access::READ)),
        Outcome::Fixed(Level::Size4K)
    );
    assert_eq!(vm.stats().leaves, [3, 0, 0]);
    assert_eq!(other.handle_fault(&frames, fault_at(0x5020, Access::READ)), Outcome::Emulate);
    drop(vm.invalidate_range(pages(0x120, 1)));
    assert_eq!(vm.stats().leaves, [0, 0, 0]);
    drop((plain, other));
    finish(vm);
}

#[test]
fn a_zap_takes_leaves_only_and_refuses_requests_under_way() {
    let vm = Mmu::new(TestHost::default(), &Config::new(npt(), 1)).unwrap();
    let frames = Frames::new(Level::Size2M);
    let mut vcpu = vm.vcpu(VcpuId(0)).unwrap();
    let mut worker = vm.worker().unwrap();
    worker.create_slot(&backed(1, range(0, 0x8_0000))).unwrap();
    frames.move_page(0x401, 0x99_9999);
    for gfn in [0, 0x200, 0x400, 0x4_0000] {
        assert!(matches!(
            vcpu.handle_fault(&frames, fault_at(gfn, Access::READ)),
            Outcome::Fixed(_)
        ));
    }
    let (tables, pages) = (vm.stats().tables, vm.host().in_use());
    let (request, found) = half(&mut vcpu, &frames, 0x401);
    worker.reserve(8).unwrap();
    worker.zap(AddressSpace::Normal, range(0x3ff, 2));
    assert_eq!(vm.stats().leaves, [0, 2, 0], "0x200.. overlaps by one frame and goes whole");
    assert_eq!(vm.stats().tables, tables, "tables stay");
    assert!(vm.host().in_use() >= pages);
    assert_eq!(worker.complete(support::resolve(request, found)).unwrap(), Outcome::Retry);
    drop((vcpu, worker));
    finish(vm);
}

#[test]
fn a_vcpu_outside_the_guest_is_not_kicked_and_flushes_at_its_next_entry() {
    let vm = Mmu::new(TestHost::default(), &Config::new(npt(), 1)).unwrap();
    let frames = Frames::new(Level::Size4K);
    let mut vcpu = vm.vcpu(VcpuId(0)).unwrap();
    let mut worker = vm.worker().unwrap();
    worker.create_slot(&backed(1, range(0, 0x1000))).unwrap();
    assert_eq!(
        vcpu.handle_fault(&frames, fault_at(1, Access::READ)),
        Outcome::Fixed(Level::Size4K)
    );
    vcpu.load_root().unwrap();
    let entry = vcpu.before_enter(Processor(0)).unwrap();
    assert_eq!(entry.flush(), Flush::Needed, "the first entry");
    entry.after_exit();
    vcpu.load_root().unwrap();
    let entry = vcpu.before_enter(Processor(0)).unwrap();
    assert_eq!(entry.flush(), Flush::NotNeeded);
    entry.after_exit();
    drop(vm.invalidate_range(pages(1, 1)));
    assert_eq!(vm.host().kicks(0), 0);
    let stats = vm.stats();
    assert_eq!((stats.flushes, stats.flushes_sent, stats.flushes_elided), (1, 0, 1));
    // An entry that is given up does not pay the debt.
    vcpu.load_root().unwrap();
    let entry = vcpu.before_enter(Processor(0)).unwrap();
    assert_eq!(entry.flush(), Flush::Needed);
    drop(entry);
    vcpu.load_root().unwrap();
    let entry = vcpu.before_enter(Processor(0)).unwrap();
    assert_eq!(entry.flush(), Flush::Needed);
    entry.after_exit();
    vcpu.load_root().unwrap();
    let entry = vcpu.before_enter(Processor(5)).unwrap();
    assert_eq!(entry.flush(), Flush::Needed, "another processor");
    // Given up there as well: the vCPU has not run there, and what that processor knows is as old as
    // before.
    drop(entry);
    let entry = vcpu.before_enter(Processor(5)).unwrap();
    assert_eq!(entry.flush(), Flush::Needed, "the same processor, on which it has not run");
    entry.after_exit();
    let entry = vcpu.before_enter(Processor(5)).unwrap();
    assert_eq!(entry.flush(), Flush::NotNeeded);
    entry.after_exit();
    // Nothing was mapped there: nothing is owed.
    drop(vm.invalidate_range(pages(0x500, 1)));
    assert_eq!(vm.stats().flushes, 1);
    drop((vcpu, worker));
    finish(vm);
}

#[test]
fn a_vcpu_in_the_guest_is_kicked_and_waited_for() {
    let vm = Mmu::new(TestHost::default(), &Config::new(npt(), 1)).unwrap();
    let frames = Frames::new(Level::Size4K);
    let mut worker = vm.worker().unwrap();
    worker.create_slot(&backed(1, range(0, 0x1000))).unwrap();
    let in_guest = std::sync::Barrier::new(2);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut vcpu = vm.vcpu(VcpuId(0)).unwrap();
            let outcome = vcpu.handle_fault(&frames, fault_at(1, Access::READ));
            assert_eq!(outcome, Outcome::Fixed(Level::Size4K));
            vcpu.load_root().unwrap();
            let entry = vcpu.before_enter(Processor(0)).unwrap();
            in_guest.wait();
            while vm.host().kicks[0].load(Ordering::SeqCst) == 0 {
                std::thread::yield_now();
            }
            entry.after_exit();
            vcpu.load_root().unwrap();
            let entry = vcpu.before_enter(Processor(0)).unwrap();
            assert_eq!(entry.flush(), Flush::Needed);
        });
        in_guest.wait();
        drop(vm.invalidate_range(pages(1, 1)));
    });
    assert!(vm.host().kicks(0) >= 1);
    assert_eq!(vm.stats().flushes_sent, 1);
    drop(worker);
    finish(vm);
}

#[test]
fn a_zap_in_steps_visits_no_more_than_its_budget_and_ends() {
    let vm = Mmu::new(TestHost::default(), &Config::new(npt(), 1)).unwrap();
    let frames = Frames::new(Level::Size4K);
    let mut vcpu = vm.vcpu(VcpuId(0)).unwrap();
    vm.worker().unwrap().create_slot(&backed(1, range(0, 0x10_0000))).unwrap();
    for n in 0..10 {
        let outcome = vcpu.handle_fault(&frames, fault_at(n * 0x200, Access::READ));
        assert_eq!(outcome, Outcome::Fixed(Level::Size4K));
    }
    let mut zap = vm.worker().unwrap().begin_zap(AddressSpace::Normal, range(0, 0x10_0000));
    let mut left = Vec::new();
    while vm.worker().unwrap().zap_some(&mut zap, 1) == Progress::More {
        left.push(vm.stats().leaves[0]);
    }
    left.dedup();
    assert_eq!(left, [9, 8, 7, 6, 5, 4, 3, 2, 1, 0], "one table of leaves a step");
    assert_eq!(vm.worker().unwrap().zap_some(&mut zap, 1), Progress::Done);
    drop(vcpu);
    finish(vm);
}

#[test]
fn work_in_steps_that_another_vm_began_is_left_alone() {
    let one = Mmu::new(TestHost::default(), &Config::new(npt(), 1)).unwrap();
    let two = Mmu::new(TestHost::default(), &Config::new(npt(), 1)).unwrap();
    let mut mine = one.worker().unwrap();
    let mut foreign = two.worker().unwrap();
    let mut drain = mine.invalidate_roots();
    assert_eq!(foreign.drain(&mut drain, 100), Progress::More);
    assert_eq!(foreign.drain(&mut drain, 100), Progress::More);
    assert_eq!(mine.drain(&mut drain, 100), Progress::Done);
    drop((mine, foreign));
    finish(one);
    finish(two);
}

#[test]
fn a_corrupt_entry_kills_the_vm_and_is_gone_all_the_same() {
    let vm = Mmu::new(TestHost::default(), &Config::new(npt(), 1)).unwrap();
    let frames = Frames::new(Level::Size4K);
    let mut vcpu = vm.vcpu(VcpuId(0)).unwrap();
    vm.worker().unwrap().create_slot(&backed(1, range(0, 0x200))).unwrap();
    for gfn in [3, 4] {
        let outcome = vcpu.handle_fault(&frames, fault_at(gfn, Access::READ));
        assert_eq!(outcome, Outcome::Fixed(Level::Size4K));
    }
    vcpu.load_root().unwrap();
    let mut pfn = vcpu.before_enter(Processor(0)).unwrap().root().pfn();
    for _ in 0..3 {
        // SAFETY: nothing else runs, and the table is linked.
        pfn = Pfn(unsafe { TestHost::word(pfn, 0).read() } >> 12 & 0xf_ffff_ffff);
    }
    // Writable for hardware, though neither host nor library allow it.
    // SAFETY: nothing else runs.
    unsafe { *TestHost::word(pfn, 3) = *TestHost::word(pfn, 3) & !(3 << 56) | 2 };
    drop(vm.invalidate_range(pages(3, 1)));
    // SAFETY: nothing else runs.
    assert_eq!(unsafe { TestHost::word(pfn, 3).read() }, 0);
    assert!(vm.broken().is_some());
    assert_eq!(vm.stats().flushes, 1);
    assert!(vcpu.load_root().is_err() && vcpu.before_enter(Processor(0)).is_err());
    drop(vcpu);
    assert_eq!(vm.teardown().in_use(), 0);
}

/// Two invalidations of one range at the same time: one is held by a value, the other is ended by
/// its name. The name once ended the value's, whose drop then took another's place away.
#[test]
fn an_end_by_name_does_not_end_what_somebody_holds() {
    let vm = Mmu::new(TestHost::default(), &Config::new(npt(), 1)).unwrap();
    let mut worker = vm.worker().unwrap();
    worker.create_slot(&backed(1, range(0, 0x100))).unwrap();
    let frames = Frames::new(Level::Size4K);
    let mut vcpu = vm.vcpu(VcpuId(0)).unwrap();
    let pages = |first| HostRange { backing: 7, first, pages: 1 };
    let held = vm.invalidate_range(pages(1));
    // Nobody has begun this by name.
    assert_eq!(vm.invalidate_end(pages(1)), Err(NotInvalidating(pages(1))));
    vm.invalidate_begin(pages(1));
    assert_eq!(vm.invalidate_end(pages(1)), Ok(()));
    assert_eq!(vm.invalidate_end(pages(1)), Err(NotInvalidating(pages(1))));
    // Whoever comes now must not lose its place when the first one goes.
    vm.invalidate_begin(pages(2));
    assert_eq!(
        vcpu.handle_fault(&frames, fault_at(1, Access::READ)),
        Outcome::Busy(Busy::Invalidation)
    );
    drop(held);
    assert_eq!(
        vcpu.handle_fault(&frames, fault_at(2, Access::READ)),
        Outcome::Busy(Busy::Invalidation)
    );
    assert_eq!(
        vcpu.handle_fault(&frames, fault_at(1, Access::READ)),
        Outcome::Fixed(Level::Size4K)
    );
    assert_eq!(vm.invalidate_end(pages(2)), Ok(()));
    assert_eq!(
        vcpu.handle_fault(&frames, fault_at(2, Access::READ)),
        Outcome::Fixed(Level::Size4K)
    );
    drop((worker, vcpu));
    vm.teardown();
}

/// More at once than there are places: those are counted, and each end ends one of its kind.
#[test]
fn ends_by_name_and_by_value_do_not_mix_when_places_run_out() {
    let vm = Mmu::new(TestHost::default(), &Config::new(npt(), 1)).unwrap();
    let mut worker = vm.worker().unwrap();
    let pages = |first| HostRange { backing: 7, first, pages: 1 };
    let held: Vec<_> = (0..20).map(|n| vm.invalidate_range(pages(n))).collect();
    assert_eq!(vm.invalidate_end(pages(19)), Err(NotInvalidating(pages(19))));
    vm.invalidate_begin(pages(30));
    assert_eq!(vm.invalidate_end(pages(30)), Ok(()));
    assert_eq!(vm.invalidate_end(pages(30)), Err(NotInvalidating(pages(30))));
    drop(held);
    worker.create_slot(&backed(1, range(0, 0x100))).unwrap();
    let mut vcpu = vm.vcpu(VcpuId(0)).unwrap();
    let frames = Frames::new(Level::Size4K);
    assert_eq!(
        vcpu.handle_fault(&frames, fault_at(19, Access::READ)),
        Outcome::Fixed(Level::Size4K)
    );
    drop((worker, vcpu));
    vm.teardown();
}

/// A zap of no frame and an invalidation of no page concern nobody, also not who is resolving a block
/// around the place they name.
#[test]
fn what_is_empty_refuses_nobody() {
    let vm = Mmu::new(TestHost::default(), &Config::new(npt(), 1)).unwrap();
    let frames = Frames::new(Level::Size2M);
    let (mut vcpu, mut worker) = (vm.vcpu(VcpuId(0)).unwrap(), vm.worker().unwrap());
    worker.create_slot(&backed(1, range(0, 0x1000))).unwrap();
    worker.reserve(16).unwrap();
    vcpu.load_root().unwrap();
    drop(vcpu.before_enter(Processor(0)).unwrap());
    let nothing = [pages(0x10, 0), pages(u64::MAX, 1), pages(u64::MAX, 0)];
    let (request, found) = half(&mut vcpu, &frames, 0x20);
    worker.zap(AddressSpace::Normal, range(0x10, 0));
    for range in nothing {
        drop(worker.invalidate_range(range));
    }
    let outcome = worker.complete(support::resolve(request, found)).unwrap();
    assert_eq!(outcome, Outcome::Fixed(Level::Size2M));
    // Nor is anybody refused who comes while they last.
    let held = nothing.map(|range| worker.invalidate_range(range));
    for range in nothing {
        worker.invalidate_begin(range);
    }
    let outcome = vcpu.handle_fault(&frames, fault_at(0x220, Access::READ));
    assert_eq!(outcome, Outcome::Fixed(Level::Size2M));
    // A range that begins there as well is another one.
    assert_eq!(worker.invalidate_end(pages(0x10, 1)), Err(NotInvalidating(pages(0x10, 1))));
    for range in nothing {
        assert_eq!(worker.invalidate_end(range), Ok(()));
    }
    drop(held);
    assert_eq!(vm.stats().leaves, [0, 2, 0]);
    assert_eq!(vm.stats().flushes, 0);
    drop((vcpu, worker));
    finish(vm);
}

/// Also where no slot is known, which is where a watch is hit by any invalidation of pages.
#[test]
fn an_empty_invalidation_is_no_debt_and_has_no_hull() {
    let vm = Mmu::new(TestHost::default(), &Config::new(npt(), 1)).unwrap();
    let mut worker = vm.worker().unwrap();
    // More than there are places: none takes one.
    let held: Vec<_> = (0..40).map(|n| worker.invalidate_range(pages(n, 0))).collect();
    worker.create_slot(&backed(1, range(0, 0x100))).unwrap();
    let mut vcpu = vm.vcpu(VcpuId(0)).unwrap();
    let frames = Frames::new(Level::Size4K);
    let outcome = vcpu.handle_fault(&frames, fault_at(19, Access::READ));
    assert_eq!(outcome, Outcome::Fixed(Level::Size4K));
    drop(held);
    drop((worker, vcpu));
    finish(vm);
}

/// Who has a debt over nothing makes nobody flush, and who promises nothing flushes for nobody.
#[cfg(feature = "protocol")]
#[test]
fn an_empty_debt_concerns_no_promise_and_an_empty_promise_no_debt() {
    let vm =
        Mmu::new(TestHost::default(), &Config { workers: 3, ..Config::new(npt(), 1) }).unwrap();
    let (mut worker, mut debtor) = (vm.worker().unwrap(), vm.participant().unwrap());
    worker.create_slot(&backed(1, range(0, 0x1000))).unwrap();
    let debt = debtor.debt(range(0x10, 0));
    drop(worker.invalidate_range(pages(0, 0x20)));
    worker.zap(AddressSpace::Normal, range(0, 0x20));
    assert_eq!(vm.stats().flushes, 0, "for a debt over nothing");
    debt.settle();
    let debt = debtor.debt(range(0, 0x20));
    drop(worker.invalidate_range(pages(0x10, 0)));
    worker.zap(AddressSpace::Normal, range(0x10, 0));
    assert_eq!(vm.stats().flushes, 0, "for a promise of nothing");
    debt.settle();
    drop((worker, debtor));
    finish(vm);
}

/// Another thread acts while a table page is given back, once.
#[derive(Debug, Default)]
struct Beside {
    other: Mutex<Option<Puppet>>,
}

impl Hooks for Beside {
    fn released(&self) {
        if let Some(other) = self.other.lock().unwrap().take() {
            other.step(());
        }
    }
}

/// A drain owes no flush, so nobody need do one for it.
#[test]
fn an_invalidation_beside_a_drain_flushes_for_itself_only() {
    let vm = Mmu::new(Hooked::<Beside>::default(), &Config::new(npt(), 1)).unwrap();
    let frames = Frames::new(Level::Size4K);
    let mut worker = vm.worker().unwrap();
    worker.create_slot(&backed(1, range(0, 0x1000))).unwrap();
    let mut vcpu = vm.vcpu(VcpuId(0)).unwrap();
    let outcome = vcpu.handle_fault(&frames, fault_at(3, Access::READ));
    assert_eq!(outcome, Outcome::Fixed(Level::Size4K));
    let mut drain = worker.invalidate_roots();
    let (other, strings) = puppet();
    *vm.host().hooks.other.lock().unwrap() = Some(other);
    std::thread::scope(|scope| {
        let vm = &vm;
        scope.spawn(move || {
            strings.cue().unwrap();
            let mut beside = vm.worker().unwrap();
            drop(beside.invalidate_range(pages(3, 1)));
            beside.zap(AddressSpace::Normal, range(0, 0x1000));
            strings.done(());
        });
        while worker.drain(&mut drain, 1) == Progress::More {}
    });
    assert!(vm.host().hooks.other.lock().unwrap().is_none(), "somebody acted");
    let stats = vm.stats();
    assert_eq!((stats.flushes, stats.foreign_debts), (0, 0));
    drop((vcpu, worker));
    assert_eq!(vm.teardown().pages.in_use(), 0);
}

/// When vCPU 1 is kicked for the first time, another thread acts. When it is kicked again, by that
/// thread, it leaves the guest.
#[derive(Debug, Default)]
struct BesideFlush {
    other: Mutex<Option<Puppet>>,
    guest: Mutex<Option<Puppet>>,
}

impl BesideFlush {
    /// The vCPU leaves, if it has not yet.
    fn leave(&self) {
        let guest = self.guest.lock().unwrap().take();
        if let Some(guest) = guest {
            guest.step(());
        }
    }
}

impl Hooks for BesideFlush {
    fn kick(&self, _: VcpuId) {
        let other = self.other.lock().unwrap().take();
        match other {
            Some(other) => {
                other.step(());
                // The flush that is under way waits for it.
                self.leave();
            }
            None => self.leave(),
        }
    }
}

/// A huge leaf is cleared for the sake of one of its pages, and whoever has cleared it has not flushed
/// yet. An invalidation of another of its pages finds nothing mapped. When it returns, no vCPU is in the
/// guest that may still have the leaf in its TLB.
#[test]
fn an_invalidation_knows_that_a_huge_leaf_was_cleared_for_another_of_its_pages() {
    type Clearing = fn(&Mmu<Hooked<BesideFlush>>, &Frames, &mut VcpuMmu<&Mmu<Hooked<BesideFlush>>>);
    let clearings: [(&str, Clearing); 3] = [
        ("an invalidation", |vm, _, _| drop(vm.invalidate_range(pages(3, 1)))),
        ("a zap", |vm, _, _| vm.worker().unwrap().zap(AddressSpace::Normal, range(3, 1))),
        ("an answer that disagrees", |_, frames, vcpu| {
            // The host stops sharing the block.
            *frames.access.lock().unwrap() = Access::all();
            let outcome = vcpu.handle_fault(frames, fault_at(3, Access::WRITE));
            assert!(matches!(outcome, Outcome::Fixed(_)), "{outcome:?}");
        }),
    ];
    for level in [Level::Size2M, Level::Size1G] {
        for (name, clear) in clearings {
            let vm = Mmu::new(Hooked::<BesideFlush>::default(), &Config::new(npt(), 2)).unwrap();
            let frames = Frames::new(level);
            *frames.access.lock().unwrap() = Access::READ;
            let mut vcpu = vm.vcpu(VcpuId(0)).unwrap();
            vm.worker().unwrap().create_slot(&backed(1, range(0, 0x8_0000))).unwrap();
            let outcome = vcpu.handle_fault(&frames, fault_at(3, Access::READ));
            assert_eq!(outcome, Outcome::Fixed(level));
            let ((other, others), (guest, guests)) = (puppet(), puppet());
            let stayed = AtomicBool::new(false);
            std::thread::scope(|scope| {
                let (vm, stayed) = (&vm, &stayed);
                scope.spawn(move || {
                    let mut vcpu = vm.vcpu(VcpuId(1)).unwrap();
                    let inside = support::enter(&mut vcpu);
                    guests.done(());
                    let _leave = guests.cue();
                    inside.after_exit();
                    guests.done(());
                });
                guest.done();
                scope.spawn(move || {
                    others.cue().unwrap();
                    drop(vm.invalidate_range(pages(level.pages() - 1, 1)));
                    let is_in_guest = vm.host().hooks.guest.lock().unwrap().is_some();
                    stayed.store(is_in_guest, Ordering::SeqCst);
                    others.done(());
                });
                let hooks = &vm.host().hooks;
                *hooks.other.lock().unwrap() = Some(other);
                *hooks.guest.lock().unwrap() = Some(guest);
                clear(vm, &frames, &mut vcpu);
                assert!(hooks.other.lock().unwrap().take().is_none(), "{name}: nobody was kicked");
                hooks.leave();
            });
            assert!(!stayed.into_inner(), "{name} of page 3, leaves of {level}");
            drop(vcpu);
            assert_eq!(vm.teardown().pages.in_use(), 0);
        }
    }
}

/// What has been visited within the budget is known to be the last: no further call is needed to find
/// that out.
#[test]
fn work_in_steps_that_ends_with_its_budget_is_done() {
    const TABLES: u64 = 10;
    let vm = Mmu::new(TestHost::default(), &Config::new(npt(), 1)).unwrap();
    let frames = Frames::new(Level::Size4K);
    let (mut vcpu, mut worker) = (vm.vcpu(VcpuId(0)).unwrap(), vm.worker().unwrap());
    let fill = |vcpu: &mut VcpuMmu<&Mmu<TestHost>>| {
        for n in 0..TABLES {
            let outcome = vcpu.handle_fault(&frames, fault_at(n * 0x200, Access::READ));
            assert_eq!(outcome, Outcome::Fixed(Level::Size4K));
        }
    };
    worker.create_slot(&backed(1, range(0, TABLES * 0x200))).unwrap();
    for (budget, progress) in [(TABLES, Progress::Done), (TABLES - 1, Progress::More)] {
        fill(&mut vcpu);
        let mut zap = worker.begin_zap(AddressSpace::Normal, range(0, TABLES * 0x200));
        assert_eq!(worker.zap_some(&mut zap, budget), progress, "a zap, {budget} tables");
        while worker.zap_some(&mut zap, 1) == Progress::More {}
    }
    for (budget, progress) in [(TABLES, Progress::Done), (TABLES - 1, Progress::More)] {
        fill(&mut vcpu);
        let mut deletion = worker.begin_delete(SlotId(1)).unwrap();
        let deleted = worker.delete_some(&mut deletion, budget);
        assert_eq!(deleted, progress, "a deletion, {budget} tables");
        worker.create_slot(&backed(1, range(0, TABLES * 0x200))).unwrap();
    }
    drop((vcpu, worker));
    finish(vm);
}
