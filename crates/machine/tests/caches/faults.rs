//! Faults: what is never cached, and what a fault may come from.

use machine::Access::{Fetch, Read, Write};
use machine::{Exit, Long, Processor};

use crate::stage::{
    BESIDE, GPA, LINEAR, NEW, OLD, SEEDS, TRIES, VENDORS, long_rig, reads, rig, set, user,
};
use crate::support::{self, Rig, Vendor, index};

const NX: u64 = 1 << 63;

/// The three ways in which an entry makes no translation.
fn spoil(vendor: Vendor, rig: &Rig, level: u32, way: u32) {
    match (way, vendor) {
        (0, _) => rig.edit(GPA, level, 0, 7),
        (1, _) => rig.edit(GPA, level, 1 << 51, 0),
        (_, Vendor::Amd) => rig.edit(GPA, level, 1 << 50, 0),
        (_, Vendor::Intel) => rig.edit(GPA, level, 0, 1),
    }
}

#[test]
fn what_is_absent_reserved_or_misconfigured_is_never_cached() {
    for vendor in VENDORS {
        for level in 1..=4 {
            for way in 0..3 {
                for seed in 0..SEEDS {
                    let rig = rig(vendor);
                    let good = rig.get(GPA, level);
                    let at = rig.at(GPA, level);
                    spoil(vendor, &rig, level, way);
                    let mut processor = Processor::new(seed);
                    for _ in 0..8 {
                        processor.speculate(&rig.ram, &rig.off(), GPA);
                        processor.translate(&rig.ram, &rig.off(), GPA, Read).unwrap_err();
                    }
                    rig.set(at, good);
                    assert_eq!(reads(&mut processor, &rig, &rig.off(), GPA), set([OLD]));
                }
            }
        }
    }
}

#[test]
fn amd_never_faults_for_what_was_only_made_to_allow_more() {
    for level in 1..=4 {
        for (set, clear, access) in
            [(0, 2, Write), (0, 4, Read), (NX, 0, Fetch), (NX, 2, Write), (NX, 2, Fetch)]
        {
            for seed in 0..SEEDS {
                let rig = long_rig(Vendor::Amd);
                rig.edit(GPA, level, set, clear);
                let mut processor = Processor::new(seed);
                for context in [rig.off(), user(&rig)] {
                    let address = if context == rig.off() { GPA } else { LINEAR };
                    for access in support::ACCESSES {
                        for _ in 0..4 {
                            let _ = processor.translate(&rig.ram, &context, address, access);
                            processor.speculate(&rig.ram, &context, address);
                        }
                    }
                }
                rig.edit(GPA, level, clear, set);
                for _ in 0..TRIES {
                    processor.translate(&rig.ram, &rig.off(), GPA, access).unwrap();
                    processor.translate(&rig.ram, &user(&rig), LINEAR, access).unwrap();
                }
            }
        }
    }
}

#[test]
fn amd_never_page_faults_for_what_the_guest_only_made_to_allow_more() {
    for level in 1..=4 {
        for (set, clear, access) in [(0, 2, Write), (NX, 0, Fetch), (0, 4, Read)] {
            for seed in 0..SEEDS {
                let rig = long_rig(Vendor::Amd);
                rig.guest_edit(LINEAR, level, set, clear);
                let supervisor = rig.paged(Long { smap: false, smep: false, ..Long::new(rig.cr3) });
                let mut processor = Processor::new(seed);
                for _ in 0..8 {
                    processor.translate(&rig.ram, &supervisor, LINEAR, Read).unwrap();
                }
                rig.guest_edit(LINEAR, level, clear, set);
                for _ in 0..TRIES {
                    processor.translate(&rig.ram, &user(&rig), LINEAR, access).unwrap();
                }
            }
        }
    }
}

#[test]
fn amd_does_not_fault_from_an_upper_entry_that_leads_nowhere_any_more() {
    for level in 2..=4 {
        for seed in 0..SEEDS {
            let mut rig = rig(Vendor::Amd);
            let mut processor = Processor::new(seed);
            reads(&mut processor, &rig, &rig.off(), GPA);
            // What was below is emptied, and everything hung in anew.
            let old = rig.get(GPA, level) & support::ADDRESS;
            rig.set(old + index(BESIDE, level - 1), 0);
            rig.set(old + index(GPA, level - 1), 0);
            rig.set(rig.at(GPA, level), 0);
            rig.map(BESIDE, NEW, 1);
            assert_eq!(reads(&mut processor, &rig, &rig.off(), BESIDE), set([NEW]));
        }
    }
}

