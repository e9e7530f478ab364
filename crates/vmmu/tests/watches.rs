//! Watches: what they cost a fault that needs none, and how wide they are while a frame is found.

mod support;

use std::cell::{Cell, RefCell};
use std::sync::atomic::Ordering;

use support::{Frames, TestHost, backed, fault_at, finish, half, linear, npt, pages, range};
use vmmu::addr::Level;
use vmmu::entry::Access;
use vmmu::host::{Answer, Backing, FrameQuery, Resolution, VcpuId};
use vmmu::slot::SlotSpec;
use vmmu::{Busy, Config, FaultStep, Mmu, Outcome, Worker};

/// 1 GiB in pages.
const G: u64 = 0x4_0000;
/// 2 MiB in pages.
const BLOCK: u64 = 0x200;

#[test]
fn with_every_watch_out_a_fault_that_needs_none_ends() {
    let vm = Mmu::new(TestHost::default(), &Config::new(npt(), 2)).unwrap();
    let frames = Frames::new(Level::Size4K);
    let (mut vcpu, mut worker) = (vm.vcpu(VcpuId(0)).unwrap(), vm.worker().unwrap());
    worker.create_slot(&backed(1, range(0, 0x1000))).unwrap();
    worker.create_slot(&linear(2, range(0x1000, 0x1000), 0x5000)).unwrap();
    let read = |gfn| fault_at(gfn, Access::READ);
    assert_eq!(vcpu.handle_fault(&frames, read(0x30)), Outcome::Fixed(Level::Size4K));
    vcpu.load_root().unwrap();
    let mut out = Vec::new();
    while let FaultStep::Resolve(request) = vcpu.begin_fault(read(out.len() as u64)) {
        out.push(request);
    }
    assert_eq!(out.len(), 17);
    assert_eq!(vcpu.handle_fault(&frames, read(0x30)), Outcome::Spurious, "mapped");
    assert_eq!(vcpu.handle_fault(&frames, read(0x1000)), Outcome::Fixed(Level::Size2M), "linear");
    assert_eq!(vcpu.handle_fault(&frames, read(0x9000)), Outcome::Emulate, "no slot");
    assert_eq!(vcpu.handle_fault(&frames, read(0x9000)), Outcome::Emulate, "an MMIO entry");
    assert_eq!(vcpu.handle_fault(&frames, read(0x31)), Outcome::Busy(Busy::Requests), "backed");
    drop(out.pop());
    assert_eq!(vcpu.handle_fault(&frames, read(0x31)), Outcome::Fixed(Level::Size4K), "a spare");
    // The library's own reads need none for pinned memory either.
    let mut bytes = [0; 8];
    let FaultStep::Resolve(last) = vcpu.begin_fault(read(0x32)) else { panic!("one is free") };
    vcpu.read(&frames, vmmu::addr::Gpa(0x1001 << 12), &mut bytes).unwrap();
    drop((out, last));
    drop((vcpu, worker));
    finish(vm);
}

/// Takes another page back whenever it is asked.
struct Restless<'a, 'vm> {
    frames: &'a Frames,
    worker: RefCell<Worker<&'vm Mmu<TestHost>>>,
    /// How far from the page that is asked for.
    away: Cell<u64>,
}

// SAFETY: no guest runs; the frames are numbers.
unsafe impl Backing for Restless<'_, '_> {
    fn find(&self, query: &FrameQuery) -> Resolution {
        let other = query.page ^ self.away.get();
        if self.away.get() != 0 {
            drop(self.worker.borrow_mut().invalidate_range(pages(other, 1)));
        }
        self.frames.find(query)
    }
}

/// A fault ends after at most `attempts` tries, a thousand times in a row, while another page is
/// taken back whenever its frame is looked for.
fn ends_beside_invalidations_of_another_page(largest: Level, attempts: u64) {
    for away in [1, 0x1ff, 0x200, 3 * G / 4] {
        let vm = Mmu::new(TestHost::default(), &Config::new(npt(), 2)).unwrap();
        let frames = Frames::new(Level::Size1G);
        let (mut vcpu, mut other) = (vm.vcpu(VcpuId(0)).unwrap(), vm.vcpu(VcpuId(1)).unwrap());
        let mut worker = vm.worker().unwrap();
        worker.create_slot(&SlotSpec { largest, ..backed(1, range(0, 4 * G)) }).unwrap();
        let restless =
            Restless { frames: &frames, worker: RefCell::new(worker), away: Cell::new(away) };
        for round in 0..1000 {
            frames.asked.store(0, Ordering::SeqCst);
            let outcome = vcpu.handle_fault(&restless, fault_at(5, Access::READ));
            let tries = frames.asked.load(Ordering::SeqCst);
            assert!(
                matches!(outcome, Outcome::Fixed(_)) && tries <= attempts,
                "{away:#x} away, round {round}: {outcome:?} after {tries} tries"
            );
            drop(restless.worker.borrow_mut().invalidate_range(pages(5, 1)));
        }
        // Nobody is disturbed any more: leaves become as large as the slot has them, for him too.
        restless.away.set(0);
        for (vcpu, gfn) in [(&mut other, G + 5), (&mut vcpu, 2 * G + 5)] {
            let outcome = vcpu.handle_fault(&restless, fault_at(gfn, Access::READ));
            assert_eq!(outcome, Outcome::Fixed(largest));
        }
        vcpu.load_root().unwrap();
        let (request, _) = half(&mut vcpu, &frames, 5);
        assert_eq!(request.query().largest, largest, "the page that was disturbed");
        drop(request);
        drop((restless, vcpu, other));
        finish(vm);
    }
}

