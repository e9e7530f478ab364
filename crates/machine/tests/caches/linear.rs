//! Linear addresses, and what invalidates them.

use machine::Processor;

use crate::stage::{
    BESIDE, GPA, LINEAR, NEW, OLD, USER, VENDORS, long_rig, move_to, oldest, reached, reads, set,
    user,
};
use crate::support::{Rig, TABLES};

const GLOBAL: u64 = 1 << 8;

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
