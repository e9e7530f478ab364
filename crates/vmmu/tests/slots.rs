//! Slots: made, moved, limited, deleted, and refused.

mod support;

use support::{Frames, TestHost, backed, ept, fault_at, finish, half, linear, npt, pages, range};
use vmmu::addr::{Gfn, Gpa, Level, Pfn};
use vmmu::entry::Access;
use vmmu::host::VcpuId;
use vmmu::slot::{
    AddressSpace, LinearFrames, Mutability, SlotError, SlotId, SlotSpec, SlotState, Source,
};
use vmmu::{Busy, Outcome};
use vmmu::{Config, Mmu, Processor, Progress, Role, Worker};

#[test]
fn a_slot_is_deleted_precisely() {
    let vm = Mmu::new(TestHost::default(), &Config::new(ept(), 1)).unwrap();
    let frames = Frames::new(Level::Size2M);
    let mut vcpu = vm.vcpu(VcpuId(0)).unwrap();
    let mut worker = vm.worker().unwrap();
    worker.create_slot(&backed(1, range(0, 0x1000))).unwrap();
    worker.create_slot(&backed(2, range(0x1000, 0x1000))).unwrap();
    worker.reserve(8).unwrap();
    for gfn in [0, 0x200, 0x1000] {
        assert!(matches!(
            vcpu.handle_fault(&frames, fault_at(gfn, Access::READ)),
            Outcome::Fixed(_)
        ));
    }
    let (request, found) = half(&mut vcpu, &frames, 0x400);
    worker.delete_slot(SlotId(1)).unwrap();
    assert_eq!(vm.stats().leaves, [0, 1, 0], "the other slot keeps its leaves");
    assert_eq!(worker.complete(support::resolve(request, found)).unwrap(), Outcome::Retry);
    assert_eq!(vcpu.handle_fault(&frames, fault_at(0x400, Access::READ)), Outcome::Emulate);
    assert_eq!(worker.delete_slot(SlotId(1)), Err(SlotError::Missing(SlotId(1))));
    // The number is free again, and a request of the old slot is not one of the new.
    let (request, found) = half(&mut vcpu, &frames, 0x1200);
    worker.delete_slot(SlotId(2)).unwrap();
    worker.create_slot(&backed(2, range(0x1000, 0x1000))).unwrap();
    assert_eq!(worker.complete(support::resolve(request, found)).unwrap(), Outcome::Retry);
    drop((vcpu, worker));
    finish(vm);
}

#[test]
fn a_slot_moves_and_its_old_place_is_gone() {
    let vm = Mmu::new(TestHost::default(), &Config::new(npt(), 1)).unwrap();
    let frames = Frames::new(Level::Size4K);
    let mut vcpu = vm.vcpu(VcpuId(0)).unwrap();
    vm.worker().unwrap().create_slot(&backed(1, range(0, 0x100))).unwrap();
    vm.worker().unwrap().create_slot(&backed(2, range(0x200, 0x100))).unwrap();
    assert_eq!(
        vcpu.handle_fault(&frames, fault_at(5, Access::READ)),
        Outcome::Fixed(Level::Size4K)
    );
    // Onto itself by half is fine; onto another is refused, and nothing has changed.
    let refused = vm.worker().unwrap().move_slot(SlotId(1), Gfn(0x180)).unwrap_err();
    let both = "slot 1 at gfn 0x180..0x280 overlaps slot 2 at gfn 0x200..0x300";
    assert_eq!(refused.to_string(), both);
    assert_eq!(vcpu.handle_fault(&frames, fault_at(5, Access::READ)), Outcome::Spurious);
    vm.worker().unwrap().move_slot(SlotId(1), Gfn(0x80)).unwrap();
    assert_eq!(vcpu.handle_fault(&frames, fault_at(5, Access::READ)), Outcome::Emulate);
    assert_eq!(
        vcpu.handle_fault(&frames, fault_at(0x85, Access::READ)),
        Outcome::Fixed(Level::Size4K)
    );
    let there = vcpu.translate(Gpa(0x8_5000)).unwrap();
    assert_eq!(there.hpa.pfn(), Pfn(5 + Frames::OFFSET), "the same page of the backing");
    let info = vm.worker().unwrap().slot(SlotId(1)).unwrap();
    assert_eq!((info.state, info.spec.range), (SlotState::Live, range(0x80, 0x100)));
    drop(vcpu);
    finish(vm);
}

