//! Faults whose page is taken back while its frame is being found.

use vmmu::addr::Level;
use vmmu::entry::Access;
use vmmu::host::{Backing, Resolution, VcpuId};
use vmmu::internals::Defect;
use vmmu::slot::AddressSpace;
use vmmu::{Config, HostRange, Mmu, Processor as Number};
use vmmu::{FaultStep, Outcome};

use crate::catch::{Verdict, catches, ensure};
use crate::support::{Frames, TestHost, backed, fault_at, npt, range};

const TAKEN: HostRange = HostRange { backing: 7, first: 3, pages: 1 };

/// A frame is found; its page is taken back, moved, and the invalidation ends; then the frame is
/// to be mapped.
fn a_frame_from_before_an_invalidation_is_refused() -> Verdict {
    let vm = Mmu::new(TestHost::default(), &Config::new(npt(), 1)).unwrap();
    let frames = Frames::new(Level::Size4K);
    let (mut worker, mut vcpu) = (vm.worker().unwrap(), vm.vcpu(VcpuId(0)).unwrap());
    worker.create_slot(&backed(1, range(0, 0x400))).unwrap();
    vcpu.reserve(8).unwrap();
    vcpu.load_root().unwrap();
    drop(vcpu.before_enter(Number(0)).unwrap());
    let FaultStep::Resolve(request) = vcpu.begin_fault(fault_at(3, Access::READ)) else {
        return Err("no request".to_owned());
    };
    let Resolution::Frame(found) = frames.find(&request.query()) else {
        return Err("no frame".to_owned());
    };
    drop(vm.invalidate_range(TAKEN));
    let outcome = vcpu.complete(request.resolve(found)).unwrap();
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
    let (mut worker, mut vcpu) = (vm.worker().unwrap(), vm.vcpu(VcpuId(0)).unwrap());
    let block = Level::Size1G.pages();
    worker.create_slot(&backed(1, range(0, 4 * block))).unwrap();
    vcpu.reserve(8).unwrap();
    vcpu.load_root().unwrap();
    drop(vcpu.before_enter(Number(0)).unwrap());
    for gfn in [0, block + 3, 2 * block, 3 * block - 1] {
        let FaultStep::Resolve(request) = vcpu.begin_fault(fault_at(gfn, Access::READ)) else {
            return Err("no request".to_owned());
        };
        let Resolution::Frame(found) = frames.find(&request.query()) else {
            return Err("no frame".to_owned());
        };
        worker.zap(AddressSpace::Normal, range(0, 3 * block));
        let outcome = vcpu.complete(request.resolve(found)).unwrap();
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
    let (mut worker, mut vcpu) = (vm.worker().unwrap(), vm.vcpu(VcpuId(0)).unwrap());
    worker.create_slot(&backed(1, range(0, 0x400))).unwrap();
    vcpu.reserve(8).unwrap();
    vcpu.load_root().unwrap();
    drop(vcpu.before_enter(Number(0)).unwrap());
    let taken = vm.invalidate_range(TAKEN);
    let FaultStep::Resolve(request) = vcpu.begin_fault(fault_at(3, Access::READ)) else {
        return Ok(());
    };
    let Resolution::Frame(found) = frames.find(&request.query()) else {
        return Err("no frame".to_owned());
    };
    frames.move_page(3, 0x90_0000);
    drop(taken);
    let outcome = vcpu.complete(request.resolve(found)).unwrap();
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
    let (mut worker, mut vcpu) = (vm.worker().unwrap(), vm.vcpu(VcpuId(0)).unwrap());
    worker.create_slot(&backed(1, range(0, 0x400))).unwrap();
    vcpu.reserve(8).unwrap();
    vcpu.load_root().unwrap();
    drop(vcpu.before_enter(Number(0)).unwrap());
    let taken = vm.invalidate_range(TAKEN);
    let FaultStep::Resolve(request) = vcpu.begin_fault(fault_at(4, Access::READ)) else {
        return Err("a page beside the range is refused".to_owned());
    };
    let Resolution::Frame(found) = frames.find(&request.query()) else {
        return Err("no frame".to_owned());
    };
    frames.move_page(3, 0x90_0000);
    drop(taken);
    let outcome = vcpu.complete(request.resolve(found)).unwrap();
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
