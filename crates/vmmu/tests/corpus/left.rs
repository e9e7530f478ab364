//! What somebody has begun and left: drains, deletions, changes of slots out of which a hook unwound.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use vmmu::addr::Level;
use vmmu::entry::Access;
use vmmu::host::{Event, VcpuId};
use vmmu::internals::Defect;
use vmmu::slot::SlotId;
use vmmu::{Config, LoadError, Mmu, Processor, Progress, Role};

use crate::catch::{Verdict, catches, ensure};
use crate::support::hooked::{Hooked, Hooks};
use crate::support::{Frames, TestHost, backed, fault_at, npt, range};

fn mmu() -> Mmu<TestHost> {
    Mmu::new(TestHost::default(), &Config { workers: 4, ..Config::new(npt(), 2) }).unwrap()
}

/// A vCPU finds a root though sixteen drains were dropped.
fn dropped_drains_are_taken_over() -> Verdict {
    let mmu = mmu();
    let mut vcpu = mmu.vcpu(VcpuId(0)).unwrap();
    for _ in 0..16 {
        vcpu.load_root().unwrap();
        drop(mmu.worker().unwrap().invalidate_roots());
    }
    let loaded = vcpu.load_root();
    ensure(loaded == Ok(()), || format!("after sixteen dropped drains: {loaded:?}"))
}

/// Sixteen drains that were begun and dropped refuse roots for ever.
///
/// F-M5a.
#[test]
fn adopts_no_drain() {
    catches(Defect::AdoptsNoDrain, dropped_drains_are_taken_over);
}

/// A root that somebody has made invalid, and has not waited for, is taken over while a vCPU runs on
/// it.
fn an_adopter_waits_for_the_vcpus() -> Verdict {
    let mmu = mmu();
    let (mut running, mut vcpu) = (mmu.vcpu(VcpuId(0)).unwrap(), mmu.vcpu(VcpuId(1)).unwrap());
    running.load_root().unwrap();
    let inside = running.before_enter(Processor(0)).unwrap();
    for flavour in 1..16 {
        vcpu.set_role(Role { flavour, ..Role::PLAIN });
        vcpu.load_root().unwrap();
    }
    let _ = mmu.participant().unwrap().slots().invalidate();
    vcpu.set_role(Role { flavour: 16, ..Role::PLAIN });
    let is_loaded = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            vcpu.load_root().unwrap();
            is_loaded.store(true, Ordering::SeqCst);
        });
        // The guest runs until it is kicked, or until its root's tables may be gone.
        while mmu.host().kicks(0) == 0 && !is_loaded.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        let early = is_loaded.load(Ordering::SeqCst);
        inside.after_exit();
        ensure(!early, || "a root was taken apart under a vCPU".into())
    })
}

/// An adopter does not know that nobody has waited for the vCPUs.
///
/// F-M5b.
#[test]
fn adopts_under_guest() {
    catches(Defect::AdoptsUnderGuest, an_adopter_waits_for_the_vcpus);
}

/// A slot is made where another one is dying and nobody goes on with it.
fn a_dying_slot_gives_way() -> Verdict {
    let mmu = mmu();
    let mut worker = mmu.worker().unwrap();
    worker.create_slot(&backed(1, range(0, 8))).unwrap();
    drop(worker.begin_delete(SlotId(1)).unwrap());
    let made = worker.create_slot(&backed(2, range(4, 8)));
    ensure(made.is_ok(), || format!("over a slot whose deletion was dropped: {made:?}"))
}

/// A dropped deletion leaves its slot dying for ever.
///
/// F-M5c.
#[test]
fn leaves_dying_slot() {
    catches(Defect::LeavesDyingSlot, a_dying_slot_gives_way);
}

/// A deletion comes to its end after somebody else has finished it and made another slot. The walk
/// of the late one has ended before, so that only the removal is left.
fn a_late_deletion_leaves_the_successor() -> Verdict {
    let mmu = mmu();
    let mut late = mmu.participant().unwrap();
    let mut worker = mmu.worker().unwrap();
    worker.create_slot(&backed(1, range(0, 8))).unwrap();
    let dying = late.slots().dying(SlotId(1)).unwrap();
    let walked = late.announce(dying).synchronize().walk(|page| page.each(|entry| entry.zap()));
    let gone = walked.finish();
    worker.delete_slot(SlotId(1)).unwrap();
    worker.create_slot(&backed(1, range(0x100, 8))).unwrap();
    let removed = late.slots().remove(gone);
    ensure(removed.is_none() && worker.slot(SlotId(1)).is_ok(), || {
        format!("the late deletion took {removed:?}")
    })
}

