//! Translations that processors may still hold: the words by which a vCPU and those who flush it
//! agree, the flush itself, and [debts](Debt).
//!
//! *Flush*: raise the vCPU's *wanted* count, fence, read its *mode*; if that says it is in the
//! guest, kick it and wait until the mode or the *done* count moves. A vCPU outside the guest
//! needs no interrupt: it sees the count before it enters. *Entering*: mode, fence, wanted. The
//! two fences pair: either the flusher sees the vCPU in the guest, or the vCPU sees the count.
//!
//! The wait looks at words, never at an interrupt handler having run, so two vCPUs that flush
//! each other cannot block: both are outside.

mod debt;

use crate::Mmu;
use crate::host::{Event, Host, VcpuId};
use crate::line::ParticipantWords;
use crate::sync::{AtomicU64, Ordering, fence};

#[cfg_attr(not(feature = "protocol"), expect(unused_imports, reason = "named by models only"))]
pub use debt::Debt;
pub(crate) use debt::{Due, Outstanding};

/// One vCPU's words.
#[derive(Debug)]
#[repr(align(64))]
pub(crate) struct VcpuWords {
    /// Odd while in the guest; written by the vCPU.
    mode: AtomicU64,
    /// Flushes asked for; written by anybody.
    wanted: AtomicU64,
    /// Flushes done; written by the vCPU.
    done: AtomicU64,
    taken: AtomicU64,
}

impl VcpuWords {
    pub(crate) fn new() -> Self {
        VcpuWords {
            mode: AtomicU64::new(0),
            wanted: AtomicU64::new(0),
            done: AtomicU64::new(0),
            taken: AtomicU64::new(0),
        }
    }

    pub(crate) fn take(&self) -> bool {
        self.taken.compare_exchange(0, 1, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    pub(crate) fn give_back(&self) {
        self.taken.store(0, Ordering::Release);
    }

    /// Says "in the guest" and fences: what is read after this decides about the entry. The store
    /// releases what the guest did before: who waits for that may see only this one.
    pub(crate) fn enter(&self) {
        let mode = self.mode.load(Ordering::Relaxed);
        self.mode.store(mode.wrapping_add(1) | 1, Ordering::Release);
        if !defect!(FlushWithoutFences) {
            fence(Ordering::SeqCst);
        }
    }

    /// Says "outside". What the guest did happened before.
    pub(crate) fn leave(&self) {
        let mode = self.mode.load(Ordering::Relaxed);
        if mode & 1 == 1 {
            self.mode.store(mode.wrapping_add(1), Ordering::Release);
        }
    }

    /// The count of a flush that must be done before the guest runs, if there is one.
    pub(crate) fn flush_wanted(&self) -> Option<u64> {
        let wanted = self.wanted.load(Ordering::Acquire);
        (wanted != self.done.load(Ordering::Relaxed)).then_some(wanted)
    }

    /// The translations have been, or at the entry that follows will be, dropped.
    pub(crate) fn flush_done(&self, count: u64) {
        self.done.store(count, Ordering::Release);
    }
}

impl<H: Host> Mmu<H> {
    /// Makes every vCPU drop its translations before it runs guest code again. Not inside a
    /// section. When it returns, no vCPU uses a translation that was removed before the call.
    pub(crate) fn flush(&self, words: &ParticipantWords) {
        if defect!(FlushReachesNobody) {
            return;
        }
        for words in &self.core.vcpus {
            words.wanted.fetch_add(1, Ordering::AcqRel);
        }
        let (sent, elided) = self.wait_for_vcpus();
        words.counters.flushes.add(1);
        words.counters.flushes_sent.add(u64::from(sent));
        words.counters.flushes_elided.add(u64::from(elided));
        self.host.event(Event::Flushed { sent, elided });
    }

    /// Waits until every vCPU that is in the guest has left it once. What was changed before the
    /// call is seen at its next entry.
    pub(crate) fn outside_once(&self) {
        // The count makes a vCPU that is just entering show that it has looked.
        for words in &self.core.vcpus {
            words.wanted.fetch_add(1, Ordering::AcqRel);
        }
        self.wait_for_vcpus();
    }

    /// Waits until every vCPU that was in the guest has left it, or drops its translations on the
    /// way in. Returns how many were kicked, and how many needed no kick.
    fn wait_for_vcpus(&self) -> (u32, u32) {
        if !defect!(FlushWithoutFences) {
            fence(Ordering::SeqCst);
        }
        let (mut sent, mut elided) = (0, 0);
        // All are kicked before the first is waited for.
        for (n, words) in self.core.vcpus.iter().enumerate() {
            if words.mode.load(Ordering::Acquire) & 1 == 1 {
                self.host.kick(VcpuId(n as u32));
                sent += 1;
            } else if words.taken.load(Ordering::Relaxed) != 0 {
                elided += 1;
            }
        }
        for words in &self.core.vcpus {
            let mode = words.mode.load(Ordering::Acquire);
            let wanted = words.wanted.load(Ordering::Relaxed);
            // A vCPU that enters after the fence is not kicked, but it does what is wanted.
            while mode & 1 == 1
                && words.mode.load(Ordering::Acquire) == mode
                && words.done.load(Ordering::Acquire) < wanted
            {
                self.host.relax();
            }
        }
        (sent, elided)
    }
}
