//! Faults whose page is taken back while its frame is being found.

use std::cell::RefCell;
use std::sync::atomic::Ordering;

use vmmu::addr::Level;
use vmmu::entry::Access;
use vmmu::host::{Backing, FrameQuery, Resolution, VcpuId};
use vmmu::internals::Defect;
use vmmu::slot::AddressSpace;
use vmmu::{Config, HostRange, Mmu, Worker};
use vmmu::{FaultStep, Outcome};

use crate::catch::{Verdict, catches, ensure};
use crate::support::{Frames, TestHost, backed, fault_at, half_of, npt, range, ready, resolve};

const TAKEN: HostRange = HostRange { backing: 7, first: 3, pages: 1 };

/// A frame is found; its page is taken back, moved, and the invalidation ends; then the frame is
/// to be mapped.
fn a_frame_from_before_an_invalidation_is_refused() -> Verdict {
    let vm = Mmu::new(TestHost::default(), &Config::new(npt(), 1)).unwrap();
    let frames = Frames::new(Level::Size4K);
    vm.worker().unwrap().create_slot(&backed(1, range(0, 0x400))).unwrap();
    let mut vcpu = ready(&vm, 0);
    let (request, found) = half_of(&mut vcpu, &frames, fault_at(3, Access::READ));
    drop(vm.invalidate_range(TAKEN));
    let outcome = vcpu.complete(resolve(request, found)).unwrap();
    ensure(outcome == Outcome::Retry, || format!("an old frame: {outcome:?}"))
}

/// An invalidation does not tell those who are finding a frame.
///
/// D-w4, D-a9, D-x4.
#[test]
fn hits_no_watch() {
    catches(Defect::HitsNoWatch, a_frame_from_before_an_invalidation_is_refused);
}

/// A frame is found in one block; a zap that begins in another block reaches to it.
fn a_zap_refuses_requests_wherever_it_reaches() -> Verdict {
    let vm = Mmu::new(TestHost::default(), &Config::new(npt(), 1)).unwrap();
    let frames = Frames::new(Level::Size4K);
    let mut worker = vm.worker().unwrap();
    let block = Level::Size1G.pages();
    worker.create_slot(&backed(1, range(0, 4 * block))).unwrap();
    let mut vcpu = ready(&vm, 0);
    for gfn in [0, block + 3, 2 * block, 3 * block - 1] {
        let (request, found) = half_of(&mut vcpu, &frames, fault_at(gfn, Access::READ));
        worker.zap(AddressSpace::Normal, range(0, 3 * block));
        let outcome = vcpu.complete(resolve(request, found)).unwrap();
        ensure(outcome == Outcome::Retry, || {
            format!("what was found for {gfn:#x} before a zap is mapped after it: {outcome:?}")
        })?;
    }
    Ok(())
}

/// A zap does not tell those who are finding a frame in another block than its first.
///
/// F-c.
#[test]
fn hits_around_first_frame() {
    catches(Defect::HitsAroundFirstFrame, a_zap_refuses_requests_wherever_it_reaches);
}

/// A fault begins while its page is under invalidation, and ends after it.
fn a_page_under_invalidation_is_not_resolved() -> Verdict {
    let vm = Mmu::new(TestHost::default(), &Config::new(npt(), 1)).unwrap();
    let frames = Frames::new(Level::Size4K);
    vm.worker().unwrap().create_slot(&backed(1, range(0, 0x400))).unwrap();
    let mut vcpu = ready(&vm, 0);
    let taken = vm.invalidate_range(TAKEN);
    let FaultStep::Resolve(request) = vcpu.begin_fault(fault_at(3, Access::READ)) else {
        return Ok(());
    };
    let Resolution::Frame(found) = frames.find(&request.query()) else {
        return Err("no frame".to_owned());
    };
    frames.move_page(3, 0x90_0000);
    drop(taken);
    let outcome = vcpu.complete(resolve(request, found)).unwrap();
    ensure(outcome == Outcome::Retry, || format!("a frame found under invalidation: {outcome:?}"))
}

/// A frame is asked for while its page is under invalidation.
///
/// D-a6, D-x3.
#[test]
fn admits_under_invalidation() {
    catches(Defect::AdmitsUnderInvalidation, a_page_under_invalidation_is_not_resolved);
}

/// A page beside the one under invalidation is found in a block, whose other page moves.
fn a_block_is_not_believed_whole() -> Verdict {
    let vm = Mmu::new(TestHost::default(), &Config::new(npt(), 1)).unwrap();
    let frames = Frames::new(Level::Size2M);
    vm.worker().unwrap().create_slot(&backed(1, range(0, 0x400))).unwrap();
    let mut vcpu = ready(&vm, 0);
    let taken = vm.invalidate_range(TAKEN);
    // A page beside the range is not refused.
    let (request, found) = half_of(&mut vcpu, &frames, fault_at(4, Access::READ));
    frames.move_page(3, 0x90_0000);
    drop(taken);
    let outcome = vcpu.complete(resolve(request, found)).unwrap();
    ensure(outcome == Outcome::Fixed(Level::Size4K), || {
        format!("a block found while a page of it was taken back: {outcome:?}")
    })
}

/// A block is mapped whole that was found while a page of it was under invalidation.
///
/// D-a10.
#[test]
fn believes_whole_block() {
    catches(Defect::BelievesWholeBlock, a_block_is_not_believed_whole);
}

