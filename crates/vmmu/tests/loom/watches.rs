//! Family a: a fault in two halves against the host taking the page back in between.

use loom::thread::spawn;
use vmmu::FaultStep;
use vmmu::addr::{Gfn, Level};
use vmmu::host::VcpuId;
use vmmu::internals::{Defect, HostPages};

use crate::explore::{Model, saw};
use crate::guest::{Guest, look, read};
use crate::machine::{Machine, NEW, OLD};
use crate::rig::{self, PAGE, Rig, TABLES, pages};
use vmmu::{HostRange, Mmu, Outcome, Worker};

pub const COMPLAINT: &str = "an old page is mapped after the end of its invalidation";

/// Nothing is mapped from a range under invalidation, and afterwards only the new frame.
pub fn check(guest: &mut Guest<'static>, machine: &Machine, gfn: Gfn) {
    let frame = look(guest, gfn);
    if frame.is_some_and(|frame| frame != machine.block()) {
        machine.complain(COMPLAINT);
    }
}

/// The host takes page 0 back, moves it, and ends the invalidation.
fn migrate(worker: Worker<&'static Mmu<Machine>>, machine: &'static Machine) {
    migrate_in(worker, machine, pages(0, 1));
}

/// The same for the first page of another backing.
pub fn migrate_in(
    mut worker: Worker<&'static Mmu<Machine>>,
    machine: &'static Machine,
    range: HostRange,
) {
    let invalidation = worker.invalidate_range(range);
    machine.migrate(OLD, NEW);
    drop(invalidation);
}

/// A fault of a vCPU whose own watch is out with an earlier request: it takes a spare one.
fn fault_on_a_spare() {
    let rig = Rig::new(1, 1);
    let machine = rig.vm.host();
    let mut guest = rig.guest();
    let worker = rig.worker();
    let earlier = guest.vcpu.begin_fault(read(Gfn(1)));
    let faulting = spawn(move || {
        let _ = guest.fault(read(PAGE), Level::Size4K);
        guest
    });
    let migrating = spawn(move || migrate(worker, machine));
    let mut guest = faulting.join().expect("a fault");
    migrating.join().expect("an invalidation");
    check(&mut guest, machine, PAGE);
    drop((earlier, guest));
    rig.end();
}

/// Two hosts' callbacks at once: the second begins to take pages back that include the first's. It
/// has nothing to walk; what it could spoil is what it announces and hits.
fn fault_beside_a_beginning() {
    let rig = Rig::with_places(1, 2, 2);
    let (mut guest, mut second) = (with_tables(&rig), rig.participant());
    let fault = move || {
        let _ = guest.fault(read(PAGE), Level::Size4K);
        guest
    };
    three(&rig, fault, move || {
        let _published = second.announce(HostPages::new(pages(0, 2)));
        second
    });
    rig.end();
}

/// The same for a fault that has been admitted before.
fn completion_beside_a_beginning() {
    let rig = Rig::with_places(1, 2, 2);
    let (mut guest, mut second) = (with_tables(&rig), rig.participant());
    let step = guest.vcpu.begin_fault(read(PAGE));
    let fault = move || {
        if let FaultStep::Resolve(request) = step {
            let found = guest.machine().find(&request.query(), Level::Size4K);
            let outcome =
                guest.vcpu.complete(crate::guest::resolve(request, found)).expect("enough pages");
            saw(outcome.name());
        }
        guest
    };
    three(&rig, fault, move || {
        let _published = second.announce(HostPages::new(pages(0, 2)));
        second
    });
    rig.end();
}

/// The same for the other half: the frame is found beside both, and completed when both are over.
fn admission_beside_a_beginning() {
    let rig = Rig::with_places(1, 2, 2);
    let machine = rig.vm.host();
    let (mut guest, mut first, mut second) = (with_tables(&rig), rig.worker(), rig.participant());
    let faulting = spawn(move || {
        let step = guest.vcpu.begin_fault(read(PAGE));
        let FaultStep::Resolve(request) = step else { return (guest, None) };
        let found = guest.machine().find(&request.query(), Level::Size4K);
        (guest, Some(crate::guest::resolve(request, found)))
    });
    let migrating = spawn(move || {
        let invalidation = first.invalidate_range(pages(0, 1));
        machine.migrate(OLD, NEW);
        drop(invalidation);
        first
    });
    let beginning = spawn(move || {
        let _published = second.announce(HostPages::named(pages(0, 2)));
        second
    });
    let (mut guest, frame) = faulting.join().expect("half a fault");
    let mut first = migrating.join().expect("an invalidation");
    drop(beginning.join().expect("an invalidation"));
    // Or it would be refused for that reason alone.
    first.invalidate_end(pages(0, 2)).expect("it was begun");
    if let Some(frame) = frame {
        saw(guest.vcpu.complete(frame).expect("enough pages").name());
    }
    check(&mut guest, machine, PAGE);
    drop((guest, first));
    rig.end();
}

