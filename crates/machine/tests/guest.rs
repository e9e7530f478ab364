//! The rules of the guest's own paging on top of nested tables, one test each.

mod support;

use machine::Access::{Fetch, Read, Write};
use machine::{Access, Ept, Exit, Long, Nested, Npt, npt::Fault};
use support::{ACCESSES, Rig, TABLES, Vendor, bytes};

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const XD: u64 = 1 << 63;
const ALL: u64 = PRESENT | WRITABLE | USER;
const SUPERVISOR: u64 = PRESENT | WRITABLE;

/// Flags of the extended page tables.
const EPT_ACCESSED: u64 = 1 << 8;
const EPT_DIRTY: u64 = 1 << 9;

const LINEAR: u64 = 0x7f12_b456_7123;
const GPA: u64 = 0x3_c000_0000;
const HPA: u64 = 0x5_8000_0000;
const VENDORS: [Vendor; 2] = [Vendor::Amd, Vendor::Intel];

/// `LINEAR` at `GPA` by a guest's leaf of a level, `GPA` at `HPA` by a nested one.
fn rig(vendor: Vendor, leaf: u32, bits: u64) -> Rig {
    rig_in(Rig::of(vendor), leaf, 3, bits)
}

fn rig_in(mut rig: Rig, leaf: u32, nested_leaf: u32, bits: u64) -> Rig {
    rig.guest_map(LINEAR, GPA, leaf, bits);
    rig.map(GPA, HPA, nested_leaf);
    rig
}

fn ept_without_flags() -> Rig {
    Rig::new(Nested::Ept(Ept { ad: false, ..Ept::new() }))
}

/// The guest's fault code, if it faulted.
fn code(rig: &Rig, long: Long, access: Access) -> Option<u32> {
    match rig.once(&rig.paged(long), LINEAR, access) {
        Ok(_) => None,
        Err(Exit::PageFault { code, address }) => {
            assert_eq!(address, LINEAR);
            Some(code)
        }
        Err(other) => panic!("{other:?}"),
    }
}

fn user(rig: &Rig) -> Long {
    Long { user: true, ..Long::new(rig.cr3) }
}

/// A supervisor without SMEP and SMAP.
fn plain(rig: &Rig) -> Long {
    Long { smep: false, smap: false, ..Long::new(rig.cr3) }
}

#[test]
fn the_effective_page_is_the_smaller_of_the_two() {
    for vendor in VENDORS {
        for leaf in 1..=3 {
            for nested_leaf in 1..=3 {
                let mut rig = Rig::of(vendor);
                let gpa = GPA + LINEAR % bytes(leaf);
                rig.guest_map(LINEAR, GPA, leaf, ALL);
                rig.map(gpa, HPA, nested_leaf);
                let reached = rig.once(&rig.paged(user(&rig)), LINEAR, Read).unwrap();
                assert_eq!(reached.gpa, gpa);
                assert_eq!(reached.hpa, HPA + gpa % bytes(nested_leaf));
                assert_eq!(reached.page, bytes(leaf.min(nested_leaf)));
            }
        }
    }
}

#[test]
fn the_guest_may_have_five_levels() {
    for vendor in VENDORS {
        let mut rig = rig(vendor, 1, ALL);
        let top = rig.guest_table();
        let linear = LINEAR | 3 << 48;
        rig.set(top - TABLES + 3 * 8, rig.cr3 | ALL);
        let long = Long { levels: 5, cr3: top, user: true, ..Long::new(0) };
        assert_eq!(rig.once(&rig.paged(long), linear, Read).unwrap().gpa, GPA + 0x123);
        let end = rig.once(&rig.paged(long), LINEAR, Read);
        assert_eq!(end, Err(Exit::PageFault { code: 4, address: LINEAR }));
    }
}

#[test]
fn low_bits_of_cr3_are_no_address() {
    let rig = rig(Vendor::Amd, 1, ALL);
    let long = Long { cr3: rig.cr3 | 0x18, ..user(&rig) };
    assert_eq!(code(&rig, long, Read), None);
}

