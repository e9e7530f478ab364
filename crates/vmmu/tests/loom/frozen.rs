//! Family m: who meets a frozen entry leaves his section and comes back.

use loom::thread::spawn;
use vmmu::addr::{Gfn, Level};
use vmmu::host::{Cpus, Wait, WaitFor};
use vmmu::internals::{Defect, Detach};
use vmmu::{Outcome, Role};

use crate::debts::detach;
use crate::explore::{Model, saw};
use crate::guest::{look, read};
use crate::rig::{PAGE, Rig, TABLES, pages};

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
    guest.vcpu.reserve(TABLES + 1).expect("pages");
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

/// Somebody claims an entry, waits for a grace period, and gives it back in a later section; somebody
/// else takes the table away.
fn claim_against_detach() {
    let rig = Rig::new(1, 2);
    let mut guest = rig.guest();
    let _ = guest.fault(read(PAGE), Level::Size4K);
    let root = rig.vm.root(Role::PLAIN).expect("a root");
    let (mut owner, mut debtor) = (rig.participant(), rig.participant());
    let machine = rig.vm.host();
    let claiming = spawn(move || {
        let claim = owner.section().claim(root, OTHER, Level::Size4K, 1);
        saw(if claim.is_some() { "claimed" } else { "not claimed" });
        if let Some(claim) = claim {
            owner.synchronize();
            owner.section().give_back(claim);
        }
        owner
    });
    let detaching = spawn(move || {
        loop {
            let mut debt = debtor.debt(PAGE.leaf(Level::Size2M));
            let detach = {
                let section = debt.section();
                let entry = section.entry(root, PAGE, Level::Size2M).expect("a root");
                entry.detach().ok()
            };
            debt.settle();
            match detach {
                Some(Detach::Done) => break debtor,
                Some(Detach::Claimed) => saw("left"),
                None => {}
            }
            machine.wait(Wait::new(WaitFor::Entry, 0));
        }
    });
    let owner = claiming.join().expect("a claim");
    let debtor = detaching.join().expect("a detached table");
    if rig.vm.stats().leaves != [0; 3] {
        machine.complain(LEAKED);
    }
    drop((guest, owner, debtor));
    rig.end();
}

const M6: Model = Model::new("m6", 3, claim_against_detach);

#[test]
fn a_table_with_a_claim_is_left_until_it_is_given_back() {
    M6.holds(&["claimed", "not claimed", "left"]);
}

#[test]
fn a_table_that_is_taken_under_a_claim_waits_for_it_for_ever() {
    M6.fails("m7", Defect::TakesTableUnderClaim, NO_END);
}

#[test]
fn a_claim_in_a_table_that_is_gone_is_waited_for_for_ever() {
    M6.fails("m8", Defect::ClaimsUnlinkedEntry, NO_END);
}

const M2: Model = Model::new("m2", 3, fault_against_detach);
const M4: Model = Model::new("m4", 3, walk_against_detach);

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
