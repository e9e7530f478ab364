//! The author's host in a VM that is judged.

use std::collections::BTreeSet;
use std::ptr::with_exposed_provenance_mut;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;

use machine::Memory;
use vmmu::addr::Pfn;
use vmmu::host::{Cpus, Event, Host, Observer, Placement, TablePage, TablePages, VcpuId, Wait};

/// The author's host, with an eye on its table pages.
#[derive(Debug)]
pub struct Judged<'h, H> {
    host: &'h H,
    /// Frames that were taken and not released.
    pub(crate) in_use: Mutex<BTreeSet<u64>>,
    /// Those that were given while they were in use.
    pub(crate) twice: Mutex<Vec<u64>>,
    /// Those that were released and had not been taken.
    pub(crate) foreign: Mutex<Vec<u64>>,
}

impl<'h, H: Host> Judged<'h, H> {
    pub(crate) fn new(host: &'h H) -> Self {
        Judged {
            host,
            in_use: Mutex::default(),
            twice: Mutex::default(),
            foreign: Mutex::default(),
        }
    }

    /// The author's host.
    pub fn host(&self) -> &'h H {
        self.host
    }
}

// SAFETY: the author's promise, passed on. A page that comes twice is not passed on.
unsafe impl<H: Host> TablePages for Judged<'_, H> {
    fn window(&self) -> u64 {
        self.host.window()
    }

    fn take(&self, placement: Placement) -> Option<TablePage> {
        let page = self.host.take(placement)?;
        if self.in_use.lock().is_ok_and(|mut all| all.insert(page.pfn.0)) {
            return Some(page);
        }
        if let Ok(mut twice) = self.twice.lock() {
            twice.push(page.pfn.0);
        }
        None
    }

    fn release(&self, page: Pfn) {
        if self.in_use.lock().is_ok_and(|mut all| all.remove(&page.0)) {
            self.host.release(page);
        } else if let Ok(mut foreign) = self.foreign.lock() {
            foreign.push(page.0);
        }
    }
}

impl<H: Host> Cpus for Judged<'_, H> {
    fn kick(&self, vcpu: VcpuId) {
        self.host.kick(vcpu);
    }

    fn wait(&self, wait: Wait) {
        self.host.wait(wait);
    }
}

impl<H: Host> Observer for Judged<'_, H> {
    fn event(&self, event: Event) {
        self.host.event(event);
    }
}

/// The table pages, as the processor reads them.
impl<H: Host> Memory for Judged<'_, H> {
    fn word(&self, address: u64) -> Option<&AtomicU64> {
        if !self.in_use.lock().is_ok_and(|all| all.contains(&(address >> 12))) {
            return None;
        }
        let at = address.wrapping_add(self.host.window()) & !7;
        // SAFETY: a word of a page that the host gave, readable and writable until it is released.
        // One thread does everything: nothing is released while a walk looks.
        Some(unsafe { AtomicU64::from_ptr(with_exposed_provenance_mut(at as usize)) })
    }
}
