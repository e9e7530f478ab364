//! While nobody changes the tables, caches are not to be seen.

use std::collections::BTreeSet;

use machine::{Exit, Habits, Long, Processor};

use crate::stage::{GPA, LINEAR, OLD, USER, VENDORS, user};
use crate::support::{self, Rig, TABLES, Vendor};

/// Tables of both kinds with some bits flipped.
fn flipped(vendor: Vendor, seed: u64) -> Rig {
    let mut picks = fastrand::Rng::with_seed(seed);
    let mut rig = Rig::of(vendor);
    for page in 0..4 {
        rig.guest_map(LINEAR + page * 0x1000, GPA + page * 0x1000, 1, USER);
        rig.map(GPA + page * 0x1000, OLD + page * 0x1000, 1);
    }
    let bits = [0, 1, 2, 7, 8, 50, 51, 63];
    let places: Vec<_> = (0..picks.u64(..4))
        .map(|_| {
            let page = picks.u64(..4) * 0x1000;
            let level = 1 + picks.u64(..2) as u32;
            // In the guest's tables, in the nested ones, and in those for the guest's tables.
            match picks.u64(..3) {
                0 => rig.guest_at(LINEAR + page, level) - TABLES,
                1 => rig.at(GPA + page, level),
                _ => rig.at(rig.guest_at(LINEAR + page, level), 1),
            }
        })
        .collect();
    for place in places {
        rig.set(place, rig.word(place) ^ 1 << bits[picks.u64(..8) as usize]);
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
            let mut picks = fastrand::Rng::with_seed(!seed);
            let supervisor = Long { smap: false, ..Long::new(plain.cr3) };
            let contexts = [user(&plain), plain.paged(supervisor), plain.off()];
            for _ in 0..150 {
                let context = &contexts[picks.u64(..3) as usize];
                let start = if *context == contexts[2] { GPA } else { LINEAR };
                let address = start + picks.u64(..4 * 0x1000);
                let access = support::ACCESSES[picks.u64(..3) as usize];
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
