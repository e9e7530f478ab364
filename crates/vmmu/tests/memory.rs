//! The library's own reads and writes of guest memory.

mod support;

use support::{Frames, TestHost, backed, fault_at, finish, formats, linear, npt, range};
use vmmu::addr::{Gfn, GfnRange, Gpa, Level};
use vmmu::entry::Access;
use vmmu::host::{Resolution, VcpuId};
use vmmu::slot::{AddressSpace, Mutability, SlotError, SlotId, SlotSpec};
use vmmu::{AccessFailure, Busy, Cause, Config, FaultStep, HostRange, Mmu, Outcome, PageFault};
use vmmu::{Progress, Stats};

const SPACE: AddressSpace = AddressSpace::Normal;

#[test]
fn what_is_written_across_pages_and_slots_is_read_back() {
    let vm = Mmu::new(TestHost::default(), &Config::new(npt(), 1)).unwrap();
    let frames = Frames::new(Level::Size4K);
    let mut worker = vm.worker().unwrap();
    worker.create_slot(&backed(1, range(0, 3))).unwrap();
    worker.create_slot(&linear(2, range(3, 2), 0x5000)).unwrap();
    let bytes: Vec<u8> = (0..4 * 4096 + 77).map(|n: u32| ((n * 31) >> 3) as u8).collect();
    worker.write(&frames, SPACE, Gpa(0x123), &bytes).unwrap();
    let mut read = vec![0; bytes.len()];
    worker.read(&frames, SPACE, Gpa(0x123), &mut read).unwrap();
    assert_eq!(read, bytes);
    let mut one = [0; 3];
    worker.read(&frames, SPACE, Gpa(0x2fff), &mut one).unwrap();
    assert_eq!(one, bytes[0x2fff - 0x123..][..3]);
    assert_eq!(vm.stats().leaves, [0; 3], "reading maps nothing");
    drop(worker);
    vm.teardown();
}

#[test]
fn what_cannot_be_copied_says_where_and_how_far_it_came() {
    let vm = Mmu::new(TestHost::default(), &Config::new(npt(), 1)).unwrap();
    let frames = Frames::new(Level::Size4K);
    let mut worker = vm.worker().unwrap();
    worker.create_slot(&backed(1, range(0, 2))).unwrap();
    let rom = SlotSpec { mutability: Mutability::ReadOnly, ..backed(2, range(0x10, 1)) };
    worker.create_slot(&rom).unwrap();
    frames.answer(1, Resolution::Hole);
    let mut buffer = [0; 8192];
    let error = worker.read(&frames, SPACE, Gpa(0x800), &mut buffer).unwrap_err();
    assert_eq!((error.gpa, error.done, error.why), (Gpa(0x1000), 0x800, AccessFailure::Hole));
    let error = worker.write(&frames, SPACE, Gpa(0x1_0000), &[1]).unwrap_err();
    assert_eq!(error.why, AccessFailure::ReadOnly);
    worker.read(&frames, SPACE, Gpa(0x1_0000), &mut buffer[..1]).unwrap();
    let error = worker.read(&frames, SPACE, Gpa(0x2_0000), &mut buffer).unwrap_err();
    assert_eq!(error.why, AccessFailure::NoMemory);
    let text = "guest memory at 0x20000: no slot is there (0 bytes done)";
    assert_eq!(error.to_string(), text);
    let error = worker.write(&frames, SPACE, Gpa(u64::MAX), &[1, 2]).unwrap_err();
    assert_eq!(error.why, AccessFailure::NoMemory);
    drop(worker);
    vm.teardown();
}

/// The frame number of an address beyond what the tables translate has more bits than a walk looks at.
/// No entrance takes it for the page that the rest of its bits name, be that memory or not.
#[test]
fn no_entrance_takes_an_address_beyond_the_tables_for_a_low_one() {
    const HERE: u64 = 5;
    for (name, format) in formats() {
        for is_memory in [true, false] {
            let vm = Mmu::new(TestHost::default(), &Config::new(format, 1)).unwrap();
            let frames = Frames::new(Level::Size4K);
            let (mut worker, mut vcpu) = (vm.worker().unwrap(), vm.vcpu(VcpuId(0)).unwrap());
            let place = if is_memory { 0 } else { 0x1000 };
            worker.create_slot(&backed(1, range(place, 0x10))).unwrap();
            worker.write(&frames, SPACE, Gpa((place + HERE) << 12), &[1; 8]).unwrap();
            for gfn in [place + HERE, HERE] {
                let _here = vcpu.handle_fault(&frames, fault_at(gfn, Access::READ));
            }
            let (mut dump, before) = (String::new(), vm.stats());
            worker.dump(&mut dump).unwrap();
            let high = Gfn(format.frames() + HERE);
            assert_eq!(vcpu.translate(high.gpa()), None, "{name}");
            let at = high.gpa();
            let why = worker.read(&frames, SPACE, at, &mut [0; 8]).map_err(|error| error.why);
            assert_eq!(why, Err(AccessFailure::NoMemory), "{name}");
            let why = worker.write(&frames, SPACE, at, &[2; 8]).map_err(|error| error.why);
            assert_eq!(why, Err(AccessFailure::NoMemory), "{name}");
            let why = worker.compare_exchange(&frames, SPACE, at, 0u64, 1).map_err(|e| e.why);
            assert_eq!(why, Err(AccessFailure::NoMemory), "{name}");
            for access in [Access::READ, Access::WRITE, Access::EXEC] {
                for cause in [Cause::Guest, Cause::Prefault] {
                    let fault = PageFault { cause, ..fault_at(high.0, access) };
                    assert_eq!(vcpu.handle_fault(&frames, fault), Outcome::Emulate, "{name}");
                    let step = vcpu.begin_fault(fault);
                    let emulate = matches!(step, FaultStep::Done(Outcome::Emulate));
                    assert!(emulate, "{name}: {step:?}");
                }
            }
            let all_above = GfnRange::new(Gfn(format.frames()), GfnRange::ALL.end()).unwrap();
            for beyond in [range(high.0, 1), all_above] {
                worker.zap(SPACE, beyond);
                let mut zap = worker.begin_zap(SPACE, beyond);
                while worker.zap_some(&mut zap, 1) == Progress::More {}
                let error = worker.create_slot(&backed(2, beyond)).unwrap_err();
                let is_too_high = |error| matches!(error, SlotError::TooHigh { .. });
                assert!(is_too_high(error), "{name}: {error}");
                let error = worker.move_slot(SlotId(1), beyond.start()).unwrap_err();
                assert!(is_too_high(error), "{name}: {error}");
            }
            let mut after = String::new();
            worker.dump(&mut after).unwrap();
            assert!(dump == after, "{name}: the tables have changed");
            let now = vm.stats();
            let counts = |stats: &Stats| (stats.leaves, stats.tables, stats.mapped);
            assert_eq!(counts(&now), counts(&before), "{name}");
            // An entry of the low page did not answer either.
            assert_eq!(now.emulated_fast, before.emulated_fast, "{name}");
            let mut bytes = [0; 8];
            worker.read(&frames, SPACE, Gpa((place + HERE) << 12), &mut bytes).unwrap();
            assert_eq!(bytes, [1; 8], "{name}");
            drop((worker, vcpu));
            finish(vm);
        }
    }
}