/// The second began before, and ends.
fn fault_beside_an_end() {
    let rig = Rig::with_places(1, 2, 2);
    let (mut guest, mut second) = (with_tables(&rig), rig.worker());
    second.invalidate_begin(pages(0, 2));
    let fault = move || {
        let _ = guest.fault(read(PAGE), Level::Size4K);
        guest
    };
    three(&rig, fault, move || {
        second.invalidate_end(pages(0, 2)).expect("it was begun");
        second
    });
    rig.end();
}

/// Two callbacks begin with the same range, and end at once: each ends one.
fn two_ends() {
    two_ends_in(Rig::with_places(1, 2, 2));
}

fn two_ends_in(rig: Rig) {
    let workers = [0, 1].map(|_| {
        let mut worker = rig.worker();
        worker.invalidate_begin(pages(0, 1));
        worker
    });
    let ending = workers.map(|mut worker| {
        spawn(move || {
            if worker.invalidate_end(pages(0, 1)).is_ok() {
                saw("ended");
            }
            worker
        })
    });
    let mut workers = ending.map(|thread| thread.join().expect("an end"));
    if workers[0].invalidate_end(pages(0, 1)).is_ok() {
        rig.vm.host().complain(UNENDED);
    }
    drop(workers);
    rig.end();
}

const UNENDED: &str = "an invalidation that was ended is under way";

const A17: Model = Model::new("a17", 4, two_ends);

#[test]
fn two_ends_of_one_name_end_two() {
    A17.holds(&["ended"]);
}

#[test]
fn two_ends_that_do_not_compare_end_one() {
    A17.fails("a18", Defect::EndsOneTwice, UNENDED);
}

/// Two have begun with the same range. While one end looks at the first of them, the other ends it, and
/// an invalidation of another page begins in its place.
fn end_beside_the_next_in_its_place() {
    let rig = Rig::with_places(1, 2, 2);
    let [mut first, mut second] = [0, 1].map(|_| {
        let mut worker = rig.worker();
        worker.invalidate_begin(pages(0, 1));
        worker
    });
    let ending = spawn(move || {
        first.invalidate_end(pages(0, 1)).expect("it was begun");
        first
    });
    let next = spawn(move || {
        second.invalidate_end(pages(0, 1)).expect("it was begun");
        second.invalidate_begin(pages(1, 1));
        second
    });
    let mut first = ending.join().expect("an end");
    let second = next.join().expect("an end and a beginning");
    if first.invalidate_end(pages(0, 1)).is_ok() {
        rig.vm.host().complain(UNENDED);
    }
    if first.invalidate_end(pages(1, 1)).is_ok() {
        saw("still under way");
    }
    drop((first, second));
    rig.end();
}

const A31: Model = Model::new("a31", 2, end_beside_the_next_in_its_place);

#[test]
fn an_end_does_not_take_the_next_one_in_its_place() {
    A31.holds(&["still under way"]);
}

#[test]
fn a_place_that_keeps_its_name_is_ended_twice() {
    A31.fails("a32", Defect::PlaceKeepsItsName, UNENDED);
}

/// A fault on page 0, which an invalidation takes back that finds no place.
fn fault_against_one_without_a_place() {
    let rig = Rig::with_places(1, 1, 0);
    let machine = rig.vm.host();
    let mut guest = with_tables(&rig);
    let mut worker = rig.worker();
    let faulting = spawn(move || {
        let _ = guest.fault(read(PAGE), Level::Size4K);
        guest
    });
    let migrating = spawn(move || {
        worker.invalidate_begin(pages(0, 1));
        machine.migrate(OLD, NEW);
        worker.invalidate_end(pages(0, 1)).expect("it was begun");
        worker
    });
    let mut guest = faulting.join().expect("a fault");
    drop(migrating.join().expect("an invalidation"));
    check(&mut guest, machine, PAGE);
    drop(guest);
    rig.end();
}

