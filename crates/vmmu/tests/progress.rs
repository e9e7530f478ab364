//! Every walk that can be resumed ends, whatever is changed between any two of its sections.
//!
//! A step with a budget of one is one section. Between any two steps another worker changes a slot:
//! makes one and deletes it, moves one, or lowers a limit. The number of steps must stay what it is
//! without the changes, or close to it.
#![cfg(feature = "protocol")]

mod support;

use support::{Frames, TestHost, backed, fault_at, npt, range};
use vmmu::addr::{Gfn, GfnRange, Level};
use vmmu::entry::Access;
use vmmu::host::VcpuId;
use vmmu::internals::{HostPages, Walk};
use vmmu::slot::{AddressSpace, SlotId, SlotSpec, Source};
use vmmu::{Config, HostRange, Mmu, Outcome, Progress, Role, Stats, VcpuMmu, Worker};

const SPACE: AddressSpace = AddressSpace::Normal;

/// Pages below one table of leaves.
const TABLE: u64 = 512;

/// Where the slot stands that is changed while others are walked over.
const ELSEWHERE: u64 = 0x200_0000;

/// A change between two sections.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Change {
    Nothing,
    CreateAndDelete,
    Move,
    Limit,
}

const CHANGES: [Change; 4] =
    [Change::Nothing, Change::CreateAndDelete, Change::Move, Change::Limit];

impl Change {
    /// Makes what is changed.
    fn prepare(self, worker: &mut Worker<&Mmu<TestHost>>) {
        if matches!(self, Change::Move | Change::Limit) {
            worker.create_slot(&backed(9, range(ELSEWHERE, 4))).unwrap();
        }
    }

    /// The `n`-th change.
    fn make(self, worker: &mut Worker<&Mmu<TestHost>>, n: u64) {
        match self {
            Change::Nothing => {}
            Change::CreateAndDelete => {
                worker.create_slot(&backed(8, range(ELSEWHERE + 0x1000, 1))).unwrap();
                worker.delete_slot(SlotId(8)).unwrap();
            }
            Change::Move => worker.move_slot(SlotId(9), Gfn(ELSEWHERE + n % 2 * 0x100)).unwrap(),
            Change::Limit => {
                let limit = if n.is_multiple_of(2) { Level::Size4K } else { Level::Size2M };
                worker.limit_slot(SlotId(9), limit).unwrap();
            }
        }
    }
}

fn vm() -> Mmu<TestHost> {
    Mmu::new(TestHost::default(), &Config { workers: 3, ..Config::new(npt(), 1) }).unwrap()
}

/// Maps one page in each of so many tables.
fn fill(vcpu: &mut VcpuMmu<&Mmu<TestHost>>, tables: u64) {
    let frames = Frames::new(Level::Size4K);
    for table in 0..tables {
        let outcome = vcpu.handle_fault(&frames, fault_at(table * TABLE, Access::READ));
        assert_eq!(outcome, Outcome::Fixed(Level::Size4K));
    }
}

/// Calls `step` until it says that it is done, with a change after each call. Gives the number of
/// calls.
fn steps(
    change: Change,
    changer: &mut Worker<&Mmu<TestHost>>,
    most: u64,
    mut step: impl FnMut() -> Progress,
) -> u64 {
    for n in 1..=most {
        if step() == Progress::Done {
            return n;
        }
        change.make(changer, n);
    }
    panic!("not done after {most} steps, with {change:?} after each");
}

/// A walk over so many tables takes a step for each and a few more, whatever is changed after each
/// step, and leaves no leaf.
fn ends_beside_changes<W>(
    tables: u64,
    begin: fn(&mut Worker<&Mmu<TestHost>>, GfnRange) -> W,
    step: fn(&mut Worker<&Mmu<TestHost>>, &mut W) -> Progress,
    is_done: fn(&Stats) -> bool,
) {
    for change in CHANGES {
        let vm = vm();
        let (mut vcpu, mut worker) = (vm.vcpu(VcpuId(0)).unwrap(), vm.worker().unwrap());
        let mut changer = vm.worker().unwrap();
        let all = range(0, tables * TABLE);
        worker.create_slot(&backed(1, all)).unwrap();
        change.prepare(&mut changer);
        fill(&mut vcpu, tables);
        let mut walk = begin(&mut worker, all);
        let taken = steps(change, &mut changer, tables + 8, || step(&mut worker, &mut walk));
        assert!(taken >= tables, "{taken} steps");
        let stats = vm.stats();
        assert_eq!(stats.leaves, [0; 3]);
        assert!(is_done(&stats), "{stats:?}");
        drop((vcpu, worker, changer));
        support::finish(vm);
    }
}

