//! What is used, and until when.

use std::collections::BTreeSet;

use machine::Access::{Read, Write};
use machine::{Habits, Processor};

use crate::stage::{
    BESIDE, GPA, LINEAR, NEW, OLD, SEEDS, TRIES, VENDORS, long_rig, move_to, oldest, reached,
    reads, rig, set, user,
};

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
