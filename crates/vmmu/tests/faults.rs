//! Faults: sizes, edges, permissions, emulation, failing hosts.

mod support;

use support::{Frames, TestHost, backed, ept, fault_at, linear, npt, range};
use vmmu::addr::{Gpa, Level, Pfn};
use vmmu::check::Witness;
use vmmu::entry::{Access, MemoryType};
use vmmu::host::{HostFrame, Resolution, VcpuId};
use vmmu::slot::{AddressSpace, Mutability, SlotSpec};
use vmmu::{Busy, Cause, FaultStep, MemoryFault, NeedsPages, Outcome};
use vmmu::{Config, Mmu};

fn witness(backing: u64, page: u64) -> Witness {
    assert_eq!(backing, 7);
    Witness::Frame(Pfn(page + Frames::OFFSET), Access::all())
}

fn finish(mut vm: Mmu<TestHost>) {
    let checked = vm.check(witness).unwrap();
    assert!(checked.is_clean(), "{:#?}", checked.violations);
    assert_eq!(vm.teardown().in_use(), 0, "every table page goes back");
}

#[test]
fn a_leaf_is_as_large_as_slot_edges_alignment_and_host_allow() {
    for format in [ept(), npt()] {
        let vm = Mmu::new(TestHost::default(), &Config::new(format, 1)).unwrap();
        let frames = Frames::new(Level::Size1G);
        let mut vcpu = vm.vcpu(VcpuId(0)).unwrap();
        // From the middle of a 2 MiB block to beyond a 1 GiB block.
        vm.worker().unwrap().create_slot(&backed(1, range(0x3_fd00, 0x8_0400))).unwrap();
        let mut fault = |gfn| vcpu.handle_fault(&frames, fault_at(gfn, Access::WRITE));
        assert_eq!(fault(0x3_fd00), Outcome::Fixed(Level::Size4K));
        assert_eq!(fault(0x3_ff00), Outcome::Fixed(Level::Size2M));
        assert_eq!(fault(0x4_0000), Outcome::Fixed(Level::Size1G));
        assert_eq!(fault(0x7_ffff), Outcome::Spurious);
        assert_eq!(fault(0xc_0000), Outcome::Fixed(Level::Size4K));
        assert_eq!(fault(0xc_00ff), Outcome::Fixed(Level::Size4K), "the last frame of the slot");
        assert_eq!(fault(0xc_0100), Outcome::Emulate, "the frame after it");
        // A slot whose frames lie askew of the guest's never gets a large leaf.
        vm.worker().unwrap().create_slot(&linear(2, range(0x10_0000, 0x1000), 0x20_0001)).unwrap();
        let outcome = vcpu.handle_fault(&frames, fault_at(0x10_0200, Access::READ));
        assert_eq!(outcome, Outcome::Fixed(Level::Size4K));
        drop(vcpu);
        finish(vm);
    }
}

#[test]
fn a_huge_leaf_over_a_table_that_is_there_becomes_small_ones() {
    let vm = Mmu::new(TestHost::default(), &Config::new(npt(), 1)).unwrap();
    let frames = Frames::new(Level::Size4K);
    let mut vcpu = vm.vcpu(VcpuId(0)).unwrap();
    vm.worker().unwrap().create_slot(&backed(1, range(0, 0x8_0000))).unwrap();
    assert_eq!(
        vcpu.handle_fault(&frames, fault_at(3, Access::READ)),
        Outcome::Fixed(Level::Size4K)
    );
    *frames.level.lock().unwrap() = Level::Size1G;
    // In the block of the table: one page beside it; elsewhere: as large as the host has it.
    assert_eq!(
        vcpu.handle_fault(&frames, fault_at(5, Access::READ)),
        Outcome::Fixed(Level::Size4K)
    );
    assert_eq!(
        vcpu.handle_fault(&frames, fault_at(0x201, Access::READ)),
        Outcome::Fixed(Level::Size2M)
    );
    assert_eq!(
        vcpu.handle_fault(&frames, fault_at(0x4_0001, Access::READ)),
        Outcome::Fixed(Level::Size1G)
    );
    let mut at = |gpa: u64| vcpu.translate(Gpa(gpa)).unwrap().hpa.0;
    assert_eq!(at(0x5123), (5 + Frames::OFFSET) << 12 | 0x123);
    assert_eq!(at(0x20_1123), (0x201 + Frames::OFFSET) << 12 | 0x123);
    drop(vcpu);
    finish(vm);
}

