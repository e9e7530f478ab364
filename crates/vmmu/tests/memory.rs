//! The library's own reads and writes of guest memory.

mod support;

use support::{Frames, TestHost, backed, linear, npt, range};
use vmmu::addr::{Gpa, Level};
use vmmu::host::{Resolution, VcpuId};
use vmmu::slot::{AddressSpace, Mutability, SlotId, SlotSpec};
use vmmu::{AccessFailure, Busy, Config, HostRange, Mmu};

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
