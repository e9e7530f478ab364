//! AMD's tags.

use machine::{Context, Processor};

use crate::stage::{
    BESIDE, GPA, LINEAR, NEW, OLD, SEEDS, USER, long_rig, move_to, oldest, reads, rig, set, user,
};
use crate::support::Vendor;

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
