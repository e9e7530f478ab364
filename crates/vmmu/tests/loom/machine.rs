//! The host of the models: table pages that remember whose they are, frames that know who owns
//! them, and one page of memory that the host moves about.

use std::sync::{Mutex, PoisonError};

use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicU64, Ordering};
use vmmu::addr::{ENTRIES, Hpa, Level, Pfn};
use vmmu::entry::{Access, Format, MemoryType, State, npt};
use vmmu::host::{
    Contents, Cpus, FrameQuery, HostFrame, Observer, Placement, TablePage, TablePages, VcpuId, Wait,
};

/// The block the guest's memory is in at first.
pub const OLD: Pfn = Pfn(0);

/// The block it is moved to.
pub const NEW: Pfn = Pfn(ENTRIES as u64);

/// Nobody's: what released table pages point at.
const TRAP: Pfn = Pfn(2 * ENTRIES as u64);

/// Looks in vain, by all waits of one execution together, that are explored in full.
const WAITS: u64 = 1;

/// The complaint about a guest that still reads a page the host has given to somebody else.
pub const REACHED: &str = "the guest reaches a page the host has taken back";

const OWNED: u64 = 0;
const TAKEN: u64 = 1;

/// One table page. The library sees it as its own table: that many words, nothing else.
#[repr(C, align(4096))]
struct TableWords([AtomicU64; ENTRIES]);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Owner {
    Library,
    Host,
}

/// See the module.
pub struct Machine {
    format: Format,
    tables: Mutex<Vec<(*mut TableWords, Owner)>>,
    /// What stands in each frame of the old block, as far as the models care: who owns it. What is not
    /// taken from the guest needs no word: each costs the checker time in every execution.
    contents: [AtomicU64; ENTRIES],
    /// The bytes of each of these frames.
    bytes: [UnsafeCell<()>; ENTRIES],
    /// First frame of the block that backs the guest's memory now: the host's own page table.
    block: AtomicU64,
    /// How often anybody has looked in vain in this execution.
    waits: std::sync::atomic::AtomicU64,
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

impl Machine {
    pub fn new() -> Self {
        Machine {
            format: format(),
            tables: Mutex::new(Vec::new()),
            contents: std::array::from_fn(|_| AtomicU64::new(OWNED)),
            bytes: std::array::from_fn(|_| UnsafeCell::new(())),
            block: AtomicU64::new(OLD.0),
            waits: std::sync::atomic::AtomicU64::new(0),
            complaint: Mutex::new(None),
        }
    }

    /// The model has failed. Said at the end of the execution, when nothing is borrowed any more;
    /// the first complaint counts.
    pub fn complain(&self, what: &str) {
        let mut complaint = self.complaint.lock().unwrap_or_else(PoisonError::into_inner);
        complaint.get_or_insert_with(|| what.to_string());
    }

    /// What `page` of the guest's memory is backed by now, as a leaf of at most `level`. Writable
    /// only for a write.
    pub fn find(&self, query: &FrameQuery, level: Level) -> HostFrame {
        let block = self.block.load(Ordering::Acquire);
        HostFrame {
            pfn: Pfn(block + query.page),
            level: level.min(query.largest),
            access: Access::READ | Access::EXEC | query.access,
            memory: MemoryType::WriteBack,
        }
    }

    /// First frame of the block that backs the guest's memory now.
    pub fn block(&self) -> Pfn {
        Pfn(self.block.load(Ordering::Acquire))
    }

    /// The host puts another frame behind page 0 and uses the old one for something else.
    pub fn migrate(&self, from: Pfn, to: Pfn) {
        self.take_back(from);
        self.block.store(to.0, Ordering::Release);
    }

    /// The host uses a frame for something else.
    pub fn take_back(&self, frame: Pfn) {
        self.contents[frame.0 as usize].store(TAKEN, Ordering::Relaxed);
    }

    /// The same, by plain stores: whatever the guest has read there must have happened before, whether
    /// or not it could still read it now.
    pub fn overwrite(&self, frame: Pfn) {
        self.bytes[frame.0 as usize].with_mut(|_| ());
        self.take_back(frame);
    }

    /// The guest reads memory. Reading what the host wrote for itself is always an error: a load
    /// returns nothing from the future.
    pub fn guest_reads(&self, frame: Pfn) {
        let owned = match self.contents.get(frame.0 as usize) {
            Some(contents) => contents.load(Ordering::Relaxed) == OWNED,
            None if frame.0 < TRAP.0 => return,
            None if frame.0 < TRAP.0 + ENTRIES as u64 => {
                return self.complain("the guest's walk reaches a released table");
            }
            None => return self.complain("the guest reaches memory that is not its own"),
        };
        if owned {
            self.bytes[frame.0 as usize].with(|_| ());
        } else {
            self.complain(REACHED);
        }
    }

    /// One entry of a table, as the processor loads it.
    pub fn walker_loads(&self, table: Hpa, index: usize) -> u64 {
        // SAFETY: every table page the tables name is one of `tables`, whose boxes live as long
        // as the machine does.
        let words = unsafe { &*std::ptr::with_exposed_provenance::<TableWords>(table.0 as usize) };
        words.0[index].load(Ordering::Acquire)
    }

    fn poison(&self) -> u64 {
        let leaf = vmmu::entry::Leaf {
            pfn: TRAP,
            read: true,
            exec: true,
            writable: vmmu::entry::Writable::Yes,
            accessed: true,
            dirty: true,
            record: self.format.record(),
            tracked: vmmu::entry::Tracked::No,
            memory: MemoryType::WriteBack,
        };
        self.format.make(State::Leaf(leaf), Level::Size4K).expect("a plain leaf").0
    }

    /// After the VM is gone: every table page came back, and nobody wrote one after that.
    pub fn verdict(mut self) {
        let poison = self.poison();
        let tables = std::mem::take(self.tables.get_mut().unwrap_or_else(PoisonError::into_inner));
        for (words, owner) in tables {
            // SAFETY: made by `Box::into_raw` in `take`, freed only here.
            let words = unsafe { Box::from_raw(words) };
            if owner == Owner::Library {
                self.complain("a table page has been lost");
            } else if words.0.iter().any(|word| word.load(Ordering::Relaxed) != poison) {
                self.complain("a released table was written");
            }
        }
        let complaint = self.complaint.into_inner().unwrap_or_else(PoisonError::into_inner);
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
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        tables.push((words, Owner::Library));
        Some(TablePage { pfn, contents: Contents::Zeroed })
    }

    fn release(&self, page: Pfn) {
        let words = {
            let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
            let place = tables.iter_mut().find(|(words, _)| words.addr() as u64 == page.hpa().0);
            match place {
                Some((words, owner)) if *owner == Owner::Library => {
                    *owner = Owner::Host;
                    *words
                }
                Some(_) => return self.complain("a table page was released twice"),
                None => return self.complain("a page was released that is no table"),
            }
        };
        let poison = self.poison();
        for n in 0..ENTRIES {
            // SAFETY: the page is the host's now: if anybody still looks at it, the checker finds
            // an access that does not happen before this one, which is what is to be shown.
            let word = unsafe { &mut (*words).0[n] };
            word.with_mut(|word| *word = poison);
        }
    }
}

impl Cpus for Machine {
    fn kick(&self, _: VcpuId) {}

    fn wait(&self, _: Wait) {
        // Waiting longer changes nothing, but the checker would explore every length of every
        // wait. After so many turns it lets this execution end in one way only.
        if self.waits.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == WAITS {
            loom::skip_branch();
        }
        loom::thread::yield_now();
    }
}

impl Observer for Machine {}
