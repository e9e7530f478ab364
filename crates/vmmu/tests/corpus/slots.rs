//! Slots that come, go and change.

use vmmu::addr::{Level, Pfn};
use vmmu::entry::Access;
use vmmu::host::VcpuId;
use vmmu::internals::Defect;
use vmmu::slot::{AddressSpace, SlotError, SlotId, SlotSpec, Source};
use vmmu::{AccessFailure, Busy, MemoryFault, Outcome};
use vmmu::{Config, HostRange, Mmu, Progress};

use crate::catch::{Verdict, catches, ensure};
use crate::processor::{Met, Processor};
use crate::support::{
    Frames, TestHost, backed, fault_at, half_of, linear, npt, range, ready, resolve,
};

/// No linear slot has a frame that the hypervisor has reserved for itself.
fn reserved_frames_are_refused() -> Verdict {
    let reserved = [(Pfn(0x9000), Pfn(0x9800))];
    let config = Config { reserved: &reserved, ..Config::new(npt(), 1) };
    let vm = Mmu::new(TestHost::default(), &config).unwrap();
    let mut worker = vm.worker().unwrap();
    for (n, (pfn, pages)) in
        [(0x8f00, 0x101), (0x8000, 0x4000), (0x97ff, 1), (0x9000, 0x800)].into_iter().enumerate()
    {
        let spec = linear(n as u32, range(0x10_0000 * n as u64, pages), pfn);
        let made = worker.create_slot(&spec);
        ensure(matches!(made, Err(SlotError::Reserved { .. })), || {
            format!("a slot on frames {pfn:#x}..{:#x}: {made:?}", pfn + pages)
        })?;
    }
    for (n, pfn) in [(0, 0x8f00), (1, 0x9800)] {
        let made = worker.create_slot(&linear(n, range(0x10_0000 * u64::from(n), 0x100), pfn));
        ensure(made.is_ok(), || format!("frames beside the reserved ones: {made:?}"))?;
    }
    Ok(())
}

/// Guest memory is put over the hypervisor's own.
///
/// B11.
#[test]
fn maps_reserved_frames() {
    catches(Defect::MapsReservedFrames, reserved_frames_are_refused);
}

/// What a backing answers is reserved, or a frame of the block is that it answers for, however the
/// ranges are written down.
fn reserved_answers_are_refused() -> Verdict {
    const OWN: u64 = Frames::OFFSET + 0x400;
    let reserved = [
        (Pfn(OWN + 0x80), Pfn(OWN + 0x100)),
        (Pfn(0x1000), Pfn(0x1001)),
        (Pfn(OWN + 0x40), Pfn(OWN + 0x90)),
        (Pfn(u64::MAX), Pfn(0)),
    ];
    let config = Config { reserved: &reserved, ..Config::new(npt(), 1) };
    let vm = Mmu::new(TestHost::default(), &config).unwrap();
    let frames = Frames::new(Level::Size2M);
    let (mut worker, mut vcpu) = (vm.worker().unwrap(), vm.vcpu(VcpuId(0)).unwrap());
    worker.create_slot(&backed(1, range(0, 0x1000))).unwrap();
    let refused = Outcome::Fault(MemoryFault::Reserved);
    let huge = Outcome::Fixed(Level::Size2M);
    let mut fault = |gfn, expected| {
        let outcome = vcpu.handle_fault(&frames, fault_at(gfn, Access::READ));
        ensure(outcome == expected, || format!("gfn {gfn:#x}: {outcome:?}, not {expected:?}"))
    };
    // Beside the block, in it, and beside it again; a frame of it that is not reserved by itself.
    for (gfn, expected) in [(0x3ff, huge), (0x440, refused), (0x600, huge), (0x400, refused)] {
        fault(gfn, expected)?;
    }
    ensure(vm.stats().leaves == [0, 2, 0], || format!("{:?}", vm.stats().leaves))?;
    // Page by page the others are the guest's.
    *frames.level.lock().unwrap() = Level::Size4K;
    let small = Outcome::Fixed(Level::Size4K);
    let edges = [(0x43f, small), (0x440, refused), (0x4ff, refused), (0x500, small)];
    for (gfn, expected) in edges {
        fault(gfn, expected)?;
    }
    // The library's own accesses.
    let gpa = |gfn: u64| vmmu::addr::Gpa(gfn << 12);
    let space = AddressSpace::Normal;
    for gfn in [0x440, 0x480, 0x4ff] {
        let read = worker.read(&frames, space, gpa(gfn), &mut [0]).map_err(|error| error.why);
        let write = worker.write(&frames, space, gpa(gfn), &[1]).map_err(|error| error.why);
        let reserved = Err(AccessFailure::Reserved);
        ensure((read, write) == (reserved, reserved), || format!("{read:?}, {write:?}"))?;
    }
    let read = worker.read(&frames, space, gpa(0x500), &mut [0]);
    ensure(read.is_ok(), || format!("{read:?}"))
}

