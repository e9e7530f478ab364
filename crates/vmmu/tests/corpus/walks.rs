//! Walks that leave something behind.

use vmmu::addr::Level;
use vmmu::entry::Access;
use vmmu::host::VcpuId;
use vmmu::internals::Defect;
use vmmu::slot::{AddressSpace, SlotId};
use vmmu::{Config, HostRange, Mmu, Progress, Role};

use crate::catch::{Verdict, catches, ensure};
use crate::processor::{Met, Processor};
use crate::support::{Frames, TestHost, backed, npt, range};

const SPACE: AddressSpace = AddressSpace::Normal;

/// Scenario S2: a leaf of 2 MiB, of which the host takes one page back and moves it. No page of
/// the block is reached by the old translation; what the host still has in one piece is mapped
/// smaller, and the page itself from its new frame.
fn one_page_of_a_huge_leaf_is_taken_back() -> Verdict {
    let vm = Mmu::new(TestHost::default(), &Config::new(npt(), 1)).unwrap();
    let frames = Frames::new(Level::Size2M);
    let (mut worker, mut vcpu) = (vm.worker().unwrap(), vm.vcpu(VcpuId(0)).unwrap());
    worker.create_slot(&backed(1, range(0, 0x400))).unwrap();
    let mut cpu = Processor::new(0, vm.host());
    for gfn in [0, 16, 17, 511] {
        let frame = cpu.touch(&mut vcpu, &frames, gfn, Access::WRITE)?;
        ensure(frame == gfn + Frames::OFFSET, || format!("gfn {gfn} at {frame:#x}"))?;
    }
    ensure(vm.stats().leaves == [0, 1, 0], || "not one huge leaf".to_owned())?;
    let taken = vm.invalidate_range(HostRange { backing: 7, first: 17, pages: 1 });
    for gfn in [0, 16, 17, 511] {
        let met = cpu.run(&mut vcpu, gfn, false);
        ensure(met == Met::Nothing, || format!("gfn {gfn} is still reached: {met:?}"))?;
    }
    frames.move_page(17, 0x90_0000);
    drop(taken);
    for (gfn, expected) in [(16, 16 + Frames::OFFSET), (17, 0x90_0000), (18, 18 + Frames::OFFSET)] {
        let frame = cpu.touch(&mut vcpu, &frames, gfn, Access::WRITE)?;
        ensure(frame == expected, || format!("gfn {gfn} at {frame:#x}, not {expected:#x}"))?;
        let found = worker.translate(Role::PLAIN, vmmu::addr::Gfn(gfn).gpa());
        let level = found.map(|found| found.level);
        ensure(level == Some(Level::Size4K), || format!("gfn {gfn} in a leaf of {level:?}"))?;
    }
    Ok(())
}

/// A range walk passes over a huge leaf that overlaps its range by one page.
///
/// B7, S2.
#[test]
fn leaves_overlapping_huge_leaf() {
    catches(Defect::LeavesOverlappingHugeLeaf, one_page_of_a_huge_leaf_is_taken_back);
}

/// A zap, a deletion and a drain, each in steps of one table, take everything.
fn steps_leave_nothing() -> Verdict {
    let vm = Mmu::new(TestHost::default(), &Config::new(npt(), 1)).unwrap();
    let frames = Frames::new(Level::Size4K);
    let (mut worker, mut vcpu) = (vm.worker().unwrap(), vm.vcpu(VcpuId(0)).unwrap());
    worker.create_slot(&backed(1, range(0, 0x1000))).unwrap();
    let mut cpu = Processor::new(0, vm.host());
    let mut fill = |vcpu: &mut _| -> Verdict {
        for table in 0..8 {
            for gfn in [table * 0x200, table * 0x200 + 0x1ff] {
                cpu.touch(vcpu, &frames, gfn, Access::READ)?;
            }
        }
        Ok(())
    };
    fill(&mut vcpu)?;
    let mut zap = worker.begin_zap(SPACE, range(0, 0x1000));
    while worker.zap_some(&mut zap, 1) == Progress::More {}
    let left = vm.stats().leaves;
    ensure(left == [0; 3], || format!("a zap in steps leaves {left:?}"))?;
    fill(&mut vcpu)?;
    let mut deletion = worker.begin_delete(SlotId(1)).unwrap();
    while worker.delete_some(&mut deletion, 1) == Progress::More {}
    let left = vm.stats().leaves;
    ensure(left == [0; 3], || format!("a deletion in steps leaves {left:?}"))
}

