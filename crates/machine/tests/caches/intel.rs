//! Intel's tags, and which mappings have which.

use machine::{Context, Processor};

use crate::stage::{
    BESIDE, GPA, LINEAR, NEW, OLD, SEEDS, USER, long_rig, move_to, oldest, reads, rig, set, user,
};
use crate::support::{TABLES, Vendor};

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
