//! The host: table pages that remember whose they are, and memory that it moves about, in single
//! pages and in whole blocks.

use std::sync::{Mutex, MutexGuard, PoisonError};

use shuttle::rand::{Rng, thread_rng};
use shuttle::sync::atomic::{AtomicU64, Ordering};
use vmmu::addr::{ENTRIES, Gfn, Hpa, Level, Pfn};
use vmmu::entry::{Access, Format, MemoryType, npt};
use vmmu::host::{
    Backing, Contents, Cpus, FrameQuery, HostFrame, Observer, Placement, Resolution, TablePage,
    TablePages, VcpuId, Wait,
};

use crate::explore::saw;

/// Pages of the one backing: five blocks.
pub const PAGES: u64 = 20;

/// Of these, pages of the slot that every model has.
pub const MEMORY: u64 = 16;

/// Pages of a block: one huge leaf.
pub const BLOCK: u64 = ENTRIES as u64;

/// Frames of the host: twice what the backing needs.
const FRAMES: u64 = 2 * PAGES;

/// Nobody's frame: what released table pages point at.
const TRAP: u64 = FRAMES;

/// What stands in a frame that backs nothing.
const NOBODY: u64 = u64::MAX;

/// Where the second slot is, and the first page behind it: a block that the first slot has too,
/// and one that it has not.
pub const OTHER: (Gfn, u64) = (Gfn(64), 12);

/// One table page, as the library sees it.
#[repr(C, align(4096))]
struct TableWords([AtomicU64; ENTRIES]);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Owner {
    Library,
    Host,
}

/// The host's own tables.
struct Map {
    /// Frame behind each page.
    frames: [u64; PAGES as usize],
}

/// See the module.
pub struct Machine {
    tables: Mutex<Vec<(*mut TableWords, Owner)>>,
    map: Mutex<Map>,
    /// Which page each frame holds.
    contents: Vec<AtomicU64>,
    /// Whether the second slot is there not: from the return of its deletion to the next creation.
    other_is_gone: AtomicU64,
    complaint: Mutex<Option<String>>,
}

// SAFETY: the pointers are to boxes that only the machine frees; the words behind them are
// atomic.
unsafe impl Send for Machine {}
// SAFETY: as above; the list is behind a mutex.
unsafe impl Sync for Machine {}

impl std::fmt::Debug for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Machine")
    }
}