#[test]
fn a_zap_ends_beside_changes_of_slots() {
    ends_beside_changes(
        8192,
        |worker, all| worker.begin_zap(SPACE, all),
        |worker, zap| worker.zap_some(zap, 1),
        |_| true,
    );
}

#[test]
fn a_deletion_ends_beside_changes_of_slots() {
    ends_beside_changes(
        64,
        |worker, _| worker.begin_delete(SlotId(1)).unwrap(),
        |worker, deletion| worker.delete_some(deletion, 1),
        |_| true,
    );
}

#[test]
fn a_drain_ends_beside_changes_of_slots() {
    ends_beside_changes(
        64,
        |worker, _| worker.invalidate_roots(),
        |worker, drain| worker.drain(drain, 1),
        |stats| (stats.tables, stats.roots) == (0, 0),
    );
}

/// A zap beside somebody who invalidates all roots between any two of its steps, and a vCPU that
/// makes and fills a new one.
#[test]
fn a_zap_ends_beside_roots_that_come_and_go() {
    let vm = vm();
    let (mut vcpu, mut worker) = (vm.vcpu(VcpuId(0)).unwrap(), vm.worker().unwrap());
    let mut changer = vm.worker().unwrap();
    let tables = 16;
    worker.create_slot(&backed(1, range(0, tables * TABLE))).unwrap();
    fill(&mut vcpu, tables);
    let mut zap = worker.begin_zap(SPACE, range(0, tables * TABLE));
    for n in 1.. {
        if worker.zap_some(&mut zap, 1) == Progress::Done {
            break;
        }
        assert!(n <= tables + 8, "not done after {n} steps");
        changer.zap_all();
        fill(&mut vcpu, 4);
    }
    drop((vcpu, worker, changer));
    support::finish(vm);
}

/// Hears of each line of a dump between two sections of its walk, and makes a change there.
struct Changing<'a, 'vm> {
    change: Change,
    changer: &'a mut Worker<&'vm Mmu<TestHost>>,
    text: String,
    lines: u64,
}

impl std::fmt::Write for Changing<'_, '_> {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        self.text.push_str(text);
        if text.contains('\n') {
            self.lines += 1;
            assert!(self.lines < 64, "a dump without an end: {}", self.text);
            self.change.make(self.changer, self.lines);
        }
        Ok(())
    }
}

#[test]
fn a_dump_ends_beside_changes_of_slots_and_says_everything_once() {
    for change in CHANGES {
        let vm = vm();
        let (mut vcpu, mut worker) = (vm.vcpu(VcpuId(0)).unwrap(), vm.worker().unwrap());
        let mut changer = vm.worker().unwrap();
        let tables = 8;
        worker.create_slot(&backed(1, range(0, tables * TABLE))).unwrap();
        change.prepare(&mut changer);
        fill(&mut vcpu, tables);
        let mut out = Changing { change, changer: &mut changer, text: String::new(), lines: 0 };
        worker.dump(&mut out).unwrap();
        let leaves = out.text.matches("-> pfn").count() as u64;
        assert_eq!(leaves, tables, "{change:?}: {}", out.text);
        drop((vcpu, worker, changer));
        support::finish(vm);
    }
}

/// Slots of backing 7 that show the same pages, one after the other.
fn mirrors(worker: &mut Worker<&Mmu<TestHost>>, count: u32, tables: u64) {
    for n in 0..count {
        let at = u64::from(n) * tables * TABLE;
        let source = Source::Backed { backing: 7, first: 0 };
        let spec = SlotSpec { source, ..backed(n, range(at, tables * TABLE)) };
        worker.create_slot(&spec).unwrap();
    }
}