#[test]
fn a_leaf_that_allows_the_access_is_spurious_and_stays_as_it_is() {
    let vm = Mmu::new(TestHost::default(), &Config::new(ept(), 2)).unwrap();
    let frames = Frames::new(Level::Size4K);
    let mut a = vm.vcpu(VcpuId(0)).unwrap();
    let mut b = vm.vcpu(VcpuId(1)).unwrap();
    vm.worker().unwrap().create_slot(&backed(1, range(0, 0x1000))).unwrap();
    assert_eq!(a.handle_fault(&frames, fault_at(9, Access::WRITE)), Outcome::Fixed(Level::Size4K));
    let mut before = String::new();
    vm.worker().unwrap().dump(&mut before).unwrap();
    assert!(before.contains("rwx AD"), "{before}");
    for access in [Access::READ, Access::WRITE, Access::EXEC] {
        let mut again = fault_at(9, access);
        again.cause = Cause::Prefault;
        assert_eq!(b.handle_fault(&frames, again), Outcome::Spurious);
    }
    let mut after = String::new();
    vm.worker().unwrap().dump(&mut after).unwrap();
    assert_eq!(before, after);
    assert_eq!(frames.asked.load(std::sync::atomic::Ordering::SeqCst), 1);
    drop((a, b));
    finish(vm);
}

#[test]
fn a_prefault_does_not_age_or_dirty() {
    let vm = Mmu::new(TestHost::default(), &Config::new(npt(), 1)).unwrap();
    let frames = Frames::new(Level::Size4K);
    let mut vcpu = vm.vcpu(VcpuId(0)).unwrap();
    vm.worker().unwrap().create_slot(&backed(1, range(0, 0x1000))).unwrap();
    let prefault = vmmu::PageFault { cause: Cause::Prefault, ..fault_at(1, Access::READ) };
    assert_eq!(vcpu.handle_fault(&frames, prefault), Outcome::Fixed(Level::Size4K));
    let mut text = String::new();
    vm.worker().unwrap().dump(&mut text).unwrap();
    assert!(text.contains("rwx --"), "{text}");
    drop(vcpu);
    finish(vm);
}

#[test]
fn a_permission_the_host_adds_grows_in_place_and_splits_what_is_larger() {
    let vm = Mmu::new(TestHost::default(), &Config::new(ept(), 1)).unwrap();
    let frames = Frames::new(Level::Size2M);
    *frames.access.lock().unwrap() = Access::READ | Access::WRITE;
    let mut vcpu = vm.vcpu(VcpuId(0)).unwrap();
    vm.worker().unwrap().create_slot(&backed(1, range(0, 0x1000))).unwrap();
    assert_eq!(
        vcpu.handle_fault(&frames, fault_at(0x207, Access::WRITE)),
        Outcome::Fixed(Level::Size2M)
    );
    let denied = vcpu.handle_fault(&frames, fault_at(0x207, Access::EXEC));
    assert_eq!(denied, Outcome::Fault(MemoryFault::Denied));
    // The host now lets one page be executed, but no longer as part of a block.
    let frame = HostFrame {
        pfn: Pfn(0x207 + Frames::OFFSET),
        level: Level::Size4K,
        access: Access::all(),
        memory: MemoryType::WriteBack,
    };
    frames.answer(0x207, Resolution::Frame(frame));
    assert_eq!(
        vcpu.handle_fault(&frames, fault_at(0x207, Access::EXEC)),
        Outcome::Fixed(Level::Size4K)
    );
    let stats = vm.stats();
    assert_eq!((stats.splits, stats.leaves), (1, [512, 0, 0]));
    assert_eq!(stats.flushes, 0, "neither a split nor a permission gained owes a flush");
    let mut text = String::new();
    vm.worker().unwrap().dump(&mut text).unwrap();
    assert!(text.contains("gfn 0x207..0x208 -> pfn 0x400207..0x400208 4K rwx AD"), "{text}");
    assert!(text.contains("gfn 0x208..0x400 -> pfn 0x400208..0x400400 4K rw- AD"), "{text}");
    drop(vcpu);
    finish(vm);
}

