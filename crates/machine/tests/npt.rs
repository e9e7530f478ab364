//! The rules of AMD's nested page tables, one test each.

mod support;

use std::sync::atomic::{AtomicU64, Ordering};

use machine::Access::{Fetch, Read, Write};
use machine::{Access, Exit, Habits, Memory, Nested, Npt, Processor, npt::Fault};
use support::{ACCESSES, Rig, bytes, ways};

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const NX: u64 = 1 << 63;
const FINAL: u64 = 1 << 32;

/// An address whose indices differ on all levels, and an offset.
const GPA: u64 = 0x12_b456_7123;
const HPA: u64 = 0x3_4000_0000;

/// A rig with `levels` levels that maps `GPA` by a leaf of `leaf`.
fn rig(levels: u8, leaf: u32) -> Rig {
    with(Npt { levels, ..Npt::new() }, leaf)
}

fn with(npt: Npt, leaf: u32) -> Rig {
    let mut rig = Rig::new(Nested::Npt(npt));
    rig.map(GPA, HPA, leaf);
    rig
}

/// The low half of EXITINFO1; bit 32 and the address are looked at.
fn code(end: Result<machine::Reached, Exit>) -> Option<u64> {
    match end {
        Ok(_) => None,
        Err(Exit::NestedFault(Fault { code, gpa })) => {
            assert_eq!(gpa, GPA, "EXITINFO2 is the address with its offset");
            assert_eq!(code >> 32, 1, "EXITINFO1 says that it was the final address");
            Some(code & 0xffff_ffff)
        }
        Err(other) => panic!("{other:?}"),
    }
}

/// Bit patterns of the error code of each access, without P.
fn wanted(access: Access) -> u64 {
    match access {
        Read => 0x4,
        Write => 0x6,
        Fetch => 0x14,
    }
}

#[test]
fn the_address_is_the_page_and_the_offset() {
    for levels in [4, 5] {
        for leaf in 1..=3 {
            let reached = rig(levels, leaf).touch(GPA, Read).unwrap();
            assert_eq!(reached.hpa, HPA + GPA % bytes(leaf));
            assert_eq!(reached.page, bytes(leaf));
            assert_eq!(reached.gpa, GPA);
            assert!(!reached.cached);
        }
    }
}

#[test]
fn an_absent_entry_of_any_level_faults_without_p() {
    for (levels, leaf, level) in ways() {
        for access in ACCESSES {
            let rig = rig(levels, leaf);
            rig.edit(GPA, level, 0, PRESENT);
            assert_eq!(code(rig.touch(GPA, access)), Some(wanted(access)), "level {level}");
        }
    }
}

#[test]
fn an_absent_entry_is_not_looked_at_for_reserved_bits() {
    for (levels, leaf, level) in ways() {
        let rig = rig(levels, leaf);
        rig.edit(GPA, level, 1 << 51, PRESENT);
        assert_eq!(code(rig.touch(GPA, Read)), Some(0x4), "level {level}");
    }
}

#[test]
fn every_nested_access_is_a_user_access() {
    for (levels, leaf, level) in ways() {
        for access in ACCESSES {
            let rig = rig(levels, leaf);
            rig.edit(GPA, level, 0, USER);
            assert_eq!(code(rig.touch(GPA, access)), Some(wanted(access) | 1), "level {level}");
        }
    }
}

#[test]
fn writing_needs_every_level_to_be_writable() {
    for (levels, leaf, level) in ways() {
        let rig = rig(levels, leaf);
        rig.edit(GPA, level, 0, WRITABLE);
        assert_eq!(code(rig.touch(GPA, Write)), Some(0x7), "level {level}");
        assert_eq!(code(rig.touch(GPA, Read)), None);
        assert_eq!(code(rig.touch(GPA, Fetch)), None);
    }
}

#[test]
fn no_execute_on_any_level_forbids_fetching_only() {
    for (levels, leaf, level) in ways() {
        let rig = rig(levels, leaf);
        rig.edit(GPA, level, NX, 0);
        assert_eq!(code(rig.touch(GPA, Fetch)), Some(0x15), "level {level}");
        assert_eq!(code(rig.touch(GPA, Read)), None);
        assert_eq!(code(rig.touch(GPA, Write)), None);
    }
}

#[test]
fn no_execute_is_reserved_while_the_host_has_not_switched_it_on() {
    for (levels, leaf, level) in ways() {
        let rig = with(Npt { levels, nx: false, ..Npt::new() }, leaf);
        rig.edit(GPA, level, NX, 0);
        assert_eq!(code(rig.touch(GPA, Read)), Some(0xd), "level {level}");
    }
}

