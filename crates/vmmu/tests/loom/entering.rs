//! Family g: a vCPU enters the guest while its root or its translations are taken away.

use loom::thread::spawn;
use vmmu::Progress;
use vmmu::addr::Level;
use vmmu::internals::Defect;

use crate::explore::{Model, saw};
use crate::guest::{Guest, Met, read};
use crate::machine::{OLD, REACHED};
use crate::rig::{PAGE, Rig, pages};

/// A vCPU runs on its root, twice, while that is invalidated, taken apart and released.
fn entry_against_drain() {
    let rig = Rig::new(1, 1);
    let mut guest = rig.guest();
    let _ = guest.fault(read(PAGE), Level::Size4K);
    let mut worker = rig.worker();
    let running = spawn(move || {
        for _ in 0..2 {
            saw(match guest.run(PAGE, 1) {
                Met::Page => "on the old root",
                Met::Nothing => "on a new root",
            });
        }
        guest
    });
    let draining = spawn(move || {
        let mut drain = worker.invalidate_roots();
        while worker.drain(&mut drain, 4) == Progress::More {}
        worker
    });
    let guest = running.join().expect("a guest");
    let worker = draining.join().expect("a drain");
    drop((guest, worker));
    rig.end();
}

/// A vCPU enters again and again, and a flush tries to spare it the interrupt.
fn entry_against_flush() {
    let rig = Rig::new(1, 1);
    let machine = rig.vm.host();
    let mut guest = rig.guest();
    let _ = guest.fault(read(PAGE), Level::Size4K);
    let _ = guest.run(PAGE, 1);
    let mut host = rig.worker();
    let running = spawn(move || {
        for _ in 0..2 {
            saw(match guest.run(PAGE, 2) {
                Met::Page => "reached",
                Met::Nothing => "gone",
            });
        }
        guest
    });
    let invalidating = spawn(move || {
        let invalidation = host.invalidate_range(pages(0, 1));
        machine.take_back(OLD);
        (host, invalidation)
    });
    let guest = running.join().expect("a guest");
    let host = invalidating.join().expect("an invalidation");
    drop((guest, host));
    rig.end();
}

