//! Host-physical memory: real bytes, and for every frame what it is used for.
//!
//! Frames come from here for tables and for the guest's pages alike, last in, first out, so that
//! whoever still uses a frame after its release meets its next owner soon. What is released is
//! poisoned, and looked at again before it is given away:
//!
//! - a released table is filled with entries that lead, at every level and in both formats, to
//!   the [trap](Arena::TRAP): a table of itself, and a frame no guest owns. A walk through a
//!   released table ends there, and A or D bits it leaves behind are found;
//! - of a released page the words guests use are filled, so that a read through a stale
//!   translation sees what nobody wrote, and a write through one is found.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::MmapMut;

use crate::{Violation, turns};

/// Words of a page that guests use: the first two cache lines.
pub const WORDS: usize = 16;
const PAGE_WORDS: usize = 512;
const PAGE: u64 = 4096;

/// Host-physical address width of the software processors, in bits.
pub const PHYS_BITS: u8 = 46;

/// Pages of the huge area: one 1 GiB block, of which only what is used takes memory.
pub const HUGE: u64 = 1 << 18;
/// Pages of the block area: 2 MiB blocks.
pub const BLOCKS: u64 = 4 * 512;
/// Pages of the linear area.
pub const LINEAR: u64 = 64;
/// Pages for the guest's own tables.
pub const GUEST_TABLES: u64 = 32;
/// Frames for tables and for pages away from home.
const POOL: u64 = 6144;
const FRAMES: u64 = HUGE + BLOCKS + LINEAR + GUEST_TABLES + POOL + 2;
/// The first frame; 1 GiB aligned.
const FIRST: u64 = 1 << 18;

const READ_WRITE_EXECUTE: u64 = 0b111;
const DATA_POISON: u64 = 0x5afe_5afe_dead_0000;

/// What a frame is used for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Owner {
    /// Free, and never used.
    Fresh,
    /// Free, was a page.
    FreePage,
    /// Free, was a table.
    FreeTable,
    /// A table of the library.
    Table,
    /// A page of the guest's memory, by its number in the model.
    Page(usize),
    /// The frame of zeros that unwritten pages share.
    Zeros,
    /// Where released tables lead.
    Trap,
}

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Owner::Fresh => "free, and was never used",
            Owner::FreePage => "free, and was a page",
            Owner::FreeTable => "free, and was a table",
            Owner::Table => "a table",
            Owner::Page(page) => return write!(f, "page {page}"),
            Owner::Zeros => "the shared frame of zeros",
            Owner::Trap => "where released tables lead",
        })
    }
}

impl Owner {
    fn pack(self) -> u64 {
        match self {
            Owner::Fresh => 0,
            Owner::FreePage => 1,
            Owner::FreeTable => 2,
            Owner::Table => 3,
            Owner::Zeros => 4,
            Owner::Trap => 5,
            Owner::Page(page) => 6 + page as u64,
        }
    }

