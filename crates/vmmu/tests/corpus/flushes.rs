//! Flushes that are missing, too late, or forgotten.

use vmmu::addr::{Gfn, Level};
use vmmu::entry::law::{self, FlushDue};
use vmmu::entry::{Access, Leaf, MemoryType, Record, State, Tracked, Writable, ept};
use vmmu::host::VcpuId;
use vmmu::internals::{Defect, Detach};
use vmmu::slot::AddressSpace;
use vmmu::{Config, Mmu, Progress, Role};

use crate::catch::{Verdict, catches, ensure};
use crate::processor::{Met, Processor};
use crate::stage::Stage;
use crate::support::hooked::Hooked;
use crate::support::{Frames, TestHost, backed, npt, range};

const SPACE: AddressSpace = AddressSpace::Normal;

/// A vCPU that has a page in its TLB leaves the guest; the page is zapped; it comes back.
fn a_zapped_page_is_gone() -> Verdict {
    let vm = Mmu::new(TestHost::default(), &Config::new(npt(), 1)).unwrap();
    let frames = Frames::new(Level::Size4K);
    let (mut worker, mut vcpu) = (vm.worker().unwrap(), vm.vcpu(VcpuId(0)).unwrap());
    worker.create_slot(&backed(1, range(0, 0x400))).unwrap();
    let mut cpu = Processor::new(0, vm.host());
    cpu.touch(&mut vcpu, &frames, 3, Access::WRITE)?;
    worker.zap(SPACE, range(3, 1));
    let met = cpu.run(&mut vcpu, 3, true);
    ensure(met == Met::Nothing, || format!("a zapped page is reached: {met:?}"))
}

/// A shootdown that reaches no processor, or only the one it runs on.
///
/// B1.
#[test]
fn flush_reaches_nobody() {
    catches(Defect::FlushReachesNobody, a_zapped_page_is_gone);
}

/// A VM is made for four vCPUs, of which one was never made, one is gone, and one is in its guest.
fn only_vcpus_that_exist_are_counted() -> Verdict {
    let vm = Mmu::new(Hooked::<Stage>::default(), &Config::new(npt(), 4)).unwrap();
    let frames = Frames::new(Level::Size4K);
    let (mut worker, mut vcpu) = (vm.worker().unwrap(), vm.vcpu(VcpuId(1)).unwrap());
    worker.create_slot(&backed(1, range(0, 0x400))).unwrap();
    let mut cpu = Processor::new(0, vm.host());
    drop(vm.vcpu(VcpuId(3)).unwrap());
    for (others, sent, elided) in [(0, 0, 1), (1, 0, 2), (1, 1, 1)] {
        cpu.touch(&mut vcpu, &frames, 3, Access::WRITE)?;
        let other = (others == 1).then(|| vm.vcpu(VcpuId(2)).unwrap());
        let before = vm.stats();
        std::thread::scope(|scope| {
            if sent == 1 {
                let (actor, vcpu, cpu) = (vm.host().hooks.cast(), &mut vcpu, &mut cpu);
                scope.spawn(move || actor.play(vcpu, cpu, 3));
                vm.host().hooks.raise();
            }
            worker.zap(SPACE, range(3, 1));
        });
        drop(other);
        let now = vm.stats();
        let seen =
            (now.flushes_sent - before.flushes_sent, now.flushes_elided - before.flushes_elided);
        ensure(now.flushes == before.flushes + 1, || "not one flush".to_owned())?;
        ensure(seen == (sent, elided), || {
            format!("{seen:?} vCPUs were interrupted and need not be, of {}", others + 1)
        })?;
    }
    Ok(())
}

/// The count of interrupts that could be left out grows by vCPUs that do not exist.
///
/// F-h.
#[test]
fn counts_absent_vcpus() {
    catches(Defect::CountsAbsentVcpus, only_vcpus_that_exist_are_counted);
}

/// A zap in steps clears something in its first step and nothing in its last.
fn a_zap_in_steps_flushes() -> Verdict {
    let vm = Mmu::new(TestHost::default(), &Config::new(npt(), 1)).unwrap();
    let frames = Frames::new(Level::Size4K);
    let (mut worker, mut vcpu) = (vm.worker().unwrap(), vm.vcpu(VcpuId(0)).unwrap());
    worker.create_slot(&backed(1, range(0, 0x800))).unwrap();
    let mut cpu = Processor::new(0, vm.host());
    cpu.touch(&mut vcpu, &frames, 3, Access::WRITE)?;
    // A table with nothing in it, where the last step ends.
    cpu.touch(&mut vcpu, &frames, 0x203, Access::WRITE)?;
    worker.zap(SPACE, range(0x203, 1));
    cpu.run(&mut vcpu, 3, false);
    let mut zap = worker.begin_zap(SPACE, range(0, 0x400));
    let mut steps = 1;
    while worker.zap_some(&mut zap, 1) == Progress::More {
        steps += 1;
    }
    ensure(steps > 1, || "it took one step only".to_owned())?;
    let met = cpu.run(&mut vcpu, 3, true);
    ensure(met == Met::Nothing, || format!("a page zapped in steps is reached: {met:?}"))
}

