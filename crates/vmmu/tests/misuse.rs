//! Misuses that no type can refuse, and what becomes of them: nothing is freed early, nothing is
//! promised wrongly, and what is another VM's is refused.
//!
//! Those that do not compile are in the documentation of the module `misuse`.
#![cfg(feature = "protocol")]

mod support;

use std::io::Write;
use std::mem;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use support::{Frames, TestHost, backed, fault_at, linear, npt, range, ready};
use vmmu::addr::{Gfn, Level};
use vmmu::entry::Access;
use vmmu::host::{Backing, HostFrame, Resolution, VcpuId};
use vmmu::internals::{Detach, GuestFrames, Participant, Unloaded, Walk};
use vmmu::slot::{AddressSpace, SlotId};
use vmmu::{Busy, FaultStep, Outcome, PageFault, Refused, Request};
use vmmu::{
    Config, HostRange, MissingPages, Mmu, NewError, Processor, Progress, Role, RootName, VcpuMmu,
    Worker,
};

const SPACE: AddressSpace = AddressSpace::Normal;

fn vm(vcpus: u32) -> Mmu<TestHost> {
    Mmu::new(TestHost::default(), &Config::new(npt(), vcpus)).unwrap()
}

fn read(gfn: u64) -> PageFault {
    fault_at(gfn, Access::READ)
}

fn root(vm: &Mmu<TestHost>) -> RootName {
    vm.root(Role::PLAIN).unwrap()
}

/// The request of a fault that must have one.
fn request<'vm>(vcpu: &mut VcpuMmu<&'vm Mmu<TestHost>>, gfn: u64) -> Request<'vm> {
    match vcpu.begin_fault(read(gfn)) {
        FaultStep::Resolve(request) => request,
        other => panic!("no request: {other:?}"),
    }
}

fn find(ram: &Frames, request: &Request<'_>) -> HostFrame {
    match ram.find(&request.query()) {
        Resolution::Frame(found) => found,
        other => panic!("no frame: {other:?}"),
    }
}

/// Clears the leaf of a frame on a debt, and does to the debt whatever `end` does.
fn owe<'p>(
    participant: &mut Participant<'p, TestHost>,
    root: RootName,
    gfn: u64,
    end: impl FnOnce(vmmu::internals::Debt<'_, TestHost>),
) {
    let mut debt = participant.debt(range(gfn, 1));
    {
        let section = debt.section();
        section.entry(root, Gfn(gfn), Level::Size4K).unwrap().zap().unwrap();
    }
    end(debt);
}

/// Two mapped pages of 4 KiB in different blocks of 1 GiB.
const NEAR: u64 = 5;
const FAR: u64 = 0x8_0005;

fn with_two_pages(test: impl FnOnce(&Mmu<TestHost>)) {
    let vm = vm(1);
    let mut vcpu = ready(&vm, 0);
    vm.worker().unwrap().create_slot(&linear(0, range(NEAR, 1), 0x10_0000)).unwrap();
    vm.worker().unwrap().create_slot(&linear(1, range(FAR, 1), 0x20_0000)).unwrap();
    for gfn in [NEAR, FAR] {
        assert!(matches!(
            vcpu.begin_fault(read(gfn)),
            FaultStep::Done(Outcome::Fixed(Level::Size4K))
        ));
    }
    drop(vcpu);
    test(&vm);
}

/// What a promise over one frame by `worker` adds to (flushes, foreign debts).
fn promise(vm: &Mmu<TestHost>, worker: &mut Worker<&Mmu<TestHost>>, gfn: u64) -> (u64, u64) {
    let before = vm.stats();
    worker.zap(SPACE, range(gfn, 1));
    let after = vm.stats();
    (after.flushes - before.flushes, after.foreign_debts - before.foreign_debts)
}

