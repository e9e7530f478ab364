//! Physical memory as hardware sees it: aligned 64-bit words.

use core::sync::atomic::AtomicU64;

/// Host-physical memory.
///
/// Walkers read table words with acquire ordering and change them with compare-exchange only, as a
/// processor does with a locked read-modify-write; so tables may be changed by other threads while
/// they are walked.
pub trait Memory {
    /// The word at host-physical `address` (bytes, a multiple of 8), or `None` where there is no
    /// memory: the access ends as [`Exit::Bus`](crate::Exit::Bus).
    fn word(&self, address: u64) -> Option<&AtomicU64>;

    /// Called before every access of a walk to a word: also between the one that reads an entry and
    /// the one that sets its flags. Whoever decides which thread runs may let another in here.
    fn pause(&self) {}
}

/// Words from address 0 on.
impl Memory for [AtomicU64] {
    fn word(&self, address: u64) -> Option<&AtomicU64> {
        self.get(usize::try_from(address / 8).ok()?)
    }
}

impl<M: Memory + ?Sized> Memory for &M {
    fn word(&self, address: u64) -> Option<&AtomicU64> {
        (**self).word(address)
    }

    fn pause(&self) {
        (**self).pause();
    }
}

/// Words from address 0 on.
impl Memory for alloc::vec::Vec<AtomicU64> {
    fn word(&self, address: u64) -> Option<&AtomicU64> {
        self.as_slice().word(address)
    }
}
