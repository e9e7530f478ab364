//! Family r: roots invalidated and taken apart while vCPUs run on them and populate them.

use loom::thread::spawn;
use vmmu::Progress;
use vmmu::Role;
use vmmu::addr::Level;
use vmmu::internals::Defect;

use crate::explore::{Model, saw};
use crate::guest::{Met, read};
use crate::rig::{PAGE, Rig};

/// A vCPU that runs the guest, faults, and runs it again, while a worker drops every mapping.
fn fault_against_drain() {
    let rig = Rig::new(1, 1);
    let mut guest = rig.guest();
    let mut worker = rig.worker();
    let running = spawn(move || {
        let _ = guest.fault(read(PAGE), Level::Size4K);
        if guest.run(PAGE, 1) == Met::Page {
            saw("reached");
        }
        guest
    });
    let draining = spawn(move || {
        let mut drain = worker.invalidate_roots();
        while worker.drain(&mut drain, 1) == Progress::More {}
        worker
    });
    let guest = running.join().expect("a guest");
    let worker = draining.join().expect("a drain");
    drop((guest, worker));
    rig.end();
}

const R1: Model = Model::new("r1", 2, fault_against_drain).long(3);

#[test]
fn an_invalid_root_is_not_populated_behind_its_drain() {
    R1.holds(&["fixed", "retry", "reached"]);
}

#[test]
fn a_drain_that_does_not_wait_for_sections_is() {
    R1.fails("r2", Defect::DrainWithoutGracePeriod, "a table page has been lost");
}

#[test]
fn a_permit_that_does_not_look_at_the_root_populates_it_behind_its_drain() {
    R1.fails("r5", Defect::PopulatesInvalidRoot, "a table page has been lost");
}

/// Whoever has the name of a root looks twice where it leads, while the root is taken apart.
fn look_against_drain() {
    let rig = Rig::new(1, 1);
    let mut guest = rig.guest();
    let _ = guest.fault(read(PAGE), Level::Size4K);
    drop(guest);
    let root = rig.vm.root(Role::PLAIN).expect("a root");
    let (mut looker, mut worker) = (rig.participant(), rig.worker());
    let looking = spawn(move || {
        for _ in 0..2 {
            let section = looker.section();
            match section.entry(root, PAGE, Level::Size4K) {
                Some(entry) if entry.level() == Level::Size4K => saw("table"),
                Some(_) => saw("no table"),
                None => saw("no root"),
            }
        }
        looker
    });
    let draining = spawn(move || {
        let mut drain = worker.invalidate_roots();
        while worker.drain(&mut drain, 1) == Progress::More {}
        worker
    });
    let looker = looking.join().expect("a look");
    let worker = draining.join().expect("a drain");
    drop((looker, worker));
    rig.end();
}

const R6: Model = Model::new("r6", 2, look_against_drain).long(3);

#[test]
fn a_root_that_is_taken_apart_can_be_looked_at() {
    R6.holds(&["table", "no table", "no root"]);
}

#[test]
fn a_section_that_looks_at_a_retiring_root_meets_a_released_table() {
    R6.fails(
        "r3",
        Defect::LooksAtRetiringRoot,
        "Causality violation: Concurrent load and mut accesses",
    );
}

#[test]
fn a_table_is_released_while_a_section_that_is_over_counts_as_open() {
    R6.fails("r4", Defect::CountWithoutRelease, "Causality violation: Concurrent");
}