#[test]
fn the_code_says_fetch_only_while_no_execute_is_on() {
    let rig = with(Npt { nx: false, ..Npt::new() }, 1);
    rig.edit(GPA, 1, 0, PRESENT);
    assert_eq!(code(rig.touch(GPA, Fetch)), Some(0x4));
}

#[test]
fn address_bits_above_the_physical_width_are_reserved_on_every_level() {
    for (levels, leaf, level) in ways() {
        for phys_bits in [36, 40, 48, 51, 52] {
            for bit in 36..52 {
                let rig = with(Npt { levels, phys_bits, ..Npt::new() }, leaf);
                rig.edit(GPA, level, 1 << bit, 0);
                let end = rig.touch(GPA, Read);
                if bit >= phys_bits {
                    assert_eq!(code(end), Some(0xd), "level {level} bit {bit}");
                } else if level == leaf {
                    assert_eq!(end.unwrap().hpa, (HPA + GPA % bytes(leaf)) | 1 << bit);
                } else {
                    assert!(matches!(end, Err(Exit::Bus { .. })), "level {level} bit {bit}");
                }
            }
        }
    }
}

#[test]
fn the_large_bit_is_reserved_on_levels_four_and_five() {
    for (levels, leaf, level) in ways().into_iter().filter(|way| way.2 >= 4) {
        let rig = rig(levels, leaf);
        rig.edit(GPA, level, LARGE, 0);
        assert_eq!(code(rig.touch(GPA, Read)), Some(0xd), "level {level}");
    }
}

#[test]
fn the_large_bit_is_reserved_on_level_three_without_gib_pages() {
    let gib_pages = false;
    assert_eq!(code(with(Npt { gib_pages, ..Npt::new() }, 3).touch(GPA, Read)), Some(0xd));
    assert_eq!(code(with(Npt { gib_pages, ..Npt::new() }, 2).touch(GPA, Read)), None);
}

#[test]
fn address_bits_below_a_large_page_are_reserved_but_for_the_one_that_is_pat() {
    for (leaf, end) in [(2, 21), (3, 30)] {
        for bit in 12..end {
            let rig = rig(4, leaf);
            rig.edit(GPA, leaf, 1 << bit, 0);
            match rig.touch(GPA, Read) {
                Ok(reached) => {
                    assert_eq!(bit, 12);
                    assert_eq!(reached.hpa, HPA + GPA % bytes(leaf), "PAT is no address bit");
                }
                end => {
                    assert_ne!(bit, 12);
                    assert_eq!(code(end), Some(0xd), "bit {bit}");
                }
            }
        }
    }
}

#[test]
fn bit_eight_is_reserved_in_pointers_above_level_two() {
    for (levels, leaf, level) in ways() {
        let rig = rig(levels, leaf);
        rig.edit(GPA, level, 1 << 8, 0);
        let reserved = level > leaf && level > 2;
        assert_eq!(code(rig.touch(GPA, Read)), reserved.then_some(0xd), "level {level}");
    }
}

#[test]
fn other_bits_have_no_meaning() {
    for (levels, leaf, level) in ways() {
        // PWT, PCD, 9 to 11, 52 to 62; D in a pointer; PAT in a 4 KiB leaf.
        let mut bits: Vec<u32> = vec![3, 4, 9, 10, 11];
        bits.extend(52..63);
        bits.extend((level > leaf).then_some(6));
        bits.extend((level == 1).then_some(7));
        for bit in bits {
            let rig = rig(levels, leaf);
            rig.edit(GPA, level, 1 << bit, 0);
            for access in ACCESSES {
                let reached = rig.touch(GPA, access).unwrap();
                assert_eq!(reached.hpa, HPA + GPA % bytes(leaf), "level {level} bit {bit}");
                assert_eq!(reached.page, bytes(leaf));
            }
        }
    }
}

#[test]
fn a_reserved_bit_comes_before_what_is_not_allowed() {
    for (levels, leaf, level) in ways() {
        let rig = rig(levels, leaf);
        let top = u32::from(levels);
        rig.edit(GPA, top, 0, WRITABLE | USER);
        rig.edit(GPA, level, 1 << 51, 0);
        assert_eq!(code(rig.touch(GPA, Write)), Some(0xf), "level {level}");
    }
}