/// The flush that is owed when a walk yields is not done.
///
/// K3.
#[test]
fn drops_flush_at_pause() {
    catches(Defect::DropsFlushAtPause, a_zap_in_steps_flushes);
}

/// A table is taken away under a processor that is in the guest and has it in its
/// paging-structure cache.
fn a_table_outlives_the_walkers() -> Verdict {
    let vm = Mmu::new(Hooked::<Stage>::default(), &Config::new(npt(), 1)).unwrap();
    let frames = Frames::new(Level::Size4K);
    let mut participant = vm.participant().unwrap();
    let mut vcpu = vm.vcpu(VcpuId(0)).unwrap();
    vm.worker().unwrap().create_slot(&backed(1, range(0, 0x400))).unwrap();
    let mut cpu = Processor::new(0, vm.host());
    cpu.touch(&mut vcpu, &frames, 3, Access::READ)?;
    let actor = vm.host().hooks.cast();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            actor.play(&mut vcpu, &mut cpu, 3);
        });
        vm.host().hooks.raise();
        let mut debt = participant.debt(Gfn(3).leaf(Level::Size2M));
        {
            let section = debt.section();
            let root = section.root(Role::PLAIN).unwrap();
            let entry = section.entry(root, Gfn(3), Level::Size2M).unwrap();
            assert_eq!(entry.detach().unwrap(), Detach::Done);
        }
        debt.settle();
        vm.host().hooks.drop_curtain();
    });
    let seen = vm.host().hooks.seen();
    ensure(vm.stats().tables == 2, || "no table went".to_owned())?;
    ensure(seen.is_empty(), || {
        format!("a table came back while a processor had it cached, and then met {seen:?}")
    })
}

/// A table page is given back while processors may still walk it from a cached upper entry.
///
/// B3, K26.
#[test]
fn frees_table_before_flush() {
    catches(Defect::FreesTableBeforeFlush, a_table_outlives_the_walkers);
}

/// Taking the library's permission to write owes a flush, whether or not hardware could write just
/// then: an earlier soft protection may have left writable translations.
fn hard_protection_flushes() -> Verdict {
    let format = ept::format(ept::EptOptions::default()).unwrap();
    let leaf = |writable| {
        let leaf = Leaf {
            pfn: vmmu::addr::Pfn(0x1234),
            read: true,
            exec: true,
            writable,
            accessed: true,
            dirty: false,
            record: Record::Hardware,
            tracked: Tracked::No,
            memory: MemoryType::WriteBack,
        };
        format.make(State::Leaf(leaf), Level::Size4K).unwrap()
    };
    for from in [Writable::Soft, Writable::Yes] {
        let owed =
            law::consequences(&format, leaf(from), leaf(Writable::Hard), Level::Size4K).unwrap();
        ensure(owed.flush == FlushDue::BeforeReliance, || {
            format!("from {from:?} to hard protection owes {:?}", owed.flush)
        })?;
    }
    Ok(())
}

/// A leaf that the library may write becomes one it must not, without a flush because W was 0.
///
/// K18.
#[test]
fn no_flush_for_softly_protected() {
    catches(Defect::NoFlushForSoftlyProtected, hard_protection_flushes);
}

/// Somebody clears an entry and has not flushed yet when another one promises that it is gone.
fn a_promise_covers_the_debts_of_others() -> Verdict {
    let vm = Mmu::new(TestHost::default(), &Config::new(npt(), 1)).unwrap();
    let frames = Frames::new(Level::Size4K);
    let (mut worker, mut vcpu) = (vm.worker().unwrap(), vm.vcpu(VcpuId(0)).unwrap());
    let mut debtor = vm.participant().unwrap();
    worker.create_slot(&backed(1, range(0, 0x400))).unwrap();
    let mut cpu = Processor::new(0, vm.host());
    cpu.touch(&mut vcpu, &frames, 3, Access::WRITE)?;
    let mut debt = debtor.debt(Gfn(3).leaf(Level::Size4K));
    {
        let section = debt.section();
        let root = section.root(Role::PLAIN).unwrap();
        section.entry(root, Gfn(3), Level::Size4K).unwrap().zap().unwrap();
    }
    let _taken = vm.invalidate_range(vmmu::HostRange { backing: 7, first: 3, pages: 1 });
    let met = cpu.run(&mut vcpu, 3, true);
    debt.settle();
    ensure(met == Met::Nothing, || format!("a page that was taken back is reached: {met:?}"))
}

