//! The rules of the caches, one test each: what a processor may go on using, and what it must not.
//!
//! What it *may* is shown by its happening; what it *must* by its never not happening, over many
//! seeds.

mod support;

use std::collections::BTreeSet;

use machine::Access::{Fetch, Read, Write};
use machine::{Access, Context, Counts, Ept, Exit, Habits, Keep, Log, Long, Nested, Processor};
use support::{Rig, TABLES, Vendor, index};

const VENDORS: [Vendor; 2] = [Vendor::Amd, Vendor::Intel];
const GPA: u64 = 0x12_b456_7000;
/// The page beside it, below the same upper entries.
const BESIDE: u64 = GPA + 0x1000;
const OLD: u64 = 0x3_4000_0000;
const NEW: u64 = 0x4_8000_0000;
const LINEAR: u64 = 0x7f12_b456_7000;
const NX: u64 = 1 << 63;
const USER: u64 = 7;
const GUEST_DIRTY: u64 = 1 << 6;
const GLOBAL: u64 = 1 << 8;
const SEEDS: u64 = 40;
const TRIES: usize = 50;

/// A, D of the nested leaf.
fn flags(vendor: Vendor) -> (u64, u64) {
    match vendor {
        Vendor::Amd => (1 << 5, 1 << 6),
        Vendor::Intel => (1 << 8, 1 << 9),
    }
}

/// `GPA` at `OLD`.
fn rig(vendor: Vendor) -> Rig {
    let mut rig = Rig::of(vendor);
    rig.map(GPA, OLD, 1);
    rig
}

/// `LINEAR` at `GPA` in the guest's tables, and `GPA` at `OLD`.
fn long_rig(vendor: Vendor) -> Rig {
    let mut rig = rig(vendor);
    rig.guest_map(LINEAR, GPA, 1, USER);
    rig
}

fn user(rig: &Rig) -> Context {
    rig.paged(Long { user: true, ..Long::new(rig.cr3) })
}

fn oldest() -> Processor {
    Processor::with_habits(0, Habits::oldest())
}

/// Reads often: the pages reached.
fn reads(processor: &mut Processor, rig: &Rig, context: &Context, address: u64) -> BTreeSet<u64> {
    (0..TRIES).map(|_| processor.translate(&rig.ram, context, address, Read).unwrap().hpa).collect()
}

/// What all seeds together reach: `prepare` learns and changes, then `address` is read.
fn reached(
    context: &Context,
    address: u64,
    make: impl Fn() -> Rig,
    prepare: impl Fn(&mut Processor, &mut Rig),
) -> BTreeSet<u64> {
    let mut all = BTreeSet::new();
    for seed in 0..SEEDS {
        let mut rig = make();
        let mut processor = Processor::new(seed);
        prepare(&mut processor, &mut rig);
        all.extend(reads(&mut processor, &rig, context, address));
    }
    all
}

fn set<const N: usize>(pages: [u64; N]) -> BTreeSet<u64> {
    BTreeSet::from(pages)
}

/// Points the nested leaf of `gpa` elsewhere.
fn move_to(rig: &Rig, gpa: u64, hpa: u64) {
    rig.edit(gpa, 1, hpa, support::ADDRESS);
}

// What is used, and until when.

#[test]
fn a_translation_is_used_after_the_tables_have_changed_and_not_always() {
    for vendor in VENDORS {
        let context = rig(vendor).off();
        let all = reached(
            &context,
            GPA,
            || rig(vendor),
            |processor, rig| {
                reads(processor, rig, &context, GPA);
                move_to(rig, GPA, NEW);
            },
        );
        assert_eq!(all, set([OLD, NEW]), "{vendor:?}");
    }
}

#[test]
fn a_translation_is_used_after_its_entry_is_gone() {
    for vendor in VENDORS {
        let rig = rig(vendor);
        let mut processor = oldest();
        reads(&mut processor, &rig, &rig.off(), GPA);
        rig.edit(GPA, 1, 0, u64::MAX);
        assert_eq!(reads(&mut processor, &rig, &rig.off(), GPA), set([OLD]));
    }
}

#[test]
fn several_translations_of_one_address_are_kept_and_any_is_used() {
    for vendor in VENDORS {
        let context = rig(vendor).off();
        let places = [OLD, NEW, NEW + 0x1000, NEW + 0x2000];
        let mut most = 0;
        for seed in 0..SEEDS {
            let rig = rig(vendor);
            let mut processor = Processor::new(seed);
            for place in places {
                move_to(&rig, GPA, place);
                reads(&mut processor, &rig, &context, GPA);
            }
            rig.edit(GPA, 4, 0, 7);
            let mut seen = BTreeSet::new();
            for _ in 0..TRIES {
                // Once in a while it looks at the tables and finds nothing.
                let end = processor.translate(&rig.ram, &context, GPA, Read);
                seen.extend(end.ok().filter(|end| end.cached).map(|end| end.hpa));
            }
            most = most.max(seen.len());
        }
        assert!(most >= 3, "{vendor:?}: at most {most} at once");
    }
}

#[test]
fn the_oldest_is_kept_by_habit() {
    for vendor in VENDORS {
        let rig = rig(vendor);
        let mut processor = oldest();
        for place in [OLD, NEW] {
            move_to(&rig, GPA, place);
            assert_eq!(reads(&mut processor, &rig, &rig.off(), GPA), set([OLD]));
        }
    }
}

/// A read leaves a clean translation behind, and a write another, which is the one that writes.
#[test]
fn the_oldest_that_serves_the_access_is_used_by_habit() {
    for vendor in VENDORS {
        let rig = long_rig(vendor);
        for (context, address) in [(rig.off(), GPA), (user(&rig), LINEAR)] {
            let mut processor = oldest();
            move_to(&rig, GPA, OLD);
            for access in [Read, Write] {
                processor.translate(&rig.ram, &context, address, access).unwrap();
            }
            move_to(&rig, GPA, NEW);
            let end = processor.translate(&rig.ram, &context, address, Write).unwrap();
            assert_eq!((end.hpa, end.cached), (OLD, true), "{vendor:?} {address:#x}");
        }
    }
}

/// However old the others are: a walk begins as near to the page as it can.
#[test]
fn the_lowest_upper_entry_is_used_by_habit() {
    for vendor in VENDORS {
        for level in 2..=4 {
            let mut rig = rig(vendor);
            rig.map(BESIDE, OLD, 1);
            let mut processor = oldest();
            reads(&mut processor, &rig, &rig.off(), GPA);
            rig.set(rig.at(GPA, level), 0);
            rig.map(BESIDE, NEW, 1);
            let seen = reads(&mut processor, &rig, &rig.off(), BESIDE);
            assert_eq!(seen, set([OLD]), "{vendor:?} level {level}");
        }
    }
}

