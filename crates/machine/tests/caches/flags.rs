//! Accessed and dirty flags, set through the caches.

use machine::Access::Write;
use machine::{Ept, Nested, Processor};

use crate::stage::{
    GPA, GUEST_DIRTY, LINEAR, NEW, OLD, SEEDS, VENDORS, flags, long_rig, move_to, oldest, reads,
    rig, user,
};
use crate::support::{Rig, Vendor};

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
