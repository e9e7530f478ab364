//! The word in a table page, and its value.

use core::fmt;

use crate::sync::{AtomicU64, Ordering};

/// The bits of one entry, as hardware and library see them.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Value(pub u64);

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#018x}", self.0)
    }
}

/// The word in a table page. It changes only by compare-exchange from a value seen, or by
/// exchange by the owner of a detached or not yet linked table. Writes release, reads acquire.
#[derive(Debug)]
#[repr(transparent)]
pub struct Cell(AtomicU64);

impl Cell {
    /// A word outside of any table page; models build their tables from these.
    pub fn new(value: Value) -> Self {
        Cell(AtomicU64::new(value.0))
    }

    /// What is there now.
    #[inline]
    pub(crate) fn get(&self) -> Value {
        Value(self.0.load(Ordering::Acquire))
    }

    /// Replaces `seen` by `new`, or says what is there instead.
    #[inline]
    pub(crate) fn change(&self, seen: Value, new: Value) -> Result<(), Value> {
        if defect!(OverwritesBlindly) {
            self.0.store(new.0, Ordering::Release);
            return Ok(());
        }
        match self.0.compare_exchange(seen.0, new.0, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => Ok(()),
            Err(now) => Err(Value(now)),
        }
    }

    /// Replaces whatever is there: only for values that the law does not know.
    #[cold]
    pub(crate) fn exchange(&self, new: Value) -> Value {
        Value(self.0.swap(new.0, Ordering::AcqRel))
    }

    /// Overwrites a dead entry of a table that the caller has detached: only hardware may still
    /// read it.
    #[inline]
    pub(crate) fn set_dead(&self, value: Value) {
        self.0.store(value.0, Ordering::Release);
    }

    /// Writes a table that nobody else can reach: before it is linked, or after retirement.
    #[inline]
    pub(crate) fn set_private(&self, value: Value) {
        self.0.store(value.0, Ordering::Relaxed);
    }
}