/// The host's books are wrong, and the guest gets what they say.
///
/// F-H1.
#[test]
fn maps_reserved_answers() {
    catches(Defect::MapsReservedAnswers, reserved_answers_are_refused);
}

/// Frames are given to blocks of several GiB that lie askew of the guest's by 2 MiB: in a slot that
/// maps them one to one, and in one whose backing answers with blocks of 1 GiB.
fn frames_askew_by_two_megabytes_make_leaves_of_that() -> Verdict {
    const GIB: u64 = 0x4_0000;
    for askew in [0x200, GIB - 0x200, GIB / 2] {
        let vm = Mmu::new(TestHost::default(), &Config::new(npt(), 1)).unwrap();
        let frames = Frames::new(Level::Size1G);
        let (mut worker, mut vcpu) = (vm.worker().unwrap(), vm.vcpu(VcpuId(0)).unwrap());
        let (first, second) = (range(GIB, 3 * GIB), range(8 * GIB, 3 * GIB));
        worker.create_slot(&linear(1, first, 16 * GIB + askew)).unwrap();
        let source = Source::Backed { backing: 7, first: 32 * GIB + askew };
        worker.create_slot(&SlotSpec { source, ..backed(2, second) }).unwrap();
        let mut cpu = Processor::new(0, vm.host());
        for (slot, pfn) in [(first, 16 * GIB), (second, 32 * GIB + Frames::OFFSET)] {
            for offset in [0x1ff, GIB - 1, GIB, 2 * GIB + 0x201, 3 * GIB - 1] {
                let gfn = slot.start().0 + offset;
                let outcome = vcpu.handle_fault(&frames, fault_at(gfn, Access::WRITE));
                ensure(outcome == Outcome::Fixed(Level::Size2M), || {
                    format!("gfn {gfn:#x}, askew by {askew:#x}: {outcome:?}")
                })?;
                let met = cpu.run(&mut vcpu, gfn, true);
                let expected = Met::Frame(pfn + askew + offset);
                ensure(met == expected, || format!("gfn {gfn:#x}: {met:x?}, not {expected:x?}"))?;
            }
        }
    }
    Ok(())
}

/// A leaf of 1 GiB maps frames that lie elsewhere in their GiB than the guest's, so that most of them
/// are not the slot's.
///
/// F-a.
#[test]
fn compares_within_two_megabytes() {
    let scenario = frames_askew_by_two_megabytes_make_leaves_of_that;
    catches(Defect::ComparesWithinTwoMegabytes, scenario);
}

/// A page of a slot that is being deleted is taken back before the deletion has come to it.
fn a_dying_slot_is_known() -> Verdict {
    let vm = Mmu::new(TestHost::default(), &Config::new(npt(), 1)).unwrap();
    let frames = Frames::new(Level::Size4K);
    let (mut worker, mut vcpu) = (vm.worker().unwrap(), vm.vcpu(VcpuId(0)).unwrap());
    worker.create_slot(&backed(1, range(0, 0x400))).unwrap();
    let mut cpu = Processor::new(0, vm.host());
    cpu.touch(&mut vcpu, &frames, 3, Access::READ)?;
    let mut deletion = worker.begin_delete(SlotId(1)).unwrap();
    let _taken = vm.invalidate_range(HostRange { backing: 7, first: 3, pages: 1 });
    let met = cpu.run(&mut vcpu, 3, false);
    while worker.delete_some(&mut deletion, 1) == Progress::More {}
    ensure(met == Met::Nothing, || format!("a page that was taken back is reached: {met:?}"))
}

