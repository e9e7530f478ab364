//! Families b and n: somebody clears an entry, and before his flush the host is promised that the
//! page is gone.

use loom::thread::spawn;
use vmmu::Role;
use vmmu::addr::{Gfn, Level};
use vmmu::internals::{Defect, Local};
use vmmu::slot::AddressSpace;

use crate::explore::{Model, saw};
use crate::guest::{Keeps, Met, read};
use crate::machine::{Machine, OLD, REACHED};
use crate::rig::{PAGE, Rig, pages};

/// Zaps one leaf, for no promise: opens a debt, clears, flushes.
pub fn zap(local: &mut Local<'static, Machine>, gfn: Gfn) {
    let mut debt = local.debt(gfn.leaf(Level::Size4K));
    {
        let section = debt.section();
        let root = section.root(Role::PLAIN);
        let mut entry = root.and_then(|root| section.entry(root, gfn, Level::Size4K));
        while let Some(leaf) = entry {
            entry = leaf.zap().err();
        }
    }
    debt.settle();
}

/// Takes the table of leaves around `gfn` away, for no promise.
pub fn detach(local: &mut Local<'static, Machine>, gfn: Gfn) {
    let mut debt = local.debt(gfn.leaf(Level::Size2M));
    {
        let section = debt.section();
        let root = section.root(Role::PLAIN);
        let mut entry = root.and_then(|root| section.entry(root, gfn, Level::Size2M));
        while let Some(table) = entry {
            entry = table.detach().err();
        }
    }
    debt.settle();
}

/// A guest that reads its page twice, somebody who clears what leads there, and the host that
/// takes the page back.
fn two_debtors(keeps: Keeps, clear: fn(&mut Local<'static, Machine>, Gfn)) {
    let rig = Rig::new(1, 2);
    let machine = rig.vm.host();
    let mut guest = rig.guest().keeping(keeps);
    let _ = guest.fault(read(PAGE), Level::Size4K);
    let (mut debtor, mut host) = (rig.participant(), rig.worker());
    let running = spawn(move || {
        saw(match guest.run(PAGE, 2) {
            Met::Page => "reached",
            Met::Nothing => "gone",
        });
        guest
    });
    let clearing = spawn(move || {
        clear(&mut debtor, PAGE);
        debtor
    });
    let invalidating = spawn(move || {
        let invalidation = host.invalidate_range(pages(0, 1));
        machine.take_back(OLD);
        (host, invalidation)
    });
    let guest = running.join().expect("a guest");
    let debtor = clearing.join().expect("a zap");
    let host = invalidating.join().expect("an invalidation");
    drop((guest, debtor, host));
    rig.end();
}

/// A guest that has a block in its TLB, somebody who zaps the block for another page of it, and
/// somebody who zaps a page and then uses its frame for something else.
fn two_zaps_of_a_block() {
    let rig = Rig::new(1, 2);
    let machine = rig.vm.host();
    let mut guest = rig.guest();
    let _ = guest.fault(read(PAGE), Level::Size2M);
    let _ = guest.run(PAGE, 1);
    let (mut debtor, mut worker) = (rig.worker(), rig.worker());
    let running = spawn(move || {
        saw(match guest.run(PAGE, 1) {
            Met::Page => "reached",
            Met::Nothing => "gone",
        });
        guest
    });
    let page = |gfn: Gfn| gfn.leaf(Level::Size4K);
    let zapping = spawn(move || {
        debtor.zap(AddressSpace::Normal, page(Gfn(1)));
        debtor
    });
    let promising = spawn(move || {
        worker.zap(AddressSpace::Normal, page(PAGE));
        machine.take_back(OLD);
        worker
    });
    let guest = running.join().expect("a guest");
    let debtor = zapping.join().expect("a zap");
    let worker = promising.join().expect("a zap");
    drop((guest, debtor, worker));
    rig.end();
}

const B6: Model = Model { name: "b6", preemptions: 2, run: two_zaps_of_a_block };

#[test]
fn a_block_that_goes_for_one_page_is_owed_for_all_of_them() {
    B6.holds(&["reached", "gone"]);
}

#[test]
fn a_zap_that_owes_only_what_was_asked_for_hides_the_rest() {
    B6.fails("b7", Defect::ZapsBlockForPage, REACHED);
}

const B2: Model = Model { name: "b2", preemptions: 2, run: || two_debtors(Keeps::Leaf, zap) };
const N2: Model = Model { name: "n2", preemptions: 2, run: || two_debtors(Keeps::Table, detach) };

#[test]
fn who_finds_an_entry_clear_flushes_for_its_debtor() {
    B2.holds(&["reached", "gone"]);
}

#[test]
fn without_a_ledger_nobody_would() {
    B2.fails("b1", Defect::IgnoresForeignDebts, REACHED);
}

#[test]
fn a_ledger_opened_after_the_clear_is_too_late() {
    B2.fails("b3", Defect::LedgerAfterClear, REACHED);
}

#[test]
fn a_ledger_closed_before_the_flush_is_too_early() {
    B2.fails("b4", Defect::LedgerClosedBeforeFlush, REACHED);
}

#[test]
fn a_detached_table_is_not_walked_from_a_cached_upper_level() {
    N2.holds(&["reached", "gone"]);
}

#[test]
fn a_table_given_back_before_the_flush_is() {
    N2.fails("n3", Defect::FreesTableBeforeFlush, "Causality violation: Concurrent");
}

#[test]
fn without_a_ledger_it_is() {
    N2.fails("n1", Defect::IgnoresForeignDebts, REACHED);
}
