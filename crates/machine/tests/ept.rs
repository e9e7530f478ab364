//! The rules of Intel's extended page tables, one test each.

mod support;

use machine::Access::{Fetch, Read, Write};
use machine::{Access, Ept, Exit, Nested};
use support::{ACCESSES, Rig, bytes, ways};

const R: u64 = 1;
const W: u64 = 1 << 1;
const X: u64 = 1 << 2;
const TYPE: u64 = 7 << 3;
const LARGE: u64 = 1 << 7;
const ACCESSED: u64 = 1 << 8;
const DIRTY: u64 = 1 << 9;
/// Bits 7 and 8 of the qualification: a linear address, its final translation.
const FINAL: u64 = 3 << 7;

const GPA: u64 = 0x12_b456_7123;
const HPA: u64 = 0x3_4000_0000;

fn rig(levels: u8, leaf: u32) -> Rig {
    with(Ept { levels, ..Ept::new() }, leaf)
}

fn with(ept: Ept, leaf: u32) -> Rig {
    let mut rig = Rig::new(Nested::Ept(ept));
    rig.map(GPA, HPA, leaf);
    rig
}

/// How an access ended.
#[derive(PartialEq, Eq, Debug)]
enum End {
    Fine,
    Misconfigured,
    /// With the low 6 bits of the qualification.
    Violation(u64),
}
use End::{Fine, Misconfigured, Violation};

fn end(rig: &Rig, access: Access) -> End {
    match rig.touch(GPA, access) {
        Ok(_) => Fine,
        Err(Exit::EptMisconfiguration { gpa: GPA }) => Misconfigured,
        Err(Exit::EptViolation { qualification, gpa: GPA }) => {
            assert_eq!(qualification & !0x3f, FINAL, "bits 7 and 8, and no others");
            Violation(qualification & 0x3f)
        }
        Err(other) => panic!("{other:?}"),
    }
}

/// The bit of an access, in the entry and in the qualification.
fn bit(access: Access) -> u64 {
    match access {
        Read => R,
        Write => W,
        Fetch => X,
    }
}

#[test]
fn the_address_is_the_page_and_the_offset() {
    for levels in [4, 5] {
        for leaf in 1..=3 {
            let reached = rig(levels, leaf).touch(GPA, Read).unwrap();
            assert_eq!(reached.hpa, HPA + GPA % bytes(leaf));
            assert_eq!((reached.page, reached.gpa), (bytes(leaf), GPA));
        }
    }
}

#[test]
fn an_entry_without_r_w_and_x_is_absent_whatever_else_it_says() {
    for (levels, leaf, level) in ways() {
        for access in ACCESSES {
            for rest in [0, 1 << 51, 2 << 3, LARGE, 1 << 63] {
                let rig = rig(levels, leaf);
                rig.edit(GPA, level, rest, R | W | X);
                assert_eq!(end(&rig, access), Violation(bit(access)), "level {level}");
            }
        }
    }
}

#[test]
fn what_is_allowed_is_what_all_levels_allow_and_the_qualification_says_so() {
    let legal = [R, R | W, R | X, R | W | X, X];
    for (levels, leaf, level) in ways() {
        for lower in legal {
            for upper in legal {
                for access in ACCESSES {
                    let rig = rig(levels, leaf);
                    rig.edit(GPA, levels.into(), upper, R | W | X);
                    rig.edit(GPA, level, lower, R | W | X);
                    let all = if level == levels.into() { lower } else { lower & upper };
                    let expected = match all & bit(access) {
                        0 => Violation(bit(access) | all << 3),
                        _ => Fine,
                    };
                    assert_eq!(end(&rig, access), expected, "level {level}: {upper} {lower}");
                }
            }
        }
    }
}

#[test]
fn writing_without_reading_is_misconfigured_on_any_level() {
    for (levels, leaf, level) in ways() {
        for bits in [W, W | X] {
            for access in ACCESSES {
                let rig = rig(levels, leaf);
                rig.edit(GPA, level, bits, R | W | X);
                assert_eq!(end(&rig, access), Misconfigured, "level {level}");
            }
        }
    }
}

#[test]
fn execute_only_is_misconfigured_where_the_processor_has_none() {
    for (levels, leaf, level) in ways() {
        for exec_only in [false, true] {
            let rig = with(Ept { levels, exec_only, ..Ept::new() }, leaf);
            rig.edit(GPA, level, X, R | W | X);
            let expected = if exec_only { Fine } else { Misconfigured };
            assert_eq!(end(&rig, Fetch), expected, "level {level}");
        }
    }
}

#[test]
fn memory_types_two_three_and_seven_are_misconfigured_in_leaves() {
    for leaf in 1..=3 {
        for kind in 0..8 {
            for ignore_pat in [0, 1 << 6] {
                let rig = rig(4, leaf);
                rig.edit(GPA, leaf, kind << 3 | ignore_pat, TYPE);
                let reserved = [2, 3, 7].contains(&kind);
                let expected = if reserved { Misconfigured } else { Fine };
                assert_eq!(end(&rig, Read), expected, "type {kind}");
            }
        }
    }
}

