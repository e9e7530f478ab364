//! Hosts that keep every rule, and hosts that break one.
#![allow(dead_code, reason = "every test file uses some of it")]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ptr::{NonNull, with_exposed_provenance_mut};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex};
use std::thread::{self, ThreadId};

use conformance::{Report, Verdict};
use vmmu::addr::{Level, Pfn};
use vmmu::entry::{Access, MemoryType};
use vmmu::host::{
    Backing, Contents, Cpus, Event, FrameQuery, GuestMemory, GuestPage, HostFrame, Observer,
    Placement, Resolution, TablePage, TablePages, VcpuId,
};

/// The rule is broken, and the report says so.
pub fn assert_broken(report: &Report, id: &str) {
    assert!(matches!(report.verdict(id), Some(Verdict::Failed(_))), "{id}:\n{report}");
    assert!(!report.is_clean());
    assert!(report.to_string().contains("FAILED"));
}

/// This rule is broken, and no other.
pub fn assert_only_broken(report: &Report, id: &str) {
    assert_broken_beside(report, id, &[]);
}

/// This rule is broken, and besides at most those that cannot be kept without it.
pub fn assert_broken_beside(report: &Report, id: &str, also: &[&str]) {
    assert_broken(report, id);
    let mut broken = report.failed().map(|finding| finding.rule.id);
    assert!(broken.all(|other| other == id || also.contains(&other)), "{id}:\n{report}");
}

/// No rule is broken, and those that were looked at are all but these.
pub fn assert_kept(report: &Report, skipped: &[&str]) {
    assert!(report.is_clean(), "{report}");
    for finding in &report.findings {
        let was_skipped = matches!(finding.verdict, Verdict::Skipped(_));
        assert_eq!(was_skipped, skipped.contains(&finding.rule.id), "{report}");
    }
}

/// How a pool of table pages misbehaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BadPool {
    No,
    GivesTen,
    GivesFrameZero,
    GivesWideFrames,
    IsMisaligned,
    GivesTwice,
    LiesAboutZeroes,
    Scribbles,
    MovesItsWindow,
    IgnoresLimits,
    Leaks,
    ForgetsOtherThreads,
    NeverRecovers,
    Panics,
}