#[test]
fn a_limit_takes_larger_leaves_away_and_leaves_other_slots_alone() {
    let vm = Mmu::new(TestHost::default(), &Config::new(npt(), 2)).unwrap();
    let frames = Frames::new(Level::Size1G);
    let mut a = vm.vcpu(VcpuId(0)).unwrap();
    let mut b = vm.vcpu(VcpuId(1)).unwrap();
    vm.worker().unwrap().create_slot(&backed(1, range(0, 0x4_0000))).unwrap();
    vm.worker().unwrap().create_slot(&backed(2, range(0x4_0000, 0x4_0000))).unwrap();
    assert_eq!(a.handle_fault(&frames, fault_at(0, Access::READ)), Outcome::Fixed(Level::Size1G));
    b.reserve(8).unwrap();
    b.load_root().unwrap();
    drop(b.before_enter(Processor(1)).unwrap());
    let (request, found) = half(&mut b, &frames, 0x4_0000);
    vm.worker().unwrap().limit_slot(SlotId(1), Level::Size4K).unwrap();
    assert_eq!(vm.stats().leaves, [0, 0, 0]);
    let other = b.complete(support::resolve(request, found)).unwrap();
    assert_eq!(other, Outcome::Fixed(Level::Size1G), "a fault on the other slot is not refused");
    assert_eq!(a.handle_fault(&frames, fault_at(9, Access::READ)), Outcome::Fixed(Level::Size4K));
    vm.worker().unwrap().limit_slot(SlotId(1), Level::Size2M).unwrap();
    assert_eq!(
        a.handle_fault(&frames, fault_at(0x209, Access::READ)),
        Outcome::Fixed(Level::Size2M)
    );
    assert_eq!(
        vm.worker().unwrap().limit_slot(SlotId(1), Level::L4),
        Err(SlotError::Largest(Level::L4))
    );
    drop((a, b));
    finish(vm);
}

#[test]
fn slots_that_cannot_be_are_refused_with_the_reason() {
    let reserved = [(Pfn(0x9000), Pfn(0x9800))];
    let config = Config { reserved: &reserved, slots: 4, ..Config::new(npt(), 1) };
    let vm = Mmu::new(TestHost::default(), &config).unwrap();
    let mut worker = vm.worker().unwrap();
    worker.create_slot(&backed(1, range(0x100, 0x100))).unwrap();
    let mut refuse = |spec: SlotSpec, text: &str| {
        let error = worker.create_slot(&spec).unwrap_err().to_string();
        assert_eq!(error, text);
    };
    refuse(
        backed(2, range(0x1ff, 1)),
        "slot 2 at gfn 0x1ff..0x200 overlaps slot 1 at gfn 0x100..0x200",
    );
    refuse(backed(1, range(0x300, 1)), "slot 1 exists: delete or move it");
    refuse(backed(4, range(0x300, 1)), "slot 4: number too large for this VM");
    refuse(backed(2, range(0x300, 0)), "slot 2 has no page");
    refuse(
        linear(2, range(0x300, 0x800), 0x8900),
        "slot 2 on host frames 0x8900..0x9100 overlaps the host's reserved frames 0x9000..0x9800",
    );
    refuse(
        linear(2, range(0x300, 2), (1 << 36) - 1),
        "slot 2: its host frames or backing pages end beyond the width",
    );
    refuse(
        backed(2, range((1 << 36) - 1, 2)),
        "gfn 0xfffffffff..0x1000000001 ends beyond frame 0x1000000000, the last the tables reach",
    );
    let memory = vmmu::entry::MemoryType::WriteCombining;
    // SAFETY: no guest runs; the frames are numbers.
    let source = Source::Linear(unsafe { LinearFrames::new(Pfn(1), memory) });
    refuse(SlotSpec { source, ..backed(2, range(0, 1)) }, "no code for memory type WriteCombining");
    drop(worker);
    finish(vm);
}

