//! Family w: a vCPU with a TLB, somebody who zaps, and the host taking the page back.

use loom::thread::spawn;
use vmmu::addr::Level;
use vmmu::internals::Defect;

use crate::debts::zap;
use crate::explore::{Model, saw};
use crate::guest::{Met, read};
use crate::machine::{NEW, OLD, REACHED};
use crate::rig::{PAGE, Rig, TABLES, pages};

fn whole() {
    let rig = Rig::new(1, 2);
    let machine = rig.vm.host();
    let mut guest = rig.guest();
    let _ = guest.fault(read(PAGE), Level::Size4K);
    guest.vcpu.reserve(TABLES).expect("pages");
    let (mut zapper, mut host) = (rig.participant(), rig.worker());
    let running = spawn(move || {
        // Twice: by the walk, and by the TLB.
        if guest.run(PAGE, 2) == Met::Nothing {
            let _ = guest.fault(read(PAGE), Level::Size4K);
            if guest.run(PAGE, 1) == Met::Page {
                saw("reached after a fault");
            }
        } else {
            saw("reached");
        }
        guest
    });
    let zapping = spawn(move || {
        zap(&mut zapper, PAGE);
        zapper
    });
    let invalidating = spawn(move || {
        let invalidation = host.invalidate_range(pages(0, 1));
        machine.migrate(OLD, NEW);
        drop(invalidation);
        host
    });
    let guest = running.join().expect("a guest");
    let zapper = zapping.join().expect("a zap");
    let host = invalidating.join().expect("an invalidation");
    drop((guest, zapper, host));
    rig.end();
}

const W1: Model = Model::new("w1", 2, whole);

#[test]
fn no_guest_reaches_a_page_the_host_has_taken_back() {
    W1.holds(&["reached", "reached after a fault"]);
}

#[test]
fn a_promise_that_ignores_the_ledgers_of_others_lets_it() {
    W1.fails("w2", Defect::IgnoresForeignDebts, REACHED);
}

#[test]
fn a_section_without_fence_lets_it() {
    W1.fails("w5", Defect::SectionWithoutFence, REACHED);
}

#[test]
fn an_entry_and_a_flush_without_fences_let_it() {
    W1.fails("w6", Defect::FlushWithoutFences, REACHED);
}

#[test]
fn a_walk_without_exclusion_lets_it() {
    W1.fails("w3", Defect::WalkWithoutGracePeriod, REACHED);
}

#[test]
fn an_invalidation_that_hits_no_watch_lets_it() {
    W1.fails("w4", Defect::HitsNoWatch, REACHED);
}