#[test]
fn a_fault_in_a_slot_of_small_leaves_is_disturbed_by_no_other_page() {
    ends_beside_invalidations_of_another_page(Level::Size4K, 1);
}

#[test]
fn a_fault_in_a_slot_of_huge_leaves_is_disturbed_once() {
    ends_beside_invalidations_of_another_page(Level::Size1G, 2);
    ends_beside_invalidations_of_another_page(Level::Size2M, 2);
}

#[test]
fn only_a_hit_makes_the_next_watch_narrow_and_whoever_completes() {
    let vm = Mmu::new(TestHost::default(), &Config::new(npt(), 2)).unwrap();
    let frames = Frames::new(Level::Size1G);
    let (mut vcpu, mut worker) = (vm.vcpu(VcpuId(0)).unwrap(), vm.worker().unwrap());
    worker.create_slot(&backed(1, range(0, 4 * G))).unwrap();
    worker.reserve(8).unwrap();
    vcpu.load_root().unwrap();
    // Dropped, or refused because its own page is under invalidation.
    drop(half(&mut vcpu, &frames, 5));
    let taken = worker.invalidate_range(pages(5, 1));
    let outcome = vcpu.handle_fault(&frames, fault_at(5, Access::READ));
    assert_eq!(outcome, Outcome::Busy(Busy::Invalidation));
    drop(taken);
    let (first, _) = half(&mut vcpu, &frames, 5);
    assert_eq!(first.query().largest, Level::Size1G);
    // The first is out while the vCPU faults elsewhere, and is hit. Another participant completes it.
    let (second, _) = half(&mut vcpu, &frames, G + 5);
    drop(worker.invalidate_range(pages(9, 1)));
    let found = first.query();
    let Resolution::Frame(frame) = frames.find(&found) else { panic!("no frame") };
    let outcome = worker.complete(support::resolve(first, frame)).unwrap();
    assert_eq!(outcome, Outcome::Retry);
    let (third, _) = half(&mut vcpu, &frames, 2 * G + 5);
    assert_eq!(third.query().largest, Level::Size1G);
    drop(third);
    let (again, frame) = half(&mut vcpu, &frames, 5);
    assert_eq!(again.query().largest, Level::Size4K);
    drop(worker.invalidate_range(pages(9, 1)));
    let outcome = worker.complete(support::resolve(again, frame)).unwrap();
    assert_eq!(outcome, Outcome::Fixed(Level::Size4K));
    drop(second);
    drop((vcpu, worker));
    finish(vm);
}

/// What the host finds for a query, bound to it.
fn answer_of(frames: &Frames, query: &FrameQuery) -> Answer {
    let Resolution::Frame(found) = frames.find(query) else { panic!("no frame") };
    query.answer(found)
}