/// A vCPU has as many requests out as there are watches, and faults on a page that is mapped.
fn a_fault_that_needs_no_watch_ends() -> Verdict {
    let vm = Mmu::new(TestHost::default(), &Config::new(npt(), 1)).unwrap();
    let frames = Frames::new(Level::Size4K);
    let (mut worker, mut vcpu) = (vm.worker().unwrap(), vm.vcpu(VcpuId(0)).unwrap());
    worker.create_slot(&backed(1, range(0, 0x400))).unwrap();
    let mapped = vcpu.handle_fault(&frames, fault_at(0x300, Access::READ));
    ensure(mapped == Outcome::Fixed(Level::Size4K), || format!("the first: {mapped:?}"))?;
    let mut out = Vec::new();
    while let FaultStep::Resolve(request) = vcpu.begin_fault(fault_at(3, Access::READ)) {
        out.push(request);
    }
    let outcome = vcpu.handle_fault(&frames, fault_at(0x300, Access::READ));
    ensure(outcome == Outcome::Spurious, || format!("a page that is mapped: {outcome:?}"))
}

/// A fault looks for a watch before it looks what is mapped.
///
/// M1.
#[test]
fn watches_before_looking() {
    catches(Defect::WatchesBeforeLooking, a_fault_that_needs_no_watch_ends);
}

/// Takes a page back that is 512 MiB away, whenever a frame is looked for; the hundredth time it has
/// none.
struct Restless<'vm>(Frames, RefCell<Worker<&'vm Mmu<TestHost>>>);

// SAFETY: no guest runs; the frames are numbers.
unsafe impl Backing for Restless<'_> {
    fn find(&self, query: &FrameQuery) -> Resolution {
        if self.0.asked.load(Ordering::SeqCst) > 100 {
            return Resolution::Hole;
        }
        let other = HostRange { backing: 7, first: query.page ^ 0x2_0000, pages: 1 };
        drop(self.1.borrow_mut().invalidate_range(other));
        self.0.find(query)
    }
}

/// A fault, while another page of what could be its leaf is taken back whenever it looks for a frame.
fn a_fault_ends_beside_invalidations_of_another_page() -> Verdict {
    let vm = Mmu::new(TestHost::default(), &Config::new(npt(), 1)).unwrap();
    let (mut worker, mut vcpu) = (vm.worker().unwrap(), vm.vcpu(VcpuId(0)).unwrap());
    worker.create_slot(&backed(1, range(0, 0x4_0000))).unwrap();
    let restless = Restless(Frames::new(Level::Size1G), RefCell::new(worker));
    let outcome = vcpu.handle_fault(&restless, fault_at(5, Access::READ));
    ensure(outcome == Outcome::Fixed(Level::Size4K), || format!("after 100 tries: {outcome:?}"))
}

/// A request watches more than its page, try after try.
///
/// M2.
#[test]
fn watch_stays_wide() {
    catches(Defect::WatchStaysWide, a_fault_ends_beside_invalidations_of_another_page);
}

/// Two requests are out, and the answer to one is handed to the other.
fn an_answer_to_another_request_is_given_back() -> Verdict {
    let vm = Mmu::new(TestHost::default(), &Config::new(npt(), 1)).unwrap();
    let frames = Frames::new(Level::Size4K);
    vm.worker().unwrap().create_slot(&backed(1, range(0, 0x400))).unwrap();
    let mut vcpu = ready(&vm, 0);
    let mut begin = |gfn| match vcpu.begin_fault(fault_at(gfn, Access::READ)) {
        FaultStep::Resolve(request) => Ok(request),
        other => Err(format!("no request: {other:?}")),
    };
    let (first, second) = (begin(3)?, begin(4)?);
    let query = first.query();
    let Resolution::Frame(found) = frames.find(&query) else {
        return Err("no frame".to_owned());
    };
    match second.resolve(query.answer(found)) {
        Err(back) => ensure(back.answer.frame == found, || "another answer".to_owned()),
        Ok(frame) => {
            let outcome = vcpu.complete(frame).unwrap();
            Err(format!("page 4 has the frame of page 3: {outcome:?}"))
        }
    }
}

/// An answer goes to whoever is asked to take it.
///
/// M9.
#[test]
fn takes_any_answer() {
    catches(Defect::TakesAnyAnswer, an_answer_to_another_request_is_given_back);
}

/// A vCPU parks more requests than there are watches, and loses their names.
fn lost_names_cost_no_watch() -> Verdict {
    let vm = Mmu::new(TestHost::default(), &Config::new(npt(), 1)).unwrap();
    let frames = Frames::new(Level::Size4K);
    let (mut worker, mut vcpu) = (vm.worker().unwrap(), vm.vcpu(VcpuId(0)).unwrap());
    worker.create_slot(&backed(1, range(0, 0x400))).unwrap();
    vcpu.load_root().unwrap();
    for gfn in 0..100 {
        match vcpu.begin_fault(fault_at(gfn, Access::READ)) {
            FaultStep::Resolve(request) => drop(request.park()),
            other => return Err(format!("request {gfn}: {other:?}")),
        }
    }
    let outcome = vcpu.handle_fault(&frames, fault_at(0x100, Access::READ));
    ensure(outcome == Outcome::Fixed(Level::Size4K), || format!("a fault after them: {outcome:?}"))
}

/// What is parked and lost is never given up.
///
/// M5.
#[test]
fn revokes_no_parked() {
    catches(Defect::RevokesNoParked, lost_names_cost_no_watch);
}
