//! Atomics and locks: from `core`, or from a model checker. Nothing else in the crate names an
//! atomic type, so what the models check is what runs.
//!
//! loom counts SeqCst accesses as AcqRel; every place where a store must be ordered before a
//! later load therefore says so with `fence(SeqCst)`.
//!
//! With the features `record` and `step` each access is watched (`watched.rs`) too: what
//! participants share is written here and nowhere else, so what is noted is every cache line that
//! another processor could miss. Slot sets are the exception; only changes of slots write them.

#[cfg(not(any(loom, shuttle, feature = "record", feature = "step")))]
mod imp {
    pub use core::hint::spin_loop;
    pub use core::sync::atomic::{AtomicU64, fence};
    pub use spin::mutex::{SpinMutex as Mutex, SpinMutexGuard as MutexGuard};

    /// Locks; calls `wait` as long as somebody else has the lock.
    pub fn lock_or_wait<T>(mutex: &Mutex<T>, mut wait: impl FnMut()) -> MutexGuard<'_, T> {
        loop {
            match mutex.try_lock() {
                Some(guard) => return guard,
                None => wait(),
            }
        }
    }
}

#[cfg(all(not(any(loom, shuttle)), any(feature = "record", feature = "step")))]
mod imp {
    pub use crate::watched::AtomicU64;
    pub use core::sync::atomic::fence;
    pub use spin::mutex::{SpinMutex as Mutex, SpinMutexGuard as MutexGuard};

    /// Another thread has to run before this one can go on.
    pub fn spin_loop() {
        crate::watched::wait();
    }

    /// Locks; calls `wait` as long as somebody else has the lock.
    pub fn lock_or_wait<T>(mutex: &Mutex<T>, mut wait: impl FnMut()) -> MutexGuard<'_, T> {
        super::note(mutex);
        loop {
            match mutex.try_lock() {
                Some(guard) => return guard,
                None => wait(),
            }
        }
    }
}

#[cfg(loom)]
mod imp {
    pub use loom::sync::atomic::{AtomicU64, fence};
    pub use loom::sync::{Mutex, MutexGuard};

    /// Another thread has to run before this one can go on.
    pub fn spin_loop() {
        loom::thread::yield_now();
    }

    /// Locks: the model checker waits by itself. A poisoned lock means that the model has failed
    /// already.
    #[expect(clippy::unwrap_used, reason = "only built for models")]
    pub fn lock_or_wait<T>(mutex: &Mutex<T>, _: impl FnMut()) -> MutexGuard<'_, T> {
        mutex.lock().unwrap()
    }
}

#[cfg(all(shuttle, not(loom)))]
mod imp {
    pub use shuttle::sync::atomic::{AtomicU64, fence};
    pub use shuttle::sync::{Mutex, MutexGuard};

    /// Another thread has to run before this one can go on.
    pub fn spin_loop() {
        shuttle::thread::yield_now();
    }

    /// Locks: the model checker waits by itself. A poisoned lock means that the model has failed
    /// already.
    #[expect(clippy::unwrap_used, reason = "only built for models")]
    pub fn lock_or_wait<T>(mutex: &Mutex<T>, _: impl FnMut()) -> MutexGuard<'_, T> {
        mutex.lock().unwrap()
    }
}

/// Words of guest memory. The guest is no participant, so models leave them out.
pub use core::sync::atomic::{AtomicU32 as GuestU32, AtomicU64 as GuestU64};

pub use core::sync::atomic::Ordering;
pub use imp::*;

/// A count that one thread writes and any thread reads, now and then.
///
/// It orders nothing and decides nothing between threads, so models leave it out: it is always
/// `core`'s.
#[derive(Debug, Default)]
#[repr(transparent)]
pub struct Counter(core::sync::atomic::AtomicU64);

impl Counter {
    /// Adds; only the owner calls this, so no locked operation is needed.
    #[inline]
    pub fn add(&self, n: u64) {
        note(self);
        self.0.store(self.get().wrapping_add(n), Ordering::Relaxed);
    }

    /// The count as last seen.
    #[inline]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number that no two calls give. Not modelled: it orders nothing.
pub fn unique() -> u64 {
    static NEXT: core::sync::atomic::AtomicU64 = core::sync::atomic::AtomicU64::new(1);
    note(&NEXT);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// A write to `word`; only the feature `record` wants to know.
#[inline]
fn note<T>(word: &T) {
    #[cfg(feature = "record")]
    crate::watched::note(core::ptr::from_ref(word).addr());
    #[cfg(not(feature = "record"))]
    let _ = word;
}