#[test]
fn a_settled_debt_is_flushed_once_and_concerns_nobody_later() {
    with_two_pages(|vm| {
        let mut debtor = vm.participant().unwrap();
        let before = vm.stats().flushes;
        owe(&mut debtor, root(vm), NEAR, |debt| debt.settle());
        assert_eq!(vm.stats().flushes - before, 1);
        assert_eq!(vm.stats().debts_leaked, 0);
        let mut worker = vm.worker().unwrap();
        assert_eq!(promise(vm, &mut worker, NEAR), (0, 0));
    });
}

#[test]
fn a_debt_dropped_unsettled_is_counted_and_every_later_promise_over_it_flushes() {
    with_two_pages(|vm| {
        let mut debtor = vm.participant().unwrap();
        let before = vm.stats().flushes;
        owe(&mut debtor, root(vm), NEAR, |debt| drop(debt));
        assert_eq!(vm.stats().debts_leaked, 1);
        assert_eq!(vm.stats().flushes, before, "dropping must not pretend to settle");
        let mut worker = vm.worker().unwrap();
        for _ in 0..2 {
            assert_eq!(promise(vm, &mut worker, NEAR), (1, 1), "the leaf is gone, the flush owed");
        }
        assert_eq!(promise(vm, &mut worker, FAR), (1, 0), "its own flush, nobody else's");
        assert_eq!(promise(vm, &mut worker, FAR), (0, 0), "not in the leaked range");
        // Another debt of the same participant does not close the leaked one.
        debtor.debt(range(FAR, 1)).settle();
        assert_eq!(promise(vm, &mut worker, NEAR), (1, 1));
        // Neither does the end of the participant.
        drop(debtor);
        assert_eq!(promise(vm, &mut worker, NEAR), (1, 1));
    });
}

#[test]
fn a_debt_dropped_before_anything_was_cleared_owes_nothing() {
    with_two_pages(|vm| {
        let mut debtor = vm.participant().unwrap();
        drop(debtor.debt(range(NEAR, 1)));
        assert_eq!(vm.stats().debts_leaked, 0);
        drop(debtor);
        let mut worker = vm.worker().unwrap();
        worker.zap(SPACE, range(NEAR, 1));
        assert_eq!(promise(vm, &mut worker, NEAR), (0, 0));
    });
}

#[test]
fn who_leaked_a_debt_flushes_before_his_own_promises_too() {
    with_two_pages(|vm| {
        let mut debtor = vm.participant().unwrap();
        owe(&mut debtor, root(vm), NEAR, |debt| drop(debt));
        let before = vm.stats().flushes;
        let quiesced = debtor.announce(GuestFrames::new(SPACE, range(NEAR, 1))).synchronize();
        let _promise = quiesced.walk(|page| page.each(|entry| entry.zap())).finish();
        assert_eq!(vm.stats().flushes - before, 1);
    });
}

#[test]
fn a_debt_forgotten_stays_in_the_ledger_after_the_next_one() {
    with_two_pages(|vm| {
        let mut debtor = vm.participant().unwrap();
        owe(&mut debtor, root(vm), NEAR, |debt| mem::forget(debt));
        let mut worker = vm.worker().unwrap();
        assert_eq!(promise(vm, &mut worker, NEAR), (1, 1));
        debtor.debt(range(FAR, 1)).settle();
        assert_eq!(promise(vm, &mut worker, NEAR), (1, 1));
    });
}

#[test]
fn a_table_that_hangs_on_a_dropped_debt_is_given_back_when_the_mmu_ends() {
    let vm = vm(1);
    let mut vcpu = ready(&vm, 0);
    vm.worker().unwrap().create_slot(&linear(0, range(NEAR, 1), 0x10_0000)).unwrap();
    assert!(matches!(vcpu.begin_fault(read(NEAR)), FaultStep::Done(Outcome::Fixed(Level::Size4K))));
    drop(vcpu);
    let mut debtor = vm.participant().unwrap();
    {
        let mut debt = debtor.debt(range(0, 512));
        let section = debt.section();
        let entry = section.entry(root(&vm), Gfn(NEAR), Level::Size2M).unwrap();
        assert_eq!(entry.detach().unwrap(), Detach::Done);
    }
    drop(debtor);
    assert_eq!(vm.stats().debts_leaked, 1);
    vm.worker().unwrap().zap_all();
    assert_eq!(vm.host().in_use(), 1, "not freed early, and nothing else is left");
    assert_eq!(vm.teardown().in_use(), 0);
}