#[test]
fn nothing_is_kept_by_habit() {
    for vendor in VENDORS {
        let rig = rig(vendor);
        let mut processor = Processor::with_habits(0, Habits::nothing());
        for place in [OLD, NEW] {
            move_to(&rig, GPA, place);
            assert_eq!(reads(&mut processor, &rig, &rig.off(), GPA), set([place]));
        }
        assert_eq!(processor.cached(), (0, 0));
        assert_eq!(processor.counts().hits, 0);
    }
}

#[test]
fn another_processor_knows_nothing_of_it() {
    for vendor in VENDORS {
        let rig = rig(vendor);
        let (mut first, mut second) = (oldest(), oldest());
        reads(&mut first, &rig, &rig.off(), GPA);
        move_to(&rig, GPA, NEW);
        assert_eq!(reads(&mut second, &rig, &rig.off(), GPA), set([NEW]));
        assert_eq!(reads(&mut first, &rig, &rig.off(), GPA), set([OLD]));
    }
}

#[test]
fn forgetting_everything_forgets_every_kind() {
    for vendor in VENDORS {
        let context = user(&long_rig(vendor));
        let all = reached(
            &context,
            LINEAR,
            || long_rig(vendor),
            |processor, rig| {
                reads(processor, rig, &context, LINEAR);
                let off = rig.off();
                reads(processor, rig, &off, GPA);
                move_to(rig, GPA, NEW);
                processor.invalidate_all();
                assert_eq!(processor.cached(), (0, 0));
            },
        );
        assert_eq!(all, set([NEW]));
    }
}

// AMD's tags.

#[test]
fn amd_flushing_the_tag_forgets_all_that_has_it_and_nothing_else() {
    let context = user(&long_rig(Vendor::Amd));
    let other = Context { tag: 2, ..context };
    for seed in 0..SEEDS {
        let rig = long_rig(Vendor::Amd);
        let mut processor = Processor::new(seed);
        reads(&mut processor, &rig, &context, LINEAR);
        processor.invalidate_tag(2);
        assert_ne!(processor.cached().0, 0);
        reads(&mut processor, &rig, &other, LINEAR);
        move_to(&rig, GPA, NEW);
        processor.invalidate_tag(1);
        assert_eq!(reads(&mut processor, &rig, &context, LINEAR), set([NEW]));
    }
    let rig = long_rig(Vendor::Amd);
    let mut processor = oldest();
    reads(&mut processor, &rig, &other, LINEAR);
    move_to(&rig, GPA, NEW);
    processor.invalidate_tag(1);
    assert_eq!(reads(&mut processor, &rig, &other, LINEAR), set([OLD]));
}

#[test]
fn amd_a_new_root_goes_on_with_what_the_old_one_said_until_the_tag_is_flushed() {
    let mut rig = rig(Vendor::Amd);
    let root = rig.frame();
    rig.map_under(root, GPA, NEW, 1);
    let before = rig.off();
    let after = Context { root, ..before };
    let mut processor = oldest();
    reads(&mut processor, &rig, &before, GPA);
    assert_eq!(reads(&mut processor, &rig, &after, GPA), set([OLD]));
    processor.invalidate_root(before.root);
    assert_eq!(reads(&mut processor, &rig, &after, GPA), set([OLD]), "no such thing on AMD");
    processor.invalidate_tag(before.tag);
    assert_eq!(reads(&mut processor, &rig, &after, GPA), set([NEW]));
}

#[test]
fn amd_a_new_root_may_even_be_walked_through_the_old_ones_upper_entries() {
    let mut rig = rig(Vendor::Amd);
    rig.map(BESIDE, OLD, 1);
    let root = rig.frame();
    rig.map_under(root, BESIDE, NEW, 1);
    let before = rig.off();
    let mut processor = oldest();
    reads(&mut processor, &rig, &before, GPA);
    assert_eq!(reads(&mut processor, &rig, &Context { root, ..before }, BESIDE), set([OLD]));
}

#[test]
fn amd_a_new_tag_starts_with_nothing() {
    let rig = rig(Vendor::Amd);
    let mut processor = oldest();
    reads(&mut processor, &rig, &rig.off(), GPA);
    move_to(&rig, GPA, NEW);
    let other = Context { tag: 2, ..rig.off() };
    assert_eq!(reads(&mut processor, &rig, &other, GPA), set([NEW]));
}

#[test]
fn amd_paging_and_not_paging_do_not_share_linear_addresses() {
    for seed in 0..SEEDS {
        let mut rig = long_rig(Vendor::Amd);
        rig.guest_map(BESIDE, GPA, 1, USER);
        rig.map(BESIDE, NEW, 1);
        let mut processor = Processor::new(seed);
        assert_eq!(reads(&mut processor, &rig, &user(&rig), BESIDE), set([OLD]));
        assert_eq!(reads(&mut processor, &rig, &rig.off(), BESIDE), set([NEW]));
        assert_eq!(reads(&mut processor, &rig, &user(&rig), BESIDE), set([OLD]));
    }
}

// Intel's tags.

#[test]
fn intel_guest_physical_mappings_have_no_vpid() {
    let rig = rig(Vendor::Intel);
    let mut processor = oldest();
    reads(&mut processor, &rig, &rig.off(), GPA);
    move_to(&rig, GPA, NEW);
    let other = Context { tag: 2, ..rig.off() };
    assert_eq!(reads(&mut processor, &rig, &other, GPA), set([OLD]));
    processor.invalidate_tag(1);
    processor.invalidate_tag(2);
    assert_eq!(reads(&mut processor, &rig, &other, GPA), set([OLD]), "INVVPID is not for them");
    processor.invalidate_root(rig.root);
    assert_eq!(reads(&mut processor, &rig, &other, GPA), set([NEW]));
}

#[test]
fn intel_mappings_of_one_root_are_not_used_under_another() {
    for seed in 0..SEEDS {
        let mut rig = long_rig(Vendor::Intel);
        let root = rig.frame();
        for level in 1..=4 {
            let table = rig.guest_at(LINEAR, level) & !0xfff;
            rig.map_under(root, table, table - TABLES, 1);
        }
        rig.map_under(root, GPA, NEW, 1);
        let mut processor = Processor::new(seed);
        let before = user(&rig);
        let after = Context { root, ..before };
        assert_eq!(reads(&mut processor, &rig, &before, LINEAR), set([OLD]));
        assert_eq!(reads(&mut processor, &rig, &after, LINEAR), set([NEW]));
        assert_eq!(reads(&mut processor, &rig, &before, LINEAR), set([OLD]));
    }
}

