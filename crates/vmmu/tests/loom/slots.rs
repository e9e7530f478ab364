//! Family k: slots that come and go while the host takes their pages back.

use loom::thread::spawn;
use vmmu::HostRange;
use vmmu::addr::{Gfn, GfnRange, Level};
use vmmu::internals::Defect;
use vmmu::slot::{SlotId, SlotSpec, Source};

use crate::explore::{Model, saw};
use crate::guest::{Met, read};
use crate::machine::{OLD, REACHED};
use crate::rig::{MEMORY, PAGE, Rig, memory, pages};
use crate::watches::{COMPLAINT, check, migrate_in};

/// A slot is deleted while one of its pages is taken back; then a guest that still has it in its
/// TLB runs.
fn deletion() {
    let rig = Rig::new(1, 2);
    let machine = rig.vm.host();
    let mut guest = rig.guest();
    let _ = guest.fault(read(PAGE), Level::Size4K);
    let _ = guest.run(PAGE, 1);
    let (mut deleter, mut host) = (rig.worker(), rig.worker());
    let deleting = spawn(move || {
        deleter.delete_slot(SlotId(0)).expect("it is there");
        deleter
    });
    let invalidating = spawn(move || {
        let invalidation = host.invalidate_range(pages(0, 1));
        machine.take_back(OLD);
        saw(match guest.run(PAGE, 1) {
            Met::Page => "reached",
            Met::Nothing => "gone",
        });
        (guest, host, invalidation)
    });
    let deleter = deleting.join().expect("a deletion");
    let host = invalidating.join().expect("an invalidation");
    drop((deleter, host));
    rig.end();
}

/// A slot is made over pages that are being taken back, and a vCPU faults in it at once.
fn creation() {
    let rig = Rig::new(1, 2);
    let machine = rig.vm.host();
    let mut guest = rig.guest();
    let (mut creator, host) = (rig.worker(), rig.worker());
    // Where no watch covers a page of the other slot.
    let start = Gfn(Level::Size1G.pages());
    let range = GfnRange::sized(start, MEMORY).expect("short");
    let source = Source::Backed { backing: 1, first: 0 };
    let taken = HostRange { backing: 1, ..pages(0, 1) };
    let faulting = spawn(move || {
        let _ = guest.fault(read(start), Level::Size4K);
        guest
    });
    let creating = spawn(move || {
        let spec = SlotSpec { id: SlotId(1), range, source, ..memory() };
        creator.create_slot(&spec).expect("there is room");
        creator
    });
    let migrating = spawn(move || migrate_in(host, machine, taken));
    let mut guest = faulting.join().expect("a fault");
    let creator = creating.join().expect("a slot");
    migrating.join().expect("an invalidation");
    check(&mut guest, machine, start);
    drop((guest, creator));
    rig.end();
}

/// The largest leaf of a slot is lowered while a vCPU maps a huge one.
fn limit() {
    let rig = Rig::new(1, 1);
    let machine = rig.vm.host();
    let mut guest = rig.guest();
    let mut worker = rig.worker();
    let faulting = spawn(move || {
        let _ = guest.fault(read(PAGE), Level::Size2M);
        guest
    });
    let limiting = spawn(move || {
        worker.limit_slot(SlotId(0), Level::Size4K).expect("it is there");
        worker
    });
    let guest = faulting.join().expect("a fault");
    let worker = limiting.join().expect("a limit");
    if rig.vm.stats().leaves[1] != 0 {
        machine.complain(TOO_LARGE);
    }
    drop((guest, worker));
    rig.end();
}

/// A slot is deleted while a vCPU resolves a frame for it.
fn deletion_against_fault() {
    let rig = Rig::new(1, 1);
    let machine = rig.vm.host();
    let mut guest = rig.guest();
    let mut worker = rig.worker();
    let faulting = spawn(move || {
        let _ = guest.fault(read(PAGE), Level::Size4K);
        guest
    });
    let deleting = spawn(move || {
        worker.delete_slot(SlotId(0)).expect("it is there");
        worker
    });
    let guest = faulting.join().expect("a fault");
    let worker = deleting.join().expect("a deletion");
    if rig.vm.stats().leaves != [0; 3] {
        machine.complain(SURVIVOR);
    }
    drop((guest, worker));
    rig.end();
}

const SURVIVOR: &str = "a leaf of a deleted slot is mapped";
const TOO_LARGE: &str = "a leaf is larger than the slot's limit";

const E3: Model = Model::new("e3", 4, deletion_against_fault);
const E1: Model = Model::new("e1", 4, limit);

#[test]
fn a_lowered_limit_is_kept() {
    E1.holds(&["fixed", "retry"]);
}

#[test]
fn a_fault_that_was_admitted_before_maps_nothing_of_a_deleted_slot() {
    E3.holds(&["fixed", "retry"]);
}

#[test]
fn a_permit_that_does_not_compare_the_revision_does() {
    E3.fails("e2", Defect::IgnoresRevision, SURVIVOR);
}

#[test]
fn a_walk_without_exclusion_leaves_a_larger_one() {
    E1.fails("e4", Defect::WalkWithoutGracePeriod, TOO_LARGE);
}

const K2: Model = Model::new("k2", 2, deletion).long(3);
const K6: Model = Model::new("k6", 1, creation).long(2);

#[test]
fn a_dying_slot_is_found_by_invalidations() {
    K2.holds(&["gone"]);
}

#[test]
fn a_slot_that_is_gone_before_its_leaves_is_not() {
    K2.fails("k1", Defect::SlotGoneBeforeLeaves, REACHED);
}

#[test]
fn a_slot_is_live_when_every_invalidation_knows_it() {
    K6.holds(&["fixed", "emulate"]);
}

#[test]
fn an_invalidation_published_in_guest_frames_misses_a_slot_that_comes() {
    K6.fails("k3", Defect::AnnouncesInGuestFrames, COMPLAINT);
}

#[test]
fn a_slot_that_is_live_at_once_is_unknown_to_one_under_way() {
    K6.fails("k5", Defect::SlotLiveAtOnce, COMPLAINT);
}