/// The same beside another one without a place, in the blocks of which page 0 is not: what counts
/// for both of them comes and goes while the fault looks.
fn fault_beside_another_without_a_place() {
    let rig = Rig::with_places(1, 2, 0);
    let (mut guest, mut first, mut second) = (with_tables(&rig), rig.worker(), rig.worker());
    let machine = rig.vm.host();
    second.invalidate_begin(pages(1, 1));
    let faulting = spawn(move || {
        let _ = guest.fault(read(PAGE), Level::Size4K);
        guest
    });
    let migrating = spawn(move || {
        let invalidation = first.invalidate_range(pages(0, 1));
        machine.migrate(OLD, NEW);
        drop(invalidation);
        first
    });
    let ending = spawn(move || {
        second.invalidate_end(pages(1, 1)).expect("it was begun");
        second
    });
    let mut guest = faulting.join().expect("a fault");
    drop(migrating.join().expect("an invalidation"));
    drop(ending.join().expect("an end"));
    check(&mut guest, machine, PAGE);
    drop(guest);
    rig.end();
}

const A21: Model = Model::new("a21", 3, fault_against_one_without_a_place);
const A25: Model = Model::new("a25", 1, fault_beside_another_without_a_place).long(2);

#[test]
fn an_invalidation_without_a_place_is_seen_too() {
    A21.holds(&["fixed", "retry"]);
}

#[test]
fn the_only_one_without_a_place_must_be_looked_at() {
    A21.fails("a22", Defect::IgnoresOneOverflowed, COMPLAINT);
}

#[test]
fn without_a_place_a_watch_that_is_not_hit_is_no_better() {
    A21.fails("a27", Defect::HitsNoWatch, COMPLAINT);
}

#[test]
fn another_one_without_a_place_changes_nothing() {
    A25.holds(&["fixed", "retry"]);
}

#[test]
fn beside_another_one_without_a_place_a_section_without_fence_does() {
    A25.fails("a26", Defect::SectionWithoutFence, COMPLAINT);
}

/// Two callbacks begin with ranges of the same blocks, for which there is no place, and end at once.
fn two_ends_without_places() {
    two_ends_in(Rig::with_places(1, 2, 0));
}

const A23: Model = Model::new("a23", 4, two_ends_without_places);

#[test]
fn two_ends_without_a_place_end_two() {
    A23.holds(&["ended"]);
}

#[test]
fn two_ends_without_a_place_that_do_not_compare_end_one() {
    A23.fails("a24", Defect::EndsOneTwice, UNENDED);
}

/// A vCPU for whose page there are tables already, so that its fault is one exchange.
fn with_tables(rig: &Rig) -> Guest<'static> {
    let mut guest = rig.guest();
    let _ = guest.fault(read(Gfn(3)), Level::Size4K);
    guest.vcpu.reserve(TABLES).expect("pages");
    guest
}

/// A fault, an invalidation that moves its page, and something third.
fn three<T: 'static>(
    rig: &Rig,
    fault: impl FnOnce() -> Guest<'static> + 'static,
    third: impl FnOnce() -> T + 'static,
) {
    let (machine, mut first) = (rig.vm.host(), rig.worker());
    let faulting = spawn(fault);
    let migrating = spawn(move || {
        let invalidation = first.invalidate_range(pages(0, 1));
        machine.migrate(OLD, NEW);
        drop(invalidation);
        first
    });
    let third = spawn(third);
    let mut guest = faulting.join().expect("a fault");
    drop(migrating.join().expect("an invalidation"));
    drop(third.join().expect("an invalidation"));
    check(&mut guest, machine, PAGE);
}

/// One invalidation of page 0 against a fault on `gfn`, as a leaf of at most `level`.
fn fault_on(gfn: Gfn, level: Level) {
    let rig = Rig::new(1, 1);
    let machine = rig.vm.host();
    let mut guest = rig.guest();
    let worker = rig.worker();
    let faulting = spawn(move || {
        let _ = guest.fault(read(gfn), level);
        guest
    });
    let migrating = spawn(move || migrate(worker, machine));
    let mut guest = faulting.join().expect("a fault");
    migrating.join().expect("an invalidation");
    check(&mut guest, machine, PAGE);
    drop(guest);
    rig.end();
}

fn fault_against_one() {
    fault_on(PAGE, Level::Size4K);
}

/// A fault on the page beside the one that is taken back, in a block the host has in one piece.
fn fault_beside() {
    fault_on(Gfn(1), Level::Size2M);
}

/// A vCPU that is made while an invalidation is under way: its place was empty when that began.
fn newcomer() {
    let rig = Rig::new(1, 1);
    let (vm, machine) = (rig.vm, rig.vm.host());
    drop(rig.guest());
    let worker = rig.worker();
    let faulting = spawn(move || {
        let mut guest = rig::guest_of(vm, VcpuId(0));
        let _ = guest.fault(read(PAGE), Level::Size4K);
        guest
    });
    let migrating = spawn(move || migrate(worker, machine));
    let mut guest = faulting.join().expect("a fault");
    migrating.join().expect("an invalidation");
    check(&mut guest, machine, PAGE);
    drop(guest);
    rig.end();
}

