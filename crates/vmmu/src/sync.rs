//! Atomics and locks: from `core`, or from a model checker. Nothing else in the crate names an
//! atomic type, so what the models check is what runs.
//!
//! loom counts SeqCst accesses as AcqRel; every place where a store must be ordered before a
//! later load therefore says so with `fence(SeqCst)`.
//!
//! With the feature `record` each write is noted too ([`writes`]): what participants share is
//! written here and nowhere else, so what is noted is every cache line that another processor
//! could miss. Slot sets are the exception; only changes of slots write them.

#[cfg(not(any(loom, shuttle)))]
mod imp {
    pub use core::hint::spin_loop;
    #[cfg(not(feature = "record"))]
    pub use core::sync::atomic::AtomicU64;
    pub use core::sync::atomic::fence;
    pub use spin::mutex::{SpinMutex as Mutex, SpinMutexGuard as MutexGuard};

    #[cfg(feature = "record")]
    pub use super::writes::AtomicU64;

    /// Locks, spinning.
    pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
        super::note(mutex);
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
        note(self);
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
    note(&NEXT);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// A write to `word`; only the feature `record` wants to know.
#[inline]
fn note<T>(word: &T) {
    #[cfg(feature = "record")]
    writes::note(core::ptr::from_ref(word).addr());
    #[cfg(not(feature = "record"))]
    let _ = word;
}

/// The writes of this thread, while they are recorded.
#[cfg(feature = "record")]
pub mod writes {
    use alloc::vec::Vec;
    use core::cell::RefCell;
    use core::sync::atomic;

    use super::{Ordering, note as noted};

    std::thread_local! {
        /// Addresses in bytes, in order; `None` while nothing is recorded.
        static LOG: RefCell<Option<Vec<usize>>> = const { RefCell::new(None) };
    }

    /// Runs `work` and gives the addresses, in bytes, of the shared words it wrote or tried to
    /// write, in order: an exchange that fails takes the line all the same.
    pub fn during<R>(work: impl FnOnce() -> R) -> (R, Vec<usize>) {
        LOG.with_borrow_mut(|log| *log = Some(Vec::new()));
        let result = work();
        (result, LOG.take().unwrap_or_default())
    }

    pub(super) fn note(address: usize) {
        LOG.with_borrow_mut(|log| {
            if let Some(log) = log {
                log.push(address);
            }
        });
    }

    /// `core`'s, with its writes noted.
    #[derive(Debug)]
    #[repr(transparent)]
    pub struct AtomicU64(atomic::AtomicU64);

    impl AtomicU64 {
        /// As `core`'s.
        pub const fn new(value: u64) -> Self {
            AtomicU64(atomic::AtomicU64::new(value))
        }

        /// As `core`'s.
        pub fn load(&self, order: Ordering) -> u64 {
            self.0.load(order)
        }

        /// As `core`'s.
        pub fn store(&self, value: u64, order: Ordering) {
            noted(self);
            self.0.store(value, order);
        }

        /// As `core`'s.
        pub fn swap(&self, value: u64, order: Ordering) -> u64 {
            noted(self);
            self.0.swap(value, order)
        }

        /// As `core`'s.
        pub fn compare_exchange(
            &self,
            seen: u64,
            new: u64,
            success: Ordering,
            failure: Ordering,
        ) -> Result<u64, u64> {
            noted(self);
            self.0.compare_exchange(seen, new, success, failure)
        }

        /// As `core`'s.
        pub fn fetch_add(&self, n: u64, order: Ordering) -> u64 {
            noted(self);
            self.0.fetch_add(n, order)
        }

        /// As `core`'s.
        pub fn fetch_sub(&self, n: u64, order: Ordering) -> u64 {
            noted(self);
            self.0.fetch_sub(n, order)
        }

        /// As `core`'s.
        pub fn fetch_or(&self, bits: u64, order: Ordering) -> u64 {
            noted(self);
            self.0.fetch_or(bits, order)
        }
    }
}
