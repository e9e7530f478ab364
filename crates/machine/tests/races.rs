//! Entries that change while they are walked: at every point where another thread could.

mod support;

use std::cell::Cell;
use std::sync::atomic::AtomicU64;

use machine::{Access, Context, Exit, Habits, Memory, Processor, Reached};
use support::{Rig, Vendor};

const GPA: u64 = 0x12_b456_7000;
const HPA: u64 = 0x3_4000_0000;
const LINEAR: u64 = 0x7f12_b456_7000;

/// Memory in which an entry goes at one of the points of a walk.
struct Meddling<'r> {
    rig: &'r Rig,
    /// Host-physical address of the entry.
    entry: u64,
    /// Points until then.
    left: Cell<Option<usize>>,
    /// Points so far.
    points: Cell<usize>,
}

impl Memory for Meddling<'_> {
    fn word(&self, address: u64) -> Option<&AtomicU64> {
        self.rig.ram.as_slice().word(address)
    }

    fn pause(&self) {
        self.points.set(self.points.get() + 1);
        match self.left.get() {
            Some(0) => {
                self.rig.set(self.entry, 0);
                self.left.set(None);
            }
            left => self.left.set(left.map(|left| left - 1)),
        }
    }
}

/// One write during which the entry goes at point `when`: how it ended, points, walks begun again.
fn write(
    rig: &Rig,
    context: &Context,
    address: u64,
    entry: u64,
    when: Option<usize>,
) -> (Result<Reached, Exit>, usize, u64) {
    let (left, points) = (Cell::new(when), Cell::new(0));
    let memory = Meddling { rig, entry, left, points };
    let mut processor = Processor::with_habits(0, Habits::nothing());
    let end = processor.translate(&memory, context, address, Access::Write);
    (end, memory.points.get(), processor.counts().lost)
}

/// The entry goes at each point of a walk in turn. It is never written back, and the access is
/// never made: the last point is before the flags of the leaf are set.
fn goes_at_every_point(make: impl Fn() -> (Rig, Context, u64, u64)) {
    let (rig, context, address, entry) = make();
    let (end, points, lost) = write(&rig, &context, address, entry, None);
    assert_eq!((end.unwrap().hpa, lost), (HPA, 0));
    let mut again = 0;
    for when in 0..points {
        let (rig, context, address, entry) = make();
        let (end, _, lost) = write(&rig, &context, address, entry, Some(when));
        assert!(end.is_err(), "point {when} of {points}: {end:x?}");
        assert_eq!(rig.word(entry), 0, "point {when} of {points}");
        again += lost;
    }
    assert_eq!(again, 1, "one point is between reading the entry and setting its flags");
}

#[test]
fn a_nested_leaf_that_goes_during_a_walk_is_not_used_and_stays_gone() {
    for vendor in [Vendor::Amd, Vendor::Intel] {
        goes_at_every_point(|| {
            let mut rig = Rig::of(vendor);
            rig.map(GPA, HPA, 1);
            let (context, entry) = (rig.off(), rig.at(GPA, 1));
            (rig, context, GPA, entry)
        });
    }
}

#[test]
fn a_nested_leaf_that_goes_during_a_walk_in_two_dimensions_is_not_used_and_stays_gone() {
    for vendor in [Vendor::Amd, Vendor::Intel] {
        goes_at_every_point(|| {
            let mut rig = Rig::of(vendor);
            rig.map(GPA, HPA, 1);
            rig.guest_map(LINEAR, GPA, 1, 3);
            let (context, entry) = (rig.long(), rig.at(GPA, 1));
            (rig, context, LINEAR, entry)
        });
    }
}

/// The guest's leaf may go after its flags were set, while the nested tables are walked.
#[test]
fn a_leaf_of_the_guests_that_goes_during_a_walk_stays_gone() {
    for vendor in [Vendor::Amd, Vendor::Intel] {
        let make = || {
            let mut rig = Rig::of(vendor);
            rig.map(GPA, HPA, 1);
            rig.guest_map(LINEAR, GPA, 1, 3);
            let entry = rig.guest_at(LINEAR, 1) - support::TABLES;
            (rig, entry)
        };
        let (rig, entry) = make();
        let (_, points, _) = write(&rig, &rig.long(), LINEAR, entry, None);
        let mut again = 0;
        for when in 0..points {
            let (rig, entry) = make();
            let (_, _, lost) = write(&rig, &rig.long(), LINEAR, entry, Some(when));
            assert_eq!(rig.word(entry), 0, "{vendor:?}: point {when} of {points}");
            again += lost;
        }
        assert_eq!(again, 1, "{vendor:?}");
    }
}