/// Learns on Intel while `GPA` may not be written, then allows it. Returns the qualifications of
/// the violations that came from the cache, each of which must be the last.
fn upgraded(seed: u64, level: u32, paged: bool) -> Vec<u64> {
    let rig = long_rig(Vendor::Intel);
    rig.edit(GPA, level, 0, 2);
    let (context, address) = if paged { (user(&rig), LINEAR) } else { (rig.off(), GPA) };
    let mut processor = Processor::new(seed);
    for _ in 0..8 {
        processor.translate(&rig.ram, &context, address, Read).unwrap();
    }
    rig.edit(GPA, level, 2, 0);
    let mut qualifications = vec![];
    for _ in 0..TRIES {
        match processor.translate(&rig.ram, &context, address, Write) {
            Ok(_) => {}
            Err(Exit::EptViolation { qualification, gpa: GPA }) => {
                qualifications.push(qualification);
                processor
                    .translate(&rig.ram, &context, address, Write)
                    .expect("the violation forgets what it came from");
            }
            Err(other) => panic!("{other:?}"),
        }
    }
    qualifications
}

#[test]
fn intel_may_report_a_violation_from_the_cache_and_then_forgets_what_it_came_from() {
    // The guest's tables share the entry of level 4 with the page.
    for level in 1..=3 {
        for paged in [false, true] {
            let all: Vec<_> = (0..SEEDS).flat_map(|seed| upgraded(seed, level, paged)).collect();
            assert!(!all.is_empty(), "level {level} paged {paged}");
            assert!(
                all.iter().all(|&told| told == 0x180 | 2 | 5 << 3),
                "a write; readable and executable: {all:x?}"
            );
        }
    }
}

#[test]
fn intel_may_page_fault_from_the_cache_and_then_forgets_what_it_came_from() {
    let mut faults = 0;
    for seed in 0..SEEDS {
        let rig = long_rig(Vendor::Intel);
        rig.guest_edit(LINEAR, 1, 0, 2);
        let mut processor = Processor::new(seed);
        let context = user(&rig);
        reads(&mut processor, &rig, &context, LINEAR);
        rig.guest_edit(LINEAR, 1, 2, 0);
        for _ in 0..TRIES {
            if let Err(exit) = processor.translate(&rig.ram, &context, LINEAR, Write) {
                assert_eq!(exit, Exit::PageFault { code: 7, address: LINEAR });
                faults += 1;
                processor.translate(&rig.ram, &context, LINEAR, Write).unwrap();
            }
        }
    }
    assert_ne!(faults, 0);
}

#[test]
fn intel_a_violation_forgets_upper_entries_that_lead_nowhere_any_more() {
    let mut violations = 0;
    for seed in 0..SEEDS {
        let mut rig = rig(Vendor::Intel);
        let mut processor = Processor::new(seed);
        reads(&mut processor, &rig, &rig.off(), GPA);
        rig.set(rig.at(GPA, 1), 0);
        rig.set(rig.at(GPA, 2), 0);
        rig.map(BESIDE, NEW, 1);
        for _ in 0..TRIES {
            if let Err(exit) = processor.translate(&rig.ram, &rig.off(), BESIDE, Read) {
                assert_eq!(exit, Exit::EptViolation { qualification: 0x181, gpa: BESIDE });
                violations += 1;
                assert_eq!(reads(&mut processor, &rig, &rig.off(), BESIDE), set([NEW]));
            }
        }
    }
    assert_ne!(violations, 0);
}

#[test]
fn what_is_not_allowed_any_more_goes_on_until_it_is_flushed() {
    for vendor in VENDORS {
        let mut went_on = 0;
        for seed in 0..SEEDS {
            let rig = rig(vendor);
            let context = rig.off();
            let mut processor = Processor::new(seed);
            for _ in 0..8 {
                processor.translate(&rig.ram, &context, GPA, Write).unwrap();
            }
            rig.edit(GPA, 1, 0, 2);
            went_on += u64::from(processor.translate(&rig.ram, &context, GPA, Write).is_ok());
            match vendor {
                Vendor::Amd => processor.invalidate_tag(context.tag),
                Vendor::Intel => processor.invalidate_root(context.root),
            }
            for _ in 0..TRIES {
                processor.translate(&rig.ram, &context, GPA, Write).unwrap_err();
                processor.translate(&rig.ram, &context, GPA, Read).unwrap();
            }
        }
        assert_ne!(went_on, 0, "{vendor:?}");
    }
}