/// A walk that yields goes on behind the place where it stopped.
///
/// K16.
#[test]
fn skips_after_restart() {
    catches(Defect::SkipsAfterRestart, steps_leave_nothing);
}

/// A deletion in steps beside somebody who makes and deletes another slot between any two of them.
fn a_deletion_ends_beside_changes() -> Verdict {
    let vm = Mmu::new(TestHost::default(), &Config::new(npt(), 1)).unwrap();
    let frames = Frames::new(Level::Size4K);
    let (mut worker, mut changer) = (vm.worker().unwrap(), vm.worker().unwrap());
    let mut vcpu = vm.vcpu(VcpuId(0)).unwrap();
    worker.create_slot(&backed(1, range(0, 0x1000))).unwrap();
    let mut cpu = Processor::new(0, vm.host());
    for table in 0..8 {
        cpu.touch(&mut vcpu, &frames, table * 0x200, Access::READ)?;
    }
    let mut deletion = worker.begin_delete(SlotId(1)).unwrap();
    let mut steps = 0;
    while worker.delete_some(&mut deletion, 1) == Progress::More {
        steps += 1;
        ensure(steps < 16, || format!("a deletion is not done after {steps} steps"))?;
        changer.create_slot(&backed(2, range(0x2000, 1))).unwrap();
        changer.delete_slot(SlotId(2)).unwrap();
    }
    let left = vm.stats().leaves;
    ensure(left == [0; 3], || format!("a deletion beside changes leaves {left:?}"))
}

/// A walk that is resumed begins anew because the slots have changed.
///
/// F-H2.
#[test]
fn restarts_at_slot_change() {
    catches(Defect::RestartsAtSlotChange, a_deletion_ends_beside_changes);
}

/// The host takes everything back from some page on.
fn a_range_may_end_at_the_end_of_all_numbers() -> Verdict {
    let vm = Mmu::new(TestHost::default(), &Config::new(npt(), 1)).unwrap();
    let frames = Frames::new(Level::Size4K);
    let (mut worker, mut vcpu) = (vm.worker().unwrap(), vm.vcpu(VcpuId(0)).unwrap());
    worker.create_slot(&backed(1, range(0, 0x400))).unwrap();
    let mut cpu = Processor::new(0, vm.host());
    for gfn in [4, 5, 0x3ff] {
        cpu.touch(&mut vcpu, &frames, gfn, Access::READ)?;
    }
    for (first, pages) in [(0x3ff, u64::MAX), (5, u64::MAX - 4), (5, u64::MAX - 5)] {
        let _taken = vm.invalidate_range(HostRange { backing: 7, first, pages });
        for gfn in [5, 0x3ff].into_iter().filter(|gfn| *gfn >= first) {
            let met = cpu.run(&mut vcpu, gfn, false);
            ensure(met == Met::Nothing, || format!("gfn {gfn:#x} is still reached: {met:?}"))?;
        }
    }
    let met = cpu.run(&mut vcpu, 4, false);
    ensure(met != Met::Nothing, || "a page before the range went too".to_owned())
}

/// The sum of a range's first page and its length overflows, and the range becomes empty.
///
/// B10.
#[test]
fn end_wraps_around() {
    catches(Defect::EndWrapsAround, a_range_may_end_at_the_end_of_all_numbers);
}