#[test]
fn an_absent_entry_of_any_level_faults_without_p() {
    for vendor in VENDORS {
        for level in 1..=4 {
            for (access, expected) in [(Read, 0x4), (Write, 0x6), (Fetch, 0x14)] {
                let rig = rig(vendor, 1, ALL);
                rig.guest_edit(LINEAR, level, 1 << 51, PRESENT);
                assert_eq!(code(&rig, user(&rig), access), Some(expected));
                assert_eq!(code(&rig, plain(&rig), access), Some(expected & !4));
            }
        }
    }
}

/// What the guest's entries and registers permit: one row a rule. Each bit is taken from one level
/// at a time.
#[test]
fn permissions_are_those_of_all_levels_and_of_the_registers() {
    let long = Long::new(0);
    let user = Long { user: true, ..long };
    let off = Long { smep: false, smap: false, ..long };
    let no_wp = Long { wp: false, ..off };
    // Rule, state, bits set, bits cleared, codes for read, write and fetch.
    type Row = (&'static str, Long, u64, u64, [Option<u32>; 3]);
    let rows: [Row; 13] = [
        ("users do all to user pages", user, 0, 0, [None, None, None]),
        ("users stay out of others", user, 0, USER, [Some(5), Some(7), Some(0x15)]),
        ("users obey read-only", user, 0, WRITABLE, [None, Some(7), None]),
        ("users obey XD", user, XD, 0, [None, None, Some(0x15)]),
        ("supervisors obey XD", off, XD, USER, [None, None, Some(0x11)]),
        ("supervisors obey read-only with WP", off, 0, WRITABLE, [None, Some(3), None]),
        ("and not without", no_wp, 0, WRITABLE, [None, None, None]),
        ("without WP users still do", Long { wp: false, ..user }, 0, WRITABLE, {
            [None, Some(7), None]
        }),
        ("SMEP", Long { smep: true, ..off }, 0, 0, [None, None, Some(0x11)]),
        ("SMAP", Long { smap: true, ..off }, 0, 0, [Some(1), Some(3), None]),
        ("SMAP without WP", Long { smap: true, ..no_wp }, 0, 0, [Some(1), Some(3), None]),
        ("both spare supervisor pages", long, 0, USER, [None, None, None]),
        ("neither is about users", user, 0, 0, [None, None, None]),
    ];
    for vendor in VENDORS {
        for (rule, state, set, clear, codes) in rows {
            for level in 1..=4 {
                let rig = rig(vendor, 1, ALL);
                rig.guest_edit(LINEAR, level, set, clear);
                let state = Long { cr3: rig.cr3, ..state };
                let found = ACCESSES.map(|access| code(&rig, state, access));
                assert_eq!(found, codes, "{rule}, {vendor:?} level {level}");
            }
        }
    }
}

#[test]
fn the_code_says_fetch_only_with_nxe_or_smep() {
    for vendor in VENDORS {
        let rig = rig(vendor, 1, ALL);
        rig.guest_edit(LINEAR, 1, 0, PRESENT);
        for (nx, smep) in [(false, false), (true, false), (false, true), (true, true)] {
            let expected = if nx || smep { 0x10 } else { 0 };
            assert_eq!(code(&rig, Long { nx, smep, ..plain(&rig) }, Fetch), Some(expected));
        }
    }
}

#[test]
fn reserved_bits_fault_with_p_and_rsv_on_every_level() {
    for vendor in VENDORS {
        for level in 1..=4 {
            for bit in 40..52 {
                let rig = rig(vendor, 1, ALL);
                let long = Long { phys_bits: 44, ..user(&rig) };
                rig.guest_edit(LINEAR, level, 1 << bit, 0);
                match bit {
                    44.. => assert_eq!(code(&rig, long, Read), Some(0xd), "{level} {bit}"),
                    // A good address with nothing there for the nested tables.
                    _ => assert!(!matches!(
                        rig.once(&rig.paged(long), LINEAR, Read),
                        Err(Exit::PageFault { .. }) | Ok(_)
                    )),
                }
            }
        }
        // The large bit where there are no such pages, and XD without NXE.
        for (level, bit, long) in [
            (4, LARGE, Long::new(0)),
            (3, LARGE, Long { gib_pages: false, ..Long::new(0) }),
            (4, XD, Long { nx: false, ..Long::new(0) }),
            (3, XD, Long { nx: false, ..Long::new(0) }),
            (2, XD, Long { nx: false, ..Long::new(0) }),
            (1, XD, Long { nx: false, ..Long::new(0) }),
        ] {
            let rig = rig(vendor, 1, ALL);
            rig.guest_edit(LINEAR, level, bit, 0);
            let long = Long { cr3: rig.cr3, user: true, ..long };
            assert_eq!(code(&rig, long, Read), Some(0xd), "level {level}");
        }
    }
}

#[test]
fn address_bits_below_a_large_page_are_reserved_but_for_pat() {
    for vendor in VENDORS {
        for (leaf, size) in [(2, 21), (3, 30)] {
            for bit in 12..size {
                let rig = rig(vendor, leaf, ALL);
                rig.guest_edit(LINEAR, leaf, 1 << bit, 0);
                let expected = (bit != 12).then_some(0xd);
                assert_eq!(code(&rig, user(&rig), Read), expected, "bit {bit}");
            }
        }
    }
}

#[test]
fn bit_eight_of_pointers_above_level_two_is_reserved_on_amd_only() {
    for vendor in VENDORS {
        for level in 2..=4 {
            let rig = rig(vendor, 1, ALL);
            rig.guest_edit(LINEAR, level, 1 << 8, 0);
            let reserved = vendor == Vendor::Amd && level > 2;
            assert_eq!(code(&rig, user(&rig), Read), reserved.then_some(0xd));
        }
    }
}

#[test]
fn the_guests_flags_are_set_in_the_guests_tables() {
    for vendor in VENDORS {
        for leaf in 1..=3 {
            for access in ACCESSES {
                let rig = rig(vendor, leaf, ALL);
                assert_eq!(code(&rig, user(&rig), access), None);
                for level in leaf..=4 {
                    let dirty = level == leaf && access == Write;
                    let flags = ACCESSED | if dirty { DIRTY } else { 0 };
                    assert_eq!(rig.guest_get(LINEAR, level) & (ACCESSED | DIRTY), flags);
                }
            }
        }
    }
}

#[test]
fn an_access_the_guest_forbids_leaves_the_leaf_and_what_is_below_alone() {
    for vendor in VENDORS {
        let rig = rig(vendor, 1, PRESENT | USER);
        let nested = rig.get(GPA, 3);
        assert_eq!(code(&rig, user(&rig), Write), Some(7));
        assert_eq!(rig.guest_get(LINEAR, 1) & (ACCESSED | DIRTY), 0);
        assert_eq!(rig.get(GPA, 3), nested);
    }
}

#[test]
fn the_guests_page_fault_comes_before_the_nested_fault_of_the_final_address() {
    for vendor in VENDORS {
        let mut rig = Rig::of(vendor);
        rig.guest_map(LINEAR, GPA, 1, PRESENT | USER);
        assert_eq!(code(&rig, user(&rig), Write), Some(7), "nothing is at GPA");
        assert!(!matches!(
            rig.once(&rig.paged(user(&rig)), LINEAR, Read),
            Ok(_) | Err(Exit::PageFault { .. })
        ));
    }
}

#[test]
fn the_guests_dirty_flag_is_set_before_the_final_address_is_translated() {
    for vendor in VENDORS {
        let mut rig = Rig::of(vendor);
        rig.guest_map(LINEAR, GPA, 1, ALL);
        rig.once(&rig.paged(user(&rig)), LINEAR, Write).unwrap_err();
        assert_eq!(rig.guest_get(LINEAR, 1) & (ACCESSED | DIRTY), ACCESSED | DIRTY);
    }
}

#[test]
fn npt_says_which_address_was_being_translated() {
    let rig = rig(Vendor::Amd, 1, ALL);
    // The final address.
    rig.edit(GPA, 3, 0, PRESENT);
    let gpa = GPA + 0x123;
    let end = rig.once(&rig.paged(user(&rig)), LINEAR, Read);
    assert_eq!(end, Err(Exit::NestedFault(Fault { code: 0x1_0000_0004, gpa })));
    // The guest's tables, of every level: a write, with the address of the entry.
    for level in 1..=4 {
        let at = rig.guest_at(LINEAR, level);
        rig.edit(at, 1, 0, PRESENT);
        for access in ACCESSES {
            let end = rig.once(&rig.paged(user(&rig)), LINEAR, access);
            assert_eq!(end, Err(Exit::NestedFault(Fault { code: 0x2_0000_0006, gpa: at })));
        }
        rig.edit(at, 1, PRESENT, 0);
    }
}

#[test]
fn npt_walks_of_the_guests_tables_count_as_writes() {
    let rig = rig(Vendor::Amd, 1, ALL | ACCESSED);
    for level in 1..=4 {
        rig.guest_edit(LINEAR, level, ACCESSED, 0);
    }
    for level in 1..=4 {
        let at = rig.guest_at(LINEAR, level);
        rig.edit(at, 1, 0, WRITABLE);
        let end = rig.once(&rig.paged(user(&rig)), LINEAR, Read);
        let expected = Fault { code: 0x2_0000_0007, gpa: at };
        assert_eq!(end, Err(Exit::NestedFault(expected)), "although A is set already");
        rig.edit(at, 1, WRITABLE, 0);
    }
    rig.once(&rig.paged(user(&rig)), LINEAR, Read).unwrap();
    for level in 1..=4 {
        let leaf = rig.get(rig.guest_at(LINEAR, level), 1);
        assert_eq!(leaf & (ACCESSED | DIRTY), ACCESSED | DIRTY, "level {level}");
    }
    assert_eq!(rig.get(GPA, 3) & DIRTY, 0, "the page itself was only read");
}

#[test]
fn npt_no_execute_on_a_page_of_the_guests_tables_is_harmless() {
    let rig = rig(Vendor::Amd, 1, ALL);
    for level in 1..=4 {
        rig.edit(rig.guest_at(LINEAR, level), 1, 1 << 63, 0);
    }
    assert_eq!(code(&rig, user(&rig), Fetch), None);
}

#[test]
fn npt_pages_of_the_guests_tables_must_be_user_pages() {
    let rig = rig(Vendor::Amd, 1, ALL);
    let gpa = rig.guest_at(LINEAR, 2);
    rig.edit(gpa, 1, 0, USER);
    let end = rig.once(&rig.long(), LINEAR, Read);
    assert_eq!(end, Err(Exit::NestedFault(Fault { code: 0x2_0000_0007, gpa })));
}

#[test]
fn npt_knows_nothing_of_the_guests_supervisor() {
    // SMEP, SMAP and WP of the guest do not reach the nested tables, whose pages are user pages.
    let rig = rig(Vendor::Amd, 1, SUPERVISOR);
    let long = Long { wp: false, ..Long::new(rig.cr3) };
    for access in ACCESSES {
        assert_eq!(code(&rig, long, access), None);
    }
    rig.edit(GPA, 3, 0, WRITABLE);
    let end = rig.once(&rig.paged(long), LINEAR, Write);
    let gpa = GPA + 0x123;
    assert_eq!(end, Err(Exit::NestedFault(Fault { code: 0x1_0000_0007, gpa })));
}

/// The low 9 bits of the qualification for an entry of the guest's tables, whose page is mapped
/// with `bits`.
fn table_violation(rig: &Rig, level: u32, bits: u64, access: Access) -> Option<u64> {
    let at = rig.guest_at(LINEAR, level);
    rig.edit(at, 1, bits, 7);
    let end = rig.once(&rig.paged(user(rig)), LINEAR, access);
    rig.edit(at, 1, 7, 0);
    match end {
        Ok(_) => None,
        Err(Exit::EptViolation { qualification, gpa }) => {
            assert_eq!(gpa, at);
            Some(qualification)
        }
        Err(other) => panic!("{other:?}"),
    }
}

#[test]
fn ept_says_whether_the_final_address_was_being_translated() {
    let rig = rig(Vendor::Intel, 1, ALL);
    rig.edit(GPA, 3, 0, 7);
    let gpa = GPA + 0x123;
    let end = rig.once(&rig.paged(user(&rig)), LINEAR, Read);
    assert_eq!(end, Err(Exit::EptViolation { qualification: 0x181, gpa }));
    for level in 1..=4 {
        // Bits 0, 1 and 7, not 8.
        assert_eq!(table_violation(&rig, level, 0, Read), Some(0x83));
    }
}

#[test]
fn ept_with_flags_takes_reads_of_the_guests_tables_for_writes() {
    let rig = rig(Vendor::Intel, 1, ALL);
    for level in 1..=4 {
        rig.guest_edit(LINEAR, level, ACCESSED, 0);
    }
    for level in 1..=4 {
        // Readable and executable, not writable.
        assert_eq!(table_violation(&rig, level, 5, Read), Some(0x83 | 5 << 3));
        assert_eq!(table_violation(&rig, level, 5, Fetch), Some(0x83 | 5 << 3));
    }
    assert_eq!(code(&rig, user(&rig), Read), None);
    for level in 1..=4 {
        let leaf = rig.get(rig.guest_at(LINEAR, level), 1);
        assert_eq!(leaf & (EPT_ACCESSED | EPT_DIRTY), EPT_ACCESSED | EPT_DIRTY);
    }
    assert_eq!(rig.get(GPA, 3) & EPT_DIRTY, 0);
}

#[test]
fn ept_without_flags_reads_the_guests_tables_and_writes_flags_alone() {
    let rig = rig_in(ept_without_flags(), 1, 3, ALL);
    for level in 1..=4 {
        rig.guest_edit(LINEAR, level, ACCESSED, 0);
    }
    for level in 1..=4 {
        // Read-only is enough while the flags stand.
        assert_eq!(table_violation(&rig, level, 1, Read), None);
        // Not readable at all.
        assert_eq!(table_violation(&rig, level, 4, Read), Some(0x81 | 4 << 3));
        // Accessed has to be set.
        rig.guest_edit(LINEAR, level, 0, ACCESSED);
        assert_eq!(table_violation(&rig, level, 1, Read), Some(0x82 | 1 << 3));
        rig.guest_edit(LINEAR, level, ACCESSED, 0);
    }
    // Dirty has to be set, in the leaf.
    assert_eq!(table_violation(&rig, 1, 1, Write), Some(0x82 | 1 << 3));
    assert_eq!(table_violation(&rig, 2, 1, Write), None);
    assert_eq!(code(&rig, user(&rig), Write), None);
    assert_eq!(rig.guest_get(LINEAR, 1) & (ACCESSED | DIRTY), ACCESSED | DIRTY);
    assert_eq!(rig.get(GPA, 3) & (EPT_ACCESSED | EPT_DIRTY), 0);
}

#[test]
fn ept_does_not_need_pages_of_the_guests_tables_to_be_executable() {
    let rig = rig(Vendor::Intel, 1, ALL);
    for level in 1..=4 {
        assert_eq!(table_violation(&rig, level, 3, Fetch), None);
    }
}

#[test]
fn ept_execute_only_pages_can_be_fetched_from_and_not_read() {
    let rig = rig(Vendor::Intel, 1, ALL);
    rig.edit(GPA, 3, 4, 7);
    assert_eq!(code(&rig, user(&rig), Fetch), None);
    let gpa = GPA + 0x123;
    let end = rig.once(&rig.paged(user(&rig)), LINEAR, Read);
    assert_eq!(end, Err(Exit::EptViolation { qualification: 0x181 | 4 << 3, gpa }));
}

#[test]
fn ept_misconfigurations_are_met_on_the_way_to_the_guests_tables() {
    let rig = rig(Vendor::Intel, 1, ALL);
    for level in 1..=4 {
        let gpa = rig.guest_at(LINEAR, level);
        rig.edit(gpa, 1, 0, 1);
        let end = rig.once(&rig.paged(user(&rig)), LINEAR, Read);
        assert_eq!(end, Err(Exit::EptMisconfiguration { gpa }));
        rig.edit(gpa, 1, 1, 0);
    }
}

#[test]
fn tables_of_the_guest_may_be_in_large_nested_pages() {
    for vendor in VENDORS {
        // All the guest's tables lie in one 2 MiB page.
        let mut small = rig(vendor, 1, ALL);
        small.edit(TABLES, 2, 0, u64::MAX);
        small.map(TABLES, 0, 2);
        assert_eq!(code(&small, user(&small), Write), None);
        assert_eq!(small.guest_get(LINEAR, 1) & DIRTY, DIRTY);
    }
}

#[test]
fn a_page_of_the_guests_tables_without_memory_is_said_so() {
    let rig = rig_in(Rig::new(Nested::Npt(Npt::new())), 1, 3, ALL);
    let at = rig.guest_at(LINEAR, 3);
    rig.edit(at, 1, 1 << 40, 0);
    let address = at - TABLES + (1 << 40);
    let end = rig.once(&rig.paged(user(&rig)), LINEAR, Read);
    assert_eq!(end, Err(Exit::Bus { address }));
}
