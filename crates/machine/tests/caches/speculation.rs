//! Walks nobody asked for.

use machine::Access::Read;
use machine::{Exit, Processor};

use crate::stage::{
    GPA, GUEST_DIRTY, LINEAR, NEW, OLD, SEEDS, VENDORS, flags, long_rig, move_to, oldest, reads,
    rig, set, user,
};

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
