//! Table pages: a good host passes, and for each rule there is a host that breaks it.

mod support;

use conformance::{PagesOptions, check_table_pages};
use support::{BadPool, Pool, assert_broken, assert_kept};

fn options() -> PagesOptions {
    PagesOptions { pages: 32, rounds: 8, phys_bits: 48, ..PagesOptions::default() }
}

#[test]
fn a_good_host_passes() {
    let report = check_table_pages(&Pool::new(BadPool::No), &options());
    assert_kept(&report, &["P12"]);
    let options = PagesOptions { exhausted_after: Some(512), ..options() };
    let report = check_table_pages(&Pool::new(BadPool::No), &options);
    assert_kept(&report, &[]);
    println!("{report}");
}

#[test]
fn each_bad_host_is_caught() {
    for (bad, rule) in [
        (BadPool::GivesTen, "P1"),
        (BadPool::Panics, "P1"),
        (BadPool::GivesFrameZero, "P2"),
        (BadPool::GivesWideFrames, "P3"),
        (BadPool::IsMisaligned, "P4"),
        (BadPool::GivesTwice, "P5"),
        (BadPool::LiesAboutZeroes, "P6"),
        (BadPool::Scribbles, "P7"),
        (BadPool::MovesItsWindow, "P8"),
        (BadPool::IgnoresLimits, "P9"),
        (BadPool::Leaks, "P10"),
        (BadPool::ForgetsOtherThreads, "P11"),
        (BadPool::NeverRecovers, "P12"),
    ] {
        let options = PagesOptions { exhausted_after: Some(512), ..options() };
        let report = check_table_pages(&Pool::new(bad), &options);
        assert_broken(&report, rule);
    }
}

#[test]
fn a_host_that_gives_more_than_it_has_is_caught() {
    let options = PagesOptions { exhausted_after: Some(100), ..options() };
    let report = check_table_pages(&Pool::new(BadPool::No), &options);
    assert_broken(&report, "P12");
}
