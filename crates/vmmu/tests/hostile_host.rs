//! A host that answers nonsense, and numbers at the ends of what their types hold: the VM may die,
//! the library does not.

mod support;

use support::{Frames, TestHost, backed, fault_at, linear, npt, range, ready};
use vmmu::addr::{Gfn, GfnRange, Gpa, Level, Pfn};
use vmmu::entry::{Access, MemoryType};
use vmmu::host::HostFrame;
use vmmu::slot::{AddressSpace, SlotId, SlotSpec, Source};
use vmmu::{Broken, Config, HostRange, Mmu, Role};
use vmmu::{FaultStep, MemoryFault, Outcome, PageFault};

fn vm(vcpus: u32) -> Mmu<TestHost> {
    Mmu::new(TestHost::default(), &Config::new(npt(), vcpus)).unwrap()
}

fn read(gfn: u64) -> PageFault {
    fault_at(gfn, Access::READ)
}

/// Completes one request with what a host has made up.
fn made_up(
    format: vmmu::entry::Format,
    fault: PageFault,
    found: HostFrame,
) -> (Outcome, Option<Broken>) {
    let vm = Mmu::new(TestHost::default(), &Config::new(format, 1)).unwrap();
    let mut vcpu = ready(&vm, 0);
    vm.worker().unwrap().create_slot(&backed(0, range(0, 0x400))).unwrap();
    let request = match vcpu.begin_fault(fault) {
        FaultStep::Resolve(request) => request,
        other => panic!("no request: {other:?}"),
    };
    let outcome = vcpu.complete(support::resolve(request, found)).unwrap();
    assert_eq!(vm.stats().leaves, [0; 3]);
    (outcome, vm.broken())
}

#[test]
fn a_frame_that_nothing_can_map_kills_the_vm_and_not_the_host() {
    let (access, memory) = (Access::all(), MemoryType::WriteBack);
    let usable = HostFrame { pfn: Pfn(0x1000), level: Level::Size4K, access, memory };
    for unusable in [
        HostFrame { pfn: Pfn(1 << 36), ..usable },
        HostFrame { pfn: Pfn(u64::MAX), ..usable },
        HostFrame { level: Level::L5, ..usable },
        HostFrame { memory: MemoryType::WriteProtected, ..usable },
    ] {
        let (outcome, broken) = made_up(npt(), read(3), unusable);
        assert_eq!(outcome, Outcome::Dead(Broken::FrameUnusable), "{unusable:?}");
        assert_eq!(broken, Some(Broken::FrameUnusable));
    }
}

#[test]
fn a_frame_that_does_not_allow_the_access_is_denied_and_not_mapped() {
    let (access, memory) = (Access::all(), MemoryType::WriteBack);
    let all = HostFrame { pfn: Pfn(0x1000), level: Level::Size2M, access, memory };
    let fetch = fault_at(3, Access::EXEC);
    for (fault, access) in [
        (read(3), Access::empty()),
        (read(3), Access::EXEC),
        (fault_at(3, Access::WRITE), Access::READ | Access::EXEC),
        (fetch, Access::READ | Access::WRITE),
        // Nested tables have no leaf that can be fetched from and not read.
        (fetch, Access::EXEC),
        (fault_at(3, Access::WRITE), Access::WRITE),
    ] {
        let (outcome, broken) = made_up(npt(), fault, HostFrame { access, ..all });
        assert_eq!(outcome, Outcome::Fault(MemoryFault::Denied), "{fault:?} {access:?}");
        assert_eq!(broken, None);
    }
}

#[test]
fn no_number_that_a_host_gives_is_too_large_for_the_library() {
    let vm = vm(1);
    let ram = Frames::new(Level::Size1G);
    let mut vcpu = ready(&vm, 0);
    let frames = npt().frames();
    vm.worker().unwrap().create_slot(&backed(0, range(0, 16))).unwrap();
    let first = Source::Backed { backing: 7, first: 0 };
    vm.worker()
        .unwrap()
        .create_slot(&SlotSpec { source: first, ..backed(1, range(frames - 16, 16)) })
        .unwrap();
    let last = Source::Backed { backing: u64::MAX, first: u64::MAX - 16 };
    vm.worker()
        .unwrap()
        .create_slot(&SlotSpec { source: last, ..backed(2, range(0x1000, 16)) })
        .unwrap();
    for spec in [
        backed(u32::MAX, range(0x2000, 1)),
        backed(3, range(GfnRange::LIMIT, 0)),
        backed(3, range(GfnRange::LIMIT - 1, 1)),
        SlotSpec { largest: Level::L5, ..backed(3, range(0x2000, 1)) },
        SlotSpec {
            source: Source::Backed { backing: 0, first: u64::MAX },
            ..backed(3, range(0x2000, 1))
        },
        linear(3, range(0x2000, 1), u64::MAX),
        linear(3, range(0x2000, 1), 1 << 36),
    ] {
        assert!(vm.worker().unwrap().create_slot(&spec).is_err(), "{spec:?}");
    }
    for id in [SlotId(511), SlotId(512), SlotId(u32::MAX)] {
        assert!(vm.worker().unwrap().delete_slot(id).is_err());
        assert!(vm.worker().unwrap().move_slot(id, Gfn(u64::MAX)).is_err());
        assert!(vm.worker().unwrap().limit_slot(id, Level::L5).is_err());
    }
    assert!(vm.worker().unwrap().move_slot(SlotId(0), Gfn(u64::MAX)).is_err());
    let numbers = [0, 1, 15, 1 << 36, u64::MAX - 16, u64::MAX - 1, u64::MAX];
    for first in numbers {
        for pages in numbers {
            for backing in [7, u64::MAX] {
                let range = HostRange { backing, first, pages };
                drop(vm.invalidate_range(range));
                vm.invalidate_begin(range);
                vm.invalidate_end(range).unwrap();
                // Of no page there is nothing to end, however often.
                assert_eq!(vm.invalidate_end(range).is_ok(), range.is_empty());
            }
        }
    }
    for space in AddressSpace::ALL {
        vcpu.set_role(Role { space, flavour: u16::MAX });
        for range in [GfnRange::ALL, GfnRange::EMPTY, range(GfnRange::LIMIT, 0), range(15, 1)] {
            vm.worker().unwrap().zap(space, range);
        }
        for gpa in [0, 0xffff, 0xffff_ffff_ffff, 0x1_0000_0000_0000, u64::MAX] {
            let fault = PageFault { gpa: Gpa(gpa), ..read(0) };
            let _outcome = vcpu.handle_fault(&ram, fault);
            let _translation = vcpu.translate(Gpa(gpa));
            let _read = vcpu.read(&ram, Gpa(gpa), &mut [0; 8]);
        }
    }
    assert_eq!(vm.broken(), None);
}
