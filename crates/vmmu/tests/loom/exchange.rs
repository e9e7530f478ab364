//! Family h: two that change one entry.

use loom::thread::spawn;
use vmmu::addr::Level;
use vmmu::protocol::Defect;

use crate::debts::zap;
use crate::explore::Model;
use crate::guest::{read, write};
use crate::rig::{PAGE, Rig};

/// A write splits a huge leaf that may only be read, while somebody zaps it.
fn split_against_zap() {
    let rig = Rig::new(1, 1);
    let mut guest = rig.guest();
    let _ = guest.fault(read(PAGE), Level::M2);
    let mut debtor = rig.participant();
    let faulting = spawn(move || {
        let _ = guest.fault(write(PAGE), Level::K4);
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

const H2: Model = Model { name: "h2", preemptions: 3, run: split_against_zap };

#[test]
fn an_exchange_takes_only_what_was_seen() {
    H2.holds(&["fixed", "retry"]);
}

#[test]
fn a_write_that_does_not_compare_destroys_a_table() {
    H2.fails("h1", Defect::H1, "a released table was written");
}
