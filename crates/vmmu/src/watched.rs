//! Atomics that are watched, for tests: each write is noted (feature `record`), and before each
//! access a scheduler is called that may let another thread run (feature `step`).
//!
//! A scheduler that is called before every access can try any order in which the accesses of all
//! threads follow one another. What a weaker memory allows beyond that is for the models.

use alloc::vec::Vec;
use core::cell::RefCell;
use core::sync::atomic::{self, Ordering};
use std::sync::OnceLock;

/// Where a thread is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SchedulePoint {
    /// About to look at or change a shared word.
    Access,
    /// Unable to go on until another thread has run.
    Wait,
}

static SCHEDULER: OnceLock<fn(SchedulePoint)> = OnceLock::new();

/// Calls `scheduler` from now on before every access to a shared word, and in every wait that is
/// not the host's. For the whole process, once; it must not call the library.
pub fn schedule(scheduler: fn(SchedulePoint)) {
    let _ = SCHEDULER.set(scheduler);
}

fn step(step: SchedulePoint) {
    if let Some(scheduler) = SCHEDULER.get() {
        scheduler(step);
    }
}

/// Another thread has to run before this one can go on.
pub(crate) fn wait() {
    core::hint::spin_loop();
    step(SchedulePoint::Wait);
}

std::thread_local! {
    /// Addresses in bytes, in order; `None` while nothing is recorded.
    static LOG: RefCell<Option<Vec<usize>>> = const { RefCell::new(None) };
}

/// Runs `work` and gives the addresses, in bytes, of the shared words it wrote or tried to write,
/// in order: an exchange that fails takes the cache line as well.
pub fn writes<R>(work: impl FnOnce() -> R) -> (R, Vec<usize>) {
    LOG.with_borrow_mut(|log| *log = Some(Vec::new()));
    let result = work();
    (result, LOG.take().unwrap_or_default())
}

/// A write to this address.
pub(crate) fn note(address: usize) {
    LOG.with_borrow_mut(|log| {
        if let Some(log) = log {
            log.push(address);
        }
    });
}

/// `core`'s, watched.
#[derive(Debug)]
#[repr(transparent)]
pub struct AtomicU64(atomic::AtomicU64);

impl AtomicU64 {
    /// As `core`'s.
    pub const fn new(value: u64) -> Self {
        AtomicU64(atomic::AtomicU64::new(value))
    }

    fn write(&self) -> &atomic::AtomicU64 {
        step(SchedulePoint::Access);
        #[cfg(feature = "record")]
        note(core::ptr::from_ref(self).addr());
        &self.0
    }

    /// As `core`'s.
    pub fn load(&self, order: Ordering) -> u64 {
        step(SchedulePoint::Access);
        self.0.load(order)
    }

    /// As `core`'s.
    pub fn store(&self, value: u64, order: Ordering) {
        self.write().store(value, order);
    }

    /// As `core`'s.
    pub fn swap(&self, value: u64, order: Ordering) -> u64 {
        self.write().swap(value, order)
    }

    /// As `core`'s.
    pub fn compare_exchange(
        &self,
        seen: u64,
        new: u64,
        success: Ordering,
        failure: Ordering,
    ) -> Result<u64, u64> {
        self.write().compare_exchange(seen, new, success, failure)
    }

    /// As `core`'s, for one try after another.
    pub fn fetch_update(
        &self,
        success: Ordering,
        failure: Ordering,
        change: impl FnMut(u64) -> Option<u64>,
    ) -> Result<u64, u64> {
        self.write().fetch_update(success, failure, change)
    }

    /// As `core`'s.
    pub fn fetch_add(&self, n: u64, order: Ordering) -> u64 {
        self.write().fetch_add(n, order)
    }

    /// As `core`'s.
    pub fn fetch_sub(&self, n: u64, order: Ordering) -> u64 {
        self.write().fetch_sub(n, order)
    }

    /// As `core`'s.
    pub fn fetch_max(&self, n: u64, order: Ordering) -> u64 {
        self.write().fetch_max(n, order)
    }

    /// As `core`'s.
    pub fn fetch_or(&self, bits: u64, order: Ordering) -> u64 {
        self.write().fetch_or(bits, order)
    }
}