#[test]
fn bits_three_to_seven_are_reserved_in_pointers() {
    for (levels, leaf, level) in ways().into_iter().filter(|way| way.2 > way.1) {
        for bit in 3..=7 {
            // On levels 2 and 3 bit 7 makes a leaf instead.
            if bit == 7 && level <= 3 {
                continue;
            }
            let rig = rig(levels, leaf);
            rig.edit(GPA, level, 1 << bit, 0);
            assert_eq!(end(&rig, Read), Misconfigured, "level {level} bit {bit}");
        }
    }
}

#[test]
fn large_leaves_are_misconfigured_where_the_processor_has_none() {
    for (mib_pages, gib_pages) in [(false, false), (true, false), (false, true), (true, true)] {
        let ept = Ept { mib_pages, gib_pages, ..Ept::new() };
        let expected = |has| if has { Fine } else { Misconfigured };
        assert_eq!(end(&with(ept, 1), Read), Fine);
        assert_eq!(end(&with(ept, 2), Read), expected(mib_pages));
        assert_eq!(end(&with(ept, 3), Read), expected(gib_pages));
    }
}

#[test]
fn address_bits_below_a_large_page_are_reserved() {
    for (leaf, size) in [(2, 21), (3, 30)] {
        for bit in 12..size {
            let rig = rig(4, leaf);
            rig.edit(GPA, leaf, 1 << bit, 0);
            assert_eq!(end(&rig, Read), Misconfigured, "bit {bit}");
        }
    }
}

#[test]
fn address_bits_above_the_physical_width_are_reserved_on_every_level() {
    for (levels, leaf, level) in ways() {
        for phys_bits in [36, 46, 52] {
            for bit in 36..52 {
                let rig = with(Ept { levels, phys_bits, ..Ept::new() }, leaf);
                rig.edit(GPA, level, 1 << bit, 0);
                if bit >= phys_bits {
                    assert_eq!(end(&rig, Read), Misconfigured, "level {level} bit {bit}");
                } else if level == leaf {
                    let reached = rig.touch(GPA, Read).unwrap();
                    assert_eq!(reached.hpa, (HPA + GPA % bytes(leaf)) | 1 << bit);
                } else {
                    assert!(matches!(rig.touch(GPA, Read), Err(Exit::Bus { .. })));
                }
            }
        }
    }
}

#[test]
fn other_bits_have_no_meaning() {
    for (levels, leaf, level) in ways() {
        let mut bits: Vec<u32> = vec![10, 11];
        bits.extend(52..64);
        // D in a pointer, bit 7 in a 4 KiB leaf.
        bits.extend((level > leaf).then_some(9));
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
fn a_misconfiguration_comes_before_what_is_not_allowed_above_it() {
    for (levels, leaf, level) in ways().into_iter().filter(|way| way.2 < way.0.into()) {
        let rig = rig(levels, leaf);
        rig.edit(GPA, levels.into(), 0, W);
        rig.edit(GPA, level, 1 << 51, 0);
        assert_eq!(end(&rig, Write), Misconfigured, "level {level}");
    }
}

#[test]
fn an_absent_entry_ends_the_way_before_a_misconfiguration_below_it() {
    let rig = rig(4, 1);
    rig.edit(GPA, 1, 1 << 51, 0);
    rig.edit(GPA, 2, 0, R | W | X);
    assert_eq!(end(&rig, Read), Violation(R));
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
fn without_accessed_and_dirty_flags_no_entry_is_written() {
    for (levels, leaf, _) in ways() {
        let rig = with(Ept { levels, ad: false, ..Ept::new() }, leaf);
        let entries = || (leaf..=levels.into()).map(|level| rig.get(GPA, level)).collect();
        let before: Vec<u64> = entries();
        for access in ACCESSES {
            rig.touch(GPA, access).unwrap();
        }
        assert_eq!(before, entries());
    }
}

#[test]
fn without_accessed_and_dirty_flags_bits_eight_and_nine_have_no_meaning() {
    for (levels, leaf, level) in ways() {
        for bit in [8, 9] {
            let rig = with(Ept { levels, ad: false, ..Ept::new() }, leaf);
            rig.edit(GPA, level, 1 << bit, 0);
            assert_eq!(end(&rig, Write), Fine);
        }
    }
}

#[test]
fn an_access_that_is_not_allowed_leaves_the_leaf_as_it_is() {
    let rig = rig(4, 1);
    rig.edit(GPA, 1, 0, W);
    let before = rig.get(GPA, 1);
    rig.touch(GPA, Write).unwrap_err();
    assert_eq!(rig.get(GPA, 1), before);
}

#[test]
fn an_address_that_four_levels_do_not_reach_is_a_violation() {
    let rig = rig(4, 1);
    let gpa = GPA | 1 << 50;
    let qualification = FINAL | R;
    assert_eq!(rig.touch(gpa, Read), Err(Exit::EptViolation { qualification, gpa }));
    let mut rig = Rig::new(Nested::Ept(Ept { levels: 5, ..Ept::new() }));
    rig.map(gpa, HPA, 1);
    assert_eq!(rig.touch(gpa, Read).unwrap().hpa, HPA + GPA % 0x1000);
}
