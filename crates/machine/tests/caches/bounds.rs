//! Bounds, repetition and counts.

use std::collections::BTreeSet;

use machine::Access::{Read, Write};
use machine::{Access, Counts, Exit, Habits, Keep, Log, Processor};

use crate::stage::{
    BESIDE, GPA, LINEAR, NEW, OLD, SEEDS, TRIES, USER, VENDORS, long_rig, move_to, oldest, reads,
    rig, user,
};
use crate::support::{self, Rig, Vendor};

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
