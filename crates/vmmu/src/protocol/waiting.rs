//! A wait, counted: every wait of the library goes through the host.
//!
//! The hazard: a real-time thread A waits for thread B by spinning, on the processor that B needs
//! to go on. Neither ever does.
//!
//! The rule: nothing spins by itself. A wait asks the host to pass the time
//! ([`Cpus::wait`](crate::host::Cpus::wait)) and says what for and how often it has asked; the host
//! may yield or sleep. So a wait is outside of sections and of list locks. The one exception is the
//! owner of a detached table, who waits inside a section for a hold that another section ends.

use crate::host::cpus::{Wait, WaitFor};
use crate::host::host::Host;

/// A wait that is under way.
#[derive(Debug)]
pub(crate) struct Waiting {
    next: Wait,
}

impl Waiting {
    /// Begins a wait.
    pub(crate) fn on(on: WaitFor, may_sleep: bool) -> Self {
        Waiting { next: Wait { on, asked: 0, may_sleep } }
    }

    /// Lets the host pass some time.
    pub(crate) fn pass<H: Host>(&mut self, host: &H) {
        host.wait(self.next);
        self.next.asked = self.next.asked.saturating_add(1);
    }
}
