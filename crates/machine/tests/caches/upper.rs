//! Upper entries: what was reached through them, and what they forbade.

use machine::Access::Write;
use machine::{Exit, Processor};

use crate::stage::{
    BESIDE, GPA, LINEAR, NEW, OLD, SEEDS, TRIES, USER, VENDORS, long_rig, move_to, reached, reads,
    rig, set, user,
};
use crate::support::{Rig, TABLES, Vendor};

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
