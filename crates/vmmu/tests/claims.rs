//! Walks that meet an entry on which somebody works, for longer than a section or within one; and
//! splits that have no page.
#![cfg(feature = "protocol")]

mod support;

use std::io::Write;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use support::{Frames, TestHost, backed, fault_at, finish, npt, pages, range};
use vmmu::addr::{Gfn, Level};
use vmmu::entry::Access;
use vmmu::host::VcpuId;
use vmmu::internals::{Claim, Detach, HostPages, Split, Walk};
use vmmu::slot::{AddressSpace, SlotId};
use vmmu::{Config, Mmu, Outcome, Progress, Role, VcpuMmu};

const SPACE: AddressSpace = AddressSpace::Normal;

/// Runs what could wait for ever.
fn ends(f: impl FnOnce() + Send) {
    thread::scope(|scope| {
        let (done, is_done) = channel();
        scope.spawn(move || {
            f();
            done.send(()).unwrap();
        });
        if is_done.recv_timeout(Duration::from_secs(20)) == Err(RecvTimeoutError::Timeout) {
            // The thread would be waited for without end.
            let _ = writeln!(std::io::stderr(), "has not ended");
            std::process::exit(101);
        }
    });
}

fn vm() -> Mmu<TestHost> {
    let vm =
        Mmu::new(TestHost::default(), &Config { workers: 4, ..Config::new(npt(), 1) }).unwrap();
    vm.worker().unwrap().create_slot(&backed(1, range(0, 0x1000))).unwrap();
    vm
}

/// Maps page 3 of each of so many tables.
fn fill(vcpu: &mut VcpuMmu<&Mmu<TestHost>>, tables: u64) {
    let frames = Frames::new(Level::Size4K);
    for table in 0..tables {
        let outcome = vcpu.handle_fault(&frames, fault_at(table * 0x200 + 3, Access::READ));
        assert_eq!(outcome, Outcome::Fixed(Level::Size4K));
    }
}

fn claim(vm: &Mmu<TestHost>, gfn: u64, level: Level) -> Claim {
    let mut owner = vm.participant().unwrap();
    let root = vm.root(Role::PLAIN).unwrap();
    owner.section().claim(root, Gfn(gfn), level, 5).unwrap()
}

fn give_back(vm: &Mmu<TestHost>, claim: Claim) {
    vm.participant().unwrap().section().give_back(claim);
}

/// Whoever has a claim decides when a walk ends, and not when a call with a budget returns.
#[test]
fn a_walk_in_steps_returns_from_a_claim() {
    ends(|| {
        let vm = vm();
        let (mut vcpu, mut worker) = (vm.vcpu(VcpuId(0)).unwrap(), vm.worker().unwrap());
        fill(&mut vcpu, 2);
        let claimed = claim(&vm, 7, Level::Size4K);
        let mut zap = worker.begin_zap(SPACE, range(0, 0x400));
        for budget in [1, 1, 10] {
            assert_eq!(worker.zap_some(&mut zap, budget), Progress::More);
            assert_eq!(
                vm.stats().leaves,
                [1, 0, 0],
                "page 3 is gone, and no page beyond the claim"
            );
        }
        give_back(&vm, claimed);
        assert_eq!(worker.zap_some(&mut zap, 10), Progress::Done);
        assert_eq!(vm.stats().leaves, [0; 3]);

        fill(&mut vcpu, 2);
        let claimed = claim(&vm, 7, Level::Size4K);
        let mut host = vm.participant().unwrap();
        let quiesced = host.announce(HostPages::new(pages(0, 0x400))).synchronize();
        let Walk::More(rest) = quiesced.walk_some(10, |page| page.each(|e| e.zap())) else {
            panic!("an invalidation passed over a claim")
        };
        give_back(&vm, claimed);
        let walk = host.resume(rest).unwrap().walk_some(10, |page| page.each(|e| e.zap()));
        assert!(matches!(walk, Walk::Whole(_)));
        drop(host);

        let claimed = claim(&vm, 7, Level::Size4K);
        let mut deletion = worker.begin_delete(SlotId(1)).unwrap();
        assert_eq!(worker.delete_some(&mut deletion, 10), Progress::More);
        give_back(&vm, claimed);
        assert_eq!(worker.delete_some(&mut deletion, 10), Progress::Done);
        drop((vcpu, worker));
        finish(vm);
    });
}