#[repr(align(4096))]
struct Page(#[allow(dead_code, reason = "used through its address")] [u64; 512]);

/// Pages of a piece of memory that stays for good, so that no misuse of them is worse than wrong.
pub struct Pool {
    bad: BadPool,
    base: u64,
    first: u64,
    size: u64,
    free: Mutex<Vec<u64>>,
    by_thread: Mutex<HashMap<ThreadId, Vec<u64>>>,
    in_use: Mutex<BTreeSet<u64>>,
    dirty: Mutex<BTreeSet<u64>>,
    calls: AtomicU64,
    empty: AtomicU64,
}

impl Pool {
    pub fn new(bad: BadPool) -> Pool {
        let size = 512;
        let pages: Vec<Page> = (0..size + 8).map(|_| Page([0; 512])).collect();
        let base = pages.leak().as_mut_ptr().expose_provenance() as u64;
        let first = match bad {
            BadPool::GivesFrameZero => 0,
            BadPool::GivesWideFrames => 1 << 45,
            _ => 0x1000,
        };
        Pool {
            bad,
            base,
            first,
            size,
            free: Mutex::new((0..size).rev().collect()),
            by_thread: Mutex::default(),
            in_use: Mutex::default(),
            dirty: Mutex::default(),
            calls: AtomicU64::new(0),
            empty: AtomicU64::new(0),
        }
    }

    fn words(&self, index: u64) -> *mut u64 {
        with_exposed_provenance_mut((self.base + index * 4096) as usize)
    }

    fn pop(&self) -> Option<u64> {
        if self.bad == BadPool::ForgetsOtherThreads {
            let mut all = self.by_thread.lock().unwrap();
            let mine = all.entry(thread::current().id());
            return mine.or_insert_with(|| (0..self.size).rev().collect()).pop();
        }
        self.free.lock().unwrap().pop()
    }

    /// Changes words of table pages in use: whatever `change` gives something for, once.
    pub fn tamper(&self, mut change: impl FnMut(u64) -> Option<u64>) -> bool {
        for &index in self.in_use.lock().unwrap().iter() {
            for n in 0..512 {
                // SAFETY: within the pool's memory.
                let word = unsafe { AtomicU64::from_ptr(self.words(index).add(n)) };
                if let Some(new) = change(word.load(Ordering::Relaxed)) {
                    word.store(new, Ordering::Relaxed);
                    return true;
                }
            }
        }
        false
    }
}

// SAFETY: words of the pool's memory, and only those; whether each is used by one at a time is what
// the bad ones are about.
unsafe impl TablePages for Pool {
    fn window(&self) -> u64 {
        let moved = match self.bad {
            BadPool::IsMisaligned => 4,
            BadPool::MovesItsWindow if self.calls.load(Ordering::Relaxed) > 80 => 4096,
            _ => 0,
        };
        self.base.wrapping_sub(self.first << 12) + moved
    }

    fn take(&self, placement: Placement) -> Option<TablePage> {
        let call = self.calls.fetch_add(1, Ordering::Relaxed);
        match self.bad {
            BadPool::GivesTen if call >= 10 => return None,
            BadPool::NeverRecovers if self.empty.load(Ordering::Relaxed) > 0 => return None,
            BadPool::Panics if call == 20 => panic!("no more"),
            _ => {}
        }
        let limit = placement.below.filter(|_| self.bad != BadPool::IgnoresLimits);
        let mut index = self.pop();
        if limit.is_some_and(|limit| index.is_some_and(|index| (self.first + index) << 12 >= limit))
        {
            self.free.lock().unwrap().extend(index.take());
        }
        let Some(mut index) = index else {
            self.empty.fetch_add(1, Ordering::Relaxed);
            return None;
        };
        let mut in_use = self.in_use.lock().unwrap();
        if self.bad == BadPool::GivesTwice
            && call % 16 == 5
            && let Some(&other) = in_use.first()
        {
            index = other;
        }
        if self.bad == BadPool::Scribbles
            && let Some(&other) = in_use.first()
        {
            // SAFETY: within the pool's memory.
            unsafe { self.words(other).add(7).write_volatile(call) };
        }
        in_use.insert(index);
        let mut dirty = self.dirty.lock().unwrap();
        let is_clean = dirty.insert(index) || self.bad == BadPool::LiesAboutZeroes;
        let contents = if is_clean { Contents::Zeroed } else { Contents::Unknown };
        Some(TablePage { pfn: Pfn(self.first + index), contents })
    }

    fn release(&self, page: Pfn) {
        let index = page.0 - self.first;
        self.in_use.lock().unwrap().remove(&index);
        match self.bad {
            BadPool::Leaks => {}
            BadPool::ForgetsOtherThreads => {
                let mut all = self.by_thread.lock().unwrap();
                all.entry(thread::current().id()).or_default().push(index);
            }
            _ => self.free.lock().unwrap().push(index),
        }
    }
}

/// How kicks misbehave.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BadKicks {
    No,
    GuestsLeave,
    DoNothing,
    LostBeforeEntry,
    Wait,
    AddUp,
    PanicOutside,
    GoToVcpuZero,
    LostNowAndThen,
    NeverRelax,
    WaitLonger,
    WaitToBeWoken,
}

#[derive(Default)]
struct Line {
    pending: u32,
    inside: bool,
}

/// vCPUs that wait for an interrupt line.
pub struct Lines {
    bad: BadKicks,
    lines: Mutex<Vec<Line>>,
    changed: Condvar,
    kicks: AtomicU64,
}

impl Lines {
    pub fn new(bad: BadKicks) -> Lines {
        let lines = (0..4).map(|_| Line::default()).collect();
        Lines { bad, lines: Mutex::new(lines), changed: Condvar::new(), kicks: AtomicU64::new(0) }
    }