#[test]
fn an_answer_that_disagrees_with_what_is_mapped_takes_the_old_leaf_away_first() {
    let vm = Mmu::new(TestHost::default(), &Config::new(npt(), 1)).unwrap();
    let frames = Frames::new(Level::Size4K);
    *frames.access.lock().unwrap() = Access::READ;
    let mut vcpu = vm.vcpu(VcpuId(0)).unwrap();
    vm.worker().unwrap().create_slot(&backed(1, range(0, 0x1000))).unwrap();
    assert_eq!(
        vcpu.handle_fault(&frames, fault_at(3, Access::READ)),
        Outcome::Fixed(Level::Size4K)
    );
    // The host stops sharing the page: writing is allowed now, in another frame.
    *frames.access.lock().unwrap() = Access::all();
    frames.move_page(3, 0x99_9999);
    assert_eq!(
        vcpu.handle_fault(&frames, fault_at(3, Access::WRITE)),
        Outcome::Fixed(Level::Size4K)
    );
    let stats = vm.stats();
    assert_eq!((stats.flushes, stats.retries), (1, 0));
    let there = vcpu.translate(Gpa(0x3000)).unwrap();
    assert_eq!((there.hpa.0, there.access), (0x99_9999 << 12, Access::all()));
    drop(vcpu);
    assert_eq!(vm.teardown().in_use(), 0);
}

#[test]
fn a_read_only_slot_reports_writes_and_maps_reads_without_w() {
    let vm = Mmu::new(TestHost::default(), &Config::new(npt(), 1)).unwrap();
    let frames = Frames::new(Level::Size2M);
    let mut vcpu = vm.vcpu(VcpuId(0)).unwrap();
    let rom = SlotSpec { mutability: Mutability::ReadOnly, ..backed(1, range(0, 0x1000)) };
    vm.worker().unwrap().create_slot(&rom).unwrap();
    assert_eq!(vcpu.handle_fault(&frames, fault_at(3, Access::WRITE)), Outcome::WriteProtected);
    assert_eq!(
        vcpu.handle_fault(&frames, fault_at(3, Access::READ)),
        Outcome::Fixed(Level::Size2M)
    );
    assert_eq!(vcpu.handle_fault(&frames, fault_at(3, Access::WRITE)), Outcome::WriteProtected);
    let there = vcpu.translate(Gpa(0x3000)).unwrap();
    assert_eq!(there.access, Access::READ | Access::EXEC);
    drop(vcpu);
    finish(vm);
}

#[test]
fn an_mmio_entry_answers_until_a_slot_comes() {
    for format in [ept(), npt()] {
        let vm = Mmu::new(TestHost::default(), &Config::new(format, 1)).unwrap();
        let frames = Frames::new(Level::Size4K);
        let mut vcpu = vm.vcpu(VcpuId(0)).unwrap();
        let write = fault_at(0x1234, Access::WRITE);
        assert_eq!(vcpu.handle_fault(&frames, write), Outcome::Emulate);
        assert_eq!(vm.stats().emulated_fast, 0);
        assert_eq!(vcpu.handle_fault(&frames, write), Outcome::Emulate);
        assert_eq!(vm.stats().emulated_fast, 1);
        // Another slot makes the entry stale; it is written anew.
        vm.worker().unwrap().create_slot(&backed(1, range(0, 0x100))).unwrap();
        assert_eq!(vcpu.handle_fault(&frames, write), Outcome::Emulate);
        assert_eq!(vm.stats().emulated_fast, 1);
        // A slot just there replaces it.
        vm.worker().unwrap().create_slot(&backed(2, range(0x1000, 0x1000))).unwrap();
        assert_eq!(vcpu.handle_fault(&frames, write), Outcome::Fixed(Level::Size4K));
        drop(vcpu);
        finish(vm);
    }
}