#[test]
fn the_upper_entry_is_judged_before_the_lower() {
    let rig = rig(4, 1);
    rig.edit(GPA, 3, 0, PRESENT);
    rig.edit(GPA, 4, 1 << 51, 0);
    assert_eq!(code(rig.touch(GPA, Read)), Some(0xd));
    rig.edit(GPA, 4, 0, 1 << 51 | PRESENT);
    assert_eq!(code(rig.touch(GPA, Read)), Some(0x4));
}

#[test]
fn accessed_is_set_on_every_level_and_dirty_in_the_leaf_by_writes_only() {
    for (levels, leaf, _) in ways() {
        for access in ACCESSES {
            let rig = rig(levels, leaf);
            rig.touch(GPA, access).unwrap();
            for level in leaf..=levels.into() {
                let dirty = level == leaf && access == Write;
                let flags = ACCESSED | if dirty { DIRTY } else { 0 };
                let found = rig.get(GPA, level) & (ACCESSED | DIRTY);
                assert_eq!(found, flags, "{access:?} level {level}");
            }
        }
    }
}

#[test]
fn an_access_that_faults_leaves_the_leaf_as_it_is() {
    for access in ACCESSES {
        let rig = rig(4, 1);
        rig.edit(GPA, 1, NX, WRITABLE | USER);
        let before = rig.get(GPA, 1);
        rig.touch(GPA, access).unwrap_err();
        assert_eq!(rig.get(GPA, 1), before);
    }
}

#[test]
fn an_address_that_four_levels_do_not_reach_is_absent() {
    let rig = rig(4, 1);
    let far = GPA | 1 << 48;
    let end = rig.touch(far, Read);
    assert_eq!(end, Err(Exit::NestedFault(Fault { code: FINAL | 0x4, gpa: far })));
    let mut rig = Rig::new(Nested::Npt(Npt { levels: 5, ..Npt::new() }));
    rig.map(far, HPA, 1);
    assert_eq!(rig.touch(far, Read).unwrap().hpa, HPA + GPA % 0x1000);
    assert_eq!(rig.touch(GPA, Read).unwrap_err(), {
        Exit::NestedFault(Fault { code: FINAL | 0x4, gpa: GPA })
    });
}

#[test]
fn a_table_where_there_is_no_memory_is_said_so() {
    let rig = rig(4, 1);
    rig.edit(GPA, 2, 1 << 40, 0);
    let address = (rig.get(GPA, 2) & support::ADDRESS) + support::index(GPA, 1);
    assert_eq!(rig.touch(GPA, Read), Err(Exit::Bus { address }));
}

#[test]
fn flags_are_set_without_losing_what_others_write() {
    let rig = rig(4, 1);
    let entry = rig.at(GPA, 1);
    let rounds = 20_000;
    // Bits 52 to 60 count; A and D are cleared again and again.
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..rounds {
                let word = rig.ram.word(entry).unwrap();
                word.fetch_add(1 << 52, Ordering::AcqRel);
                word.fetch_and(!(ACCESSED | DIRTY | 1 << 62 | 1 << 61), Ordering::AcqRel);
            }
        });
        let mut processor = Processor::with_habits(0, Habits::nothing());
        for _ in 0..rounds {
            processor.translate(&rig.ram, &rig.off(), GPA, Write).unwrap();
        }
    });
    assert_eq!(rig.get(GPA, 1) >> 52 & 0x1ff, rounds & 0x1ff);
}

/// Memory that counts how often one word is asked for.
struct Watched<'a> {
    rig: &'a Rig,
    entry: u64,
    asked: AtomicU64,
}

impl Memory for Watched<'_> {
    fn word(&self, address: u64) -> Option<&AtomicU64> {
        if address == self.entry {
            self.asked.fetch_add(1, Ordering::Relaxed);
        }
        self.rig.ram.word(address)
    }
}

#[test]
fn a_word_whose_flags_stand_is_read_once_and_not_written() {
    let rig = rig(4, 1);
    rig.touch(GPA, Write).unwrap();
    let watched = Watched { rig: &rig, entry: rig.at(GPA, 1), asked: AtomicU64::new(0) };
    let mut processor = Processor::with_habits(0, Habits::nothing());
    processor.translate(&watched, &rig.off(), GPA, Write).unwrap();
    assert_eq!(watched.asked.load(Ordering::Relaxed), 1);
    assert_eq!((processor.counts().accessed, processor.counts().dirtied), (0, 0));
}