#[test]
fn intel_flushing_one_root_leaves_the_others() {
    let rig = rig(Vendor::Intel);
    let mut processor = oldest();
    reads(&mut processor, &rig, &rig.off(), GPA);
    move_to(&rig, GPA, NEW);
    processor.invalidate_root(rig.root + 0x1000);
    assert_eq!(reads(&mut processor, &rig, &rig.off(), GPA), set([OLD]));
}

#[test]
fn intel_flushing_a_root_forgets_combined_mappings_of_every_vpid() {
    for seed in 0..SEEDS {
        let rig = long_rig(Vendor::Intel);
        let mut processor = Processor::new(seed);
        let contexts = [user(&rig), Context { tag: 2, ..user(&rig) }];
        for context in &contexts {
            reads(&mut processor, &rig, context, LINEAR);
        }
        move_to(&rig, GPA, NEW);
        processor.invalidate_root(rig.root);
        assert_eq!(processor.cached(), (0, 0));
        for context in &contexts {
            assert_eq!(reads(&mut processor, &rig, context, LINEAR), set([NEW]));
        }
    }
}

#[test]
fn intel_combined_mappings_have_a_vpid() {
    for seed in 0..SEEDS {
        let mut rig = long_rig(Vendor::Intel);
        rig.map(BESIDE, NEW, 1);
        let mut processor = Processor::new(seed);
        reads(&mut processor, &rig, &user(&rig), LINEAR);
        // The guest's own tables change: what is cached of the nested ones stays right.
        rig.guest_map(LINEAR, BESIDE, 1, USER);
        let other = Context { tag: 2, ..user(&rig) };
        assert_eq!(reads(&mut processor, &rig, &other, LINEAR), set([NEW]));
    }
}

#[test]
fn intel_flushing_a_vpid_forgets_combined_mappings_and_keeps_guest_physical_ones() {
    let mut rig = long_rig(Vendor::Intel);
    rig.map(BESIDE, NEW, 1);
    let mut processor = oldest();
    let context = user(&rig);
    reads(&mut processor, &rig, &context, LINEAR);
    rig.guest_map(LINEAR, BESIDE, 1, USER);
    assert_eq!(reads(&mut processor, &rig, &context, LINEAR), set([OLD]));
    processor.invalidate_tag(2);
    assert_eq!(reads(&mut processor, &rig, &context, LINEAR), set([OLD]));
    processor.invalidate_tag(context.tag);
    assert_eq!(reads(&mut processor, &rig, &context, LINEAR), set([NEW]));
    // Now the nested tables change.
    move_to(&rig, BESIDE, OLD);
    processor.invalidate_tag(context.tag);
    assert_eq!(reads(&mut processor, &rig, &context, LINEAR), set([NEW]));
}

#[test]
fn intel_only_guest_physical_mappings_exist_while_the_guest_does_not_page() {
    let rig = rig(Vendor::Intel);
    let mut processor = oldest();
    reads(&mut processor, &rig, &rig.off(), GPA);
    assert_eq!(processor.cached().0, 1);
}

// Linear addresses.

#[test]
fn a_linear_translation_is_used_until_its_address_is_invalidated() {
    for vendor in VENDORS {
        let context = user(&long_rig(vendor));
        let make = || {
            let mut rig = long_rig(vendor);
            rig.map(BESIDE, NEW, 1);
            rig
        };
        let change = |processor: &mut Processor, rig: &mut Rig| {
            reads(processor, rig, &context, LINEAR);
            rig.guest_map(LINEAR, BESIDE, 1, USER);
        };
        let all = reached(&context, LINEAR, make, change);
        assert_eq!(all, set([OLD, NEW]), "{vendor:?}");
        let all = reached(&context, LINEAR, make, |processor, rig| {
            change(processor, rig);
            processor.invalidate_address(context.tag, LINEAR + 0xfff);
        });
        assert_eq!(all, set([NEW]), "{vendor:?}");
    }
}

#[test]
fn invalidating_an_address_leaves_others_and_other_tags() {
    for vendor in VENDORS {
        let mut rig = long_rig(vendor);
        rig.map(BESIDE, NEW, 1);
        let mut processor = oldest();
        let context = user(&rig);
        reads(&mut processor, &rig, &context, LINEAR);
        rig.guest_map(LINEAR, BESIDE, 1, USER);
        processor.invalidate_address(context.tag, LINEAR + 0x1000);
        processor.invalidate_address(context.tag + 1, LINEAR);
        assert_eq!(reads(&mut processor, &rig, &context, LINEAR), set([OLD]));
    }
}

#[test]
fn invalidating_an_address_forgets_the_upper_entries_used_for_it() {
    for vendor in VENDORS {
        let context = user(&long_rig(vendor));
        let make = || {
            let mut rig = long_rig(vendor);
            rig.map(BESIDE, NEW, 1);
            rig
        };
        let change = |processor: &mut Processor, rig: &mut Rig| {
            reads(processor, rig, &context, LINEAR);
            // Another table of level 1, which says something else.
            let upper = rig.guest_at(LINEAR, 2) - TABLES;
            rig.set(upper, 0);
            rig.guest_map(LINEAR, BESIDE, 1, USER);
        };
        let all = reached(&context, LINEAR, make, change);
        assert_eq!(all, set([OLD, NEW]));
        let all = reached(&context, LINEAR, make, |processor, rig| {
            change(processor, rig);
            processor.invalidate_address(context.tag, LINEAR);
        });
        assert_eq!(all, set([NEW]));
    }
}

#[test]
fn invalidating_an_address_does_not_forget_what_is_cached_of_guest_physical_ones() {
    for vendor in VENDORS {
        let rig = long_rig(vendor);
        let mut processor = oldest();
        reads(&mut processor, &rig, &user(&rig), LINEAR);
        move_to(&rig, GPA, NEW);
        processor.invalidate_address(1, LINEAR);
        processor.invalidate_address(1, GPA);
        assert_eq!(reads(&mut processor, &rig, &user(&rig), LINEAR), set([OLD]), "{vendor:?}");
    }
}

