//! Handles: stored ones, entering and loading, what entering may call, and the end of an MMU that is
//! shared.

#![allow(missing_docs, reason = "a test")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use support::hooked::{Hooked, Hooks};
use support::{Frames, TestHost, backed, enter, fault_at, npt, pages, range};
use vmmu::addr::Level;
use vmmu::entry::Access;
use vmmu::host::{Event, FrameQuery, Resolution, VcpuId, Wait};
use vmmu::slot::AddressSpace;
use vmmu::{
    Broken, Config, EnterError, FaultStep, Flush, HandleError, Mmu, NotCompleted, Outcome,
    Processor, Progress, Role, VcpuMmu, Worker,
};

fn mmu(vcpus: u32) -> Mmu<TestHost> {
    Mmu::new(TestHost::default(), &Config::new(npt(), vcpus)).unwrap()
}

/// What a hypervisor keeps that stores its vCPUs beside its MMU.
struct Machine {
    mmu: Arc<Mmu<TestHost>>,
    vcpus: Vec<VcpuMmu<Arc<Mmu<TestHost>>>>,
    worker: Worker<Arc<Mmu<TestHost>>>,
}

fn machine(vcpus: u32) -> Machine {
    let mmu = Arc::new(mmu(vcpus));
    let vcpu = |n| VcpuMmu::new(Arc::clone(&mmu), VcpuId(n)).unwrap();
    let vcpus = (0..vcpus).map(vcpu).collect();
    let mut worker = Worker::new(Arc::clone(&mmu)).unwrap();
    worker.create_slot(&backed(0, range(0, 0x400))).unwrap();
    Machine { mmu, vcpus, worker }
}