/// A fault of a vCPU that another participant completes.
fn completed_elsewhere() {
    let rig = Rig::new(1, 2);
    let machine = rig.vm.host();
    let mut guest = rig.guest();
    let (mut helper, worker) = (rig.worker(), rig.worker());
    helper.reserve(TABLES).expect("pages");
    let faulting = spawn(move || {
        if let FaultStep::Resolve(request) = guest.vcpu.begin_fault(read(PAGE)) {
            let found = machine.find(&request.query(), Level::Size4K);
            let outcome =
                helper.complete(crate::guest::resolve(request, found)).expect("enough pages");
            saw(outcome.name());
        } else {
            saw("refused");
        }
        (guest, helper)
    });
    let migrating = spawn(move || migrate(worker, machine));
    let (mut guest, helper) = faulting.join().expect("a fault");
    migrating.join().expect("an invalidation");
    check(&mut guest, machine, PAGE);
    drop((guest, helper));
    rig.end();
}

/// A parked request is made one again elsewhere while its vCPU needs a watch and has no other: one of
/// them gets it.
fn parked_beside_another_fault() {
    let rig = Rig::new(1, 1);
    let machine = rig.vm.host();
    let mut guest = rig.guest();
    let mut worker = rig.worker();
    let FaultStep::Resolve(own) = guest.vcpu.begin_fault(read(PAGE)) else { panic!("no request") };
    let parked = own.park();
    let spare = guest.vcpu.begin_fault(read(Gfn(1)));
    let faulting = spawn(move || (guest.vcpu.begin_fault(read(Gfn(2))), guest));
    let again = worker.unpark(parked);
    let (step, guest) = faulting.join().expect("half a fault");
    let got = (again.is_ok(), matches!(step, FaultStep::Resolve(_)));
    saw(if got.0 { "unparked" } else { "revoked" });
    if got.0 == got.1 {
        machine.complain(TWICE);
    }
    drop((again, spare, step, guest, worker));
    rig.end();
}

/// A parked request is hit while it is made one again.
fn parked_beside_an_invalidation() {
    let rig = Rig::new(1, 2);
    let machine = rig.vm.host();
    let (mut guest, mut first, mut worker) = (rig.guest(), rig.worker(), rig.worker());
    let FaultStep::Resolve(own) = guest.vcpu.begin_fault(read(PAGE)) else { panic!("no request") };
    let parked = own.park();
    let taking = spawn(move || {
        drop(first.invalidate_range(pages(0, 1)));
        first
    });
    let again = worker.unpark(parked);
    let first = taking.join().expect("an invalidation");
    match again {
        Err(_) => machine.complain("a parked request was lost"),
        Ok(request) => {
            let found = machine.find(&request.query(), Level::Size4K);
            worker.reserve(TABLES).expect("pages");
            let outcome = worker.complete(crate::guest::resolve(request, found)).expect("enough");
            saw(outcome.name());
            if outcome != Outcome::Retry {
                machine.complain(COMPLAINT);
            }
        }
    }
    drop((guest, first, worker));
    rig.end();
}

const TWICE: &str = "not one of two has got the watch of a parked request";

const X7: Model = Model::new("x7", 4, parked_beside_another_fault);

#[test]
fn a_parked_request_is_unparked_or_revoked() {
    X7.holds(&["unparked", "revoked"]);
}

#[test]
fn a_parked_request_that_is_taken_without_a_comparison_is_taken_twice() {
    X7.fails("x8", Defect::TakesParkedBlindly, TWICE);
}

const X9: Model = Model::new("x9", 4, parked_beside_an_invalidation);

#[test]
fn a_parked_request_is_hit_and_not_lost() {
    X9.holds(&["retry"]);
}

const X1: Model = Model::new("x1", 3, completed_elsewhere).long(4);

#[test]
fn anybody_may_complete_a_fault() {
    X1.holds(&["fixed", "retry", "refused"]);
}

#[test]
fn elsewhere_an_admission_under_invalidation_is_no_better() {
    X1.fails("x3", Defect::AdmitsUnderInvalidation, COMPLAINT);
}

#[test]
fn elsewhere_a_watch_that_is_not_hit_is_no_better() {
    X1.fails("x4", Defect::HitsNoWatch, COMPLAINT);
}