/// An entry that somebody else has cleared is taken for gone, though his flush is still to come.
///
/// D-b1, D-n1, D-w2.
#[test]
fn ignores_foreign_debts() {
    catches(Defect::IgnoresForeignDebts, a_promise_covers_the_debts_of_others);
}

/// A debt enters the ledger when its flush begins.
///
/// D-b3.
#[test]
fn ledger_after_clear() {
    catches(Defect::LedgerAfterClear, a_promise_covers_the_debts_of_others);
}

/// Somebody has cleared a huge leaf for the sake of one of its pages and has not flushed yet; another one
/// zaps a page at the other end of it. In the second of several blocks, of both sizes.
fn a_zap_knows_of_a_zap_of_the_same_block() -> Verdict {
    for level in [Level::Size2M, Level::Size1G] {
        let block = level.pages();
        for (cleared, zapped) in
            [(block, 2 * block - 1), (2 * block - 1, block), (block, block + 1)]
        {
            let vm = Mmu::new(TestHost::default(), &Config::new(npt(), 1)).unwrap();
            let frames = Frames::new(level);
            let (mut worker, mut vcpu) = (vm.worker().unwrap(), vm.vcpu(VcpuId(0)).unwrap());
            let mut debtor = vm.participant().unwrap();
            worker.create_slot(&backed(1, range(0, 4 * block))).unwrap();
            let mut cpu = Processor::new(0, vm.host());
            cpu.touch(&mut vcpu, &frames, zapped, Access::WRITE)?;
            let mut debt = debtor.debt(Gfn(cleared).leaf(Level::Size4K));
            {
                let section = debt.section();
                let root = section.root(Role::PLAIN).unwrap();
                section.entry(root, Gfn(cleared), Level::Size4K).unwrap().zap().unwrap();
            }
            worker.zap(SPACE, range(zapped, 1));
            let met = cpu.run(&mut vcpu, zapped, true);
            debt.settle();
            ensure(met == Met::Nothing, || {
                format!("{zapped:#x} was zapped beside {cleared:#x}, and is reached: {met:x?}")
            })?;
        }
    }
    Ok(())
}

/// A zap asks for debts over the page it is about, and not over the leaf that the page was in.
///
/// F-e.
#[test]
fn zaps_block_for_page() {
    catches(Defect::ZapsBlockForPage, a_zap_knows_of_a_zap_of_the_same_block);
}

/// Two debts about different pages are dropped unsettled. A promise about either page flushes.
fn every_leaked_debt_is_remembered() -> Verdict {
    for taken in [3, 0x803] {
        // So that a promise about one page does not concern the other.
        let config = Config { largest: Level::Size4K, ..Config::new(npt(), 1) };
        let vm = Mmu::new(TestHost::default(), &config).unwrap();
        let frames = Frames::new(Level::Size4K);
        let (mut worker, mut vcpu) = (vm.worker().unwrap(), vm.vcpu(VcpuId(0)).unwrap());
        let mut debtor = vm.participant().unwrap();
        worker.create_slot(&backed(1, range(0, 0x1000))).unwrap();
        let mut cpu = Processor::new(0, vm.host());
        for gfn in [3, 0x803] {
            cpu.touch(&mut vcpu, &frames, gfn, Access::WRITE)?;
        }
        for gfn in [3, 0x803] {
            let mut debt = debtor.debt(Gfn(gfn).leaf(Level::Size4K));
            let section = debt.section();
            let root = section.root(Role::PLAIN).unwrap();
            section.entry(root, Gfn(gfn), Level::Size4K).unwrap().zap().unwrap();
        }
        ensure(vm.stats().debts_leaked == 2, || "not two debts were leaked".to_owned())?;
        let pages = vmmu::HostRange { backing: 7, first: taken, pages: 1 };
        let _taken = worker.invalidate_range(pages);
        let met = cpu.run(&mut vcpu, taken, true);
        ensure(met == Met::Nothing, || format!("page {taken:#x} was taken back: {met:?}"))?;
    }
    Ok(())
}

/// Of two debts that nobody will settle, others know of the second only.
///
/// F-g.
#[test]
fn leak_hides_leak() {
    catches(Defect::LeakHidesLeak, every_leaked_debt_is_remembered);
}