#[test]
fn a_hypervisor_stores_its_vcpus_beside_its_mmu_and_moves_them_to_their_threads() {
    let Machine { mmu, vcpus, worker } = machine(4);
    let threads: Vec<_> = vcpus
        .into_iter()
        .enumerate()
        .map(|(n, mut vcpu)| {
            thread::spawn(move || {
                let frames = Frames::new(Level::Size4K);
                for gfn in 0..64 {
                    let fault = fault_at(gfn * 4 + n as u64, Access::WRITE);
                    assert_eq!(vcpu.handle_fault(&frames, fault), Outcome::Fixed(Level::Size4K));
                    enter(&mut vcpu).after_exit();
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    assert_eq!(mmu.stats().leaves, [256, 0, 0]);
    let mmu = Mmu::teardown_shared(mmu).unwrap_err();
    drop(worker);
    assert_eq!(Mmu::teardown_shared(mmu).unwrap().in_use(), 0);
}

#[test]
fn a_fault_of_a_stored_vcpu_is_completed_by_a_stored_worker_on_another_thread() {
    let Machine { mmu, mut vcpus, mut worker } = machine(1);
    let vcpu = &mut vcpus[0];
    assert!(matches!(vcpu.begin_fault(fault_at(3, Access::WRITE)), FaultStep::LoadRoot));
    vcpu.load_root().unwrap();
    vcpu.reserve(0).unwrap();
    let FaultStep::Resolve(parked) = vcpu.begin_fault(fault_at(3, Access::WRITE)) else {
        panic!("no request");
    };
    let frames = Frames::new(Level::Size4K);
    let Resolution::Frame(frame) = vmmu::host::Backing::find(&frames, &parked.query()) else {
        panic!("no frame");
    };
    let answer = parked.query().answer(frame);
    let (slot, gfn) = (parked.query().slot, parked.query().gfn);
    let stranger =
        FrameQuery::of_nobody(slot, (7, 3), gfn, Access::WRITE, Level::Size4K).answer(frame);
    let outcome = thread::spawn(move || {
        // The worker has no page in stock: the request comes back.
        let needs = worker.complete_parked(parked, answer).unwrap_err();
        let NotCompleted::MissingPages { missing, parked } = needs else { panic!("{needs}") };
        worker.reserve(missing.0).unwrap();
        // An answer to no query of its own is refused, and the request is as good as before.
        let other = stranger;
        let wrong = worker.complete_parked(parked, other).unwrap_err();
        let NotCompleted::WrongAnswer { parked, .. } = wrong else { panic!("{wrong}") };
        worker.complete_parked(parked, answer).unwrap()
    })
    .join()
    .unwrap();
    assert_eq!(outcome, Outcome::Fixed(Level::Size4K));
    assert_eq!(mmu.stats().leaves, [1, 0, 0]);
}

#[test]
fn a_parked_request_is_refused_after_an_invalidation_of_its_page() {
    let Machine { mmu, mut vcpus, mut worker } = machine(1);
    vcpus[0].load_root().unwrap();
    vcpus[0].reserve(0).unwrap();
    let FaultStep::Resolve(parked) = vcpus[0].begin_fault(fault_at(3, Access::WRITE)) else {
        panic!("no request");
    };
    let frames = Frames::new(Level::Size4K);
    let Resolution::Frame(frame) = vmmu::host::Backing::find(&frames, &parked.query()) else {
        panic!("no frame");
    };
    mmu.invalidate_begin(pages(3, 1));
    mmu.invalidate_end(pages(3, 1)).unwrap();
    worker.reserve(0).unwrap();
    let answer = parked.query().answer(frame);
    assert_eq!(worker.complete_parked(parked, answer).unwrap(), Outcome::Retry);
    assert_eq!(mmu.stats().leaves, [0, 0, 0]);
}

#[test]
fn the_last_share_that_is_dropped_gives_every_table_back() {
    #[derive(Debug)]
    struct Counted(Arc<AtomicU64>);
    impl Hooks for Counted {
        fn taking(&self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }

        fn released(&self) {
            self.0.fetch_sub(1, Ordering::SeqCst);
        }
    }
    let out = Arc::new(AtomicU64::new(0));
    let host = Hooked::new(Counted(Arc::clone(&out)));
    let mmu = Arc::new(Mmu::new(host, &Config::new(npt(), 1)).unwrap());
    let mut vcpu = VcpuMmu::new(Arc::clone(&mmu), VcpuId(0)).unwrap();
    Worker::new(Arc::clone(&mmu)).unwrap().create_slot(&backed(0, range(0, 8))).unwrap();
    let frames = Frames::new(Level::Size4K);
    let outcome = vcpu.handle_fault(&frames, fault_at(1, Access::WRITE));
    assert_eq!(outcome, Outcome::Fixed(Level::Size4K));
    drop(mmu);
    assert!(out.load(Ordering::SeqCst) > 0);
    drop(vcpu);
    assert_eq!(out.load(Ordering::SeqCst), 0, "tables left behind");
}

#[test]
fn handles_that_cannot_be_made_say_why() {
    let mmu =
        Mmu::new(TestHost::default(), &Config { workers: 0, ..Config::new(npt(), 2) }).unwrap();
    let first = mmu.vcpu(VcpuId(0)).unwrap();
    assert_eq!(mmu.vcpu(VcpuId(0)).unwrap_err(), HandleError::Taken(VcpuId(0)));
    assert_eq!(mmu.vcpu(VcpuId(2)).unwrap_err(), HandleError::NoSuchVcpu(VcpuId(2)));
    let second = mmu.vcpu(VcpuId(1)).unwrap();
    assert_eq!(mmu.worker().unwrap_err(), HandleError::NoPlace);
    // What was refused took nothing.
    drop((first, second));
    assert!(mmu.vcpu(VcpuId(0)).is_ok() && mmu.vcpu(VcpuId(1)).is_ok());
    // A notifier needs no place of theirs.
    let _all = (mmu.vcpu(VcpuId(0)).unwrap(), mmu.vcpu(VcpuId(1)).unwrap());
    mmu.invalidate_begin(pages(0, 1));
    mmu.invalidate_end(pages(0, 1)).unwrap();
}

/// No hook may be called for a while.
#[derive(Debug, Default)]
struct Quiet {
    quiet: AtomicBool,
}

impl Quiet {
    fn called(&self, hook: &str) {
        assert!(!self.quiet.load(Ordering::SeqCst), "{hook} was called while entering");
    }
}

impl Hooks for Quiet {
    fn taking(&self) {
        self.called("take");
    }

    fn released(&self) {
        self.called("release");
    }

    fn kick(&self, _: VcpuId) {
        self.called("kick");
    }

    fn wait(&self, _: Wait) {
        self.called("wait");
    }

    fn event(&self, _: Event) {
        self.called("event");
    }
}

#[test]
fn entering_calls_no_hook_and_asks_for_a_root_that_has_gone() {
    let mmu = Mmu::new(Hooked::<Quiet>::default(), &Config::new(npt(), 1)).unwrap();
    let mut vcpu = mmu.vcpu(VcpuId(0)).unwrap();
    let mut worker = mmu.worker().unwrap();
    let quietly = |vcpu: &mut VcpuMmu<&Mmu<Hooked<Quiet>>>| {
        mmu.host().hooks.quiet.store(true, Ordering::SeqCst);
        let entered = vcpu.before_enter(Processor(0)).map(|inside| inside.after_exit());
        mmu.host().hooks.quiet.store(false, Ordering::SeqCst);
        entered
    };
    assert_eq!(quietly(&mut vcpu), Err(EnterError::LoadRoot), "nothing was loaded yet");
    vcpu.load_root().unwrap();
    assert_eq!(quietly(&mut vcpu), Ok(()));
    let mut drain = worker.invalidate_roots();
    assert_eq!(quietly(&mut vcpu), Err(EnterError::LoadRoot), "its root is invalid");
    while worker.drain(&mut drain, 1) == Progress::More {}
    vcpu.load_root().unwrap();
    assert_eq!(quietly(&mut vcpu), Ok(()));
    vcpu.set_role(Role { space: AddressSpace::Smm, flavour: 0 });
    assert_eq!(quietly(&mut vcpu), Err(EnterError::LoadRoot), "another role has another root");
}

#[test]
fn a_two_step_fault_without_a_root_asks_for_one() {
    let mmu = mmu(1);
    let mut vcpu = mmu.vcpu(VcpuId(0)).unwrap();
    mmu.worker().unwrap().create_slot(&backed(0, range(0, 8))).unwrap();
    assert!(matches!(vcpu.begin_fault(fault_at(1, Access::READ)), FaultStep::LoadRoot));
    vcpu.load_root().unwrap();
    vcpu.reserve(0).unwrap();
    assert!(matches!(vcpu.begin_fault(fault_at(1, Access::READ)), FaultStep::Resolve(_)));
    vcpu.set_role(Role { space: AddressSpace::Smm, flavour: 0 });
    assert!(matches!(vcpu.begin_fault(fault_at(1, Access::READ)), FaultStep::LoadRoot));
    vcpu.load_root().unwrap();
    let mut worker = mmu.worker().unwrap();
    worker.zap_all();
    let step = vcpu.begin_fault(fault_at(1, Access::READ));
    assert!(matches!(step, FaultStep::LoadRoot), "{step:?}");
}

#[test]
fn an_entry_kept_as_a_value_counts_as_being_in_the_guest_until_it_is_left() {
    let mmu = mmu(1);
    let mut vcpu = mmu.vcpu(VcpuId(0)).unwrap();
    mmu.worker().unwrap().create_slot(&backed(0, range(0, 8))).unwrap();
    let frames = Frames::new(Level::Size4K);
    let outcome = vcpu.handle_fault(&frames, fault_at(1, Access::WRITE));
    assert_eq!(outcome, Outcome::Fixed(Level::Size4K));
    let entered = enter(&mut vcpu).keep();
    assert_eq!(entered.flush(), Flush::Needed);
    thread::scope(|scope| {
        let taking = scope.spawn(|| mmu.invalidate_begin(pages(1, 1)));
        while mmu.host().kicks(0) == 0 {
            thread::yield_now();
        }
        vcpu.leave(entered);
        taking.join().unwrap();
    });
    let entered = enter(&mut vcpu).keep();
    assert_eq!(entered.flush(), Flush::Needed, "the invalidation's");
    vcpu.leave(entered);
    let entered = enter(&mut vcpu).keep();
    assert_eq!(entered.flush(), Flush::NotNeeded);
    // Any other call of the vCPU ends an entry that was not made.
    let outcome = vcpu.handle_fault(&frames, fault_at(2, Access::READ));
    assert_eq!(outcome, Outcome::Fixed(Level::Size4K));
    drop(entered);
    mmu.invalidate_end(pages(1, 1)).unwrap();
    mmu.invalidate_begin(pages(2, 1));
}

/// Says on which thread it is.
#[derive(Debug, Default)]
struct Numbered;

std::thread_local! {
    static HERE: std::cell::Cell<u32> = const { std::cell::Cell::new(0) };
}

impl Hooks for Numbered {
    fn here(&self) -> Option<u32> {
        Some(HERE.get())
    }
}

#[test]
fn a_flush_by_a_thread_that_has_the_vcpu_in_the_guest_is_found_and_ends() {
    let mmu = Mmu::new(Hooked::<Numbered>::default(), &Config::new(npt(), 1)).unwrap();
    let mut vcpu = mmu.vcpu(VcpuId(0)).unwrap();
    mmu.worker().unwrap().create_slot(&backed(0, range(0, 8))).unwrap();
    let frames = Frames::new(Level::Size4K);
    let outcome = vcpu.handle_fault(&frames, fault_at(1, Access::WRITE));
    assert_eq!(outcome, Outcome::Fixed(Level::Size4K));
    let inside = enter(&mut vcpu);
    mmu.invalidate_begin(pages(1, 1));
    assert_eq!(mmu.broken(), Some(Broken::FlushInGuest));
    inside.after_exit();
}

/// An entry kept as a value can be left too late, or by another vCPU. Neither may make the library
/// believe that a flush has been done.
#[test]
fn an_entry_that_was_ended_by_another_call_or_is_another_vcpus_does_no_flush() {
    let mmu = mmu(2);
    let (mut vcpu, mut other) = (mmu.vcpu(VcpuId(0)).unwrap(), mmu.vcpu(VcpuId(1)).unwrap());
    let foreign = enter(&mut other).keep();
    vcpu.load_root().unwrap();
    vcpu.leave(foreign);
    // The other one is still in the guest, and would be waited for.
    drop(other);
    let entered = enter(&mut vcpu).keep();
    assert_eq!(entered.flush(), Flush::Needed, "this vCPU has never been in the guest");
    // The role changes before the entry is left: the next root is another one.
    vcpu.set_role(Role { flavour: 1, ..Role::PLAIN });
    vcpu.load_root().unwrap();
    vcpu.leave(entered);
    let entered = enter(&mut vcpu).keep();
    assert_eq!(entered.flush(), Flush::Needed, "another root");
    // Entered again, and not made, before the first one is left: the second has seen that a flush is
    // wanted.
    vcpu.leave(entered);
    let frames = Frames::new(Level::Size4K);
    mmu.worker().unwrap().create_slot(&backed(0, range(0, 8))).unwrap();
    let outcome = vcpu.handle_fault(&frames, fault_at(1, Access::READ));
    assert_eq!(outcome, Outcome::Fixed(Level::Size4K));
    let entered = enter(&mut vcpu).keep();
    assert_eq!(entered.flush(), Flush::NotNeeded);
    vcpu.load_root().unwrap();
    drop(mmu.invalidate_range(pages(1, 1)));
    drop(vcpu.before_enter(Processor(0)).unwrap());
    vcpu.leave(entered);
    let entered = enter(&mut vcpu).keep();
    assert_eq!(entered.flush(), Flush::Needed, "the invalidation's");
    // Its own, in time.
    vcpu.leave(entered);
    assert_eq!(enter(&mut vcpu).flush(), Flush::NotNeeded);
}