#[test]
fn an_answer_fits_no_request_but_the_one_it_was_asked_for() {
    let frames = Frames::new(Level::Size4K);
    let vms = [0, 1].map(|_| Mmu::new(TestHost::default(), &Config::new(npt(), 2)).unwrap());
    let [vm, twin] = &vms;
    let (mut vcpu, mut other) = (vm.vcpu(VcpuId(0)).unwrap(), twin.vcpu(VcpuId(0)).unwrap());
    for (vm, vcpu) in [(vm, &mut vcpu), (twin, &mut other)] {
        vm.worker().unwrap().create_slot(&backed(1, range(0, 0x1000))).unwrap();
        vcpu.reserve(8).unwrap();
        vcpu.load_root().unwrap();
    }
    let (first, found) = half(&mut vcpu, &frames, 3);
    let (mut second, _) = half(&mut vcpu, &frames, 4);
    let (foreign, _) = half(&mut other, &frames, 3);
    let to_first = answer_of(&frames, &first.query());
    for wrong in [to_first, answer_of(&frames, &foreign.query())] {
        let back = second.resolve(wrong).unwrap_err();
        assert!(back.to_string().contains("guest frame 0x4"), "{back}");
        assert_eq!(back.answer, wrong);
        second = back.request;
    }
    // Nothing is lost: both are still good, in either order, and when one was parked meanwhile.
    let query = second.query();
    let frame = second.resolve(answer_of(&frames, &query)).unwrap();
    assert_eq!(vcpu.complete(frame).unwrap(), Outcome::Fixed(Level::Size4K));
    let first = vcpu.unpark(first.park()).unwrap();
    let frame = first.resolve(to_first).unwrap();
    assert_eq!(vcpu.complete(frame).unwrap(), Outcome::Fixed(Level::Size4K));
    // The next request for the same page, in the same watch, takes none of an earlier one; nor one to
    // a query that no request made.
    drop(vm.invalidate_range(pages(3, 1)));
    let (again, _) = half(&mut vcpu, &frames, 3);
    let again = again.resolve(to_first).unwrap_err().request;
    let FrameQuery { slot, backing, page, gfn, access, largest, .. } = again.query();
    let nobody = FrameQuery::of_nobody(slot, (backing, page), gfn, access, largest);
    drop(again.resolve(nobody.answer(found)).unwrap_err());
    drop((foreign, vcpu, other));
    for vm in vms {
        finish(vm);
    }
}

#[test]
fn a_vcpu_without_a_watch_takes_that_of_its_oldest_parked_request() {
    let vm = Mmu::new(TestHost::default(), &Config::new(npt(), 2)).unwrap();
    let frames = Frames::new(Level::Size4K);
    let (mut vcpu, mut second) = (vm.vcpu(VcpuId(0)).unwrap(), vm.vcpu(VcpuId(1)).unwrap());
    vm.worker().unwrap().create_slot(&backed(1, range(0, 0x4000))).unwrap();
    for vcpu in [&mut vcpu, &mut second] {
        vcpu.reserve(8).unwrap();
        vcpu.load_root().unwrap();
    }
    let parked: Vec<_> = (0..17).map(|n| half(&mut vcpu, &frames, n * BLOCK).0.park()).collect();
    // Its own is the oldest. What it is used for is not parked, and is not taken.
    let mut parked = parked.into_iter();
    let mut next = || parked.next().unwrap();
    let (own, oldest, younger) = (next(), next(), next());
    let (live, found) = half(&mut vcpu, &frames, 20 * BLOCK);
    let own = vcpu.unpark(own).unwrap_err();
    let (live_too, _) = half(&mut vcpu, &frames, 21 * BLOCK);
    let oldest = vcpu.unpark(oldest).unwrap_err();
    // Another vCPU's are not taken: not for its faults, nor for a worker's reads.
    let (theirs, _) = half(&mut second, &frames, 22 * BLOCK);
    let refused = second.begin_fault(fault_at(23 * BLOCK, Access::READ));
    assert!(matches!(refused, FaultStep::Done(Outcome::Busy(Busy::Requests))));
    drop(refused);
    // An answer to a request that was taken away goes nowhere.
    let answer = own.query().answer(found);
    let mut worker = vm.worker().unwrap();
    worker.reserve(8).unwrap();
    assert_eq!(worker.complete_parked(own, answer).unwrap(), Outcome::Retry);
    // Nor does one to a request that opened the same watch earlier, for the same page.
    drop(live_too);
    let (again, found) = half(&mut vcpu, &frames, BLOCK);
    let again = again.park();
    let oldest = vcpu.unpark(oldest).unwrap_err();
    assert_eq!(oldest.query().gfn, again.query().gfn);
    let answer = again.query().answer(found);
    assert_eq!(worker.complete_parked(again, answer).unwrap(), Outcome::Fixed(Level::Size4K));
    // The others are as good as ever; a parked one is hit.
    let younger = vcpu.unpark(younger).unwrap().park();
    drop(vm.invalidate_range(pages(2 * BLOCK, 1)));
    let younger = vcpu.unpark(younger).unwrap();
    let query = younger.query();
    let frame = younger.resolve(answer_of(&frames, &query)).unwrap();
    assert_eq!(vcpu.complete(frame).unwrap(), Outcome::Retry);
    let last = vcpu.unpark(parked.next_back().unwrap()).unwrap();
    let query = last.query();
    let frame = last.resolve(answer_of(&frames, &query)).unwrap();
    assert_eq!(vcpu.complete(frame).unwrap(), Outcome::Fixed(Level::Size4K));
    drop((live, theirs, parked, vcpu, second, worker));
    finish(vm);
}

