//! What a whole fault tries again by itself, and for what it answers busy: whatever ends in a few steps
//! of others it waits for; whatever its own caller may have to end it must not.

#![allow(missing_docs, reason = "a test")]
#![cfg(feature = "protocol")]

mod support;

use std::cell::{Cell, RefCell};

use support::hooked::{Hooked, Hooks};
use support::{Frames, TestHost, backed, fault_at, finish, linear, npt, pages, range};
use vmmu::addr::Level;
use vmmu::entry::Access;
use vmmu::host::{Backing, FrameQuery, Resolution, VcpuId, Wait, WaitFor};
use vmmu::slot::{AddressSpace, SlotId};
use vmmu::{Busy, Config, Mmu, Outcome, Worker};

/// Something happens while the host looks for a frame, for the first time only.
struct Interrupted<'f, 'm, F> {
    frames: &'f Frames,
    worker: RefCell<Worker<&'m Mmu<TestHost>>>,
    meanwhile: F,
    asked: Cell<u64>,
}

// SAFETY: no guest runs; the frames are numbers.
unsafe impl<'m, F: Fn(&mut Worker<&'m Mmu<TestHost>>)> Backing for Interrupted<'_, 'm, F> {
    fn find(&self, query: &FrameQuery) -> Resolution {
        self.asked.set(self.asked.get() + 1);
        let found = self.frames.find(query);
        if self.asked.get() == 1 {
            (self.meanwhile)(&mut self.worker.borrow_mut());
        }
        found
    }
}

/// A fault, in the middle of which that happens. Gives how it ended, and how often a frame was looked
/// for.
fn fault_beside(meanwhile: impl Fn(&mut Worker<&Mmu<TestHost>>)) -> (Outcome, u64) {
    let mmu = Mmu::new(TestHost::default(), &Config::new(npt(), 2)).unwrap();
    let frames = Frames::new(Level::Size2M);
    let (mut vcpu, mut worker) = (mmu.vcpu(VcpuId(0)).unwrap(), mmu.worker().unwrap());
    worker.create_slot(&backed(1, range(0, 0x1000))).unwrap();
    let backing = Interrupted {
        frames: &frames,
        worker: RefCell::new(worker),
        meanwhile,
        asked: Cell::new(0),
    };
    let outcome = vcpu.handle_fault(&backing, fault_at(5, Access::WRITE));
    let asked = backing.asked.get();
    drop((backing, vcpu));
    finish(mmu);
    (outcome, asked)
}

#[test]
fn what_has_ended_by_the_second_half_is_tried_again() {
    // The page was taken back, and is not any more. What was hit is watched as a page.
    let taken = fault_beside(|worker| drop(worker.invalidate_range(pages(5, 1))));
    assert_eq!(taken, (Outcome::Fixed(Level::Size4K), 2));
    let zapped = fault_beside(|worker| worker.zap(AddressSpace::Normal, range(5, 1)));
    assert_eq!(zapped, (Outcome::Fixed(Level::Size4K), 2));
    // The root has gone: another one is loaded.
    let dropped = fault_beside(|worker| worker.zap_all());
    assert_eq!(dropped, (Outcome::Fixed(Level::Size2M), 2));
    let undrained = fault_beside(|worker| drop(worker.invalidate_roots()));
    assert_eq!(undrained, (Outcome::Fixed(Level::Size2M), 2));
    // The slot is another one.
    let other = fault_beside(|worker| {
        worker.delete_slot(SlotId(1)).unwrap();
        worker.create_slot(&linear(1, range(0, 0x1000), 0x5000)).unwrap();
    });
    assert_eq!(other, (Outcome::Fixed(Level::Size2M), 1));
    let limited = fault_beside(|worker| worker.limit_slot(SlotId(1), Level::Size4K).unwrap());
    assert_eq!(limited, (Outcome::Fixed(Level::Size4K), 2));
    let gone = fault_beside(|worker| worker.delete_slot(SlotId(1)).unwrap());
    assert_eq!(gone, (Outcome::Emulate, 1));
}

#[test]
fn what_lasts_is_not_waited_for() {
    let taking = fault_beside(|worker| worker.invalidate_begin(pages(5, 1)));
    assert_eq!(taking, (Outcome::Busy(Busy::Invalidation), 1));
    // Only another page of the block is being taken back.
    let beside = fault_beside(|worker| worker.invalidate_begin(pages(6, 1)));
    assert_eq!(beside, (Outcome::Fixed(Level::Size4K), 2));
    let deleting = fault_beside(|worker| drop(worker.begin_delete(SlotId(1)).unwrap()));
    assert_eq!(deleting, (Outcome::Busy(Busy::SlotDying), 1));
}

/// Counts waits for changes of pages.
#[derive(Debug, Default)]
struct Counting(std::sync::atomic::AtomicU64);

impl Hooks for Counting {
    fn wait(&self, wait: Wait) {
        assert_eq!(wait.on, WaitFor::PageChange);
        assert_eq!(wait.asked, self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
    }
}

/// Says *retry* so many times.
struct Undecided<'f>(&'f Frames, Cell<u64>);

// SAFETY: no guest runs; the frames are numbers.
unsafe impl Backing for Undecided<'_> {
    fn find(&self, query: &FrameQuery) -> Resolution {
        match self.1.get().checked_sub(1) {
            Some(left) => {
                self.1.set(left);
                Resolution::Retry
            }
            None => self.0.find(query),
        }
    }
}

#[test]
fn each_new_try_lets_the_host_pass_time() {
    let mmu = Mmu::new(Hooked::new(Counting::default()), &Config::new(npt(), 1)).unwrap();
    let frames = Frames::new(Level::Size4K);
    let mut vcpu = mmu.vcpu(VcpuId(0)).unwrap();
    mmu.worker().unwrap().create_slot(&backed(1, range(0, 0x1000))).unwrap();
    let undecided = Undecided(&frames, Cell::new(7));
    let outcome = vcpu.handle_fault(&undecided, fault_at(5, Access::READ));
    assert_eq!(outcome, Outcome::Fixed(Level::Size4K));
    assert_eq!(mmu.host().hooks.0.load(std::sync::atomic::Ordering::Relaxed), 7);
    assert_eq!(mmu.stats().retries, 7);
}