#[test]
fn a_page_under_invalidation_is_busy() {
    let vm = Mmu::new(TestHost::default(), &Config::new(npt(), 1)).unwrap();
    let frames = Frames::new(Level::Size4K);
    let mut worker = vm.worker().unwrap();
    let vcpu = vm.vcpu(VcpuId(0)).unwrap();
    worker.create_slot(&backed(1, range(0, 2))).unwrap();
    let invalidation = vm.invalidate_range(HostRange { backing: 7, first: 0, pages: 1 });
    let error = worker.write(&frames, SPACE, Gpa(0), &[1]).unwrap_err();
    assert_eq!(error.why, AccessFailure::Busy(Busy::Invalidation));
    drop(invalidation);
    worker.write(&frames, SPACE, Gpa(0), &[1]).unwrap();
    worker.delete_slot(SlotId(1)).unwrap();
    assert!(worker.write(&frames, SPACE, Gpa(0), &[1]).is_err());
    drop((worker, vcpu));
    vm.teardown();
}

#[test]
fn a_word_is_exchanged_only_if_it_is_what_was_seen() {
    let vm = Mmu::new(TestHost::default(), &Config::new(npt(), 1)).unwrap();
    let frames = Frames::new(Level::Size4K);
    let mut worker = vm.worker().unwrap();
    worker.create_slot(&backed(1, range(0, 2))).unwrap();
    worker.write(&frames, SPACE, Gpa(0xff8), &7u64.to_le_bytes()).unwrap();
    let mut exchange =
        |gpa, seen: u64, new| worker.compare_exchange(&frames, SPACE, Gpa(gpa), seen, new);
    assert_eq!(exchange(0xff8, 6, 9), Ok(Err(7)));
    assert_eq!(exchange(0xff8, 7, 9), Ok(Ok(7)));
    assert_eq!(exchange(0xff8, 7, 9), Ok(Err(9)));
    assert_eq!(exchange(0xffc, 7, 9).unwrap_err().why, AccessFailure::Unaligned);
    assert_eq!(exchange(0x2000, 7, 9).unwrap_err().why, AccessFailure::NoMemory);
    let half = worker.compare_exchange(&frames, SPACE, Gpa(0xffc), 0u32, 1);
    assert_eq!(half, Ok(Ok(0)));
    drop(worker);
    vm.teardown();
}

/// The slot may be written, but the host has the page to be read only, because somebody shares it: the
/// library does not write it behind the host's back.
#[test]
fn what_the_host_does_not_allow_is_not_done_by_the_library() {
    let vm = Mmu::new(TestHost::default(), &Config::new(npt(), 1)).unwrap();
    let frames = Frames::new(Level::Size4K);
    let mut worker = vm.worker().unwrap();
    worker.create_slot(&backed(1, range(0, 2))).unwrap();
    worker.write(&frames, SPACE, Gpa(8), &[7; 8]).unwrap();
    *frames.access.lock().unwrap() = Access::READ;
    let error = worker.write(&frames, SPACE, Gpa(8), &[1; 8]).unwrap_err();
    assert_eq!((error.done, error.why), (0, AccessFailure::ReadOnly));
    let error = worker.compare_exchange(&frames, SPACE, Gpa(8), 0x0707_0707_u32, 0).unwrap_err();
    assert_eq!((error.done, error.why), (0, AccessFailure::ReadOnly));
    let mut bytes = [0; 8];
    worker.read(&frames, SPACE, Gpa(8), &mut bytes).unwrap();
    assert_eq!(bytes, [7; 8]);
    drop(worker);
    finish(vm);
}