/// Runs what could wait for ever.
fn ends(f: impl FnOnce() + Send) {
    thread::scope(|scope| {
        let (done, is_done) = mpsc::channel();
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

/// Whether a grace period by `participant`, begun now, ends: at once, or only after `then`.
fn excludes_after(participant: &mut Participant<'_, TestHost>, then: impl FnOnce()) {
    thread::scope(|scope| {
        let (done, is_done) = mpsc::channel();
        scope.spawn(move || {
            participant.synchronize();
            done.send(()).unwrap();
        });
        let early = is_done.recv_timeout(Duration::from_millis(50));
        then();
        assert_eq!(early, Err(RecvTimeoutError::Timeout), "the exclusion waited for nobody");
        if is_done.recv_timeout(Duration::from_secs(20)).is_err() {
            // The thread would be waited for without end.
            let _ = writeln!(std::io::stderr(), "the exclusion has not ended");
            std::process::exit(101);
        }
    });
}

#[test]
fn a_section_forgotten_delays_others_only_until_the_next_one_of_its_participant() {
    let vm = vm(1);
    let (mut careless, mut other) = (vm.participant().unwrap(), vm.participant().unwrap());
    mem::forget(careless.section());
    ends(|| careless.synchronize()); // Does not wait for itself.
    excludes_after(&mut other, || drop(careless.section()));
    other.synchronize(); // Everything is in order again.
}

#[test]
fn a_section_opened_after_a_forgotten_one_is_waited_for_like_any_other() {
    let vm = vm(1);
    let (mut careless, mut other) = (vm.participant().unwrap(), vm.participant().unwrap());
    mem::forget(careless.section());
    let section = careless.section();
    excludes_after(&mut other, || drop(section));
}

#[test]
fn a_section_forgotten_ends_with_its_participant() {
    let vm = vm(1);
    let (mut careless, mut other) = (vm.participant().unwrap(), vm.participant().unwrap());
    mem::forget(careless.section());
    excludes_after(&mut other, || drop(careless));
    let mut next = vm.participant().unwrap();
    let section = next.section();
    excludes_after(&mut other, || drop(section));
}

#[test]
fn an_entry_forgotten_ends_with_its_vcpu() {
    with_two_pages(|vm| {
        let mut vcpu = vm.vcpu(VcpuId(0)).unwrap();
        vcpu.load_root().unwrap();
        mem::forget(vcpu.before_enter(Processor(0)).unwrap());
        drop(vcpu);
        // Flushes; would wait for a vCPU in the guest.
        let mut worker = vm.worker().unwrap();
        ends(|| assert_eq!(promise(vm, &mut worker, NEAR), (1, 0)));
        assert_eq!(vm.host().kicks(0), 0);
    });
}

/// Two VMs that look the same: one slot over the same guest frames, one root.
fn with_twins(test: impl FnOnce(&Mmu<TestHost>, &Mmu<TestHost>, &Frames)) {
    let ram = Frames::new(Level::Size4K);
    let (a, b) = (vm(2), vm(2));
    for vm in [&a, &b] {
        drop(ready(vm, 0));
        vm.worker().unwrap().create_slot(&backed(0, range(0, 16))).unwrap();
    }
    test(&a, &b, &ram);
    for vm in [a, b] {
        assert_eq!(vm.broken(), None);
        assert_eq!(vm.teardown().in_use(), 0);
    }
}

#[test]
fn a_frame_found_for_another_vm_is_refused() {
    with_twins(|a, b, ram| {
        let mut theirs = ready(a, 0);
        let request = request(&mut theirs, 3);
        let found = find(ram, &request);
        let frame = support::resolve(request, found);
        {
            let mut participant = b.participant().unwrap();
            let section = participant.section();
            assert_eq!(section.permit(&frame, Level::Size4K).err(), Some(Refused::Foreign));
        }
        let mut worker = b.worker().unwrap();
        worker.reserve(8).unwrap();
        assert_eq!(worker.complete(frame).unwrap(), Outcome::Retry);
        assert_eq!(b.stats().leaves, [0; 3]);
    });
}

#[test]
fn a_watch_on_another_vm_is_not_admitted() {
    with_twins(|a, b, _| {
        let (mut theirs, mut mine) = (a.participant().unwrap(), b.participant().unwrap());
        let watch = theirs.watch(SPACE, Gfn(3), Level::Size4K).unwrap();
        // One of the same name is open here.
        let _same = mine.watch(SPACE, Gfn(3), Level::Size4K).unwrap();
        let section = mine.section();
        assert_eq!(section.admit(watch, root(b), read(3)).err(), Some(Refused::Foreign));
    });
}

#[test]
fn the_name_of_another_vms_root_names_nothing() {
    with_twins(|a, b, _| {
        assert_ne!(root(a), root(b));
        let mut participant = b.participant().unwrap();
        let watch = participant.watch(SPACE, Gfn(3), Level::Size4K).unwrap();
        let section = participant.section();
        assert!(section.entry(root(b), Gfn(3), Level::Size4K).is_some());
        assert!(section.entry(root(a), Gfn(3), Level::Size4K).is_none());
        assert_eq!(section.permit_mmio(root(a), read(0x100)).err(), Some(Refused::Root));
        assert_eq!(section.admit(watch, root(a), read(3)).err(), Some(Refused::Root));
    });
}

#[test]
fn a_walk_paused_in_another_vm_is_given_back_and_can_go_on_at_home() {
    with_twins(|a, b, ram| {
        // A table, and what lies beside it.
        assert!(matches!(ready(a, 0).handle_fault(ram, read(3)), Outcome::Fixed(_)));
        let (mut theirs, mut mine) = (a.participant().unwrap(), b.participant().unwrap());
        let all = GuestFrames::new(SPACE, range(0, 0x400));
        let Walk::More(paused) =
            theirs.announce(all).synchronize().walk_some(1, |page| page.each(|entry| entry.zap()))
        else {
            panic!("the first table is not all of it");
        };
        let paused = mine.resume(paused).err().unwrap();
        let walk = theirs.resume(paused).unwrap().walk(|page| page.each(|entry| entry.zap()));
        let _promise = walk.finish();
    });
}

#[test]
fn a_request_parked_in_another_vm_is_given_back() {
    with_twins(|a, b, ram| {
        let mut theirs = ready(a, 0);
        let parked = request(&mut theirs, 3).park();
        // The same watch of the other VM is open as often as this one.
        let _same = request(&mut ready(b, 0), 3);
        let parked = b.worker().unwrap().unpark(parked).unwrap_err();
        let request = theirs.unpark(parked).unwrap();
        let found = find(ram, &request);
        assert_eq!(
            theirs.complete(support::resolve(request, found)).unwrap(),
            Outcome::Fixed(Level::Size4K)
        );
    });
}

#[test]
fn a_slot_that_dies_in_another_vm_is_not_removed_here() {
    with_twins(|a, b, _| {
        let (mut theirs, mut mine) = (a.participant().unwrap(), b.participant().unwrap());
        let mut guard = theirs.slots();
        let dying = guard.dying(SlotId(0)).unwrap();
        let promise =
            mine.announce(dying).synchronize().walk(|page| page.each(|entry| entry.zap())).finish();
        // The promise was made by this VM, but of a slot of the other one.
        assert_eq!(mine.slots().remove(promise), None);
        assert!(mine.slots().info(SlotId(0)).is_ok());
    });
}

#[test]
fn a_promise_made_in_another_vm_removes_no_slot_here() {
    with_twins(|a, b, _| {
        let (mut theirs, mut mine) = (a.participant().unwrap(), b.participant().unwrap());
        // It is this VM's slot, but the tables that were walked are the other one's.
        let dying = mine.slots().dying(SlotId(0)).unwrap();
        let quiesced = theirs.announce(dying).synchronize();
        let promise = quiesced.walk(|page| page.each(|entry| entry.zap())).finish();
        assert_eq!(mine.slots().remove(promise), None);
    });
}

#[test]
fn a_root_that_is_invalid_in_another_vm_is_not_taken_apart_here() {
    with_twins(|a, b, ram| {
        let mut vcpu = ready(b, 0);
        assert_eq!(vcpu.handle_fault(ram, read(3)), Outcome::Fixed(Level::Size4K));
        let tables = b.stats().tables;
        let (mut theirs, mut mine) = (a.participant().unwrap(), b.participant().unwrap());
        let invalid = theirs.slots().invalidate();
        let unloaded = mine.announce(invalid).synchronize().unload();
        let walk: Walk<'_, _, Unloaded> = unloaded.walk_some(64, |page| page.each(|e| e.detach()));
        assert!(matches!(walk, Walk::Whole(_)), "there is nothing to visit");
        drop(walk);
        assert_eq!(b.stats().tables, tables);
        assert_eq!(vcpu.handle_fault(ram, read(3)), Outcome::Spurious);
    });
}

#[test]
fn a_drain_of_another_vm_takes_nothing_apart_here_and_loses_nothing() {
    with_twins(|a, b, ram| {
        for vm in [a, b] {
            assert_eq!(ready(vm, 0).handle_fault(ram, read(3)), Outcome::Fixed(Level::Size4K));
        }
        let (mut theirs, mut mine) = (a.worker().unwrap(), b.worker().unwrap());
        let mut drain = theirs.invalidate_roots();
        assert_eq!(mine.drain(&mut drain, 64), Progress::More);
        assert_eq!((a.stats().roots, b.stats().roots), (1, 1));
        while theirs.drain(&mut drain, 1) == Progress::More {}
        assert_eq!((a.stats().roots, b.stats().roots), (0, 1));
    });
}

#[test]
fn a_request_dropped_on_another_thread_closes_its_watch() {
    with_twins(|a, _, _| {
        let mut vcpu = ready(a, 0);
        // All watches are out; a fault is refused until one is closed.
        let mut out = Vec::new();
        while let FaultStep::Resolve(request) = vcpu.begin_fault(read(3)) {
            out.push(request);
        }
        let last = out.pop().unwrap();
        thread::scope(|scope| {
            scope.spawn(move || drop(last));
        });
        drop(request(&mut vcpu, 3));
        // The watch of the vCPU itself, which is looked at first, was the first one.
        let own = out.remove(0);
        thread::scope(|scope| {
            scope.spawn(move || drop(own));
        });
        drop(request(&mut vcpu, 3));
    });
}

#[test]
fn requests_beyond_the_spare_watches_are_refused_and_nothing_else_is() {
    with_twins(|a, _, ram| {
        let mut vcpu = ready(a, 0);
        let mut out = Vec::new();
        let refused = loop {
            match vcpu.begin_fault(read(out.len() as u64 % 16)) {
                FaultStep::Resolve(request) => out.push(request),
                other => break other,
            }
        };
        assert!(matches!(refused, FaultStep::Done(Outcome::Busy(Busy::Requests))));
        assert_eq!(out.len(), 1 + 16, "its own and the spare ones");
        // Another vCPU has a watch of its own.
        let mut second = ready(a, 1);
        let other = request(&mut second, 4);
        assert!(matches!(
            second.begin_fault(read(5)),
            FaultStep::Done(Outcome::Busy(Busy::Requests))
        ));
        drop(other);
        // Every request that was admitted can be completed.
        for (n, request) in out.into_iter().enumerate() {
            let found = find(ram, &request);
            let outcome = vcpu.complete(support::resolve(request, found)).unwrap();
            let expected = if n < 16 { Outcome::Fixed(Level::Size4K) } else { Outcome::Spurious };
            assert_eq!(outcome, expected, "request {n}");
            vcpu.reserve(0).unwrap();
        }
    });
}

#[test]
fn a_request_that_outlives_its_vcpu_keeps_the_place_and_an_invalidation_hits_it() {
    let ram = Frames::new(Level::Size4K);
    let config = Config { workers: 1, ..Config::new(npt(), 1) };
    let vm = Mmu::new(TestHost::default(), &config).unwrap();
    let mut vcpu = ready(&vm, 0);
    vm.worker().unwrap().create_slot(&backed(0, range(0, 16))).unwrap();
    let request = request(&mut vcpu, 3);
    drop(vcpu);
    let mut worker = vm.worker().expect("the place that is not taken");
    assert!(vm.vcpu(VcpuId(0)).is_err(), "the other place has a watch that is written");
    let found = find(&ram, &request);
    {
        let _gone = vm.invalidate_range(HostRange { backing: 7, first: 3, pages: 1 });
        ram.move_page(3, 0x77);
    }
    worker.reserve(8).unwrap();
    assert_eq!(worker.complete(support::resolve(request, found)).unwrap(), Outcome::Retry);
    assert_eq!(vm.stats().leaves, [0; 3], "the stolen frame is not mapped");
    assert!(vm.vcpu(VcpuId(0)).is_ok(), "closed, so the place is free");
}

#[test]
fn a_vcpu_number_is_one_vcpu_at_a_time() {
    let vm = vm(2);
    let first = vm.vcpu(VcpuId(0)).unwrap();
    assert!(vm.vcpu(VcpuId(0)).is_err());
    assert!(vm.vcpu(VcpuId(1)).is_ok(), "another number");
    assert!(vm.vcpu(VcpuId(2)).is_err(), "no such vCPU");
    assert!(vm.vcpu(VcpuId(u32::MAX)).is_err());
    drop(first);
    assert!(vm.vcpu(VcpuId(0)).is_ok());
}

#[test]
fn participants_end_with_their_places_and_leave_them_to_others() {
    let vm = vm(1);
    let all: Vec<_> = std::iter::from_fn(|| vm.worker().ok()).collect();
    assert_eq!(all.len(), 3, "one vCPU, two workers");
    assert!(vm.vcpu(VcpuId(0)).is_err(), "no place is left");
    drop(all);
    assert!(vm.vcpu(VcpuId(0)).is_ok(), "the number was not lost with the place");
}

#[test]
fn a_fault_without_table_pages_says_how_many_and_changes_nothing() {
    let ram = Frames::new(Level::Size4K);
    let vm = vm(1);
    let mut vcpu = vm.vcpu(VcpuId(0)).unwrap();
    vm.worker().unwrap().create_slot(&backed(0, range(0, 16))).unwrap();
    vcpu.load_root().unwrap();
    drop(vcpu.before_enter(Processor(0)).unwrap());
    vm.host().budget.set(0);
    let request = request(&mut vcpu, 3);
    let found = find(&ram, &request);
    let short = vcpu.complete(support::resolve(request, found)).unwrap_err();
    let MissingPages(missing) = short.missing;
    assert!(missing > 0 && vm.stats().leaves == [0; 3]);
    assert_eq!(vcpu.handle_fault(&ram, fault_at(4, Access::WRITE)), Outcome::OutOfMemory);
    vm.host().budget.set(missing as u64);
    vcpu.reserve(0).unwrap();
    assert_eq!(vcpu.complete(short.resolved).unwrap(), Outcome::Fixed(Level::Size4K));
}

#[test]
fn a_vm_that_is_refused_gives_its_host_back() {
    let refused = |config: &Config<'_>| match Mmu::new(TestHost::default(), config) {
        Err(NewError { host, .. }) => host.in_use(),
        Ok(_) => panic!("{config:?} was accepted"),
    };
    for config in [
        Config::new(npt(), 0),
        Config::new(npt(), u32::MAX),
        Config { slots: 0, ..Config::new(npt(), 1) },
        Config { slots: u32::MAX, ..Config::new(npt(), 1) },
    ] {
        assert_eq!(refused(&config), 0);
    }
}