#[test]
fn a_new_handle_takes_the_place_of_one_that_left_a_parked_request() {
    let vm =
        Mmu::new(TestHost::default(), &Config { workers: 1, ..Config::new(npt(), 1) }).unwrap();
    let frames = Frames::new(Level::Size4K);
    let mut vcpu = vm.vcpu(VcpuId(0)).unwrap();
    vm.worker().unwrap().create_slot(&backed(1, range(0, 0x1000))).unwrap();
    vcpu.load_root().unwrap();
    let parked = half(&mut vcpu, &frames, 3).0.park();
    drop(vcpu);
    let mut vcpu = vm.vcpu(VcpuId(0)).unwrap();
    let mut other = vm.worker().unwrap();
    assert!(vm.worker().is_err(), "two places");
    assert!(other.unpark(parked).is_err());
    // It has its own watch, and the spare ones.
    vcpu.load_root().unwrap();
    let out: Vec<_> = (0..17).map(|n| half(&mut vcpu, &frames, n).0).collect();
    let refused = vcpu.begin_fault(fault_at(17, Access::READ));
    assert!(matches!(refused, FaultStep::Done(Outcome::Busy(Busy::Requests))));
    drop((refused, out, other, vcpu));
    finish(vm);
}

#[test]
fn age_decides_and_what_is_a_request_again_is_not_taken() {
    let vm = Mmu::new(TestHost::default(), &Config::new(npt(), 1)).unwrap();
    let frames = Frames::new(Level::Size4K);
    let mut vcpu = vm.vcpu(VcpuId(0)).unwrap();
    vm.worker().unwrap().create_slot(&backed(1, range(0, 0x8000))).unwrap();
    vcpu.reserve(8).unwrap();
    vcpu.load_root().unwrap();
    let own = half(&mut vcpu, &frames, 0).0;
    let mut spares: Vec<_> =
        (1..17).map(|n| half(&mut vcpu, &frames, n * BLOCK).0.park()).collect();
    // The first spare watch is given back and taken once more: its request is the youngest now.
    drop(vcpu.unpark(spares.remove(0)).unwrap());
    spares.push(half(&mut vcpu, &frames, 17 * BLOCK).0.park());
    // The oldest becomes a request again.
    let live = vcpu.unpark(spares.remove(0)).unwrap();
    let mut taken = Vec::new();
    for n in 18..33 {
        taken.push(half(&mut vcpu, &frames, n * BLOCK).0);
        // Each time the oldest of those that are parked has gone, and the next is as good as ever.
        assert!(vcpu.unpark(spares.remove(0)).is_err(), "request {n}");
        if !spares.is_empty() {
            let next = vcpu.unpark(spares.remove(0)).unwrap();
            spares.insert(0, next.park());
        }
    }
    let refused = vcpu.begin_fault(fault_at(40 * BLOCK, Access::READ));
    assert!(matches!(refused, FaultStep::Done(Outcome::Busy(Busy::Requests))), "all are requests");
    drop(refused);
    let query = live.query();
    let frame = live.resolve(answer_of(&frames, &query)).unwrap();
    assert_eq!(vcpu.complete(frame).unwrap(), Outcome::Fixed(Level::Size4K));
    drop((own, taken, spares, vcpu));
    finish(vm);
}

/// A vCPU whose own watch is out with an older request faults on spare ones: what was hit there is
/// remembered like what was hit in its own.
#[test]
fn a_hit_of_a_spare_watch_makes_the_next_one_narrow_too() {
    let vm = Mmu::new(TestHost::default(), &Config::new(npt(), 2)).unwrap();
    let frames = Frames::new(Level::Size1G);
    let (mut vcpu, mut worker) = (vm.vcpu(VcpuId(0)).unwrap(), vm.worker().unwrap());
    worker.create_slot(&backed(1, range(0, 4 * G))).unwrap();
    worker.reserve(8).unwrap();
    vcpu.load_root().unwrap();
    let (own, _) = half(&mut vcpu, &frames, 3 * G);
    let (first, found) = half(&mut vcpu, &frames, 5);
    assert_eq!(first.query().largest, Level::Size1G);
    drop(worker.invalidate_range(pages(9, 1)));
    assert_eq!(worker.complete(support::resolve(first, found)).unwrap(), Outcome::Retry);
    let (again, found) = half(&mut vcpu, &frames, 5);
    assert_eq!(again.query().largest, Level::Size4K, "the watch of the page alone");
    drop(worker.invalidate_range(pages(9, 1)));
    let outcome = worker.complete(support::resolve(again, found)).unwrap();
    assert_eq!(outcome, Outcome::Fixed(Level::Size4K), "not hit again");
    drop((own, vcpu, worker));
    finish(vm);
}