#[test]
fn thousands_of_slots_are_found_each_and_deleted_each() {
    let config = Config { slots: 4096, ..Config::new(npt(), 1) };
    let vm = Mmu::new(TestHost::default(), &config).unwrap();
    let frames = Frames::new(Level::Size4K);
    let mut vcpu = vm.vcpu(VcpuId(0)).unwrap();
    let gfn = |n: u64| n * 3;
    // In an order that is not theirs.
    let order = |n: u64| n * 2731 % 4096;
    for n in (0..4096).map(order) {
        vm.worker().unwrap().create_slot(&backed(n as u32, range(gfn(n), 2))).unwrap();
    }
    for n in (0..4096).map(order) {
        let outcome = vcpu.handle_fault(&frames, fault_at(gfn(n) + 1, Access::READ));
        assert_eq!(outcome, Outcome::Fixed(Level::Size4K));
        assert_eq!(
            vcpu.handle_fault(&frames, fault_at(gfn(n) + 2, Access::READ)),
            Outcome::Emulate
        );
    }
    for n in (0..4096).map(order).filter(|n| n % 2 == 0) {
        vm.worker().unwrap().delete_slot(SlotId(n as u32)).unwrap();
    }
    assert_eq!(vm.stats().leaves, [2048, 0, 0]);
    for n in 0..4096 {
        let outcome = vcpu.handle_fault(&frames, fault_at(gfn(n) + 1, Access::READ));
        let expected = if n % 2 == 0 { Outcome::Emulate } else { Outcome::Spurious };
        assert_eq!(outcome, expected, "slot {n}");
    }
    drop(vcpu);
    finish(vm);
}

#[test]
fn when_the_low_bits_of_the_generation_come_round_old_mmio_entries_go() {
    let vm = Mmu::new(TestHost::default(), &Config::new(npt(), 1)).unwrap();
    let frames = Frames::new(Level::Size4K);
    let mut vcpu = vm.vcpu(VcpuId(0)).unwrap();
    // Generation 1, then an MMIO entry, then as many changes as make the bits come round.
    vm.worker().unwrap().create_slot(&backed(1, range(0x100, 1))).unwrap();
    assert_eq!(vcpu.handle_fault(&frames, fault_at(1, Access::READ)), Outcome::Emulate);
    let round = 1u64 << vmmu::entry::Format::GENERATION_BITS;
    for n in 0..round / 2 {
        if n == round / 4 {
            // Nothing that happens meanwhile keeps the entry alive.
            assert_eq!(vm.stats().roots, 1);
        }
        vm.worker().unwrap().delete_slot(SlotId(1)).unwrap();
        vm.worker().unwrap().create_slot(&backed(1, range(0x100, 1))).unwrap();
    }
    // The same low bits as when the entry was written: it must not be believed.
    let fast = vm.stats().emulated_fast;
    assert_eq!(vcpu.handle_fault(&frames, fault_at(1, Access::READ)), Outcome::Emulate);
    assert_eq!(vm.stats().emulated_fast, fast);
    drop(vcpu);
    finish(vm);
}