/// The models' tables: four levels of four entries, 256 guest frames.
pub fn format() -> Format {
    npt::format(npt::NptOptions::default()).expect("the default is legal")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Never held over a point where another thread may be chosen.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Machine {
    pub fn new() -> Self {
        let holds = |frame| AtomicU64::new(if frame < PAGES { frame } else { NOBODY });
        Machine {
            tables: Mutex::new(Vec::new()),
            map: Mutex::new(Map { frames: std::array::from_fn(|page| page as u64) }),
            contents: (0..FRAMES).map(holds).collect(),
            other_is_gone: AtomicU64::new(1),
            complaint: Mutex::new(None),
        }
    }

    /// The model has failed. Said at the end of the schedule, when nothing is borrowed any more;
    /// the first complaint counts.
    pub fn complain(&self, what: &str) {
        lock(&self.complaint).get_or_insert_with(|| what.to_string());
    }

    /// The frame behind a page now.
    pub fn frame(&self, page: u64) -> u64 {
        lock(&self.map).frames[page as usize]
    }

    /// The pages of `first..first + pages` were taken back, and get other frames: a whole block in
    /// one piece, single pages anywhere.
    pub fn migrate(&self, first: u64, pages: u64) {
        let mut old = Vec::new();
        let mut new = Vec::new();
        {
            let mut map = lock(&self.map);
            let used = map.frames;
            let is_free = |frame: &u64| !used.contains(frame);
            let free: Vec<u64> = (0..FRAMES).filter(is_free).collect();
            let block = (0..FRAMES / BLOCK)
                .map(|block| block * BLOCK)
                .find(|start| (*start..start + BLOCK).all(|frame| is_free(&frame)));
            for page in first..first + pages {
                let frame = match block {
                    Some(start) if pages == BLOCK => start + (page - first),
                    _ => free[(page - first) as usize],
                };
                old.push(map.frames[page as usize]);
                map.frames[page as usize] = frame;
                new.push((frame, page));
            }
        }
        for frame in old {
            self.contents[frame as usize].store(NOBODY, Ordering::SeqCst);
        }
        for (frame, page) in new {
            self.contents[frame as usize].store(page, Ordering::SeqCst);
        }
    }

    /// The second slot has been deleted, or is about to be made.
    pub fn set_other_gone(&self, gone: bool) {
        self.other_is_gone.store(u64::from(gone), Ordering::SeqCst);
    }

    /// The guest reads a page through a translation to `frame`.
    pub fn guest_reads(&self, gfn: Gfn, frame: Pfn) {
        let page = match gfn.0.checked_sub(OTHER.0.0) {
            None => gfn.0,
            Some(offset) => {
                if self.other_is_gone.load(Ordering::SeqCst) == 1 {
                    self.complain("the guest reaches a slot that has been deleted");
                }
                offset + OTHER.1
            }
        };
        match self.contents.get(frame.0 as usize) {
            Some(contents) if contents.load(Ordering::SeqCst) == page => saw("read"),
            Some(_) => self.complain("the guest reaches a page the host has taken back"),
            None if frame.0 >= TRAP => {
                self.complain("the guest's walk reaches a released table");
            }
            None => self.complain("the guest reaches memory that is not its own"),
        }
    }

    /// One entry of a table, as the processor loads it.
    pub fn walker_loads(&self, table: Hpa, index: usize) -> u64 {
        // SAFETY: every table page the tables name is one of `tables`, whose boxes live as long
        // as the machine does.
        let words = unsafe { &*std::ptr::with_exposed_provenance::<TableWords>(table.0 as usize) };
        words.0[index].load(Ordering::SeqCst)
    }

    /// A leaf of everything, to a frame that nobody has.
    fn poison() -> u64 {
        1 << 11 | 0b1110_0111 & !(1 << 7) | 1 << 56 | 1 << 57 | TRAP << 12
    }

    /// After the VM is gone: every table page came back, and nobody wrote one after that.
    pub fn verdict(mut self) {
        let tables = std::mem::take(self.tables.get_mut().unwrap_or_else(PoisonError::into_inner));
        for (words, owner) in tables {
            // SAFETY: made by `Box::into_raw` in `take`, freed only here.
            let words = unsafe { Box::from_raw(words) };
            if owner == Owner::Library {
                self.complain("a table page has been lost");
            } else if words.0.iter().any(|word| word.load(Ordering::SeqCst) != Self::poison()) {
                self.complain("a released table was written");
            }
        }
        let complaint = lock(&self.complaint).take();
        if let Some(complaint) = complaint {
            panic!("{complaint}");
        }
    }
}

// SAFETY: a page is a box of its own, at window 0, with exposed provenance, and is freed only
// with the machine.
unsafe impl TablePages for Machine {
    fn window(&self) -> u64 {
        0
    }

    fn take(&self, _: Placement) -> Option<TablePage> {
        let words = Box::new(TableWords(std::array::from_fn(|_| AtomicU64::new(0))));
        let words = Box::into_raw(words);
        let pfn = Hpa(words.expose_provenance() as u64).pfn();
        lock(&self.tables).push((words, Owner::Library));
        Some(TablePage { pfn, contents: Contents::Zeroed })
    }

    fn release(&self, page: Pfn) {
        let words = {
            let mut tables = lock(&self.tables);
            let place = tables.iter_mut().find(|(words, _)| words.addr() as u64 == page.hpa().0);
            match place {
                Some((words, owner)) if *owner == Owner::Library => {
                    *owner = Owner::Host;
                    *words
                }
                Some(_) => {
                    drop(tables);
                    return self.complain("a table page was released twice");
                }
                None => {
                    drop(tables);
                    return self.complain("a page was released that is no table");
                }
            }
        };
        // SAFETY: the box lives as long as the machine.
        let words = unsafe { &*words };
        for word in &words.0 {
            word.store(Self::poison(), Ordering::SeqCst);
        }
    }
}

impl Cpus for Machine {
    fn kick(&self, _: VcpuId) {
        saw("kick");
    }

    fn wait(&self, _: Wait) {
        shuttle::thread::yield_now();
    }
}

impl Observer for Machine {}

// SAFETY: what is named is memory of the test.
unsafe impl Backing for Machine {
    fn find(&self, query: &FrameQuery) -> Resolution {
        let (frames, page) = (lock(&self.map).frames, query.page);
        let pfn = Pfn(frames[page as usize]);
        let start = page & !(BLOCK - 1);
        let first = frames[start as usize];
        let in_one_piece =
            first % BLOCK == 0 && (0..BLOCK).all(|n| frames[(start + n) as usize] == first + n);
        let level = if in_one_piece { Level::Size2M } else { Level::Size4K };
        // Sometimes no more than what was asked for, so that the next write grows the leaf.
        let access = if thread_rng().gen_bool(0.5) {
            Access::all()
        } else {
            Access::READ | Access::EXEC | query.access
        };
        let memory = MemoryType::WriteBack;
        // Between the look and the answer anything may happen.
        shuttle::thread::yield_now();
        Resolution::Frame(HostFrame { pfn, level: level.min(query.largest), access, memory })
    }
}
