//! The rules of Intel's page-modification log, one test each.

mod support;

use std::sync::atomic::{AtomicU64, Ordering};

use machine::Access::{Fetch, Read, Write};
use machine::{Ept, Exit, Habits, Log, Long, Memory, Nested, Processor};
use support::Rig;

const ACCESSED: u64 = 1 << 8;
const DIRTY: u64 = 1 << 9;
const GPA: u64 = 0x12_b456_7123;
const HPA: u64 = 0x3_4000_0000;

fn processor(log: Log) -> Processor {
    let mut processor = Processor::with_habits(0, Habits::nothing());
    assert_eq!(processor.set_log(Some(log)), None);
    processor
}

/// Tables with a leaf of a level for `GPA`, and an empty log.
fn rig(leaf: u32) -> (Rig, Log) {
    let mut rig = Rig::ept();
    rig.map(GPA, HPA, leaf);
    let log = Log::empty(rig.frame());
    (rig, log)
}

#[test]
fn a_dirty_flag_that_becomes_set_is_logged_from_the_end_of_the_page() {
    let (rig, log) = rig(1);
    let mut processor = processor(log);
    processor.translate(&rig.ram, &rig.off(), GPA, Write).unwrap();
    assert_eq!(rig.word(log.address + 511 * 8), GPA & !0xfff);
    assert_eq!(processor.log(), Some(Log { index: 510, ..log }));
}

#[test]
fn the_page_that_was_written_is_logged_and_not_the_start_of_its_large_page() {
    for leaf in [2, 3] {
        let (rig, log) = rig(leaf);
        let mut processor = processor(log);
        processor.translate(&rig.ram, &rig.off(), GPA, Write).unwrap();
        assert_eq!(rig.word(log.address + 511 * 8), GPA & !0xfff);
    }
}

#[test]
fn nothing_is_logged_for_reads_nor_for_what_is_dirty_already() {
    let (rig, log) = rig(1);
    let mut processor = processor(log);
    for access in [Read, Fetch] {
        processor.translate(&rig.ram, &rig.off(), GPA, access).unwrap();
    }
    assert_eq!(processor.log(), Some(log));
    rig.edit(GPA, 1, DIRTY, 0);
    processor.translate(&rig.ram, &rig.off(), GPA, Write).unwrap();
    assert_eq!(processor.log(), Some(log));
}

#[test]
fn the_last_place_is_used_and_then_the_log_is_full() {
    let (mut rig, log) = rig(1);
    rig.map(GPA + 0x1000, HPA, 1);
    let mut processor = processor(Log { index: 0, ..log });
    processor.translate(&rig.ram, &rig.off(), GPA, Write).unwrap();
    assert_eq!(rig.word(log.address), GPA & !0xfff);
    assert_eq!(processor.log(), Some(Log { index: 0xffff, ..log }));
    let end = processor.translate(&rig.ram, &rig.off(), GPA + 0x1000, Write);
    assert_eq!(end, Err(Exit::PmlFull));
}

#[test]
fn a_full_log_stops_an_access_before_it_sets_a_flag() {
    for index in [512, 0x8000, 0xffff] {
        let (rig, log) = rig(1);
        let log = Log { index, ..log };
        let mut processor = processor(log);
        assert_eq!(processor.translate(&rig.ram, &rig.off(), GPA, Write), Err(Exit::PmlFull));
        for level in 1..=4 {
            assert_eq!(rig.get(GPA, level) & (ACCESSED | DIRTY), 0);
        }
        assert_eq!(processor.log(), Some(log));
    }
}

#[test]
fn a_full_log_stops_an_access_that_would_set_an_accessed_flag_only() {
    let (rig, log) = rig(1);
    let mut processor = processor(Log { index: 512, ..log });
    assert_eq!(processor.translate(&rig.ram, &rig.off(), GPA, Read), Err(Exit::PmlFull));
}

#[test]
fn a_full_log_does_not_stop_what_sets_no_flag() {
    let (rig, log) = rig(1);
    rig.touch(GPA, Write).unwrap();
    let mut processor = processor(Log { index: 512, ..log });
    processor.translate(&rig.ram, &rig.off(), GPA, Write).unwrap();
}

#[test]
fn a_violation_comes_before_a_full_log_and_logs_nothing() {
    let (rig, log) = rig(1);
    rig.touch(GPA, Read).unwrap();
    rig.edit(GPA, 1, 0, 2);
    let mut processor = processor(Log { index: 512, ..log });
    let end = processor.translate(&rig.ram, &rig.off(), GPA, Write);
    assert!(matches!(end, Err(Exit::EptViolation { .. })), "{end:?}");
}

#[test]
fn pages_of_the_guests_tables_are_logged() {
    let (mut rig, log) = rig(1);
    let linear = 0x1000;
    rig.guest_map(linear, GPA & !0xfff, 1, 7);
    let mut processor = processor(log);
    let long = Long { user: true, ..Long::new(rig.cr3) };
    processor.translate(&rig.ram, &rig.paged(long), linear, Read).unwrap();
    for level in 1..=4 {
        let place = log.address + 8 * (511 - (4 - u64::from(level)));
        assert_eq!(rig.word(place), rig.guest_at(linear, level) & !0xfff);
    }
    assert_eq!(processor.log().unwrap().index, 507);
}

