//! Invalidations begun and not ended: more of them than there are places, and ends that fit none.

mod support;

use support::{Frames, TestHost, backed, fault_at, finish, npt, pages, range};
use vmmu::addr::Level;
use vmmu::entry::Access;
use vmmu::host::VcpuId;
use vmmu::{Busy, Outcome};
use vmmu::{Config, HostRange, Mmu, NotInvalidating, VcpuMmu, Worker};

/// Where invalidations that only fill the places begin: a part of the backing without a slot.
const ELSEWHERE: u64 = 1 << 30;

/// An MMU with one slot of `frames` pages, in which every place is taken.
fn with_places_taken(
    frames: u64,
    test: impl FnOnce(&mut VcpuMmu<&Mmu<TestHost>>, &mut Worker<&Mmu<TestHost>>),
) {
    let vm = Mmu::new(TestHost::default(), &Config::new(npt(), 1)).unwrap();
    let (mut vcpu, mut worker) = (vm.vcpu(VcpuId(0)).unwrap(), vm.worker().unwrap());
    worker.create_slot(&backed(1, range(0, frames))).unwrap();
    let taken: Vec<_> = (0..16).map(|n| worker.invalidate_range(pages(ELSEWHERE + n, 1))).collect();
    test(&mut vcpu, &mut worker);
    drop(taken);
    drop((vcpu, worker));
    finish(vm);
}

#[test]
fn invalidations_that_never_pause_refuse_no_page_they_do_not_touch() {
    with_places_taken(0x4_0000, |vcpu, worker| {
        let frames = Frames::new(Level::Size4K);
        // 20 more are open at any time, and the next begins before the oldest ends.
        let page = |n: u64| pages(0x40 + n % 0x80, 1);
        for n in 0..20 {
            worker.invalidate_begin(page(n));
        }
        for n in 20..1000 {
            worker.invalidate_begin(page(n));
            let outcome = vcpu.handle_fault(&frames, fault_at(n % 0x40, Access::READ));
            assert!(matches!(outcome, Outcome::Fixed(_) | Outcome::Spurious), "{n}: {outcome:?}");
            let outcome = vcpu.handle_fault(&frames, fault_at(page(n).first, Access::READ));
            assert_eq!(outcome, Outcome::Busy(Busy::Invalidation), "page {n}");
            worker.invalidate_end(page(n - 20)).unwrap();
        }
        for n in 980..1000 {
            worker.invalidate_end(page(n)).unwrap();
        }
    });
}

#[test]
fn an_end_of_what_was_never_begun_ends_nobodys() {
    with_places_taken(0x1000, |vcpu, worker| {
        let frames = Frames::new(Level::Size4K);
        worker.invalidate_begin(pages(3, 1));
        for never in [pages(4, 1), pages(3, 2), pages(2, 1), pages(0, 0x1000)] {
            assert_eq!(worker.invalidate_end(never), Err(NotInvalidating(never)));
        }
        let other = HostRange { backing: 8, ..pages(3, 1) };
        assert_eq!(worker.invalidate_end(other), Err(NotInvalidating(other)));
        let outcome = vcpu.handle_fault(&frames, fault_at(3, Access::READ));
        assert_eq!(outcome, Outcome::Busy(Busy::Invalidation), "its invalidation is not over");
        worker.invalidate_end(pages(3, 1)).unwrap();
        assert_eq!(worker.invalidate_end(pages(3, 1)), Err(NotInvalidating(pages(3, 1))));
        let outcome = vcpu.handle_fault(&frames, fault_at(3, Access::READ));
        assert_eq!(outcome, Outcome::Fixed(Level::Size4K));
    });
}

#[test]
fn exactly_one_beyond_the_places_refuses_its_page() {
    with_places_taken(0x1000, |vcpu, worker| {
        let frames = Frames::new(Level::Size4K);
        let held = worker.invalidate_range(pages(3, 1));
        let outcome = vcpu.handle_fault(&frames, fault_at(3, Access::READ));
        assert_eq!(outcome, Outcome::Busy(Busy::Invalidation));
        let unnamed = pages(3, 1);
        assert_eq!(worker.invalidate_end(unnamed), Err(NotInvalidating(unnamed)), "it is held");
        drop(held);
        let outcome = vcpu.handle_fault(&frames, fault_at(3, Access::READ));
        assert_eq!(outcome, Outcome::Fixed(Level::Size4K));
    });
}

#[test]
fn an_invalidation_of_no_page_pairs_its_end_and_refuses_nothing() {
    for places_taken in [0, 16] {
        let vm = Mmu::new(TestHost::default(), &Config::new(npt(), 1)).unwrap();
        let frames = Frames::new(Level::Size2M);
        let (mut vcpu, mut worker) = (vm.vcpu(VcpuId(0)).unwrap(), vm.worker().unwrap());
        worker.create_slot(&backed(1, range(0, 0x1000))).unwrap();
        let taken: Vec<_> =
            (0..places_taken).map(|n| worker.invalidate_range(pages(ELSEWHERE + n, 1))).collect();
        let empty = pages(5, 0);
        worker.invalidate_begin(empty);
        let held = worker.invalidate_range(empty);
        let outcome = vcpu.handle_fault(&frames, fault_at(5, Access::READ));
        assert_eq!(outcome, Outcome::Fixed(Level::Size2M));
        worker.invalidate_end(empty).unwrap();
        // Of no page there is nothing to end, however often.
        worker.invalidate_end(empty).unwrap();
        drop((held, taken));
        drop((vcpu, worker));
        finish(vm);
    }
}

/// Two backings have pages of the same numbers, and both are under invalidation. An end of one is not
/// taken for an end of the other, whether there are places or not.
#[test]
fn an_end_is_of_the_backing_that_it_names() {
    for places in [0, 2] {
        let config = Config { invalidations: places, ..Config::new(npt(), 1) };
        let vm = Mmu::new(TestHost::default(), &config).unwrap();
        let frames = Frames::new(Level::Size4K);
        let (mut vcpu, mut worker) = (vm.vcpu(VcpuId(0)).unwrap(), vm.worker().unwrap());
        worker.create_slot(&backed(1, range(0, 0x100))).unwrap();
        let (mine, other) = (pages(3, 1), HostRange { backing: 8, ..pages(3, 1) });
        vm.invalidate_begin(mine);
        assert_eq!(vm.invalidate_end(other), Err(NotInvalidating(other)), "{places} places");
        vm.invalidate_begin(other);
        assert_eq!(vm.invalidate_end(other), Ok(()));
        let outcome = vcpu.handle_fault(&frames, fault_at(3, Access::READ));
        assert_eq!(outcome, Outcome::Busy(Busy::Invalidation), "{places} places");
        assert_eq!(vm.invalidate_end(mine), Ok(()));
        let outcome = vcpu.handle_fault(&frames, fault_at(3, Access::READ));
        assert_eq!(outcome, Outcome::Fixed(Level::Size4K));
        drop((vcpu, worker));
        finish(vm);
    }
}