#[test]
fn invalidating_an_address_forgets_all_pieces_of_the_guests_page() {
    for vendor in VENDORS {
        // The guest's page has 2 MiB, the nested ones 4 KiB.
        let linear = LINEAR & !0x1f_ffff;
        let gpa = GPA & !0x1f_ffff;
        let make = || {
            let mut rig = Rig::of(vendor);
            rig.guest_map(linear, gpa, 2, USER);
            rig.map(gpa, OLD, 1);
            rig.map(gpa + 0x1000, OLD + 0x1000, 1);
            rig.map(gpa + (1 << 21) + 0x1000, NEW + 0x1000, 1);
            rig
        };
        let context = user(&make());
        let all = reached(&context, linear + 0x1000, make, |processor, rig| {
            reads(processor, rig, &context, linear);
            reads(processor, rig, &context, linear + 0x1000);
            rig.guest_map(linear, gpa + (1 << 21), 2, USER);
            processor.invalidate_address(context.tag, linear);
        });
        assert_eq!(all, set([NEW + 0x1000]), "{vendor:?}");
    }
}

#[test]
fn a_new_cr3_forgets_all_but_global_pages() {
    for vendor in VENDORS {
        for global in [0, GLOBAL] {
            let mut rig = long_rig(vendor);
            rig.map(BESIDE, NEW, 1);
            rig.guest_edit(LINEAR, 1, global, 0);
            let mut processor = oldest();
            let context = user(&rig);
            reads(&mut processor, &rig, &context, LINEAR);
            rig.guest_map(LINEAR, BESIDE, 1, USER);
            processor.reload_cr3(context.tag + 1);
            assert_eq!(reads(&mut processor, &rig, &context, LINEAR), set([OLD]));
            processor.reload_cr3(context.tag);
            let expected = if global == 0 { NEW } else { OLD };
            assert_eq!(reads(&mut processor, &rig, &context, LINEAR), set([expected]));
            processor.invalidate_tag(context.tag);
            assert_eq!(reads(&mut processor, &rig, &context, LINEAR), set([NEW]));
        }
    }
}

#[test]
fn a_new_cr3_does_not_forget_what_is_cached_of_guest_physical_addresses() {
    for vendor in VENDORS {
        let rig = long_rig(vendor);
        let mut processor = oldest();
        reads(&mut processor, &rig, &user(&rig), LINEAR);
        move_to(&rig, GPA, NEW);
        processor.reload_cr3(1);
        assert_eq!(reads(&mut processor, &rig, &user(&rig), LINEAR), set([OLD]));
    }
}

// Upper entries.

#[test]
fn an_upper_entry_is_used_after_it_has_changed() {
    for vendor in VENDORS {
        for level in 2..=4 {
            let make = || {
                let mut rig = rig(vendor);
                rig.map(BESIDE, OLD, 1);
                rig
            };
            let context = make().off();
            let change = |processor: &mut Processor, rig: &mut Rig| {
                reads(processor, rig, &context, GPA);
                rig.set(rig.at(GPA, level), 0);
                rig.map(BESIDE, NEW, 1);
            };
            let all = reached(&context, BESIDE, make, change);
            assert_eq!(all, set([OLD, NEW]), "{vendor:?} level {level}");
            let all = reached(&context, BESIDE, make, |processor, rig| {
                change(processor, rig);
                match vendor {
                    Vendor::Amd => processor.invalidate_tag(context.tag),
                    Vendor::Intel => processor.invalidate_root(context.root),
                }
            });
            assert_eq!(all, set([NEW]), "{vendor:?} level {level}");
        }
    }
}

#[test]
fn an_upper_entry_of_the_guests_is_used_after_it_has_changed() {
    for vendor in VENDORS {
        for level in 2..=4 {
            let beside = LINEAR + 0x1000;
            let make = || {
                let mut rig = long_rig(vendor);
                rig.guest_map(beside, GPA, 1, USER);
                rig.map(BESIDE, NEW, 1);
                rig
            };
            let context = user(&make());
            let change = |processor: &mut Processor, rig: &mut Rig| {
                reads(processor, rig, &context, LINEAR);
                rig.set(rig.guest_at(LINEAR, level) - TABLES, 0);
                rig.guest_map(beside, BESIDE, 1, USER);
            };
            let all = reached(&context, beside, make, change);
            assert_eq!(all, set([OLD, NEW]), "{vendor:?} level {level}");
            let all = reached(&context, beside, make, |processor, rig| {
                change(processor, rig);
                processor.invalidate_tag(context.tag);
            });
            assert_eq!(all, set([NEW]), "{vendor:?} level {level}");
        }
    }
}

#[test]
fn the_place_of_a_table_of_the_guests_is_used_after_the_nested_tables_have_changed() {
    for vendor in VENDORS {
        let beside = LINEAR + 0x1000;
        let make = || {
            let mut rig = long_rig(vendor);
            rig.guest_map(beside, GPA, 1, USER);
            rig.map(BESIDE, NEW, 1);
            rig
        };
        let context = user(&make());
        let change = |processor: &mut Processor, rig: &mut Rig| {
            reads(processor, rig, &context, LINEAR);
            // The host moves the page of the level 1 table, and the guest then changes the copy.
            let at = rig.guest_at(beside, 1);
            let copy = rig.frame();
            rig.set(copy + at % 0x1000, BESIDE | USER);
            move_to(rig, at, copy);
        };
        let all = reached(&context, beside, make, change);
        assert_eq!(all, set([OLD, NEW]), "{vendor:?}");
        let all = reached(&context, beside, make, |processor, rig| {
            change(processor, rig);
            match vendor {
                Vendor::Amd => processor.invalidate_tag(context.tag),
                Vendor::Intel => processor.invalidate_root(context.root),
            }
        });
        assert_eq!(all, set([NEW]), "{vendor:?}");
    }
}

#[test]
fn what_upper_entries_forbade_stays_forbidden_through_their_cached_copies() {
    // Or else a walk that begins at a cached entry would allow what the entry does not.
    for vendor in VENDORS {
        for seed in 0..SEEDS {
            let mut rig = rig(vendor);
            rig.map(BESIDE, OLD, 1);
            rig.edit(GPA, 3, 0, 2);
            let mut processor = Processor::new(seed);
            for _ in 0..TRIES {
                reads(&mut processor, &rig, &rig.off(), GPA);
                let end = processor.translate(&rig.ram, &rig.off(), BESIDE, Write);
                assert!(end.is_err(), "{vendor:?}");
            }
        }
    }
}

