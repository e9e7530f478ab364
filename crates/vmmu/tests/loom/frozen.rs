//! Family m: who meets a frozen entry leaves his section and comes back.

use loom::thread::spawn;
use vmmu::Outcome;
use vmmu::addr::{Gfn, Level};
use vmmu::internals::Defect;

use crate::debts::detach;
use crate::explore::Model;
use crate::guest::{look, read};
use crate::rig::{PAGE, Rig, pages};

/// The page that is mapped while its table is taken away.
const OTHER: Gfn = Gfn(1);

/// The complaint about a leaf that is counted and that no walk finds.
const LEAKED: &str = "a leaf was put into a detached table";

/// The complaint of the checker about threads that wait for each other.
const NO_END: &str = "exceeded maximum number of branches";

/// A vCPU maps a page into a table that somebody takes away at the same time, and comes back until
/// it is mapped.
fn fault_against_detach() {
    let rig = Rig::new(1, 1);
    let machine = rig.vm.host();
    let mut guest = rig.guest();
    let _ = guest.fault(read(PAGE), Level::Size4K);
    let mut debtor = rig.participant();
    let faulting = spawn(move || {
        let mut tries = 0;
        while guest.fault(read(OTHER), Level::Size4K) == Outcome::Retry && tries < 2 {
            tries += 1;
        }
        guest
    });
    let detaching = spawn(move || {
        detach(&mut debtor, PAGE);
        debtor
    });
    let mut guest = faulting.join().expect("a fault");
    let debtor = detaching.join().expect("a detached table");
    let found = [PAGE, OTHER].into_iter().filter(|gfn| look(&mut guest, *gfn).is_some()).count();
    if rig.vm.stats().leaves != [found as u64, 0, 0] {
        machine.complain(LEAKED);
    }
    drop((guest, debtor));
    rig.end();
}

/// A walk over a table that somebody takes away at the same time.
fn walk_against_detach() {
    let rig = Rig::new(1, 2);
    let mut guest = rig.guest();
    let _ = guest.fault(read(PAGE), Level::Size4K);
    let (mut debtor, mut worker) = (rig.participant(), rig.worker());
    let walking = spawn(move || {
        drop(worker.invalidate_range(pages(0, 2)));
        worker
    });
    let detaching = spawn(move || {
        detach(&mut debtor, PAGE);
        debtor
    });
    let worker = walking.join().expect("a walk");
    let debtor = detaching.join().expect("a detached table");
    if rig.vm.stats().leaves != [0; 3] {
        rig.vm.host().complain(LEAKED);
    }
    drop((guest, worker, debtor));
    rig.end();
}

const M2: Model = Model { name: "m2", preemptions: 3, run: fault_against_detach };
const M4: Model = Model { name: "m4", preemptions: 3, run: walk_against_detach };

#[test]
fn a_fault_that_meets_a_dead_entry_comes_back() {
    M2.holds(&["fixed", "retry"]);
}

#[test]
fn a_fault_that_waits_for_one_inside_its_section_waits_for_ever() {
    M2.fails("m1", Defect::SpinsInSection, NO_END);
}

#[test]
fn a_fault_that_overwrites_one_puts_its_leaf_nowhere() {
    M2.fails("m5", Defect::OverwritesFrozen, LEAKED);
}

#[test]
fn a_walk_that_meets_a_dead_entry_comes_back() {
    M4.holds(&[]);
}

#[test]
fn a_walk_that_waits_for_one_inside_its_section_waits_for_ever() {
    M4.fails("m3", Defect::SpinsInSection, NO_END);
}
