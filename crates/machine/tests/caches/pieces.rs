//! Large pages in pieces.

use std::collections::BTreeSet;

use machine::Access::Read;
use machine::Processor;

use crate::stage::{GPA, NEW, OLD, SEEDS, TRIES, VENDORS, reached, reads, set};
use crate::support::{self, Rig};

#[test]
fn a_large_page_may_be_kept_in_pieces() {
    for vendor in VENDORS {
        for leaf in [2, 3] {
            let mut sizes = BTreeSet::new();
            for seed in 0..SEEDS {
                let mut rig = Rig::of(vendor);
                rig.map(GPA, OLD, leaf);
                let mut processor = Processor::new(seed);
                for _ in 0..TRIES {
                    let end = processor.translate(&rig.ram, &rig.off(), GPA + 5, Read).unwrap();
                    assert_eq!(end.hpa, OLD + (GPA + 5) % support::bytes(leaf));
                    if end.cached {
                        sizes.insert(end.page);
                    }
                }
            }
            let all: BTreeSet<_> = (1..=leaf).map(support::bytes).collect();
            assert_eq!(sizes, all, "{vendor:?}");
        }
    }
}

#[test]
fn a_piece_survives_a_split_and_a_change_of_what_is_below() {
    for vendor in VENDORS {
        let block = GPA & !0x1f_ffff;
        let make = || {
            let mut rig = Rig::of(vendor);
            rig.map(block, OLD, 2);
            rig
        };
        let context = make().off();
        let all = reached(&context, GPA, make, |processor, rig| {
            reads(processor, rig, &context, GPA);
            rig.set(rig.at(GPA, 2), 0);
            rig.map(GPA, NEW, 1);
        });
        assert_eq!(all, set([OLD + GPA % (1 << 21), NEW]));
    }
}