#[test]
fn a_slot_deleted_in_steps_is_dying_until_it_is_done() {
    let vm = Mmu::new(TestHost::default(), &Config::new(ept(), 1)).unwrap();
    let frames = Frames::new(Level::Size4K);
    let mut vcpu = vm.vcpu(VcpuId(0)).unwrap();
    let mut worker = vm.worker().unwrap();
    worker.create_slot(&backed(1, range(0, 0x1000))).unwrap();
    for n in 0..3 {
        let outcome = vcpu.handle_fault(&frames, fault_at(n * 0x200, Access::READ));
        assert_eq!(outcome, Outcome::Fixed(Level::Size4K));
    }
    let mut deletion = worker.begin_delete(SlotId(1)).unwrap();
    assert_eq!(worker.delete_some(&mut deletion, 1), Progress::More);
    assert_eq!(vm.stats().leaves, [2, 0, 0]);
    // Neither memory nor MMIO; what is mapped still, is.
    assert_eq!(
        vcpu.handle_fault(&frames, fault_at(0, Access::READ)),
        Outcome::Busy(Busy::SlotDying)
    );
    assert_eq!(vcpu.handle_fault(&frames, fault_at(0x400, Access::READ)), Outcome::Spurious);
    // The host's invalidations still find its leaves.
    drop(vm.invalidate_range(pages(0x200, 1)));
    assert_eq!(vm.stats().leaves, [1, 0, 0]);
    assert_eq!(worker.slot(SlotId(1)).map(|_| ()), Err(SlotError::Missing(SlotId(1))));
    while worker.delete_some(&mut deletion, 1) == Progress::More {}
    assert_eq!(vcpu.handle_fault(&frames, fault_at(0, Access::READ)), Outcome::Emulate);
    worker.create_slot(&backed(1, range(0x8000, 1))).unwrap();
    drop((vcpu, worker));
    finish(vm);
}

/// A deletion dropped half way once left its slot dying, its number and its frames taken, for ever.
#[test]
fn a_deletion_that_is_dropped_or_late_is_finished_by_who_needs_the_slots_place() {
    let needs: [fn(&mut Worker<&Mmu<TestHost>>); 4] = [
        |worker| worker.delete_slot(SlotId(1)).unwrap(),
        |worker| worker.create_slot(&backed(1, range(0x8000, 1))).unwrap(),
        |worker| worker.create_slot(&backed(3, range(0xfff, 1))).unwrap(),
        |worker| worker.move_slot(SlotId(2), Gfn(0x800)).unwrap(),
    ];
    for need in needs {
        for late in [false, true] {
            let vm = Mmu::new(TestHost::default(), &Config::new(npt(), 1)).unwrap();
            let frames = Frames::new(Level::Size4K);
            let mut vcpu = vm.vcpu(VcpuId(0)).unwrap();
            let mut worker = vm.worker().unwrap();
            worker.create_slot(&backed(1, range(0, 0x1000))).unwrap();
            worker.create_slot(&backed(2, range(0x4000, 0x800))).unwrap();
            for n in 0..3 {
                let outcome = vcpu.handle_fault(&frames, fault_at(n * 0x200, Access::READ));
                assert_eq!(outcome, Outcome::Fixed(Level::Size4K));
            }
            let mut deletion = worker.begin_delete(SlotId(1)).unwrap();
            assert_eq!(worker.delete_some(&mut deletion, 1), Progress::More);
            need(&mut worker);
            assert_eq!(vm.stats().leaves, [0; 3], "nothing of it is mapped");
            // The number may be another slot's by now, with a page mapped.
            if worker.slot(SlotId(1)).is_err() {
                worker.create_slot(&backed(1, range(0x9000, 1))).unwrap();
            }
            let at = worker.slot(SlotId(1)).unwrap().spec.range.start();
            let outcome = vcpu.handle_fault(&frames, fault_at(at.0, Access::READ));
            assert_eq!(outcome, Outcome::Fixed(Level::Size4K));
            if late {
                while worker.delete_some(&mut deletion, 1) == Progress::More {}
            }
            assert!(worker.slot(SlotId(1)).is_ok(), "the late one is about another slot");
            assert_eq!(vm.stats().leaves, [1, 0, 0]);
            drop((vcpu, worker));
            finish(vm);
        }
    }
}

