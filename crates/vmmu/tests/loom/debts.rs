//! Families b and n: somebody clears an entry, and before his flush the host is promised that the
//! page is gone.

use loom::thread::spawn;
use vmmu::addr::{Gfn, Level, Pfn};
use vmmu::internals::{Defect, Local};
use vmmu::slot::AddressSpace;
use vmmu::{Config, Mmu, Role};

use crate::explore::{Model, saw};
use crate::guest::{Keeps, Met, read};
use crate::machine::{Machine, OLD, REACHED, format};
use crate::rig::{PAGE, Rig, memory, pages};

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

/// A guest that reads its page, somebody who clears it, flushes, and then clears and flushes another
/// one, and the host that takes a page back: that one, which the ledger has held, or a third one, which
/// it never does.
fn one_debt_after_the_other(taken: u64) {
    let mut config = Config::new(format(), 1);
    // So that a promise about one page does not concern the others.
    (config.workers, config.notifiers, config.slots) = (2, 0, 2);
    config.invalidations = 1;
    config.largest = Level::Size4K;
    let vm = Mmu::new(Machine::new(), &config).expect("a small VM");
    vm.worker().expect("a place").create_slot(&memory()).expect("the first slot");
    let rig = Rig::of(vm);
    let machine = rig.vm.host();
    let mut guest = rig.guest();
    let gfn = Gfn(PAGE.0 + taken);
    let _ = guest.fault(read(gfn), Level::Size4K);
    let _ = guest.run(gfn, 1);
    let (mut debtor, mut host) = (rig.participant(), rig.worker());
    let running = spawn(move || {
        saw(match guest.run(gfn, 1) {
            Met::Page => "reached",
            Met::Nothing => "gone",
        });
        guest
    });
    let clearing = spawn(move || {
        zap(&mut debtor, PAGE);
        // Whether there is anything to clear is nothing to the ledger.
        debtor.debt(Gfn(PAGE.0 + 2).leaf(Level::Size4K)).settle();
        debtor
    });
    let invalidating = spawn(move || {
        let invalidation = host.invalidate_range(pages(taken, 1));
        machine.overwrite(Pfn(OLD.0 + taken));
        (host, invalidation)
    });
    let guest = running.join().expect("a guest");
    let debtor = clearing.join().expect("two debts");
    let host = invalidating.join().expect("an invalidation");
    drop((guest, debtor, host));
    rig.end();
}

const B8: Model = Model::new("b8", 2, || one_debt_after_the_other(0));
const B10: Model = Model::new("b10", 1, || one_debt_after_the_other(1)).long(2);

#[test]
fn the_words_of_two_debts_may_be_read_together() {
    B8.holds(&["reached", "gone"]);
}

#[test]
fn who_reads_the_later_one_has_not_seen_the_earlier_flush() {
    B8.fails("b9", Defect::LedgerStartRelaxed, "Causality violation: Concurrent");
}

#[test]
fn a_page_of_no_debt_is_gone_too() {
    B10.holds(&["reached", "gone"]);
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

const B6: Model = Model::new("b6", 1, two_zaps_of_a_block).long(2);

#[test]
fn a_block_that_goes_for_one_page_is_owed_for_all_of_them() {
    B6.holds(&["reached", "gone"]);
}

#[test]
fn a_zap_that_owes_only_what_was_asked_for_hides_the_rest() {
    B6.fails("b7", Defect::ZapsBlockForPage, REACHED);
}

const B2: Model = Model::new("b2", 2, || two_debtors(Keeps::Leaf, zap));
const N2: Model = Model::new("n2", 2, || two_debtors(Keeps::Table, detach));

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