#[test]
fn what_the_guests_upper_entries_forbade_stays_forbidden_through_their_cached_copies() {
    for vendor in VENDORS {
        for seed in 0..SEEDS {
            let mut rig = long_rig(vendor);
            let beside = LINEAR + 0x1000;
            rig.guest_map(beside, GPA, 1, USER);
            rig.guest_edit(LINEAR, 3, 0, 2);
            let context = user(&rig);
            let mut processor = Processor::new(seed);
            for _ in 0..TRIES {
                reads(&mut processor, &rig, &context, LINEAR);
                let end = processor.translate(&rig.ram, &context, beside, Write);
                assert_eq!(end, Err(Exit::PageFault { code: 7, address: beside }), "{vendor:?}");
            }
        }
    }
}

// Faults and the caches.

/// The three ways in which an entry makes no translation.
fn spoil(vendor: Vendor, rig: &Rig, level: u32, way: u32) {
    match (way, vendor) {
        (0, _) => rig.edit(GPA, level, 0, 7),
        (1, _) => rig.edit(GPA, level, 1 << 51, 0),
        (_, Vendor::Amd) => rig.edit(GPA, level, 1 << 50, 0),
        (_, Vendor::Intel) => rig.edit(GPA, level, 0, 1),
    }
}

#[test]
fn what_is_absent_reserved_or_misconfigured_is_never_cached() {
    for vendor in VENDORS {
        for level in 1..=4 {
            for way in 0..3 {
                for seed in 0..SEEDS {
                    let rig = rig(vendor);
                    let good = rig.get(GPA, level);
                    let at = rig.at(GPA, level);
                    spoil(vendor, &rig, level, way);
                    let mut processor = Processor::new(seed);
                    for _ in 0..8 {
                        processor.speculate(&rig.ram, &rig.off(), GPA);
                        processor.translate(&rig.ram, &rig.off(), GPA, Read).unwrap_err();
                    }
                    rig.set(at, good);
                    assert_eq!(reads(&mut processor, &rig, &rig.off(), GPA), set([OLD]));
                }
            }
        }
    }
}

#[test]
fn amd_never_faults_for_what_was_only_made_to_allow_more() {
    for level in 1..=4 {
        for (set, clear, access) in
            [(0, 2, Write), (0, 4, Read), (NX, 0, Fetch), (NX, 2, Write), (NX, 2, Fetch)]
        {
            for seed in 0..SEEDS {
                let rig = long_rig(Vendor::Amd);
                rig.edit(GPA, level, set, clear);
                let mut processor = Processor::new(seed);
                for context in [rig.off(), user(&rig)] {
                    let address = if context == rig.off() { GPA } else { LINEAR };
                    for access in support::ACCESSES {
                        for _ in 0..4 {
                            let _ = processor.translate(&rig.ram, &context, address, access);
                            processor.speculate(&rig.ram, &context, address);
                        }
                    }
                }
                rig.edit(GPA, level, clear, set);
                for _ in 0..TRIES {
                    processor.translate(&rig.ram, &rig.off(), GPA, access).unwrap();
                    processor.translate(&rig.ram, &user(&rig), LINEAR, access).unwrap();
                }
            }
        }
    }
}

#[test]
fn amd_never_page_faults_for_what_the_guest_only_made_to_allow_more() {
    for level in 1..=4 {
        for (set, clear, access) in [(0, 2, Write), (NX, 0, Fetch), (0, 4, Read)] {
            for seed in 0..SEEDS {
                let rig = long_rig(Vendor::Amd);
                rig.guest_edit(LINEAR, level, set, clear);
                let supervisor = rig.paged(Long { smap: false, smep: false, ..Long::new(rig.cr3) });
                let mut processor = Processor::new(seed);
                for _ in 0..8 {
                    processor.translate(&rig.ram, &supervisor, LINEAR, Read).unwrap();
                }
                rig.guest_edit(LINEAR, level, clear, set);
                for _ in 0..TRIES {
                    processor.translate(&rig.ram, &user(&rig), LINEAR, access).unwrap();
                }
            }
        }
    }
}

#[test]
fn amd_does_not_fault_from_an_upper_entry_that_leads_nowhere_any_more() {
    for level in 2..=4 {
        for seed in 0..SEEDS {
            let mut rig = rig(Vendor::Amd);
            let mut processor = Processor::new(seed);
            reads(&mut processor, &rig, &rig.off(), GPA);
            // What was below is emptied, and everything hung in anew.
            let old = rig.get(GPA, level) & support::ADDRESS;
            rig.set(old + index(BESIDE, level - 1), 0);
            rig.set(old + index(GPA, level - 1), 0);
            rig.set(rig.at(GPA, level), 0);
            rig.map(BESIDE, NEW, 1);
            assert_eq!(reads(&mut processor, &rig, &rig.off(), BESIDE), set([NEW]));
        }
    }
}

/// Learns on Intel while `GPA` may not be written, then allows it. Returns the qualifications of
/// the violations that came from the cache, each of which must be the last.
fn upgraded(seed: u64, level: u32, paged: bool) -> Vec<u64> {
    let rig = long_rig(Vendor::Intel);
    rig.edit(GPA, level, 0, 2);
    let (context, address) = if paged { (user(&rig), LINEAR) } else { (rig.off(), GPA) };
    let mut processor = Processor::new(seed);
    for _ in 0..8 {
        processor.translate(&rig.ram, &context, address, Read).unwrap();
    }
    rig.edit(GPA, level, 2, 0);
    let mut qualifications = vec![];
    for _ in 0..TRIES {
        match processor.translate(&rig.ram, &context, address, Write) {
            Ok(_) => {}
            Err(Exit::EptViolation { qualification, gpa: GPA }) => {
                qualifications.push(qualification);
                processor
                    .translate(&rig.ram, &context, address, Write)
                    .expect("the violation forgets what it came from");
            }
            Err(other) => panic!("{other:?}"),
        }
    }
    qualifications
}

#[test]
fn intel_may_report_a_violation_from_the_cache_and_then_forgets_what_it_came_from() {
    // The guest's tables share the entry of level 4 with the page.
    for level in 1..=3 {
        for paged in [false, true] {
            let all: Vec<_> = (0..SEEDS).flat_map(|seed| upgraded(seed, level, paged)).collect();
            assert!(!all.is_empty(), "level {level} paged {paged}");
            assert!(
                all.iter().all(|&told| told == 0x180 | 2 | 5 << 3),
                "a write; readable and executable: {all:x?}"
            );
        }
    }
}

