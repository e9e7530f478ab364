//! Family a: a fault in two halves against the host taking the page back in between.

use loom::thread::spawn;
use vmmu::addr::Level;
use vmmu::protocol::Defect;

use crate::explore::Model;
use crate::guest::{Guest, read, walk};
use crate::machine::{Machine, NEW, OLD};
use crate::rig::{PAGE, Rig, pages};
use vmmu::{Processor, Worker};

const COMPLAINT: &str = "an old page is mapped after the end of its invalidation";

/// Nothing is mapped from a range under invalidation, and afterwards only the new frame.
fn check(guest: &mut Guest<'static>, machine: &Machine) {
    let inside = guest.vcpu.before_enter(Processor(0)).expect("a root");
    let frame = walk(machine, inside.root(), PAGE);
    if frame.is_some_and(|frame| frame != machine.block()) {
        machine.complain(COMPLAINT);
    }
}

/// The host takes page 0 back, moves it, and ends the invalidation.
fn migrate(mut worker: Worker<'static, Machine>, machine: &'static Machine) {
    let invalidation = worker.invalidate_range(pages(0, 1));
    machine.migrate(OLD, NEW);
    drop(invalidation);
}

/// Two hosts' callbacks at once: the second takes pages back that include the first's.
fn fault_against_two() {
    let rig = Rig::new(1, 2);
    let machine = rig.vm.host();
    let mut guest = rig.guest();
    let (first, mut second) = (rig.worker(), rig.worker());
    let faulting = spawn(move || {
        let _ = guest.fault(read(PAGE), Level::K4);
        guest
    });
    let migrating = spawn(move || migrate(first, machine));
    let invalidating = spawn(move || drop(second.invalidate_range(pages(0, 2))));
    let mut guest = faulting.join().expect("a fault");
    migrating.join().expect("an invalidation");
    invalidating.join().expect("an invalidation");
    check(&mut guest, machine);
    drop(guest);
    rig.end();
}

fn fault_against_one() {
    let rig = Rig::new(1, 1);
    let machine = rig.vm.host();
    let mut guest = rig.guest();
    let worker = rig.worker();
    let faulting = spawn(move || {
        let _ = guest.fault(read(PAGE), Level::K4);
        guest
    });
    let migrating = spawn(move || migrate(worker, machine));
    let mut guest = faulting.join().expect("a fault");
    migrating.join().expect("an invalidation");
    check(&mut guest, machine);
    drop(guest);
    rig.end();
}

const A4: Model = Model { name: "a4", preemptions: 3, run: fault_against_one };

const A7: Model = Model { name: "a7", preemptions: 1, run: fault_against_two };

#[test]
fn a_fault_never_maps_what_was_invalidated_meanwhile() {
    A4.holds(&["fixed", "retry"]);
}

#[test]
fn two_invalidations_at_once_are_no_worse() {
    A7.holds(&["fixed", "retry"]);
}

#[test]
fn a_section_without_fence_does() {
    A4.fails("a3", Defect::A3, COMPLAINT);
}

#[test]
fn a_watch_admitted_without_a_fence_does() {
    A4.fails("a5", Defect::A5, COMPLAINT);
}

#[test]
fn a_watch_admitted_under_invalidation_does() {
    A4.fails("a6", Defect::A6, COMPLAINT);
}
