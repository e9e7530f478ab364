//! A whole host: a good one passes, and for each rule there is one that breaks it.

mod support;

use conformance::{Judged, Report, Tables, TogetherOptions, check_together};
use support::{
    BadFrames, BadPool, Frames, OnEvent, Pool, Whole, assert_broken, assert_broken_beside,
    assert_kept, assert_only_broken,
};
use vmmu::addr::Gfn;
use vmmu::entry::ept::EptOptions;
use vmmu::entry::npt::NptOptions;
use vmmu::{HostRange, Mmu, Role, Worker};

const BACKING: u64 = 7;

fn tables() -> [Tables; 2] {
    [Tables::Npt(NptOptions::default()), Tables::Ept(EptOptions::default())]
}

fn options(tables: Tables) -> TogetherOptions {
    TogetherOptions { steps: 4000, ..TogetherOptions::new(tables, BACKING, 600) }
}

/// How taking back misbehaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Bad {
    No,
    NeverEnds,
    LosesContents,
    TellsNobody,
    GivesUpInSecret,
    DoesNothing,
    /// Invalidates the page beside it, and moves nothing.
    InvalidatesNeighbour,
    /// The same, and moves the page.
    MovesUnderNeighbour,
    /// Invalidates the page, and moves the one beside it too.
    MovesNeighbour,
    /// Invalidates only what is mapped.
    FreesWhatIsNotMapped,
}

fn take_back(frames: &Frames, bad: Bad) -> impl FnMut(&mut Worker<&Mmu<Judged<'_, Whole>>>, u64) {
    let mut count = 0;
    move |worker, page| {
        count += 1;
        let range = HostRange { backing: BACKING, first: page, pages: 1 };
        match bad {
            Bad::DoesNothing => {}
            Bad::InvalidatesNeighbour | Bad::MovesUnderNeighbour => {
                let beside = HostRange { first: page ^ 1, ..range };
                let invalidation = worker.invalidate_range(beside);
                if bad == Bad::MovesUnderNeighbour {
                    frames.move_page(page, true);
                }
                drop(invalidation);
            }
            Bad::MovesNeighbour => {
                let invalidation = worker.invalidate_range(range);
                frames.move_page(page, true);
                frames.move_page(page ^ 1, true);
                drop(invalidation);
            }
            Bad::FreesWhatIsNotMapped => {
                let is_mapped = worker.translate(Role::PLAIN, Gfn(page).gpa()).is_some();
                let invalidation = is_mapped.then(|| worker.invalidate_range(range));
                frames.move_page(page, true);
                drop(invalidation);
            }
            Bad::TellsNobody => frames.move_page(page, true),
            Bad::GivesUpInSecret => frames.give_up(page),
            Bad::NeverEnds => worker.invalidate_begin(range),
            Bad::No if count % 2 == 0 => {
                worker.invalidate_begin(range);
                frames.move_page(page, true);
                worker.invalidate_end(range).unwrap();
            }
            Bad::No | Bad::LosesContents => {
                let invalidation = worker.invalidate_range(range);
                frames.move_page(page, bad == Bad::No);
                drop(invalidation);
            }
        }
    }
}

fn check(options: &TogetherOptions, host: &Whole, frames: &Frames, bad: Bad) -> Report {
    check_together(host, frames, take_back(frames, bad), options)
}

fn quiet(_: &Pool, _: u64) {}

#[test]
fn a_good_host_passes() {
    for tables in tables() {
        let host = Whole::new(BadPool::No, quiet);
        let options = TogetherOptions { steps: 20_000, ..options(tables) };
        let report = check(&options, &host, &Frames::new(BadFrames::No), Bad::No);
        assert_kept(&report, &[]);
        println!("{report}");
    }
}

#[test]
fn a_host_that_takes_back_badly_is_caught() {
    for (bad, rule) in [
        (Bad::NeverEnds, "V1"),
        (Bad::LosesContents, "V2"),
        (Bad::TellsNobody, "V3"),
        (Bad::GivesUpInSecret, "V3"),
        (Bad::DoesNothing, "V7"),
    ] {
        for tables in tables() {
            let host = Whole::new(BadPool::No, quiet);
            let report = check(&options(tables), &host, &Frames::new(BadFrames::No), bad);
            assert_broken(&report, rule);
        }
    }
}