/// An invalidation by the host, taken apart at the same places at which its sections end.
#[test]
fn an_invalidation_ends_beside_changes_of_slots() {
    for change in CHANGES {
        let vm = vm();
        let (mut vcpu, mut changer) = (vm.vcpu(VcpuId(0)).unwrap(), vm.worker().unwrap());
        let (tables, count) = (16, 4);
        mirrors(&mut changer, count, tables);
        change.prepare(&mut changer);
        let all = u64::from(count) * tables;
        fill(&mut vcpu, all);
        let mut host = vm.participant().unwrap();
        // With the pages of the slot that changes.
        let range = HostRange { backing: 7, first: 0, pages: 2 * ELSEWHERE };
        let quiesced = host.announce(HostPages::new(range)).synchronize();
        let mut walk = quiesced.walk_some(1, |page| page.each(|entry| entry.zap()));
        let mut taken = 1;
        while let Walk::More(rest) = walk {
            assert!(
                taken < all + 16,
                "not done after {taken} sections, with {change:?} after each"
            );
            change.make(&mut changer, taken);
            let quiesced = host.resume(rest).unwrap();
            walk = quiesced.walk_some(1, |page| page.each(|entry| entry.zap()));
            taken += 1;
        }
        let Walk::Whole(walked) = walk else { unreachable!() };
        let _gone = walked.finish();
        assert!(taken >= all, "{taken} sections");
        assert_eq!(vm.stats().leaves, [0; 3]);
    }
}

/// The slots that are walked over are themselves deleted, moved and made between any two sections:
/// the walk ends, and nothing of the range is mapped then.
#[test]
fn an_invalidation_ends_whatever_becomes_of_its_slots() {
    for seed in 0..32 {
        let mut random = fastrand(seed);
        let vm = vm();
        let (mut vcpu, mut changer) = (vm.vcpu(VcpuId(0)).unwrap(), vm.worker().unwrap());
        let (tables, count) = (4, 8);
        mirrors(&mut changer, count, tables);
        let all = u64::from(count) * tables;
        fill(&mut vcpu, all);
        let mut host = vm.participant().unwrap();
        let range = HostRange { backing: 7, first: 3, pages: tables * TABLE };
        let quiesced = host.announce(HostPages::new(range)).synchronize();
        let mut walk = quiesced.walk_some(1, |page| page.each(|entry| entry.zap()));
        let mut taken = 1;
        let mut places: Vec<u64> = (0..u64::from(count)).collect();
        let mut free = u64::from(count);
        while let Walk::More(rest) = walk {
            assert!(taken < all + 16, "not done after {taken} sections, seed {seed}");
            let n = random() % u64::from(count);
            let id = SlotId(n as u32);
            if random().is_multiple_of(2) {
                changer.move_slot(id, Gfn(free * tables * TABLE)).unwrap();
                std::mem::swap(&mut free, &mut places[n as usize]);
            } else {
                let spec = changer.slot(id).unwrap().spec;
                changer.delete_slot(id).unwrap();
                // Behind it, before it, or at the same place of the backing.
                let first = random() % 3 * TABLE;
                let source = Source::Backed { backing: 7, first };
                changer.create_slot(&SlotSpec { source, ..spec }).unwrap();
            }
            // Nothing of the range comes back; pages before it do.
            let frames = Frames::new(Level::Size4K);
            for place in &places {
                let outcome =
                    vcpu.handle_fault(&frames, fault_at(place * tables * TABLE, Access::READ));
                assert!(!matches!(outcome, Outcome::OutOfMemory | Outcome::Dead(_)));
            }
            let quiesced = host.resume(rest).unwrap();
            walk = quiesced.walk_some(1, |page| page.each(|entry| entry.zap()));
            taken += 1;
        }
        let Walk::Whole(walked) = walk else { unreachable!() };
        let _gone = walked.finish();
        for gfn in 0..(u64::from(count) + 1) * tables * TABLE {
            let Some(there) = changer.translate(Role::PLAIN, Gfn(gfn).gpa()) else { continue };
            let page = there.hpa.pfn().0 - Frames::OFFSET;
            assert!(page < range.first, "page {page:#x} is still mapped at {gfn:#x}, seed {seed}");
        }
    }
}

/// Numbers that a seed repeats.
fn fastrand(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed.wrapping_mul(2) + 1;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state >> 8
    }
}
