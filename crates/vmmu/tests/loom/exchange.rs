//! Family h: two that change one entry.

use loom::thread::spawn;
use vmmu::addr::Level;
use vmmu::host::VcpuId;
use vmmu::internals::Defect;

use crate::debts::zap;
use crate::explore::Model;
use crate::guest::{read, write};
use crate::rig::{self, PAGE, Rig, TABLES};

/// A write splits a huge leaf that may only be read, while somebody zaps it.
fn split_against_zap() {
    let rig = Rig::new(1, 1);
    let mut guest = rig.guest();
    let _ = guest.fault(read(PAGE), Level::Size2M);
    guest.vcpu.reserve(TABLES).expect("pages");
    let mut debtor = rig.participant();
    let faulting = spawn(move || {
        let _ = guest.fault(write(PAGE), Level::Size4K);
        guest
    });
    let clearing = spawn(move || {
        zap(&mut debtor, PAGE);
        debtor
    });
    let guest = faulting.join().expect("a fault");
    let debtor = clearing.join().expect("a zap");
    drop((guest, debtor));
    rig.end();
}

/// Two vCPUs fault on one page where there is no table yet: one links, the other keeps its own.
fn fault_against_fault() {
    let rig = Rig::new(2, 0);
    let mut guests = [0, 1].map(|id| rig::guest_of(rig.vm, VcpuId(id)));
    let faulting = guests.map(|mut guest| {
        spawn(move || {
            let _ = guest.fault(read(PAGE), Level::Size4K);
            guest
        })
    });
    guests = faulting.map(|thread| thread.join().expect("a fault"));
    if rig.vm.stats().leaves != [1, 0, 0] || rig.vm.stats().tables != 3 {
        rig.vm.host().complain("not one leaf in three tables");
    }
    drop(guests);
    rig.end();
}

const H3: Model = Model::new("h3", 4, fault_against_fault);

#[test]
fn of_two_who_link_a_table_one_keeps_his() {
    H3.holds(&["fixed", "spurious"]);
}

#[test]
fn two_that_link_blindly_lose_one() {
    H3.fails("h4", Defect::OverwritesBlindly, "not one leaf in three tables");
}

const H2: Model = Model::new("h2", 3, split_against_zap);

#[test]
fn an_exchange_takes_only_what_was_seen() {
    H2.holds(&["fixed"]);
}

#[test]
fn a_write_that_does_not_compare_destroys_a_table() {
    H2.fails("h1", Defect::OverwritesBlindly, "a released table was written");
}