#[test]
fn intel_may_page_fault_from_the_cache_and_then_forgets_what_it_came_from() {
    let mut faults = 0;
    for seed in 0..SEEDS {
        let rig = long_rig(Vendor::Intel);
        rig.guest_edit(LINEAR, 1, 0, 2);
        let mut processor = Processor::new(seed);
        let context = user(&rig);
        reads(&mut processor, &rig, &context, LINEAR);
        rig.guest_edit(LINEAR, 1, 2, 0);
        for _ in 0..TRIES {
            if let Err(exit) = processor.translate(&rig.ram, &context, LINEAR, Write) {
                assert_eq!(exit, Exit::PageFault { code: 7, address: LINEAR });
                faults += 1;
                processor.translate(&rig.ram, &context, LINEAR, Write).unwrap();
            }
        }
    }
    assert_ne!(faults, 0);
}

#[test]
fn intel_a_violation_forgets_upper_entries_that_lead_nowhere_any_more() {
    let mut violations = 0;
    for seed in 0..SEEDS {
        let mut rig = rig(Vendor::Intel);
        let mut processor = Processor::new(seed);
        reads(&mut processor, &rig, &rig.off(), GPA);
        rig.set(rig.at(GPA, 1), 0);
        rig.set(rig.at(GPA, 2), 0);
        rig.map(BESIDE, NEW, 1);
        for _ in 0..TRIES {
            if let Err(exit) = processor.translate(&rig.ram, &rig.off(), BESIDE, Read) {
                assert_eq!(exit, Exit::EptViolation { qualification: 0x181, gpa: BESIDE });
                violations += 1;
                assert_eq!(reads(&mut processor, &rig, &rig.off(), BESIDE), set([NEW]));
            }
        }
    }
    assert_ne!(violations, 0);
}

#[test]
fn what_is_not_allowed_any_more_goes_on_until_it_is_flushed() {
    for vendor in VENDORS {
        let mut went_on = 0;
        for seed in 0..SEEDS {
            let rig = rig(vendor);
            let context = rig.off();
            let mut processor = Processor::new(seed);
            for _ in 0..8 {
                processor.translate(&rig.ram, &context, GPA, Write).unwrap();
            }
            rig.edit(GPA, 1, 0, 2);
            went_on += u64::from(processor.translate(&rig.ram, &context, GPA, Write).is_ok());
            match vendor {
                Vendor::Amd => processor.invalidate_tag(context.tag),
                Vendor::Intel => processor.invalidate_root(context.root),
            }
            for _ in 0..TRIES {
                processor.translate(&rig.ram, &context, GPA, Write).unwrap_err();
                processor.translate(&rig.ram, &context, GPA, Read).unwrap();
            }
        }
        assert_ne!(went_on, 0, "{vendor:?}");
    }
}

// Accessed and dirty.

#[test]
fn a_write_through_a_clean_translation_sets_dirty_in_the_tables_first() {
    for vendor in VENDORS {
        let (_, dirty) = flags(vendor);
        for seed in 0..SEEDS {
            let rig = long_rig(vendor);
            let mut processor = Processor::new(seed);
            for (context, address) in [(rig.off(), GPA), (user(&rig), LINEAR)] {
                rig.edit(GPA, 1, 0, dirty);
                processor.invalidate_all();
                reads(&mut processor, &rig, &context, address);
                assert_eq!(rig.get(GPA, 1) & dirty, 0);
                processor.translate(&rig.ram, &context, address, Write).unwrap();
                assert_eq!(rig.get(GPA, 1) & dirty, dirty, "{vendor:?}");
            }
            assert_ne!(rig.guest_get(LINEAR, 1) & GUEST_DIRTY, 0);
        }
    }
}

#[test]
fn a_write_through_a_translation_clean_in_the_guests_tables_sets_their_dirty_flag() {
    for vendor in VENDORS {
        for seed in 0..SEEDS {
            let rig = long_rig(vendor);
            let mut processor = Processor::new(seed);
            let context = user(&rig);
            // The page is dirty for the nested tables already.
            rig.touch(GPA, Write).unwrap();
            reads(&mut processor, &rig, &context, LINEAR);
            assert_eq!(rig.guest_get(LINEAR, 1) & GUEST_DIRTY, 0);
            processor.translate(&rig.ram, &context, LINEAR, Write).unwrap();
            assert_ne!(rig.guest_get(LINEAR, 1) & GUEST_DIRTY, 0, "{vendor:?}");
        }
    }
}

#[test]
fn a_write_through_a_clean_translation_that_is_stale_goes_where_dirty_was_set() {
    for vendor in VENDORS {
        let (_, dirty) = flags(vendor);
        for seed in 0..SEEDS {
            let rig = rig(vendor);
            let mut processor = Processor::new(seed);
            reads(&mut processor, &rig, &rig.off(), GPA);
            move_to(&rig, GPA, NEW);
            let end = processor.translate(&rig.ram, &rig.off(), GPA, Write).unwrap();
            assert_eq!(end.hpa, NEW);
            assert_eq!(rig.get(GPA, 1) & dirty, dirty);
        }
    }
}

#[test]
fn a_write_through_a_clean_translation_of_what_is_gone_faults() {
    for vendor in VENDORS {
        for seed in 0..SEEDS {
            let rig = rig(vendor);
            let mut processor = Processor::new(seed);
            reads(&mut processor, &rig, &rig.off(), GPA);
            rig.edit(GPA, 1, 0, u64::MAX);
            processor.translate(&rig.ram, &rig.off(), GPA, Write).unwrap_err();
            assert_eq!(rig.get(GPA, 1), 0);
        }
    }
}

#[test]
fn a_dirty_flag_cleared_without_a_flush_may_stay_clear_and_after_one_is_set() {
    for vendor in VENDORS {
        let (accessed, dirty) = flags(vendor);
        let (mut stayed, mut set_again) = (0, 0);
        for seed in 0..SEEDS {
            let rig = rig(vendor);
            let context = rig.off();
            let mut processor = Processor::new(seed);
            processor.translate(&rig.ram, &context, GPA, Write).unwrap();
            rig.edit(GPA, 1, 0, accessed | dirty);
            processor.translate(&rig.ram, &context, GPA, Write).unwrap();
            match rig.get(GPA, 1) & (accessed | dirty) {
                0 => stayed += 1,
                both => {
                    assert_eq!(both, accessed | dirty);
                    set_again += 1;
                }
            }
            rig.edit(GPA, 1, 0, accessed | dirty);
            match vendor {
                Vendor::Amd => processor.invalidate_tag(context.tag),
                Vendor::Intel => processor.invalidate_root(context.root),
            }
            processor.translate(&rig.ram, &context, GPA, Write).unwrap();
            assert_eq!(rig.get(GPA, 1) & (accessed | dirty), accessed | dirty);
        }
        assert!(stayed > 0 && set_again > 0, "{vendor:?}: {stayed} {set_again}");
    }
}

