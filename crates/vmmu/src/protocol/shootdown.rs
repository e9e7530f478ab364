//! TLB shootdown: making every vCPU drop its translations before it runs guest code again.
//!
//! The words and the race are described in [`state::vcpu`](crate::state::vcpu). A vCPU that is in the
//! guest is kicked (sent an interrupt), and waited for until its mode moves or it has *done* the flush. A
//! vCPU outside the guest needs no interrupt: it sees before it enters that a flush is wanted.
//!
//! Worker A asks for a flush, and vCPU B enters, does it, and runs the guest. Then worker C asks for
//! another one and is held up before it interrupts B. A waits for the flush that it has asked for and
//! for no later one, or it would wait for C.
//!
//! The wait looks at words, never at an interrupt handler having run, so two vCPUs that flush each
//! other cannot block each other: while they wait, both are outside the guest.

use crate::host::cpus::{VcpuId, WaitFor};
use crate::host::host::Host;
use crate::host::observer::Event;
use crate::protocol::local::Local;
use crate::state::broken::Broken;
use crate::state::vcpu::VcpuWords;
use crate::sync::{Ordering, fence};

impl<H: Host> Local<'_, H> {
    /// Makes every vCPU drop its translations before it runs guest code again. Not inside a
    /// section. When it returns, no vCPU uses a translation that was removed before the call.
    pub(crate) fn flush(&self) {
        if defect!(FlushReachesNobody) {
            return;
        }
        let number = self.want_flush();
        let (sent, elided) = self.wait_for_vcpus(number);
        let words = self.words();
        words.counters.flushes.add(1);
        words.counters.flushes_sent.add(u64::from(sent));
        words.counters.flushes_elided.add(u64::from(elided));
        self.hooks().event(Event::Flushed { sent, elided });
    }

    /// Waits until every vCPU that is in the guest has left it once. What was changed before the
    /// call is seen at its next entry.
    pub(crate) fn outside_once(&self) {
        // It makes a vCPU that is just entering show that it has looked.
        let number = self.want_flush();
        self.wait_for_vcpus(number);
    }

    /// Asks every vCPU for a flush. Returns its number.
    fn want_flush(&self) -> u64 {
        let number = self.core().flushes.draw();
        for words in &self.core().vcpus {
            words.want_flush(number);
        }
        number
    }

    /// Waits until every vCPU that was in the guest has left it, or has done the flush of that number on
    /// the way in. Returns how many were kicked, and how many needed no kick.
    fn wait_for_vcpus(&self, number: u64) -> (u32, u32) {
        if !defect!(FlushWithoutFences) {
            fence(Ordering::SeqCst);
        }
        let (mut sent, mut elided) = (0, 0);
        // All are kicked before the first is waited for.
        for (n, words) in self.core().vcpus.iter().enumerate() {
            if VcpuWords::is_in_guest(words.mode()) {
                self.hooks().kick(VcpuId(n as u32));
                sent += 1;
            } else if words.is_taken() || defect!(CountsAbsentVcpus) {
                elided += 1;
            }
        }
        for (n, words) in self.core().vcpus.iter().enumerate() {
            let mode = words.mode();
            let number = if defect!(WaitsForLaterFlushes) { words.wanted() } else { number };
            let mut waiting = self.waiting(WaitFor::Vcpu(VcpuId(n as u32)));
            // A vCPU that enters after the fence is not kicked, but it does what is wanted.
            while VcpuWords::is_in_guest(mode) && words.mode() == mode && !words.has_flushed(number)
            {
                if words.is_at(self.hooks().here()) {
                    self.core().kill(Broken::FlushInGuest);
                    break;
                }
                waiting.pass(self.hooks());
            }
        }
        (sent, elided)
    }
}
