//! Backings: a good one passes, and for each rule there is one that breaks it.

mod support;

use conformance::{BackingOptions, Verdict, check_backing};
use support::{BadFrames, Frames, assert_broken_beside, assert_kept};
use vmmu::entry::npt;

fn options() -> BackingOptions {
    let format = npt::format(npt::NptOptions::default()).unwrap();
    BackingOptions { format: Some(format), ..BackingOptions::new(7, 0..2048) }
}

#[test]
fn a_good_backing_passes() {
    let frames = Frames::new(BadFrames::No);
    for page in [3, 700, 701, 2047] {
        frames.move_page(page, true);
    }
    let report = check_backing(&frames, &options());
    assert_kept(&report, &[]);
    println!("{report}");
}

#[test]
fn each_bad_backing_is_caught() {
    for (bad, rule, also) in [
        // Pages without an answer are missing in their blocks.
        (BadFrames::RetriesForever, "B1", &["B8"][..]),
        (BadFrames::Panics, "B1", &[]),
        // Whoever asks in another way, or for a neighbour, hears of the move too.
        (BadFrames::Moves, "B2", &["B3", "B8"]),
        (BadFrames::CopiesOnWrite, "B3", &[]),
        (BadFrames::DeniesWrites, "B4", &[]),
        (BadFrames::GivesWriteOnly, "B5", &[]),
        // No frame is at the right place of a block that is too large.
        (BadFrames::HasHugeBlocks, "B6", &["B7"]),
        (BadFrames::IsShifted, "B7", &[]),
        (BadFrames::HasHolesInBlocks, "B8", &[]),
        (BadFrames::GivesWideFrames, "B9", &[]),
        (BadFrames::HasOddBytes, "B10", &[]),
        (BadFrames::HasWordsInBytes, "B10", &[]),
        // What is not there again is not told from another frame's.
        (BadFrames::HasOtherBytesEachTime, "B11", &["B12"]),
        (BadFrames::SharesBytes, "B12", &[]),
    ] {
        let report = check_backing(&Frames::new(bad), &options());
        assert_broken_beside(&report, rule, also);
    }
}

#[test]
fn a_backing_without_bytes_is_not_judged_by_them() {
    struct Bare(Frames);
    // SAFETY: what is named is memory of the test.
    unsafe impl vmmu::host::Backing for Bare {
        fn find(&self, query: &vmmu::host::FrameQuery) -> vmmu::host::Resolution {
            self.0.find(query)
        }
    }
    // SAFETY: it names nothing.
    unsafe impl vmmu::host::GuestMemory for Bare {
        fn bytes(&self, _: vmmu::addr::Pfn) -> Option<std::ptr::NonNull<vmmu::host::GuestPage>> {
            None
        }
    }
    let report = check_backing(&Bare(Frames::new(BadFrames::No)), &options());
    assert_kept(&report, &["B11", "B12"]);
}

#[test]
fn contents_are_as_before() {
    use vmmu::host::GuestMemory;
    let frames = Frames::new(BadFrames::No);
    let pfn = vmmu::addr::Pfn(0x40_0000);
    let word = |frames: &Frames| frames.bytes(pfn).unwrap().cast::<u64>();
    // SAFETY: a page of the backing's memory, used by nobody else.
    unsafe { word(&frames).write(0x1234_5678) };
    let options = BackingOptions { pages: 0..1, ..options() };
    assert!(matches!(check_backing(&frames, &options).verdict("B12"), Some(Verdict::Passed(_))));
    // SAFETY: as above.
    assert_eq!(unsafe { word(&frames).read() }, 0x1234_5678);
}
