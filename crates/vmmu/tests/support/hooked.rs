//! The tests' host, with what a test does when the library calls it.

use vmmu::addr::Pfn;
use vmmu::host::{Cpus, Event, Observer, Placement, TablePage, TablePages, VcpuId, Wait};

use super::TestHost;

/// What a test does in the hooks of its host. Most do something in one or two.
pub trait Hooks: Sync {
    /// A table page is about to be taken.
    fn taking(&self) {}

    /// One has been given back.
    fn released(&self) {}

    /// A vCPU is kicked; the kick is counted already.
    fn kick(&self, _: VcpuId) {}

    /// The library waits. Whoever does nothing else yields.
    fn wait(&self, _: Wait) {
        std::thread::yield_now();
    }

    /// The number of this thread.
    fn here(&self) -> Option<u32> {
        None
    }

    /// Something has happened.
    fn event(&self, _: Event) {}
}

/// A host with the table pages of [`TestHost`], and with hooks.
#[derive(Debug, Default)]
pub struct Hooked<H> {
    pub pages: TestHost,
    pub hooks: H,
}

impl<H> Hooked<H> {
    pub fn new(hooks: H) -> Self {
        Hooked { pages: TestHost::default(), hooks }
    }
}

// SAFETY: as for the host within. A hook that does not return has done its work, or nothing.
unsafe impl<H: Hooks> TablePages for Hooked<H> {
    fn window(&self) -> u64 {
        self.pages.window()
    }

    fn take(&self, placement: Placement) -> Option<TablePage> {
        self.hooks.taking();
        self.pages.take(placement)
    }

    fn release(&self, page: Pfn) {
        self.pages.release(page);
        self.hooks.released();
    }
}

impl<H: Hooks> Cpus for Hooked<H> {
    fn kick(&self, vcpu: VcpuId) {
        self.pages.kick(vcpu);
        self.hooks.kick(vcpu);
    }

    fn wait(&self, wait: Wait) {
        self.hooks.wait(wait);
    }

    fn here(&self) -> Option<u32> {
        self.hooks.here()
    }
}

impl<H: Hooks> Observer for Hooked<H> {
    fn event(&self, event: Event) {
        self.hooks.event(event);
    }
}
