//! The host of the library: tables from the arena, kicks that may come late, waits that let
//! others run.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use vmmu::addr::Pfn;
use vmmu::host::{Contents, Cpus, Event, Observer, Placement, TablePage, TablePages, VcpuId, Wait};

use crate::Violation;
use crate::arena::Arena;
use crate::open::Open;
use crate::turns::{self, Turns};

/// So often no wait asks: what is waited for ends in a few thousand turns of the others.
const ENDLESS: u64 = 200_000;

/// How much an actor may still take.
#[derive(Debug)]
struct Budget {
    /// Tables; all ones: as many as there are.
    left: AtomicU64,
    /// Whether one was refused.
    refused: AtomicBool,
}

/// See the module.
#[derive(Debug)]
pub struct Host {
    arena: Arc<Arena>,
    turns: Arc<Turns>,
    kicked: Box<[AtomicBool]>,
    budgets: Box<[Budget]>,
    open: Open,
}

impl Host {
    /// For so many vCPUs, and actors in all.
    pub fn new(arena: Arc<Arena>, turns: Arc<Turns>, vcpus: usize, actors: usize) -> Self {
        let kicked = (0..vcpus).map(|_| AtomicBool::new(false)).collect();
        let budget = |_| Budget { left: AtomicU64::new(u64::MAX), refused: AtomicBool::new(false) };
        let budgets = (0..actors).map(budget).collect();
        Host { arena, turns, kicked, budgets, open: Open::default() }
    }

    /// The memory.
    pub fn arena(&self) -> &Arena {
        &self.arena
    }

    /// The turns.
    pub fn turns(&self) -> &Turns {
        &self.turns
    }

    /// Its invalidations.
    pub fn open(&self) -> &Open {
        &self.open
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
        let Some(budget) = self.budget() else { return (f(), false) };
        budget.refused.store(false, Ordering::Relaxed);
        budget.left.store(tables, Ordering::Relaxed);
        let result = f();
        budget.left.store(u64::MAX, Ordering::Relaxed);
        (result, budget.refused.load(Ordering::Relaxed))
    }

    /// Only this actor looks at its budget.
    fn budget(&self) -> Option<&Budget> {
        self.budgets.get(turns::me()?)
    }
}

// SAFETY: frames of the arena are whole pages of memory that is mapped for as long as the host
// lives (it holds the arena), with exposed provenance at `pfn * 4096 + window`. A frame that was
// taken is used by nobody else until its release; walkers access its words atomically.
unsafe impl TablePages for Host {
    fn window(&self) -> u64 {
        self.arena.window()
    }

    fn take(&self, _: Placement) -> Option<TablePage> {
        self.turns.point();
        if let Some(budget) = self.budget() {
            match budget.left.load(Ordering::Relaxed) {
                0 => {
                    budget.refused.store(true, Ordering::Relaxed);
                    return None;
                }
                u64::MAX => {}
                left => budget.left.store(left - 1, Ordering::Relaxed),
            }
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

    fn wait(&self, wait: Wait) {
        if wait.asked == ENDLESS && self.turns.are_by_seed() {
            let what = wait.on;
            self.turns.fail(Violation::new(format!(
                "a wait for {what:?} has asked {ENDLESS} times, and others ran each time"
            )));
        }
        self.turns.relax();
    }
}

impl Observer for Host {
    fn event(&self, _: Event) {
        self.turns.point();
    }
}