/// While it lasts, nobody can say whether there will be memory or a device: so a write to a read-only
/// slot that is being deleted is not answered as one.
#[test]
fn a_fault_in_a_dying_slot_is_busy_whatever_it_wants() {
    for mutability in [Mutability::ReadWrite, Mutability::ReadOnly] {
        for spec in [backed(1, range(0, 0x100)), linear(1, range(0, 0x100), 0x1000)] {
            let vm = Mmu::new(TestHost::default(), &Config::new(npt(), 1)).unwrap();
            let frames = Frames::new(Level::Size4K);
            let (mut vcpu, mut worker) = (vm.vcpu(VcpuId(0)).unwrap(), vm.worker().unwrap());
            worker.create_slot(&SlotSpec { mutability, ..spec }).unwrap();
            let mut deletion = worker.begin_delete(SlotId(1)).unwrap();
            for access in [Access::READ, Access::WRITE, Access::EXEC] {
                let outcome = vcpu.handle_fault(&frames, fault_at(3, access));
                assert_eq!(outcome, Outcome::Busy(Busy::SlotDying), "{access:?}, {mutability:?}");
            }
            while worker.delete_some(&mut deletion, 1) == Progress::More {}
            let outcome = vcpu.handle_fault(&frames, fault_at(3, Access::WRITE));
            assert_eq!(outcome, Outcome::Emulate);
            drop((vcpu, worker));
            finish(vm);
        }
    }
}

/// In both address spaces, and nothing else goes: leaves of the size that is still allowed stay, and so
/// does what lies beside the slot.
#[test]
fn a_limit_takes_exactly_the_larger_leaves_of_its_slot_away() {
    const G: u64 = 0x4_0000;
    let spaces = [AddressSpace::Normal, AddressSpace::Smm];
    for space in spaces {
        let vm = Mmu::new(TestHost::default(), &Config::new(npt(), 1)).unwrap();
        let frames = Frames::new(Level::Size1G);
        let (mut vcpu, mut worker) = (vm.vcpu(VcpuId(0)).unwrap(), vm.worker().unwrap());
        for (id, other) in (0..).zip(spaces) {
            for half in 0..2 {
                let spec = backed(2 * id + half, range(u64::from(half) * 2 * G, 2 * G));
                worker.create_slot(&SlotSpec { space: other, ..spec }).unwrap();
            }
            vcpu.set_role(Role { space: other, flavour: 0 });
            // A leaf of 1 GiB, one of 2 MiB and one of 4 KiB in the first slot, one of 1 GiB beside it.
            for (gfn, level) in [
                (0, Level::Size1G),
                (G, Level::Size4K),
                (G + 0x200, Level::Size2M),
                (2 * G, Level::Size1G),
            ] {
                *frames.level.lock().unwrap() = level;
                let outcome = vcpu.handle_fault(&frames, fault_at(gfn, Access::READ));
                assert_eq!(outcome, Outcome::Fixed(level));
            }
        }
        assert_eq!(vm.stats().leaves, [2, 2, 4]);
        let first = SlotId(2 * space as u32);
        worker.limit_slot(first, Level::Size2M).unwrap();
        assert_eq!(vm.stats().leaves, [2, 2, 3], "{space:?}");
        assert_eq!(worker.translate(Role { space, flavour: 0 }, Gpa(0)), None);
        worker.limit_slot(first, Level::Size4K).unwrap();
        assert_eq!(vm.stats().leaves, [2, 1, 3], "{space:?}");
        let there = worker.translate(Role { space, flavour: 0 }, Gfn(G).gpa());
        assert_eq!(there.map(|there| there.level), Some(Level::Size4K), "{space:?}");
        drop((vcpu, worker));
        finish(vm);
    }
}