#[test]
fn without_a_reserved_bit_there_are_no_mmio_entries_but_emulation_works() {
    let options = vmmu::entry::npt::NptOptions { phys_bits: 52, ..Default::default() };
    let format = vmmu::entry::npt::format(options).unwrap();
    let vm = Mmu::new(TestHost::default(), &Config::new(format, 1)).unwrap();
    let frames = Frames::new(Level::Size4K);
    let mut vcpu = vm.vcpu(VcpuId(0)).unwrap();
    for _ in 0..3 {
        assert_eq!(vcpu.handle_fault(&frames, fault_at(5, Access::READ)), Outcome::Emulate);
    }
    assert_eq!(vm.stats().emulated_fast, 0);
    assert_eq!(vm.stats().tables, 0);
    drop(vcpu);
    finish(vm);
}

#[test]
fn the_top_of_the_address_space_is_a_place_like_any_other() {
    for top in [Level::L4, Level::L5] {
        let options = vmmu::entry::ept::EptOptions { top, phys_bits: 48, ..Default::default() };
        let format = vmmu::entry::ept::format(options).unwrap();
        let frames = format.frames();
        let vm = Mmu::new(TestHost::default(), &Config::new(format, 1)).unwrap();
        let mut vcpu = vm.vcpu(VcpuId(0)).unwrap();
        vm.worker().unwrap().create_slot(&linear(1, range(frames - 0x200, 0x200), 0x1000)).unwrap();
        let none = Frames::new(Level::Size4K);
        let last = fault_at(frames - 1, Access::WRITE);
        assert_eq!(vcpu.handle_fault(&none, last), Outcome::Fixed(Level::Size2M));
        let beyond = vcpu.handle_fault(&none, fault_at(frames, Access::READ));
        assert_eq!(beyond, Outcome::Emulate);
        let highest = vmmu::PageFault { gpa: Gpa(u64::MAX), ..last };
        let beyond = vcpu.handle_fault(&none, highest);
        assert_eq!(beyond, Outcome::Emulate);
        vm.worker().unwrap().zap(AddressSpace::Normal, range(frames - 1, 1));
        assert_eq!(vm.stats().leaves, [0, 0, 0]);
        drop(vcpu);
        finish(vm);
    }
}

#[test]
fn the_host_s_other_answers_come_through_and_map_nothing() {
    let vm = Mmu::new(TestHost::default(), &Config::new(npt(), 1)).unwrap();
    let frames = Frames::new(Level::Size2M);
    let mut vcpu = vm.vcpu(VcpuId(0)).unwrap();
    vm.worker().unwrap().create_slot(&backed(1, range(0, 0x1000))).unwrap();
    frames.answer(1, Resolution::Hole);
    frames.answer(2, Resolution::Poisoned);
    frames.answer(3, Resolution::Pending);
    let mut fault = |gfn| vcpu.handle_fault(&frames, fault_at(gfn, Access::READ));
    assert_eq!(fault(1), Outcome::Fault(MemoryFault::Hole));
    assert_eq!(fault(2), Outcome::Fault(MemoryFault::Poisoned));
    assert_eq!(fault(3), Outcome::Busy(Busy::Pending));
    assert_eq!(vm.stats().leaves, [0, 0, 0]);
    assert_eq!(fault(4), Outcome::Fixed(Level::Size4K), "its neighbours are no block");
    drop(vcpu);
    finish(vm);
}