/// A slot is forgotten while its leaves are mapped, so invalidations do not find them.
///
/// D-k1.
#[test]
fn slot_gone_before_leaves() {
    catches(Defect::SlotGoneBeforeLeaves, a_dying_slot_is_known);
}

/// Pages are under invalidation when a slot is made over them.
fn a_new_slot_is_under_invalidation_too() -> Verdict {
    let vm = Mmu::new(TestHost::default(), &Config::new(npt(), 1)).unwrap();
    let frames = Frames::new(Level::Size4K);
    let (mut worker, mut vcpu) = (vm.worker().unwrap(), vm.vcpu(VcpuId(0)).unwrap());
    let taken = vm.invalidate_range(HostRange { backing: 7, first: 3, pages: 1 });
    worker.create_slot(&backed(1, range(0, 0x400))).unwrap();
    let outcome = vcpu.handle_fault(&frames, fault_at(3, Access::READ));
    drop(taken);
    ensure(outcome == Outcome::Busy(Busy::Invalidation), || {
        format!("a fault on a page under invalidation ends as {outcome:?}")
    })
}

/// An invalidation is translated to guest frames when it begins, and misses a slot that is made
/// while it lasts.
///
/// D-k3.
#[test]
fn announces_in_guest_frames() {
    catches(Defect::AnnouncesInGuestFrames, a_new_slot_is_under_invalidation_too);
}

/// A slot is deleted and made again from another backing while a frame of the old one is found.
fn a_frame_of_an_earlier_slot_is_refused() -> Verdict {
    let vm = Mmu::new(TestHost::default(), &Config::new(npt(), 1)).unwrap();
    let frames = Frames::new(Level::Size4K);
    let mut worker = vm.worker().unwrap();
    worker.create_slot(&backed(1, range(0, 0x400))).unwrap();
    let mut vcpu = ready(&vm, 0);
    let (request, found) = half_of(&mut vcpu, &frames, fault_at(3, Access::READ));
    worker.delete_slot(SlotId(1)).unwrap();
    let source = Source::Backed { backing: 8, first: 0x100 };
    worker.create_slot(&SlotSpec { source, ..backed(1, range(0, 0x400)) }).unwrap();
    let outcome = vcpu.complete(resolve(request, found)).unwrap();
    ensure(outcome == Outcome::Retry, || format!("a frame of a slot that is gone: {outcome:?}"))
}

/// What the slot was when the frame was asked for is not compared with what it is now.
///
/// D-e2.
#[test]
fn ignores_revision() {
    catches(Defect::IgnoresRevision, a_frame_of_an_earlier_slot_is_refused);
}

/// A slot that has changed often is as good as a new one.
fn any_revision_can_be_faulted_on() -> Verdict {
    let vm = Mmu::new(TestHost::default(), &Config::new(npt(), 1)).unwrap();
    let frames = Frames::new(Level::Size4K);
    let (mut worker, mut vcpu) = (vm.worker().unwrap(), vm.vcpu(VcpuId(0)).unwrap());
    worker.create_slot(&backed(1, range(0, 0x400))).unwrap();
    let mut cpu = Processor::new(0, vm.host());
    // The revision stands above eight bits of state, so a width of 16, 31 or 32 bits ends within
    // these, or never.
    for n in 0..300 {
        worker.limit_slot(SlotId(1), Level::LEAVES[n % 3]).unwrap();
        if n % 37 == 0 {
            worker.zap_all();
            cpu.touch(&mut vcpu, &frames, 3, Access::READ)?;
        }
    }
    Ok(())
}

/// A sequence that is captured in too narrow a signed number never matches again, and the guest
/// faults for ever.
///
/// K11.
#[test]
fn sign_extends_revision() {
    catches(Defect::SignExtendsRevision, any_revision_can_be_faulted_on);
}
