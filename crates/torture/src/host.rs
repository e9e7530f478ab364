//! The host of the library: tables from the arena, kicks that may come late, waits that let
//! others run.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use vmmu::addr::Pfn;
use vmmu::host::{Contents, Cpus, Event, Observer, PageAsk, TablePage, TablePages, VcpuId};

use crate::Violation;
use crate::arena::Arena;
use crate::turns::Turns;

thread_local! {
    /// Tables this thread may still take; `None`: as many as there are.
    static BUDGET: Cell<Option<u64>> = const { Cell::new(None) };
    /// Whether this thread has been refused one.
    static REFUSED: Cell<bool> = const { Cell::new(false) };
}

/// See the module.
#[derive(Debug)]
pub struct Host {
    arena: Arc<Arena>,
    turns: Arc<Turns>,
    kicked: Box<[AtomicBool]>,
    flushes: AtomicU64,
}

impl Host {
    /// For so many vCPUs.
    pub fn new(arena: Arc<Arena>, turns: Arc<Turns>, vcpus: usize) -> Self {
        let kicked = (0..vcpus).map(|_| AtomicBool::new(false)).collect();
        Host { arena, turns, kicked, flushes: AtomicU64::new(0) }
    }

    /// The memory.
    pub fn arena(&self) -> &Arena {
        &self.arena
    }

    /// The turns.
    pub fn turns(&self) -> &Turns {
        &self.turns
    }

    /// Whether the vCPU is to leave the guest.
    pub fn is_kicked(&self, vcpu: usize) -> bool {
        self.kicked[vcpu].load(Ordering::SeqCst)
    }

    /// The vCPU has left the guest: the interrupt has been taken.
    pub fn take_kick(&self, vcpu: usize) {
        self.kicked[vcpu].store(false, Ordering::SeqCst);
    }

    /// Runs `f` in a time in which the host has so few tables, and says whether one was refused.
    pub fn starving<T>(&self, tables: u64, f: impl FnOnce() -> T) -> (T, bool) {
        BUDGET.set(Some(tables));
        REFUSED.set(false);
        let result = f();
        BUDGET.set(None);
        (result, REFUSED.get())
    }
}

// SAFETY: frames of the arena are whole pages of memory that is mapped for as long as the host
// lives (it holds the arena), with exposed provenance at `pfn * 4096 + window`. A frame that was
// taken is used by nobody else until its release; walkers access its words atomically.
unsafe impl TablePages for Host {
    fn window(&self) -> u64 {
        self.arena.window()
    }

    fn take(&self, _: PageAsk) -> Option<TablePage> {
        self.turns.point();
        match BUDGET.get() {
            Some(0) => {
                REFUSED.set(true);
                return None;
            }
            Some(left) => BUDGET.set(Some(left - 1)),
            None => {}
        }
        match self.arena.take_table() {
            Ok(Some(pfn)) => Some(TablePage { pfn: Pfn(pfn), contents: Contents::Unknown }),
            Ok(None) => {
                self.turns.fail(Violation::new("no frame is free: tables leak".into()));
                None
            }
            Err(violation) => {
                self.turns.fail(violation);
                None
            }
        }
    }

    fn release(&self, page: Pfn) {
        self.turns.point();
        if let Err(violation) = self.arena.release_table(page.0) {
            self.turns.fail(violation);
        }
    }
}

impl Cpus for Host {
    fn kick(&self, vcpu: VcpuId) {
        self.kicked[vcpu.0 as usize].store(true, Ordering::SeqCst);
        self.turns.point();
    }

    fn relax(&self) {
        self.turns.relax();
    }
}

impl Observer for Host {
    fn event(&self, event: Event) {
        if let Event::Flushed { .. } = event {
            self.flushes.fetch_add(1, Ordering::Relaxed);
        }
        self.turns.point();
    }
}
