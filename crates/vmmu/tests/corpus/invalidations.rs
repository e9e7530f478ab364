//! Invalidations for which there is no place.

use vmmu::addr::Level;
use vmmu::entry::Access;
use vmmu::host::VcpuId;
use vmmu::internals::Defect;
use vmmu::{Busy, Outcome};
use vmmu::{Config, HostRange, Mmu};

use crate::catch::{Verdict, catches, ensure};
use crate::support::{Frames, TestHost, backed, fault_at, npt, range};

fn page(first: u64) -> HostRange {
    HostRange { backing: 7, first, pages: 1 }
}

/// One invalidation more than there are places: its page is refused until its own end, a page that
/// it does not touch is not, and the end of another range, which nobody began, is an error.
fn one_more_than_there_are_places() -> Verdict {
    let config = Config { invalidations: 2, ..Config::new(npt(), 1) };
    let vm = Mmu::new(TestHost::default(), &config).unwrap();
    let frames = Frames::new(Level::Size4K);
    let (mut worker, mut vcpu) = (vm.worker().unwrap(), vm.vcpu(VcpuId(0)).unwrap());
    worker.create_slot(&backed(1, range(0, 0x400))).unwrap();
    let mut fault = |gfn| vcpu.handle_fault(&frames, fault_at(gfn, Access::READ));
    for first in [3, 4, 5] {
        worker.invalidate_begin(page(first));
    }
    for gfn in [3, 4, 5] {
        let outcome = fault(gfn);
        ensure(outcome == Outcome::Busy(Busy::Invalidation), || {
            format!("page {gfn} is mapped: {outcome:?}")
        })?;
    }
    let outcome = fault(9);
    ensure(outcome == Outcome::Fixed(Level::Size4K), || {
        format!("a page under no invalidation is refused: {outcome:?}")
    })?;
    let never = worker.invalidate_end(page(9));
    ensure(never.is_err(), || "an invalidation ended that never began".to_owned())?;
    let outcome = fault(5);
    ensure(outcome == Outcome::Busy(Busy::Invalidation), || {
        format!("page 5 is mapped before its end: {outcome:?}")
    })?;
    for first in [3, 4, 5] {
        ensure(worker.invalidate_end(page(first)).is_ok(), || format!("no end of {first}"))?;
    }
    let outcome = fault(5);
    ensure(outcome == Outcome::Fixed(Level::Size4K), || format!("page 5 at last: {outcome:?}"))
}

/// From one more invalidation than there are places, no backed fault ends.
///
/// M3.
#[test]
fn overflow_refuses_all() {
    catches(Defect::OverflowRefusesAll, one_more_than_there_are_places);
}

/// The limit is off by one: the first invalidation without a place is not looked at.
///
/// M3-f, D-a22.
#[test]
fn ignores_one_overflowed() {
    catches(Defect::IgnoresOneOverflowed, one_more_than_there_are_places);
}

/// The end of a range that nobody began takes the place of one that somebody did.
///
/// M11.
#[test]
fn ends_any_overflowed() {
    catches(Defect::EndsAnyOverflowed, one_more_than_there_are_places);
}
