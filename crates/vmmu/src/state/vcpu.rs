//! The words by which a vCPU and those who flush its translations agree.
//!
//! The hazard: worker A clears a leaf and looks whether vCPU B is in the guest. B is just entering. If
//! A sees it outside and sends no interrupt, and B does not see that a flush was asked for, B runs on
//! the translation that A removed.
//!
//! The rule: B says that it is *in the guest*, passes a full fence, and then reads the number of the last
//! flush that is *wanted* of it. A writes that number, passes a full fence, and then reads B's mode. So
//! either A sees B in the guest, or B sees the number.
//!
//! Flushes are numbered for the whole MMU, and a vCPU that has done one has done all of smaller numbers:
//! a number is drawn after what it is about was cleared, and whoever sees a number sees what was done
//! before any smaller one was drawn. So A remembers one number, and waits for no flush that others ask
//! for later.

use crate::sync::{AtomicU64, Ordering, fence};

/// Numbers flushes, on a cache line of its own.
#[derive(Debug)]
#[repr(align(64))]
pub(crate) struct FlushNumbers(AtomicU64);

impl FlushNumbers {
    pub(crate) fn new() -> Self {
        FlushNumbers(AtomicU64::new(0))
    }

    /// The next number: larger than all before.
    pub(crate) fn draw(&self) -> u64 {
        self.0.fetch_add(1, Ordering::AcqRel).wrapping_add(1)
    }
}

/// One vCPU's words.
#[derive(Debug)]
#[repr(align(64))]
pub(crate) struct VcpuWords {
    /// Odd while in the guest; written by the vCPU.
    mode: AtomicU64,
    /// The largest number of a flush asked for; written by anybody.
    wanted: AtomicU64,
    /// The largest number of a flush done; written by the vCPU.
    done: AtomicU64,
    taken: AtomicU64,
    /// The number of the thread or processor that entered last, plus one; 0 if the host has none.
    here: AtomicU64,
}

impl VcpuWords {
    pub(crate) fn new() -> Self {
        VcpuWords {
            mode: AtomicU64::new(0),
            wanted: AtomicU64::new(0),
            done: AtomicU64::new(0),
            taken: AtomicU64::new(0),
            here: AtomicU64::new(0),
        }
    }

    pub(crate) fn take(&self) -> bool {
        self.taken.compare_exchange(0, 1, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    pub(crate) fn give_back(&self) {
        self.taken.store(0, Ordering::Release);
    }

    /// Says "in the guest" and fences: what is read after this decides about the entry. The store
    /// releases what the guest did in its stay before, because whoever waits for the end of that
    /// stay may see only this store.
    #[inline]
    pub(crate) fn enter(&self) {
        let mode = self.mode.load(Ordering::Relaxed);
        self.mode.store(mode.wrapping_add(1) | 1, Ordering::Release);
        if !defect!(FlushWithoutFences) {
            fence(Ordering::SeqCst);
        }
    }

    /// Says "outside". Whoever sees it also sees what the guest did.
    #[inline]
    pub(crate) fn leave(&self) {
        let mode = self.mode.load(Ordering::Relaxed);
        if mode & 1 == 1 {
            self.mode.store(mode.wrapping_add(1), Ordering::Release);
        }
    }

    /// Asks for the flush of that number.
    pub(crate) fn want_flush(&self, number: u64) {
        self.wanted.fetch_max(number, Ordering::AcqRel);
    }

    /// The largest number asked for by now.
    pub(crate) fn wanted(&self) -> u64 {
        self.wanted.load(Ordering::Relaxed)
    }

    /// The mode word: which of its stays in the guest or outside it the vCPU is in.
    pub(crate) fn mode(&self) -> u64 {
        self.mode.load(Ordering::Acquire)
    }

    /// Whether a mode word says "in the guest".
    pub(crate) fn is_in_guest(mode: u64) -> bool {
        mode & 1 == 1
    }

    /// Whether the vCPU has done the flush of that number.
    pub(crate) fn has_flushed(&self, number: u64) -> bool {
        self.done.load(Ordering::Acquire) >= number
    }

    /// Whether the vCPU exists.
    pub(crate) fn is_taken(&self) -> bool {
        self.taken.load(Ordering::Relaxed) != 0
    }

    /// Notes who is about to enter.
    #[inline]
    pub(crate) fn note_here(&self, here: Option<u32>) {
        self.here.store(here.map_or(0, |here| u64::from(here) + 1), Ordering::Relaxed);
    }

    /// Whether it was entered by the thread or processor of that number, if there is one.
    pub(crate) fn is_at(&self, here: Option<u32>) -> bool {
        here.is_some_and(|here| self.here.load(Ordering::Relaxed) == u64::from(here) + 1)
    }

    /// The number of a flush that must be done before the guest runs, if there is one.
    #[inline]
    pub(crate) fn flush_wanted(&self) -> Option<u64> {
        let wanted = self.wanted.load(Ordering::Acquire);
        (wanted != self.done.load(Ordering::Relaxed)).then_some(wanted)
    }

    /// The translations have been, or at the entry that follows will be, dropped.
    #[inline]
    pub(crate) fn flush_done(&self, number: u64) {
        self.done.store(number, Ordering::Release);
    }
}