#[test]
fn without_accessed_and_dirty_flags_nothing_is_logged_or_full() {
    let mut rig = Rig::new(Nested::Ept(Ept { ad: false, ..Ept::new() }));
    rig.map(GPA, HPA, 1);
    let log = Log { index: 512, ..Log::empty(rig.frame()) };
    let mut processor = processor(log);
    processor.translate(&rig.ram, &rig.off(), GPA, Write).unwrap();
    assert_eq!(processor.log(), Some(log));
}

#[test]
fn nested_page_tables_have_no_log() {
    let mut rig = Rig::npt();
    rig.map(GPA, HPA, 1);
    let log = Log { index: 512, ..Log::empty(rig.frame()) };
    let mut processor = processor(log);
    processor.translate(&rig.ram, &rig.off(), GPA, Write).unwrap();
    assert_eq!(processor.log(), Some(log));
}

#[test]
fn a_log_is_taken_along_with_its_index() {
    let (rig, log) = rig(1);
    let mut first = processor(log);
    first.translate(&rig.ram, &rig.off(), GPA, Write).unwrap();
    let taken = first.set_log(None);
    assert_eq!(taken, Some(Log { index: 510, ..log }));
    rig.edit(GPA, 1, 0, DIRTY);
    let mut second = processor(taken.unwrap());
    second.translate(&rig.ram, &rig.off(), GPA, Write).unwrap();
    assert_eq!(second.log().unwrap().index, 509);
    first.translate(&rig.ram, &rig.off(), GPA, Write).unwrap();
    assert_eq!(first.log(), None);
}

#[test]
fn a_full_log_ends_a_walk_nobody_asked_for_and_leaves_no_flag() {
    let (rig, log) = rig(1);
    let mut processor = processor(Log { index: 512, ..log });
    processor.speculate(&rig.ram, &rig.off(), GPA);
    assert_eq!(rig.get(GPA, 4) & ACCESSED, 0);
    assert_eq!(processor.cached(), (0, 0));
}

#[test]
fn a_log_where_there_is_no_memory_is_said_so_before_the_flag_is_set() {
    let (rig, _) = rig(1);
    rig.touch(GPA, Read).unwrap();
    let mut processor = processor(Log::empty(1 << 40));
    let address = (1 << 40) + 511 * 8;
    let end = processor.translate(&rig.ram, &rig.off(), GPA, Write);
    assert_eq!(end, Err(Exit::Bus { address }));
    assert_eq!(rig.get(GPA, 1) & DIRTY, 0);
}

/// Memory in which another writer changes a word between the walker's reading it and setting its
/// flags: when the walker asks for its place in the log.
struct Beaten<'a> {
    rig: &'a Rig,
    log: u64,
    entry: u64,
    /// What the other writer puts there, once.
    word: AtomicU64,
}

impl Memory for Beaten<'_> {
    fn word(&self, address: u64) -> Option<&AtomicU64> {
        if address == self.log {
            let word = self.word.swap(0, Ordering::Relaxed);
            if word != 0 {
                self.rig.set(self.entry, word);
            }
        }
        self.rig.ram.word(address)
    }
}

/// A write beaten by a writer who puts `word` into the leaf.
fn beaten(word: impl Fn(u64) -> u64) -> (Rig, Log, Processor, Result<u64, Exit>) {
    let (rig, log) = rig(1);
    rig.touch(GPA, Read).unwrap();
    let mut processor = processor(log);
    let end = {
        let memory = Beaten {
            rig: &rig,
            log: log.address + 511 * 8,
            entry: rig.at(GPA, 1),
            word: AtomicU64::new(word(rig.get(GPA, 1))),
        };
        processor.translate(&memory, &rig.off(), GPA, Write).map(|reached| reached.hpa)
    };
    (rig, log, processor, end)
}

#[test]
fn a_walk_that_is_beaten_to_an_entry_begins_again() {
    let moved = HPA + 0x5000;
    let (rig, log, processor, end) = beaten(|word| word + 0x5000);
    assert_eq!(end, Ok(moved + 0x123));
    assert_eq!(rig.get(GPA, 1) & support::ADDRESS, moved);
    assert_eq!(rig.get(GPA, 1) & DIRTY, DIRTY);
    assert_eq!(processor.log(), Some(Log { index: 510, ..log }), "logged once");
    assert_eq!(processor.counts().lost, 1);
}

#[test]
fn a_walk_that_is_beaten_does_not_bring_an_entry_back() {
    let (rig, log, processor, end) = beaten(|_| 1 << 63);
    assert!(matches!(end, Err(Exit::EptViolation { .. })), "{end:?}");
    assert_eq!(rig.get(GPA, 1), 1 << 63);
    assert_eq!(processor.log(), Some(log));
}

#[test]
fn a_walk_that_is_beaten_obeys_what_is_allowed_now() {
    let (rig, _, _, end) = beaten(|word| word & !2);
    assert!(matches!(end, Err(Exit::EptViolation { .. })), "{end:?}");
    assert_eq!(rig.get(GPA, 1) & DIRTY, 0);
}

#[test]
fn a_walk_that_is_beaten_by_another_processor_logs_nothing_more() {
    let (rig, log, processor, end) = beaten(|word| word | DIRTY);
    assert_eq!(end, Ok(HPA + 0x123));
    assert_eq!(rig.get(GPA, 1) & DIRTY, DIRTY);
    assert_eq!(processor.log(), Some(log));
}