/// The steps at random leave out what another rule would see first.
#[test]
fn a_host_that_invalidates_other_pages_than_it_takes_is_caught_by_the_rule_for_it() {
    for (bad, rule, also) in [
        (Bad::DoesNothing, "V7", &[][..]),
        (Bad::InvalidatesNeighbour, "V7", &[]),
        // Who asks for the page is not told either.
        (Bad::MovesUnderNeighbour, "V7", &["V11"]),
        (Bad::MovesNeighbour, "V10", &[]),
        (Bad::TellsNobody, "V10", &["V11"]),
        (Bad::FreesWhatIsNotMapped, "V11", &[]),
    ] {
        for tables in tables() {
            let host = Whole::new(BadPool::No, quiet);
            let frames = Frames::new(BadFrames::No);
            let options = TogetherOptions { steps: 0, ..options(tables) };
            assert_broken_beside(&check(&options, &host, &frames, bad), rule, also);
        }
    }
}

/// A host that seems right as long as a page is taken back between two faults.
#[test]
fn a_host_that_frees_because_nothing_is_mapped_yet_is_caught_by_that_alone() {
    for tables in tables() {
        let host = Whole::new(BadPool::No, quiet);
        let frames = Frames::new(BadFrames::No);
        let report = check(&options(tables), &host, &frames, Bad::FreesWhatIsNotMapped);
        assert_only_broken(&report, "V11");
    }
}

/// A host that seems right as long as only the number of invalidations is looked at.
#[test]
fn a_host_that_invalidates_a_neighbour_is_caught_by_that_alone() {
    for tables in tables() {
        let host = Whole::new(BadPool::No, quiet);
        let frames = Frames::new(BadFrames::No);
        let report = check(&options(tables), &host, &frames, Bad::InvalidatesNeighbour);
        assert_only_broken(&report, "V7");
    }
}

#[test]
fn bytes_that_are_others_for_the_library_are_caught() {
    for tables in tables() {
        let host = Whole::new(BadPool::No, quiet);
        let frames = Frames::new(BadFrames::HasOtherBytesEachTime);
        assert_broken(&check(&options(tables), &host, &frames, Bad::No), "V4");
    }
}

#[test]
fn a_backing_that_denies_writes_passes() {
    for tables in tables() {
        let host = Whole::new(BadPool::No, quiet);
        let frames = Frames::new(BadFrames::DeniesWrites);
        assert!(check(&options(tables), &host, &frames, Bad::No).is_clean());
    }
}

#[test]
fn a_backing_that_gives_pages_up_passes() {
    for tables in tables() {
        let host = Whole::new(BadPool::No, quiet);
        let frames = Frames::new(BadFrames::No);
        let mut taken = 0;
        let report = check_together(
            &host,
            &frames,
            |worker, page| {
                taken += 1;
                let range = HostRange { backing: BACKING, first: page, pages: 1 };
                let invalidation = worker.invalidate_range(range);
                match taken % 8 {
                    0 => frames.give_up(page),
                    _ => frames.move_page(page, true),
                }
                drop(invalidation);
            },
            &options(tables),
        );
        assert!(report.is_clean(), "{report}");
    }
}

/// A leaf that maps a frame of the backing.
fn is_leaf(word: u64) -> bool {
    word & 1 != 0 && word >> 12 & 0xff_ffff_ffff >= 0x40_0000
}

#[test]
fn a_host_that_touches_its_table_pages_is_caught() {
    let spoils: OnEvent = |pool, event| {
        if event == 10 {
            // A reserved bit in every leaf.
            while pool
                .tamper(|word| (is_leaf(word) && word >> 51 & 1 == 0).then_some(word | 1 << 51))
            {
            }
        }
    };
    let marks: OnEvent = |pool, event| {
        if event == 10 {
            // A bit that the processor ignores.
            pool.tamper(|word| is_leaf(word).then_some(word | 1 << 10));
        }
    };
    let unlinks: OnEvent = |pool, event| {
        if event == 10 {
            pool.tamper(|word| (word & 7 == 7 && !is_leaf(word)).then_some(0));
        }
    };
    for (tamper, rule) in [(spoils, "V5"), (marks, "V8"), (unlinks, "V9")] {
        for tables in tables() {
            let host = Whole::new(BadPool::No, tamper);
            // No invalidations, or the leaf may be gone before anybody looks.
            let report =
                check_together(&host, &Frames::new(BadFrames::No), |_, _| {}, &options(tables));
            assert_broken(&report, rule);
        }
    }
}

#[test]
fn a_host_that_gives_a_page_twice_is_caught() {
    for tables in tables() {
        let host = Whole::new(BadPool::GivesTwice, quiet);
        let report = check(&options(tables), &host, &Frames::new(BadFrames::No), Bad::No);
        assert_broken(&report, "V6");
    }
}

#[test]
fn a_host_that_panics_is_caught() {
    let panics: OnEvent = |_, event| assert_ne!(event, 20, "an event too many");
    for tables in tables() {
        let host = Whole::new(BadPool::No, panics);
        let report = check(&options(tables), &host, &Frames::new(BadFrames::No), Bad::No);
        assert_broken(&report, "V0");
    }
}