/// A vCPU runs the guest once, if its root still lets it.
fn runs_once(mut guest: Guest<'static>) -> Guest<'static> {
    saw(match guest.try_run(PAGE, 1) {
        Some(Met::Page) => "reached",
        Some(Met::Nothing) => "gone",
        None => "no entry",
    });
    guest
}

/// The host takes a page back that is mapped below a root that is being invalidated, while a vCPU
/// may still run on that root.
fn invalidations_of_root_and_page() {
    let rig = Rig::new(1, 2);
    let machine = rig.vm.host();
    let mut guest = rig.guest();
    let _ = guest.fault(read(PAGE), Level::Size4K);
    let _ = guest.run(PAGE, 1);
    let (mut drainer, mut host) = (rig.worker(), rig.worker());
    let running = spawn(move || runs_once(guest));
    let draining = spawn(move || {
        let drain = drainer.invalidate_roots();
        (drainer, drain)
    });
    let invalidating = spawn(move || {
        let invalidation = host.invalidate_range(pages(0, 1));
        machine.take_back(OLD);
        (host, invalidation)
    });
    let guest = running.join().expect("a guest");
    let drainer = draining.join().expect("a drain");
    let host = invalidating.join().expect("an invalidation");
    drop((guest, drainer, host));
    rig.end();
}

/// The host takes a page back that a drain has unmapped already, without a flush.
fn drain_then_invalidation() {
    let rig = Rig::new(1, 1);
    let machine = rig.vm.host();
    let mut guest = rig.guest();
    let _ = guest.fault(read(PAGE), Level::Size4K);
    let _ = guest.run(PAGE, 1);
    let mut worker = rig.worker();
    let running = spawn(move || {
        for _ in 0..2 {
            saw(match guest.run(PAGE, 2) {
                Met::Page => "reached",
                Met::Nothing => "gone",
            });
        }
        guest
    });
    let draining = spawn(move || {
        let mut drain = worker.invalidate_roots();
        let _more = worker.drain(&mut drain, 1);
        let invalidation = worker.invalidate_range(pages(0, 1));
        machine.take_back(OLD);
        (worker, drain, invalidation)
    });
    let guest = running.join().expect("a guest");
    let worker = draining.join().expect("a drain");
    drop((guest, worker));
    rig.end();
}

/// The host takes a page back while somebody else drains the root below which it is mapped, and a
/// vCPU runs. The invalidation may find the page's entry gone already, and no debt about it.
fn drain_beside_invalidation() {
    let rig = Rig::new(1, 2);
    let machine = rig.vm.host();
    let mut guest = rig.guest();
    let _ = guest.fault(read(PAGE), Level::Size4K);
    let _ = guest.run(PAGE, 1);
    let (mut drainer, mut host) = (rig.worker(), rig.worker());
    let running = spawn(move || runs_once(guest));
    let draining = spawn(move || {
        let mut drain = drainer.invalidate_roots();
        let _more = drainer.drain(&mut drain, 1);
        (drainer, drain)
    });
    let invalidating = spawn(move || {
        let flushes = rig.vm.stats().flushes;
        let invalidation = host.invalidate_range(pages(0, 1));
        // Flushes are the invalidation's own: a drain does none.
        let nobody = rig.vm.stats().flushes == flushes;
        saw(if nobody { "without a flush" } else { "with a flush" });
        machine.take_back(OLD);
        (rig, host, invalidation)
    });
    let guest = running.join().expect("a guest");
    let drainer = draining.join().expect("a drain");
    let (rig, host, invalidation) = invalidating.join().expect("an invalidation");
    drop((guest, drainer, host, invalidation));
    rig.end();
}

const G12: Model = Model::new("g12", 2, drain_beside_invalidation);

#[test]
fn an_invalidation_need_not_flush_for_a_drain_beside_it() {
    G12.holds(&["reached", "gone", "with a flush", "without a flush"]);
}

#[test]
fn it_would_have_to_if_vcpus_were_waited_for_after_the_clear() {
    G12.fails("g13", Defect::WaivesBeforeUnload, REACHED);
}

const G11: Model = Model::new("g11", 3, drain_then_invalidation);
const G4: Model = Model::new("g4", 1, invalidations_of_root_and_page).long(2);

#[test]
fn a_page_below_a_root_that_is_invalidated_is_taken_back_like_any_other() {
    G4.holds(&["reached", "gone"]);
}

#[test]
fn what_a_drain_unmaps_is_gone_without_a_flush() {
    G11.holds(&["reached", "gone"]);
}

#[test]
fn what_a_drain_unmaps_under_the_guest_is_not() {
    G11.fails("g7", Defect::DrainsUnderGuest, REACHED);
}

#[test]
fn below_a_root_that_invalidations_pass_over_it_is_not() {
    G4.fails("g8", Defect::SkipsInvalidRoots, REACHED);
}

const G2: Model = Model::new("g2", 2, entry_against_drain).long(3);
const G5: Model = Model::new("g5", 3, entry_against_flush);

#[test]
fn no_vcpu_runs_on_a_released_root() {
    G2.holds(&["on the old root", "on a new root"]);
}

#[test]
fn a_root_that_is_not_looked_at_again_may_be_released() {
    G2.fails("g1", Defect::LoadsUnnamedRoot, "Causality violation: Concurrent");
}

#[test]
fn a_drain_that_waits_for_no_vcpu_releases_its_root() {
    G2.fails("g3", Defect::DrainsUnderGuest, "Causality violation: Concurrent");
}

#[test]
fn a_vcpu_outside_needs_no_interrupt() {
    G5.holds(&["reached", "gone"]);
}

#[test]
fn a_flush_that_reaches_nobody_leaves_translations() {
    G5.fails("g9", Defect::FlushReachesNobody, REACHED);
}

#[test]
fn without_fences_it_would() {
    G5.fails("g6", Defect::FlushWithoutFences, REACHED);
}