#[test]
fn without_dirty_flags_a_cached_translation_serves_writes() {
    let mut rig = Rig::new(Nested::Ept(Ept { ad: false, ..Ept::new() }));
    rig.map(GPA, OLD, 1);
    let mut processor = oldest();
    reads(&mut processor, &rig, &rig.off(), GPA);
    assert!(processor.translate(&rig.ram, &rig.off(), GPA, Write).unwrap().cached);
}

// Large pages in pieces.

#[test]
fn a_large_page_may_be_kept_in_pieces() {
    for vendor in VENDORS {
        for leaf in [2, 3] {
            let mut sizes = BTreeSet::new();
            for seed in 0..SEEDS {
                let mut rig = Rig::of(vendor);
                rig.map(GPA, OLD, leaf);
                let mut processor = Processor::new(seed);
                for _ in 0..TRIES {
                    let end = processor.translate(&rig.ram, &rig.off(), GPA + 5, Read).unwrap();
                    assert_eq!(end.hpa, OLD + (GPA + 5) % support::bytes(leaf));
                    if end.cached {
                        sizes.insert(end.page);
                    }
                }
            }
            let all: BTreeSet<_> = (1..=leaf).map(support::bytes).collect();
            assert_eq!(sizes, all, "{vendor:?}");
        }
    }
}

#[test]
fn a_piece_survives_a_split_and_a_change_of_what_is_below() {
    for vendor in VENDORS {
        let block = GPA & !0x1f_ffff;
        let make = || {
            let mut rig = Rig::of(vendor);
            rig.map(block, OLD, 2);
            rig
        };
        let context = make().off();
        let all = reached(&context, GPA, make, |processor, rig| {
            reads(processor, rig, &context, GPA);
            rig.set(rig.at(GPA, 2), 0);
            rig.map(GPA, NEW, 1);
        });
        assert_eq!(all, set([OLD + GPA % (1 << 21), NEW]));
    }
}

// Walks nobody asked for.

#[test]
fn a_walk_nobody_asked_for_sets_accessed_and_never_dirty() {
    for vendor in VENDORS {
        let (accessed, dirty) = flags(vendor);
        for seed in 0..SEEDS {
            let rig = long_rig(vendor);
            let mut processor = Processor::new(seed);
            for _ in 0..8 {
                processor.speculate(&rig.ram, &user(&rig), LINEAR);
            }
            for level in 1..=4 {
                assert_eq!(rig.get(GPA, level) & (accessed | dirty), accessed);
                assert_eq!(rig.guest_get(LINEAR, level) & (GUEST_DIRTY | 1 << 5), 1 << 5);
            }
        }
    }
}

#[test]
fn a_walk_nobody_asked_for_leaves_translations_behind() {
    for vendor in VENDORS {
        let rig = rig(vendor);
        let mut processor = oldest();
        processor.speculate(&rig.ram, &rig.off(), GPA);
        rig.edit(GPA, 1, 0, u64::MAX);
        let end = processor.translate(&rig.ram, &rig.off(), GPA, Read).unwrap();
        assert_eq!((end.hpa, end.cached), (OLD, true));
        assert_eq!(processor.counts().speculations, 1);
    }
}

#[test]
fn a_walk_nobody_asked_for_goes_where_the_guest_may_not() {
    // The guest's permissions are judged when an access is made.
    for vendor in VENDORS {
        let mut rig = rig(vendor);
        rig.guest_map(LINEAR, GPA, 1, 3);
        let mut processor = oldest();
        processor.speculate(&rig.ram, &user(&rig), LINEAR);
        move_to(&rig, GPA, NEW);
        assert_eq!(reads(&mut processor, &rig, &rig.long(), LINEAR), set([OLD]));
        let end = processor.translate(&rig.ram, &user(&rig), LINEAR, Read);
        assert_eq!(end, Err(Exit::PageFault { code: 5, address: LINEAR }));
    }
}

// While nobody changes the tables.

/// Choices that repeat: a linear congruential generator, good enough to pick bits.
struct Picks(u64);

impl Picks {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 33) % end
    }
}

/// Tables of both kinds with some bits flipped.
fn flipped(vendor: Vendor, seed: u64) -> Rig {
    let mut picks = Picks(seed);
    let mut rig = Rig::of(vendor);
    for page in 0..4 {
        rig.guest_map(LINEAR + page * 0x1000, GPA + page * 0x1000, 1, USER);
        rig.map(GPA + page * 0x1000, OLD + page * 0x1000, 1);
    }
    let bits = [0, 1, 2, 7, 8, 50, 51, 63];
    let places: Vec<_> = (0..picks.below(4))
        .map(|_| {
            let page = picks.below(4) * 0x1000;
            let level = 1 + picks.below(2) as u32;
            // In the guest's tables, in the nested ones, and in those for the guest's tables.
            match picks.below(3) {
                0 => rig.guest_at(LINEAR + page, level) - TABLES,
                1 => rig.at(GPA + page, level),
                _ => rig.at(rig.guest_at(LINEAR + page, level), 1),
            }
        })
        .collect();
    for place in places {
        rig.set(place, rig.word(place) ^ 1 << bits[picks.below(8) as usize]);
    }
    rig
}

#[test]
fn caches_are_not_to_be_seen_while_nobody_changes_the_tables() {
    for vendor in VENDORS {
        let (mut reached, mut exits) = (0, BTreeSet::new());
        for seed in 0..200 {
            let (plain, caching) = (flipped(vendor, seed), flipped(vendor, seed));
            let mut nothing = Processor::with_habits(0, Habits::nothing());
            let mut chance = Processor::new(seed);
            let mut picks = Picks(!seed);
            let supervisor = Long { smap: false, ..Long::new(plain.cr3) };
            let contexts = [user(&plain), plain.paged(supervisor), plain.off()];
            for _ in 0..150 {
                let context = &contexts[picks.below(3) as usize];
                let start = if *context == contexts[2] { GPA } else { LINEAR };
                let address = start + picks.below(4 * 0x1000);
                let access = support::ACCESSES[picks.below(3) as usize];
                let one = nothing.translate(&plain.ram, context, address, access);
                let other = chance.translate(&caching.ram, context, address, access);
                let place = |end: Result<machine::Reached, Exit>| end.map(|end| (end.hpa, end.gpa));
                assert_eq!(place(one), place(other), "{vendor:?} seed {seed}");
                match one {
                    Ok(_) => reached += 1,
                    Err(exit) => drop(exits.insert(format!("{exit:?}"))),
                }
            }
            let words = |rig: &Rig| (0..rig.ram.len()).map(|n| rig.word(n as u64 * 8)).collect();
            let (one, other): (Vec<u64>, Vec<u64>) = (words(&plain), words(&caching));
            assert_eq!(one, other, "{vendor:?} seed {seed}: the flags differ");
        }
        assert!(reached > 1000 && exits.len() > 20, "{vendor:?}: {reached}, {}", exits.len());
    }
}