/// A drain leaves a table below which somebody has a claim, wherever it is.
#[test]
fn a_drain_leaves_a_table_with_a_claim() {
    ends(|| {
        // A table is taken only when none hangs below it, so those above stay too.
        let claims = [(7, Level::Size4K, 3), (0x207, Level::Size4K, 3), (0x800, Level::Size2M, 2)];
        for (gfn, level, stay) in claims {
            let vm = vm();
            let (mut vcpu, mut worker) = (vm.vcpu(VcpuId(0)).unwrap(), vm.worker().unwrap());
            fill(&mut vcpu, 2);
            let claimed = claim(&vm, gfn, level);
            let mut drain = worker.invalidate_roots();
            for budget in [1, 10, 10] {
                assert_eq!(worker.drain(&mut drain, budget), Progress::More);
                assert!(vm.stats().tables >= stay, "{:?}", vm.stats());
            }
            give_back(&vm, claimed);
            assert_eq!(worker.drain(&mut drain, 10), Progress::Done);
            assert_eq!((vm.stats().tables, vm.stats().roots), (0, 0));
            assert_eq!(vm.stats().debts_leaked, 0);
            drop((vcpu, worker));
            finish(vm);
        }
    });
}

/// A claim right below the top table keeps the root, though no table hangs there.
#[test]
fn a_drain_does_not_end_before_the_claims_in_the_top_table() {
    ends(|| {
        let vm = vm();
        let (mut vcpu, mut worker) = (vm.vcpu(VcpuId(0)).unwrap(), vm.worker().unwrap());
        fill(&mut vcpu, 1);
        let claimed = claim(&vm, 1 << 30, Level::L4);
        let mut drain = worker.invalidate_roots();
        assert_eq!(worker.drain(&mut drain, 20), Progress::More);
        give_back(&vm, claimed);
        assert_eq!(worker.drain(&mut drain, 20), Progress::Done);
        drop((vcpu, worker));
        finish(vm);
    });
}

/// A table is taken away while a section holds an entry of it: the holder is waited for, downwards.
#[test]
fn a_hold_is_waited_for_by_who_takes_its_table() {
    ends(|| {
        let vm = vm();
        let mut vcpu = vm.vcpu(VcpuId(0)).unwrap();
        fill(&mut vcpu, 1);
        let (mut holder, mut debtor) = (vm.participant().unwrap(), vm.participant().unwrap());
        let root = vm.root(Role::PLAIN).unwrap();
        let (held, is_held) = channel();
        let vm = &vm;
        thread::scope(|scope| {
            scope.spawn(move || {
                let section = holder.section();
                let entry = section.entry(root, Gfn(7), Level::Size4K).unwrap();
                let hold = entry.hold(5).unwrap();
                held.send(()).unwrap();
                // The table is unlinked before its entries are made dead.
                let parent = || section.entry(root, Gfn(7), Level::Size2M).unwrap();
                while parent().state().is_present() {
                    thread::yield_now();
                }
                drop(hold);
            });
            is_held.recv().unwrap();
            let mut debt = debtor.debt(range(0, 0x200));
            let section = debt.section();
            let entry = section.entry(root, Gfn(7), Level::Size2M).unwrap();
            assert_eq!(entry.detach().unwrap(), Detach::Done);
            drop(section);
            debt.settle();
        });
        assert_eq!(vm.stats().leaves, [0; 3]);
        assert_eq!((vm.stats().debts_leaked, vm.broken()), (0, None));
    });
}

/// A split says what came of it, also when no page is left: whoever took silence for success would
/// try again for ever, inside a section.
#[test]
fn a_split_without_a_page_says_so() {
    let vm = vm();
    let frames = Frames::new(Level::Size2M);
    let (mut vcpu, mut worker) = (vm.vcpu(VcpuId(0)).unwrap(), vm.worker().unwrap());
    for block in 0..5 {
        let outcome = vcpu.handle_fault(&frames, fault_at(block * 0x200, Access::READ));
        assert_eq!(outcome, Outcome::Fixed(Level::Size2M));
    }
    worker.reserve(3).unwrap();
    let root = vm.root(Role::PLAIN).unwrap();
    let (mut participant, cache) = worker.parts();
    let mut pages = cache.reserved().unwrap();
    let section = participant.section();
    let entry = |block: u64| section.entry(root, Gfn(block * 0x200), Level::Size2M).unwrap();
    for block in 0..5 {
        let expected = if block < 3 { Split::Done } else { Split::NoPage };
        assert_eq!(entry(block).split(&mut pages).unwrap(), expected, "block {block}");
    }
    assert_eq!(entry(0).split(&mut pages).unwrap(), Split::NotHuge);
    drop(section);
    assert_eq!(vm.stats().leaves, [3 * 512, 2, 0]);
    drop((vcpu, worker));
    finish(vm);
}
