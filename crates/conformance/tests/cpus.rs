//! Kicks: a good host passes, and for each rule there is a host that breaks it.

mod support;

use std::sync::Arc;
use std::time::Duration;

use conformance::{CpusOptions, Report, check_cpus};
use support::{BadKicks, Lines, assert_broken, assert_kept, assert_only_broken};
use vmmu::host::VcpuId;

fn check(bad: BadKicks, options: &CpusOptions) -> Report {
    let host = Arc::new(Lines::new(bad));
    let lines = Arc::clone(&host);
    let run = move |vcpu: VcpuId, entering: &mut dyn FnMut()| lines.run(vcpu, entering);
    check_cpus(&host, &Arc::new(run), options)
}

#[test]
fn a_good_host_passes() {
    let report = check(BadKicks::No, &CpusOptions { vcpus: 3, ..CpusOptions::default() });
    assert_kept(&report, &[]);
    println!("{report}");
}

#[test]
fn each_bad_host_is_caught() {
    // What never comes is waited for; how long does not matter to what is said.
    let patience = Duration::from_millis(500);
    let options = CpusOptions { patience, ..CpusOptions::default() };
    let cases = [
        (BadKicks::GuestsLeave, "C1"),
        (BadKicks::DoNothing, "C2"),
        (BadKicks::LostBeforeEntry, "C3"),
        (BadKicks::Wait, "C4"),
        (BadKicks::AddUp, "C5"),
        (BadKicks::PanicOutside, "C6"),
        (BadKicks::GoToVcpuZero, "C7"),
        (BadKicks::LostNowAndThen, "C8"),
        (BadKicks::NeverRelax, "C9"),
        (BadKicks::WaitLonger, "C10"),
        (BadKicks::WaitToBeWoken, "C10"),
    ];
    std::thread::scope(|scope| {
        for (bad, rule) in cases {
            let options = &options;
            scope.spawn(move || assert_broken(&check(bad, options), rule));
        }
    });
}

/// Kicks and single waits of such a host are as they should be.
#[test]
fn a_host_that_waits_to_be_woken_is_caught_by_that_alone() {
    let patience = Duration::from_secs(2);
    let options = CpusOptions { patience, ..CpusOptions::default() };
    assert_only_broken(&check(BadKicks::WaitToBeWoken, &options), "C10");
}