// Bounds and repetition.

#[test]
fn room_is_bounded_and_lines_are_evicted() {
    for keep in [Keep::Oldest, Keep::ByChance] {
        let habits = Habits { keep, translations: 16, structures: 8, compare: false };
        let mut rig = Rig::npt();
        for page in 0..400 {
            rig.map(GPA + page * 0x1000, OLD + page * 0x1000, 1);
        }
        let mut processor = Processor::with_habits(1, habits);
        for page in 0..400 {
            reads(&mut processor, &rig, &rig.off(), GPA + page * 0x1000);
            let (translations, structures) = processor.cached();
            assert!(translations <= 16 && structures <= 8);
        }
        assert_ne!(processor.counts().evictions, 0);
    }
}

#[test]
fn lines_are_evicted_by_chance_although_there_is_room() {
    let mut evictions = 0;
    for seed in 0..SEEDS {
        let rig = rig(Vendor::Amd);
        let mut processor = Processor::new(seed);
        for page in 0..40 {
            move_to(&rig, GPA, OLD + page * 0x1000);
            reads(&mut processor, &rig, &rig.off(), GPA);
        }
        evictions += processor.counts().evictions;
    }
    assert_ne!(evictions, 0);
}

/// What a run saw, access by access.
type Seen = Vec<Result<(u64, bool), Exit>>;

/// A long run of everything.
fn run(seed: u64, vendor: Vendor) -> (Seen, Counts) {
    let mut rig = long_rig(vendor);
    rig.map(BESIDE, OLD, 1);
    rig.guest_map(LINEAR + 0x1000, BESIDE, 1, USER);
    let log = Log::empty(rig.frame());
    let mut processor = Processor::with_habits(seed, Habits { compare: true, ..Habits::default() });
    processor.set_log(Some(log));
    let context = user(&rig);
    let mut seen = vec![];
    for step in 0..400_u64 {
        let address = LINEAR + (step % 3 % 2) * 0x1000;
        let access: Access = support::ACCESSES[step as usize % 3];
        let end = processor.translate(&rig.ram, &context, address, access);
        seen.push(end.map(|reached| (reached.hpa, reached.cached)));
        match step % 40 {
            7 => move_to(&rig, GPA, if step % 80 == 7 { NEW } else { OLD }),
            17 => rig.edit(BESIDE, 1, 0, 2),
            27 => rig.edit(BESIDE, 1, 2, 0),
            37 => processor.invalidate_all(),
            _ => processor.speculate(&rig.ram, &context, LINEAR),
        }
    }
    (seen, processor.counts())
}

#[test]
fn the_same_seed_gives_the_same_and_another_gives_another() {
    for vendor in VENDORS {
        let all: BTreeSet<_> = (0..8).map(|seed| format!("{:?}", run(seed, vendor))).collect();
        assert_eq!(all.len(), 8);
        assert_eq!(run(3, vendor), run(3, vendor));
    }
}

#[test]
fn stale_translations_are_counted_when_compared() {
    for vendor in VENDORS {
        for compare in [false, true] {
            let rig = rig(vendor);
            let mut processor = Processor::with_habits(0, Habits { compare, ..Habits::oldest() });
            reads(&mut processor, &rig, &rig.off(), GPA);
            assert_eq!(processor.counts().stale, 0);
            move_to(&rig, GPA, NEW);
            let before = processor.counts();
            reads(&mut processor, &rig, &rig.off(), GPA);
            let after = processor.counts();
            assert_eq!(after.hits - before.hits, TRIES as u64);
            assert_eq!(after.stale, if compare { TRIES as u64 } else { 0 });
            assert_eq!(after.walks, before.walks, "comparing is not counted as walking");
        }
    }
}

#[test]
fn comparing_sees_changes_of_the_guests_tables_and_of_what_is_allowed() {
    for vendor in VENDORS {
        let mut rig = long_rig(vendor);
        rig.map(BESIDE, NEW, 1);
        let context = user(&rig);
        let mut processor = Processor::with_habits(0, Habits { compare: true, ..Habits::oldest() });
        let mut stale = |rig: &Rig| {
            let before = processor.counts().stale;
            processor.translate(&rig.ram, &context, LINEAR, Read).unwrap();
            processor.counts().stale - before
        };
        stale(&rig);
        assert_eq!(stale(&rig), 0);
        rig.edit(GPA, 1, 0, 2);
        assert_eq!(stale(&rig), 1, "not writable any more");
        rig.edit(GPA, 1, 2, 0);
        rig.guest_edit(LINEAR, 1, 0, 2);
        assert_eq!(stale(&rig), 1, "not writable for the guest any more");
        rig.guest_edit(LINEAR, 1, 2, 0);
        assert_eq!(stale(&rig), 0);
        rig.guest_map(LINEAR, BESIDE, 1, USER);
        assert_eq!(stale(&rig), 1, "elsewhere");
    }
}

#[test]
fn counts_tell_walks_hits_and_cached_upper_entries() {
    for vendor in VENDORS {
        let mut rig = rig(vendor);
        rig.map(BESIDE, NEW, 1);
        let mut processor = oldest();
        for address in [GPA, GPA, BESIDE] {
            processor.translate(&rig.ram, &rig.off(), address, Read).unwrap();
        }
        let counts = processor.counts();
        assert_eq!((counts.accesses, counts.walks), (3, 2));
        assert_eq!((counts.hits, counts.structures), (1, 1));
        assert_eq!((counts.accessed, counts.dirtied), (5, 0));
        processor.translate(&rig.ram, &rig.off(), GPA, Write).unwrap();
        assert_eq!(processor.counts().dirtied, 1);
    }
}