#[test]
fn a_frame_that_cannot_be_mapped_kills_this_vm_only() {
    let vm = Mmu::new(TestHost::default(), &Config::new(npt(), 1)).unwrap();
    let frames = Frames::new(Level::Size4K);
    let mut vcpu = vm.vcpu(VcpuId(0)).unwrap();
    vm.worker().unwrap().create_slot(&backed(1, range(0, 0x1000))).unwrap();
    frames.move_page(1, 1 << 40);
    let why = vmmu::Broken::FrameUnusable;
    assert_eq!(vcpu.handle_fault(&frames, fault_at(1, Access::READ)), Outcome::Dead(why));
    assert_eq!(vcpu.handle_fault(&frames, fault_at(2, Access::READ)), Outcome::Dead(why));
    let refused = vm.worker().unwrap().create_slot(&backed(2, range(0x2000, 1)));
    assert_eq!(refused, Err(vmmu::slot::SlotError::Dead(why)));
    drop(vcpu);
    finish(vm);
}

#[test]
fn a_table_page_beyond_the_address_width_kills_this_vm_only() {
    let options = vmmu::entry::npt::NptOptions { phys_bits: 32, ..Default::default() };
    let format = vmmu::entry::npt::format(options).unwrap();
    let vm = Mmu::new(TestHost::default(), &Config::new(format, 1)).unwrap();
    let mut vcpu = vm.vcpu(VcpuId(0)).unwrap();
    assert_eq!(vcpu.reserve(1), Err(vmmu::NoMemory));
    assert_eq!(vm.broken(), Some(vmmu::Broken::TableUnusable));
    drop(vcpu);
    assert_eq!(vm.teardown().in_use(), 0);
}

/// In every operation, for every n: the n-th allocation fails, and nothing is lost.
#[test]
fn a_failing_allocation_changes_nothing() {
    for n in 0..8 {
        let vm = Mmu::new(TestHost::default(), &Config::new(ept(), 1)).unwrap();
        let frames = Frames::new(Level::Size2M);
        let mut vcpu = vm.vcpu(VcpuId(0)).unwrap();
        vm.worker().unwrap().create_slot(&backed(1, range(0, 0x8_0000))).unwrap();
        vm.host().budget.set(n);
        let mut failed = 0;
        for gfn in [5, 0x205, 0x4_0005] {
            match vcpu.handle_fault(&frames, fault_at(gfn, Access::WRITE)) {
                Outcome::OutOfMemory => failed += 1,
                Outcome::Fixed(_) => {}
                other => panic!("{other:?}"),
            }
        }
        assert!(failed > 0 || n > 4, "{n} pages cannot be enough");
        vm.host().budget.set(u64::MAX);
        for gfn in [5, 0x205, 0x4_0005] {
            let outcome = vcpu.handle_fault(&frames, fault_at(gfn, Access::WRITE));
            assert!(matches!(outcome, Outcome::Fixed(_) | Outcome::Spurious), "{outcome:?}");
        }
        assert_eq!(vm.stats().leaves, [0, 3, 0]);
        drop(vcpu);
        finish(vm);
    }
}

#[test]
fn a_frame_that_lacked_pages_comes_back_and_can_be_completed_by_a_worker() {
    let vm = Mmu::new(TestHost::default(), &Config::new(npt(), 1)).unwrap();
    let frames = Frames::new(Level::Size4K);
    let mut vcpu = vm.vcpu(VcpuId(0)).unwrap();
    let mut worker = vm.worker().unwrap();
    worker.create_slot(&backed(1, range(0, 0x1000))).unwrap();
    vcpu.load_root().unwrap();
    drop(vcpu.before_enter(vmmu::Processor(0)).unwrap());
    let FaultStep::Resolve(request) = vcpu.begin_fault(fault_at(4, Access::WRITE)) else {
        panic!()
    };
    let Resolution::Frame(found) = vmmu::host::Backing::find(&frames, &request.query()) else {
        panic!()
    };
    let NeedsPages { missing: need, resolved: frame } =
        worker.complete(support::resolve(request, found)).unwrap_err();
    worker.reserve(need.0).unwrap();
    assert_eq!(worker.complete(frame).unwrap(), Outcome::Fixed(Level::Size4K));
    assert_eq!(vcpu.handle_fault(&frames, fault_at(4, Access::WRITE)), Outcome::Spurious);
    drop((vcpu, worker));
    finish(vm);
}