/// A deletion finished late removes the slot's successor.
///
/// F-M5d.
#[test]
fn removes_successor() {
    catches(Defect::RemovesSuccessor, a_late_deletion_leaves_the_successor);
}

/// One hook unwinds, once.
#[derive(Debug, Default)]
struct Unwinding {
    at_grace_period: AtomicBool,
    at_release: AtomicBool,
    grace_periods: AtomicU64,
}

fn unwind_once(armed: &AtomicBool) {
    if armed.swap(false, Ordering::SeqCst) {
        resume_unwind(Box::new(()));
    }
}

impl Hooks for Unwinding {
    fn released(&self) {
        unwind_once(&self.at_release);
    }

    fn event(&self, event: Event) {
        if event == Event::GracePeriod {
            unwind_once(&self.at_grace_period);
            self.grace_periods.fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// A hook unwinds out of the grace period that follows a swap of the slot sets: the next change waits
/// for one before it edits, and the slot that did not come to life is gone.
fn an_owed_grace_period_is_waited_for() -> Verdict {
    let mmu = Mmu::new(Hooked::<Unwinding>::default(), &Config::new(npt(), 1)).unwrap();
    let mut worker = mmu.worker().unwrap();
    worker.create_slot(&backed(1, range(0, 8))).unwrap();
    worker.create_slot(&backed(2, range(8, 8))).unwrap();
    worker.delete_slot(SlotId(2)).unwrap();
    mmu.host().hooks.at_grace_period.store(true, Ordering::SeqCst);
    let unwound = catch_unwind(AssertUnwindSafe(|| worker.create_slot(&backed(2, range(8, 8)))));
    assert!(unwound.is_err());
    let before = mmu.host().hooks.grace_periods.load(Ordering::SeqCst);
    drop(mmu.participant().unwrap().slots());
    let waited = mmu.host().hooks.grace_periods.load(Ordering::SeqCst) - before;
    ensure(waited > 0, || "nobody waited before the next edit".into())?;
    let made = worker.create_slot(&backed(2, range(8, 8)));
    ensure(made.is_ok(), || format!("the slot that did not come to life: {made:?}"))
}

/// The next change of the slots writes a set that sections still read.
///
/// F-H6a.
#[test]
fn forgets_grace_period() {
    catches(Defect::ForgetsGracePeriod, an_owed_grace_period_is_waited_for);
}

/// `release` unwinds out of the end of a drain: the page was given back once, and is not again.
fn a_top_table_is_released_once() -> Verdict {
    let mmu = Mmu::new(Hooked::<Unwinding>::default(), &Config::new(npt(), 1)).unwrap();
    let frames = Frames::new(Level::Size4K);
    {
        let mut vcpu = mmu.vcpu(VcpuId(0)).unwrap();
        let mut worker = mmu.worker().unwrap();
        worker.create_slot(&backed(1, range(0, 8))).unwrap();
        assert_ne!(vcpu.load_root(), Err(LoadError::OutOfMemory));
        mmu.host().hooks.at_release.store(true, Ordering::SeqCst);
        let unwound = catch_unwind(AssertUnwindSafe(|| {
            let mut drain = worker.invalidate_roots();
            while worker.drain(&mut drain, 8) == Progress::More {}
        }));
        assert!(unwound.is_err());
        let _ = vcpu.handle_fault(&frames, fault_at(0, Access::READ));
    }
    let torn_down = catch_unwind(AssertUnwindSafe(|| mmu.teardown()));
    match torn_down {
        Ok(host) => ensure(host.pages.in_use() == 0, || "table pages lost".into()),
        Err(_) => Err("a top table was released twice".into()),
    }
}

/// Teardown releases the top table of a root again.
///
/// F-H6b.
#[test]
fn releases_before_free() {
    catches(Defect::ReleasesBeforeFree, a_top_table_is_released_once);
}