    /// Runs a guest that does nothing, until it is kicked.
    pub fn run(&self, vcpu: VcpuId, entering: &mut dyn FnMut()) {
        let vcpu = vcpu.0 as usize;
        self.lines.lock().unwrap()[vcpu].inside = true;
        entering();
        let mut lines = self.lines.lock().unwrap();
        if self.bad == BadKicks::LostBeforeEntry {
            lines[vcpu].pending = 0;
        }
        while lines[vcpu].pending == 0 && self.bad != BadKicks::GuestsLeave {
            lines = self.changed.wait(lines).unwrap();
        }
        lines[vcpu].pending = lines[vcpu].pending.saturating_sub(1);
        lines[vcpu].inside = false;
        self.changed.notify_all();
    }
}

impl Cpus for Lines {
    fn kick(&self, vcpu: VcpuId) {
        let kick = self.kicks.fetch_add(1, Ordering::Relaxed);
        let mut vcpu = vcpu.0 as usize;
        let mut lines = self.lines.lock().unwrap();
        match self.bad {
            BadKicks::DoNothing => return,
            BadKicks::LostNowAndThen if kick % 50 == 49 => return,
            BadKicks::PanicOutside if !lines[vcpu].inside => {
                drop(lines);
                panic!("not in the guest");
            }
            BadKicks::GoToVcpuZero => vcpu = 0,
            _ => {}
        }
        match self.bad {
            BadKicks::AddUp => lines[vcpu].pending += 1,
            _ => lines[vcpu].pending = 1,
        }
        self.changed.notify_all();
        while self.bad == BadKicks::Wait && lines[vcpu].inside {
            lines = self.changed.wait(lines).unwrap();
        }
    }

    fn wait(&self, wait: vmmu::host::Wait) {
        if self.bad == BadKicks::WaitLonger {
            // As if a wait that has lasted will last as long again.
            thread::sleep(std::time::Duration::from_micros(wait.asked.min(1 << 32)));
        }
        // As if somebody would wake it whom it has given enough time to do so.
        let is_woken = self.bad == BadKicks::WaitToBeWoken && wait.asked > 1000;
        if is_woken || self.bad == BadKicks::NeverRelax {
            loop {
                thread::park();
            }
        }
        thread::yield_now();
    }
}

/// How a backing misbehaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BadFrames {
    No,
    RetriesForever,
    Moves,
    CopiesOnWrite,
    DeniesWrites,
    GivesWriteOnly,
    HasHugeBlocks,
    IsShifted,
    HasHolesInBlocks,
    GivesWideFrames,
    HasOddBytes,
    HasWordsInBytes,
    HasOtherBytesEachTime,
    SharesBytes,
    Panics,
}

/// Pages at frames, in blocks of 2 MiB as far as they lie together, with real memory.
pub struct Frames {
    pub bad: BadFrames,
    moved: Mutex<BTreeMap<u64, u64>>,
    gone: Mutex<BTreeSet<u64>>,
    next: AtomicU64,
    memory: Mutex<BTreeMap<u64, Box<TwoPages>>>,
    asked: AtomicU64,
}

impl Frames {
    const OFFSET: u64 = 0x40_0000;

    pub fn new(bad: BadFrames) -> Frames {
        Frames {
            bad,
            moved: Mutex::default(),
            gone: Mutex::default(),
            next: AtomicU64::new(0x80_0000),
            memory: Mutex::default(),
            asked: AtomicU64::new(0),
        }
    }

    fn frame(&self, page: u64) -> u64 {
        self.moved.lock().unwrap().get(&page).copied().unwrap_or(page + Self::OFFSET)
    }

    /// Puts a page elsewhere; `copy` its contents, or not.
    pub fn move_page(&self, page: u64, copy: bool) {
        let (old, new) = (self.frame(page), self.next.fetch_add(1, Ordering::Relaxed));
        let mut memory = self.memory.lock().unwrap();
        if copy && let Some(contents) = memory.get(&old).cloned() {
            memory.insert(new, contents);
        }
        // Whoever still uses it finds something else there.
        if let Some(contents) = memory.get_mut(&old) {
            contents.0.fill(0xdead_dead_dead_dead);
        }
        self.moved.lock().unwrap().insert(page, new);
    }