#[test]
fn elsewhere_an_admission_without_a_fence_is_no_better() {
    X1.fails("x5", Defect::WatchWithoutFence, COMPLAINT);
}

#[test]
fn elsewhere_a_section_without_fence_is_no_better() {
    X1.fails("x6", Defect::SectionWithoutFence, COMPLAINT);
}

const Q1: Model = Model::new("q1", 2, newcomer).long(3);

#[test]
fn a_newcomer_is_no_exception() {
    Q1.holds(&["fixed", "retry"]);
}

#[test]
fn a_newcomer_without_fence_slips_through() {
    Q1.fails("q2", Defect::SectionWithoutFence, COMPLAINT);
}

const A4: Model = Model::new("a4", 3, fault_against_one).long(4);

const A8: Model = Model::new("a8", 2, fault_on_a_spare).long(3);

#[test]
fn a_spare_watch_is_as_good_as_ones_own() {
    A8.holds(&["fixed", "retry"]);
}

#[test]
fn a_spare_watch_that_is_not_hit_is_no_better() {
    A8.fails("a9", Defect::HitsNoWatch, COMPLAINT);
}

#[test]
fn a_spare_watch_admitted_in_the_section_it_was_opened_in_is_no_better() {
    A8.fails("a28", Defect::AdmitsWhereOpened, COMPLAINT);
}

const A7: Model = Model::new("a7", 1, fault_beside_a_beginning).long(2);
const A12: Model = Model::new("a12", 2, fault_beside_an_end);
const A19: Model = Model::new("a19", 1, admission_beside_a_beginning).long(2);
const A15: Model = Model::new("a15", 1, completion_beside_a_beginning).long(2);

#[test]
fn a_fault_never_maps_what_was_invalidated_meanwhile() {
    A4.holds(&["fixed", "retry"]);
}

#[test]
fn a_second_invalidation_that_begins_changes_nothing() {
    A7.holds(&["fixed", "retry"]);
}

#[test]
fn a_second_invalidation_that_begins_beside_the_admission_changes_nothing() {
    // Whoever was admitted has been hit by one of the two.
    A19.holds(&["retry"]);
}

#[test]
fn beside_a_second_invalidation_an_admission_that_does_not_look_is_wrong() {
    A19.fails("a20", Defect::AdmitsUnderInvalidation, COMPLAINT);
}

#[test]
fn a_second_invalidation_that_begins_after_the_admission_changes_nothing() {
    A15.holds(&["fixed", "retry"]);
}

#[test]
fn beside_a_second_invalidation_a_walk_without_exclusion_does() {
    A15.fails("a16", Defect::WalkWithoutGracePeriod, COMPLAINT);
}

#[test]
fn a_second_invalidation_that_ends_changes_nothing() {
    A12.holds(&["fixed", "retry"]);
}

#[test]
fn beside_a_second_invalidation_a_section_without_fence_does() {
    A7.fails("a13", Defect::SectionWithoutFence, COMPLAINT);
}

#[test]
fn beside_a_second_invalidation_a_watch_that_is_not_hit_does() {
    A12.fails("a14", Defect::HitsNoWatch, COMPLAINT);
}

#[test]
fn a_section_without_fence_does() {
    A4.fails("a3", Defect::SectionWithoutFence, COMPLAINT);
}

#[test]
fn a_watch_admitted_without_a_fence_does() {
    A4.fails("a5", Defect::WatchWithoutFence, COMPLAINT);
}

#[test]
fn a_watch_that_is_hit_before_the_range_is_published_does() {
    A4.fails("a2", Defect::HitsBeforeAnnouncement, COMPLAINT);
}

#[test]
fn a_watch_admitted_under_invalidation_does() {
    A4.fails("a6", Defect::AdmitsUnderInvalidation, COMPLAINT);
}

const A11: Model = Model::new("a11", 2, fault_beside).long(3);

#[test]
fn a_block_is_not_believed_whole_while_a_page_of_it_is_taken_back() {
    A11.holds(&["fixed", "retry"]);
}

#[test]
fn a_watch_admitted_for_more_than_its_page_does() {
    A11.fails("a10", Defect::BelievesWholeBlock, COMPLAINT);
}

#[test]
fn a_watch_made_narrower_than_its_leaf_does() {
    A11.fails("a29", Defect::WatchNarrowerThanLeaf, COMPLAINT);
}

#[test]
fn a_watch_made_wider_in_the_section_that_admits_it_does() {
    A11.fails("a30", Defect::WidensInSection, COMPLAINT);
}
