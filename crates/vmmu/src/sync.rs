//! Atomics and locks: from `core`, or from a model checker. Nothing else in the crate names an
//! atomic type, so what the models check is what runs.
//!
//! loom counts SeqCst accesses as AcqRel; every place where a store must be ordered before a
//! later load therefore says so with `fence(SeqCst)`.

#[cfg(not(any(loom, shuttle)))]
mod imp {
    pub use core::hint::spin_loop;
    pub use core::sync::atomic::{AtomicU64, fence};
    pub use spin::mutex::{SpinMutex as Mutex, SpinMutexGuard as MutexGuard};

    /// Locks, spinning.
    pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
        mutex.lock()
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

    /// Locks. A poisoned lock means that the model has failed already.
    #[expect(clippy::unwrap_used, reason = "only built for models")]
    pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
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

    /// Locks. A poisoned lock means that the model has failed already.
    #[expect(clippy::unwrap_used, reason = "only built for models")]
    pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
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
        self.0.store(self.get().wrapping_add(n), Ordering::Relaxed);
    }

    /// The count as last seen.
    #[inline]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number no two callers get. Not modelled: it orders nothing.
pub fn unique() -> u64 {
    static NEXT: core::sync::atomic::AtomicU64 = core::sync::atomic::AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