    /// Gives a page up: there is nothing any more.
    pub fn give_up(&self, page: u64) {
        self.move_page(page, false);
        self.gone.lock().unwrap().insert(page);
    }
}

// SAFETY: what is named is memory of the test.
unsafe impl Backing for Frames {
    fn find(&self, query: &FrameQuery) -> Resolution {
        let call = self.asked.fetch_add(1, Ordering::Relaxed);
        let page = query.page;
        match self.bad {
            BadFrames::RetriesForever if page % 16 == 5 => return Resolution::Retry,
            BadFrames::Panics if call == 20 => panic!("what page?"),
            _ => {}
        }
        if self.gone.lock().unwrap().contains(&page) {
            return Resolution::Hole;
        }
        let mut pfn = self.frame(page);
        let block = page & !511;
        let together = self.moved.lock().unwrap().range(block..block + 512).next().is_none();
        let mut level = if together { Level::Size2M } else { Level::Size4K };
        let mut access = Access::all();
        match self.bad {
            BadFrames::Moves if call % 97 == 96 => pfn += 0x1_0000,
            BadFrames::CopiesOnWrite if query.access.contains(Access::WRITE) => {
                (pfn, level) = (pfn + 0x1_0000, Level::Size4K);
            }
            BadFrames::DeniesWrites => access = Access::READ | Access::EXEC,
            BadFrames::GivesWriteOnly if query.access == Access::WRITE => access = Access::WRITE,
            BadFrames::HasHugeBlocks => level = Level::L4,
            BadFrames::IsShifted => pfn += 1,
            BadFrames::HasHolesInBlocks if page % 512 == 9 => pfn += 0x1_0000,
            BadFrames::GivesWideFrames => pfn |= 1 << 38,
            _ => {}
        }
        Resolution::Frame(HostFrame { pfn: Pfn(pfn), level, access, memory: MemoryType::WriteBack })
    }
}

/// A page, and another one behind it.
#[derive(Clone, Debug)]
#[repr(align(4096))]
struct TwoPages([u64; 1024]);

// SAFETY: aligned pages of the test, which live as long as it.
unsafe impl GuestMemory for Frames {
    fn bytes(&self, pfn: Pfn) -> Option<NonNull<GuestPage>> {
        let call = self.asked.fetch_add(1, Ordering::Relaxed);
        let pfn = match self.bad {
            BadFrames::SharesBytes if pfn.0 % 8 == 3 => pfn.0 - 1,
            _ => pfn.0,
        };
        let mut memory = self.memory.lock().unwrap();
        let page = memory.entry(pfn).or_insert_with(|| Box::new(TwoPages([0; 1024])));
        let start = match self.bad {
            BadFrames::HasOddBytes => 4,
            // Aligned for every word, and not for a page.
            BadFrames::HasWordsInBytes => 64,
            BadFrames::HasOtherBytesEachTime if call % 2 == 1 => 4096,
            _ => 0,
        };
        NonNull::new(page.0.as_mut_ptr().cast::<u8>().wrapping_add(start).cast())
    }
}

/// What a host does when it hears of an event.
pub type OnEvent = fn(&Pool, u64);

/// A whole host.
pub struct Whole {
    pub pool: Pool,
    on_event: OnEvent,
    events: AtomicU64,
}

impl Whole {
    pub fn new(bad: BadPool, on_event: OnEvent) -> Whole {
        Whole { pool: Pool::new(bad), on_event, events: AtomicU64::new(0) }
    }
}

// SAFETY: the pool's promise.
unsafe impl TablePages for Whole {
    fn window(&self) -> u64 {
        self.pool.window()
    }

    fn take(&self, placement: Placement) -> Option<TablePage> {
        self.pool.take(placement)
    }

    fn release(&self, page: Pfn) {
        self.pool.release(page);
    }
}

impl Cpus for Whole {
    fn kick(&self, _: VcpuId) {}
}

impl Observer for Whole {
    fn event(&self, _: Event) {
        (self.on_event)(&self.pool, self.events.fetch_add(1, Ordering::Relaxed));
    }
}