    fn unpack(word: u64) -> Owner {
        match word {
            0 => Owner::Fresh,
            1 => Owner::FreePage,
            2 => Owner::FreeTable,
            3 => Owner::Table,
            4 => Owner::Zeros,
            5 => Owner::Trap,
            page => Owner::Page(page as usize - 6),
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Arena {
    /// Keeps the memory; used through `base`.
    _map: MmapMut,
    base: usize,
    owners: Box<[AtomicU64]>,
    pool: Mutex<Vec<u64>>,
}

impl Arena {
    /// First frame of the huge area.
    pub const HUGE_HOME: u64 = FIRST;
    /// First frame of the block area; 2 MiB aligned.
    pub const BLOCK_HOME: u64 = FIRST + HUGE;
    /// First frame of the linear area.
    pub const LINEAR_HOME: u64 = FIRST + HUGE + BLOCKS;
    /// First frame of the guest's own tables.
    pub const GUEST_TABLES_HOME: u64 = Self::LINEAR_HOME + LINEAR;
    const POOL_HOME: u64 = Self::GUEST_TABLES_HOME + GUEST_TABLES;
    /// The frame of zeros.
    pub const ZEROS: u64 = Self::POOL_HOME + POOL;
    /// Where released tables lead.
    pub const TRAP: u64 = Self::ZEROS + 1;

    /// Memory that takes space only where it is touched.
    pub fn new() -> std::io::Result<Self> {
        let map = memmap2::MmapOptions::new()
            .len((FRAMES * PAGE) as usize)
            .no_reserve_swap()
            .map_anon()?;
        let mut map = map;
        let base = map.as_mut_ptr().expose_provenance();
        let owners = (0..FRAMES).map(|_| AtomicU64::new(Owner::Fresh.pack())).collect();
        let pool = (Self::POOL_HOME..Self::POOL_HOME + POOL).rev().collect();
        let arena = Arena { _map: map, base, owners, pool: Mutex::new(pool) };
        arena.set_owner(Self::ZEROS, Owner::Zeros);
        arena.set_owner(Self::TRAP, Owner::Trap);
        arena.fill(Self::TRAP, Self::table_poison());
        Ok(arena)
    }

    /// Present, writable, executable, no leaf bit: a table at the upper levels, a page at the
    /// lowest, for both formats.
    const fn table_poison() -> u64 {
        Self::TRAP << 12 | READ_WRITE_EXECUTE
    }

    /// Difference between the address of a byte here and its host-physical address.
    pub fn window(&self) -> u64 {
        (self.base as u64).wrapping_sub(FIRST * PAGE)
    }

    /// The bytes of a frame, if it exists.
    pub fn bytes(&self, pfn: u64) -> Option<std::ptr::NonNull<u8>> {
        let index = pfn.checked_sub(FIRST).filter(|index| *index < FRAMES)?;
        let address = self.base + (index * PAGE) as usize;
        std::ptr::NonNull::new(std::ptr::with_exposed_provenance_mut(address))
    }

    /// A word of memory, if it exists.
    pub fn word_at(&self, address: u64) -> Option<&AtomicU64> {
        let offset = address.checked_sub(FIRST * PAGE).filter(|offset| *offset < FRAMES * PAGE)?;
        let address = self.base + (offset & !7) as usize;
        // SAFETY: an aligned word inside the mapping, which lives as long as `self`; every access
        // to the mapping that can meet another is atomic (the library's copies of guest memory
        // are volatile, of words nobody else writes).
        Some(unsafe { AtomicU64::from_ptr(std::ptr::with_exposed_provenance_mut(address)) })
    }

    /// A word of a frame that is known to exist.
    pub fn word(&self, pfn: u64, index: usize) -> &AtomicU64 {
        self.word_at(pfn * PAGE + 8 * index as u64).expect("a frame of the arena")
    }

    /// What a frame is used for; `None` outside of memory.
    pub fn owner(&self, pfn: u64) -> Option<Owner> {
        let index = pfn.checked_sub(FIRST)?;
        let owner = self.owners.get(index as usize)?;
        Some(Owner::unpack(owner.load(Ordering::SeqCst)))
    }

    fn set_owner(&self, pfn: u64, owner: Owner) {
        self.owners[(pfn - FIRST) as usize].store(owner.pack(), Ordering::SeqCst);
    }

    fn fill(&self, pfn: u64, value: u64) {
        for index in 0..PAGE_WORDS {
            self.word(pfn, index).store(value, Ordering::Relaxed);
        }
    }

    /// A frame of the pool, looked at for what was written after its release.
    fn take(&self, owner: Owner) -> Result<Option<u64>, Violation> {
        let pfn = self.pool.lock().expect("no panic under it").pop();
        if let Some(pfn) = pfn {
            self.inspect(pfn)?;
            self.set_owner(pfn, owner);
        }
        Ok(pfn)
    }

    /// Whether anybody has written to a frame that is free.
    fn inspect(&self, pfn: u64) -> Result<(), Violation> {
        let (len, poison, what) = match self.owner(pfn) {
            Some(Owner::FreePage) => (WORDS, DATA_POISON | pfn, "page"),
            Some(Owner::FreeTable) => (PAGE_WORDS, Self::table_poison(), "table"),
            Some(Owner::Fresh) => return Ok(()),
            other => return Err(Violation::new(format!("frame {pfn:#x} is free and {other:?}"))),
        };
        for index in 0..len {
            let word = self.word(pfn, index).load(Ordering::Acquire);
            if word != poison {
                return Err(Violation::new(format!(
                    "a released {what} was written: frame {pfn:#x}, word {index}: {word:#x}"
                )));
            }
        }
        Ok(())
    }

    /// A frame for a table, full of anything.
    pub fn take_table(&self) -> Result<Option<u64>, Violation> {
        self.take(Owner::Table)
    }

    /// A table is given back.
    pub fn release_table(&self, pfn: u64) -> Result<(), Violation> {
        if self.owner(pfn) != Some(Owner::Table) {
            let owner = self.owner(pfn);
            return Err(Violation::new(format!(
                "frame {pfn:#x} was released as a table and is {owner:?}"
            )));
        }
        self.fill(pfn, Self::table_poison());
        self.set_owner(pfn, Owner::FreeTable);
        self.pool.lock().expect("no panic under it").push(pfn);
        Ok(())
    }

    /// A frame of the pool for a page, or its home if that is wanted.
    pub fn take_page(&self, page: usize, home: Option<u64>) -> Result<Option<u64>, Violation> {
        match home {
            Some(pfn) => {
                self.inspect(pfn)?;
                self.set_owner(pfn, Owner::Page(page));
                Ok(Some(pfn))
            }
            None => self.take(Owner::Page(page)),
        }
    }

    /// A page's frame is free; its contents are gone.
    pub fn release_page(&self, pfn: u64) {
        for index in 0..WORDS {
            self.word(pfn, index).store(DATA_POISON | pfn, Ordering::Relaxed);
        }
        self.set_owner(pfn, Owner::FreePage);
        if pfn >= Self::POOL_HOME {
            self.pool.lock().expect("no panic under it").push(pfn);
        }
    }

    /// Gives the words that guests use.
    pub fn set_contents(&self, pfn: u64, words: &[u64; WORDS]) {
        for (index, word) in words.iter().enumerate() {
            self.word(pfn, index).store(*word, Ordering::Release);
        }
    }

    /// The words that guests use.
    pub fn contents(&self, pfn: u64) -> [u64; WORDS] {
        std::array::from_fn(|index| self.word(pfn, index).load(Ordering::Acquire))
    }

    /// At the end: nobody has written to what is free, and the frame of zeros is that.
    pub fn inspect_all(&self) -> Result<(), Violation> {
        let free = self.pool.lock().expect("no panic under it").clone();
        free.into_iter().try_for_each(|pfn| self.inspect(pfn))?;
        let homes = (Self::HUGE_HOME..Self::LINEAR_HOME)
            .filter(|pfn| matches!(self.owner(*pfn), Some(Owner::FreePage | Owner::FreeTable)));
        homes.into_iter().try_for_each(|pfn| self.inspect(pfn))?;
        if self.contents(Self::ZEROS) != [0; WORDS] {
            return Err(Violation::new("the shared frame of zeros was written".into()));
        }
        Ok(())
    }

    /// Tables the library has.
    pub fn tables(&self) -> usize {
        let table = Owner::Table.pack();
        self.owners.iter().filter(|owner| owner.load(Ordering::Relaxed) == table).count()
    }
}

impl machine::Memory for Arena {
    fn word(&self, address: u64) -> Option<&AtomicU64> {
        self.word_at(address)
    }

    /// Between any two steps of a walk the tables may change.
    fn pause(&self) {
        turns::pause();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use machine::{Access, Context, Habits, Nested, Npt, Paging, Processor};

    #[test]
    fn a_write_to_a_released_page_is_found_when_it_is_taken_again() {
        let arena = Arena::new().unwrap();
        let pfn = arena.take_page(3, None).unwrap().unwrap();
        assert_eq!(arena.owner(pfn), Some(Owner::Page(3)));
        arena.release_page(pfn);
        assert_eq!(arena.take_page(4, None).unwrap(), Some(pfn), "last in, first out");
        arena.release_page(pfn);
        arena.word(pfn, 2).store(7, Ordering::Relaxed);
        let found = arena.take_page(5, None).unwrap_err();
        assert!(found.what.contains("a released page was written"), "{found}");
    }

    #[test]
    fn a_walk_through_a_released_table_ends_in_the_trap_and_leaves_marks() {
        let arena = Arena::new().unwrap();
        let table = arena.take_table().unwrap().unwrap();
        arena.release_table(table).unwrap();
        let nested = Nested::Npt(Npt { levels: 4, phys_bits: 46, nx: true, gib_pages: true });
        let context = Context { tag: 1, nested, root: table << 12, paging: Paging::Off };
        let mut processor = Processor::with_habits(1, Habits::nothing());
        let reached = processor.translate(&arena, &context, 0x1234_5000, Access::Read).unwrap();
        assert_eq!(arena.owner(reached.hpa >> 12), Some(Owner::Trap));
        let found = arena.inspect_all().unwrap_err();
        assert!(found.what.contains("a released table was written"), "{found}");
    }

    #[test]
    fn others_run_between_two_steps_of_a_walk() {
        use std::sync::atomic::AtomicBool;
        let arena = Arena::new().unwrap();
        let nested = Nested::Npt(Npt::new());
        // The trap is a table of itself at every level.
        let context = Context { tag: 1, nested, root: Arena::TRAP << 12, paging: Paging::Off };
        let (walks, met) = (AtomicBool::new(false), AtomicBool::new(false));
        for seed in 0..20 {
            let turns = std::sync::Arc::new(turns::Turns::new(Some(seed)));
            let actors = (0..2).map(|n| {
                let (arena, turns, walks, met) = (&arena, &turns, &walks, &met);
                move || {
                    if n == 0 {
                        walks.store(true, Ordering::Relaxed);
                        let mut processor = Processor::with_habits(1, Habits::nothing());
                        processor.translate(arena, &context, 0, Access::Read).unwrap();
                        walks.store(false, Ordering::Relaxed);
                        return;
                    }
                    for _ in 0..50 {
                        met.fetch_or(walks.load(Ordering::Relaxed), Ordering::Relaxed);
                        turns.relax();
                    }
                }
            });
            turns.run(actors.collect(), &mut || 0);
        }
        assert!(met.into_inner());
    }

    #[test]
    fn what_is_no_table_cannot_be_released_as_one() {
        let arena = Arena::new().unwrap();
        let pfn = arena.take_table().unwrap().unwrap();
        arena.release_table(pfn).unwrap();
        assert!(arena.release_table(pfn).is_err(), "twice");
        assert!(arena.release_table(Arena::LINEAR_HOME).is_err());
    }

    #[test]
    fn the_frame_of_zeros_stays_that() {
        let arena = Arena::new().unwrap();
        arena.inspect_all().unwrap();
        arena.word(Arena::ZEROS, 1).store(1, Ordering::Relaxed);
        assert!(arena.inspect_all().is_err());
    }

    #[test]
    fn there_is_no_memory_outside() {
        let arena = Arena::new().unwrap();
        assert!(arena.word_at(0).is_none());
        assert!(arena.word_at((Arena::TRAP + 1) << 12).is_none());
        assert!(arena.word_at((Arena::TRAP << 12) + 8).is_some());
        assert_eq!(arena.owner(Arena::TRAP + 1), None);
    }
}
