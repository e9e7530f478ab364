//! The host's side of the guest's memory: which frame each page is in. The host moves pages,
//! takes frames away and gives the contents back later, lets unwritten pages share one frame, and
//! breaks that when somebody writes.
//!
//! It keeps the contract of [`Backing`]: a page that has a frame changes it only while an
//! invalidation covers it. What the promise of an invalidation is worth is seen at once: as soon
//! as it has returned, the old frame is poisoned and given to somebody else.

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use vmmu::addr::{Level, Pfn};
use vmmu::check::Witness;
use vmmu::entry::{Access, MemoryType};
use vmmu::host::{Backing, FrameQuery, GuestMemory, GuestPage, HostFrame, Resolution};
use vmmu::{HostRange, Mmu, Worker};

use crate::Violation;
use crate::arena::{Arena, BLOCKS, WORDS};
use crate::host::Host;
use crate::model::{HUGE_BACKING, Model, PAGES, TOUCHED, home_of, name_of, page_of};
use crate::notify::{self, Manner, Through};
pub use crate::op::Change;
use crate::protection::Protection;

/// Where a page is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    /// In a frame.
    Frame(u64),
    /// Its contents are kept elsewhere.
    Away([u64; WORDS]),
    /// All zeros: whoever reads it gets the shared frame.
    Zeros,
    /// Nothing: the guest's access cannot be completed.
    Hole,
}

#[derive(Debug)]
struct Page {
    place: Mutex<Place>,
    /// Somebody is changing the place.
    busy: AtomicBool,
}

/// See the module.
#[derive(Debug)]
pub struct Store {
    pages: Box<[Page]>,
    /// Pages that are not at home, by 2 MiB block; the last is for the whole huge backing.
    strays: Box<[AtomicUsize]>,
    /// Pages that were made read-only by a zap.
    pub protection: Protection,
}

/// What came of a change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Changed {
    /// Somebody else is at the pages, or all notifiers were busy and nobody could wait.
    Not,
    /// It was made, in an invalidation that had a place or may have had one.
    Made,
    /// It was made while there were more invalidations than places.
    MadeBeyondPlaces,
}

/// The block of a page, for what is counted by block.
pub fn block_of(page: usize) -> usize {
    if page < BLOCKS as usize { page / 512 } else { BLOCKS as usize / 512 }
}

fn lock(place: &Mutex<Place>) -> MutexGuard<'_, Place> {
    place.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Store {
    /// All pages at home, all zero.
    pub fn new(arena: &Arena) -> Result<Self, Violation> {
        let page = |n| -> Result<Page, Violation> {
            let home = home_of(n);
            arena.take_page(n, Some(home))?;
            let place = Mutex::new(Place::Frame(home));
            Ok(Page { place, busy: AtomicBool::new(false) })
        };
        let pages = (0..PAGES).map(page).collect::<Result<_, _>>()?;
        let strays = (0..=block_of(BLOCKS as usize)).map(|_| AtomicUsize::new(0)).collect();
        let protection = Protection::new(PAGES, block_of(BLOCKS as usize) + 1);
        Ok(Store { pages, strays, protection })
    }

    fn is_whole(&self, block: usize) -> bool {
        self.strays[block].load(Ordering::SeqCst) == 0 && self.protection.is_whole(block)
    }

    /// Pages in a row that nobody else is changing, from a first one on; maybe fewer.
    fn occupy(&self, pages: Range<usize>) -> Occupied<'_> {
        let free = |n: &usize| !self.pages[*n].busy.swap(true, Ordering::SeqCst);
        let start = pages.start;
        let end = pages.take_while(free).last().map_or(start, |last| last + 1);
        Occupied { store: self, pages: start..end }
    }

    /// Does something to pages of one backing, under an invalidation.
    pub fn change<'vm>(
        &self,
        vm: &'vm Mmu<Host>,
        (through, manner): (Through<'_, 'vm>, Manner),
        model: &Model,
        pages: Range<usize>,
        change: Change,
    ) -> Result<Changed, Violation> {
        let host = vm.host();
        let occupied = self.occupy(pages);
        let pages = occupied.pages.clone();
        let (Some((backing, first)), false) = (name_of(pages.start), pages.is_empty()) else {
            return Ok(Changed::Not);
        };
        let last = name_of(pages.end - 1).map_or(first, |(_, last)| last);
        let range = HostRange { backing, first, pages: last - first + 1 };
        let Some(taken) = notify::take(vm, through, manner, range) else {
            return Ok(Changed::Not);
        };
        for page in pages {
            host.turns().point();
            self.transform(host.arena(), model, page, change)?;
        }
        let changed = if taken.overflows { Changed::MadeBeyondPlaces } else { Changed::Made };
        taken.end()?;
        drop(occupied);
        Ok(changed)
    }

    /// Changes one page that nobody can reach.
    fn transform(
        &self,
        arena: &Arena,
        model: &Model,
        page: usize,
        change: Change,
    ) -> Result<(), Violation> {
        let mut place = lock(&self.pages[page].place);
        let home = home_of(page);
        let strays = &self.strays[block_of(page)];
        let was_home = *place == Place::Frame(home);
        let contents = match *place {
            Place::Frame(pfn) => arena.contents(pfn),
            Place::Away(words) => words,
            Place::Zeros | Place::Hole => [0; WORDS],
        };
        let next = match change {
            Change::Touch => return Ok(()),
            Change::Home if was_home => return Ok(()),
            Change::Home => {
                arena.take_page(page, Some(home))?;
                Place::Frame(home)
            }
            Change::Move => match arena.take_page(page, None)? {
                Some(pfn) => Place::Frame(pfn),
                None => return Ok(()),
            },
            Change::Steal => Place::Away(contents),
            Change::Empty => Place::Zeros,
            Change::Punch => Place::Hole,
        };
        if let Place::Frame(pfn) = next {
            arena.set_contents(pfn, &contents);
        }
        if was_home {
            strays.fetch_add(1, Ordering::SeqCst);
        }
        let old = std::mem::replace(&mut *place, next);
        if let Place::Frame(pfn) = old {
            arena.release_page(pfn);
        }
        if next == Place::Zeros || next == Place::Hole {
            model.pages[page].empty();
        }
        if next == Place::Frame(home) {
            strays.fetch_sub(1, Ordering::SeqCst);
        }
        Ok(())
    }

    /// A frame for a page that has none: its contents come back. No invalidation is needed.
    fn bring_back(&self, arena: &Arena, page: usize) -> Result<Option<u64>, Violation> {
        let mut place = lock(&self.pages[page].place);
        let Place::Away(words) = *place else { return Ok(None) };
        let Some(pfn) = arena.take_page(page, None)? else { return Ok(None) };
        arena.set_contents(pfn, &words);
        *place = Place::Frame(pfn);
        Ok(Some(pfn))
    }

    /// What may be mapped where, for the checker at rest.
    pub fn witness(&self, backing: u64, page: u64) -> Witness {
        let Some(page) = page_of(backing, page) else {
            // Pages of the huge backing that no guest uses are always at home.
            return match backing {
                HUGE_BACKING => Witness::Frame(Pfn(Arena::HUGE_HOME + page), Access::all()),
                _ => Witness::Nothing,
            };
        };
        match *lock(&self.pages[page].place) {
            Place::Frame(pfn) => Witness::Frame(Pfn(pfn), Access::all()),
            Place::Zeros => Witness::Frame(Pfn(Arena::ZEROS), Access::READ | Access::EXEC),
            Place::Away(_) | Place::Hole => Witness::Nothing,
        }
    }

    /// At rest: every page holds what the model says.
    pub fn compare(&self, arena: &Arena, model: &Model) -> Result<(), Violation> {
        for (n, page) in self.pages.iter().enumerate() {
            let words = match *lock(&page.place) {
                Place::Frame(pfn) => arena.contents(pfn),
                Place::Away(words) => words,
                Place::Zeros | Place::Hole => [0; WORDS],
            };
            for (word, (found, expected)) in words.iter().zip(model.pages[n].expected()).enumerate()
            {
                // A write of the library's that was overtaken by an emptying host may stand.
                if let Err(what) = model.pages[n].judge(word, expected, *found) {
                    return Err(Violation::new(format!("at the end page {n}: {what}")));
                }
            }
        }
        Ok(())
    }
}

/// Pages that this thread alone is changing.
#[derive(Debug)]
struct Occupied<'s> {
    store: &'s Store,
    pages: Range<usize>,
}

impl Drop for Occupied<'_> {
    fn drop(&mut self) {
        for page in self.pages.clone() {
            self.store.pages[page].busy.store(false, Ordering::SeqCst);
        }
    }
}

/// What the host answered last, to judge what the library makes of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answered {
    /// Nothing was asked.
    Nothing,
    /// A frame.
    Frame,
    /// Nothing is there.
    Hole,
    /// Not now.
    Pending,
    /// Ask again.
    Retry,
}

/// One thread's way to the store. The host may be called on top of a vCPU's thread and call the
/// library in turn: through a worker of the thread's own, or, in a thread that has none and now and
/// then in the others, through the MMU.
#[derive(Debug)]
pub struct Hands<'r, 'vm> {
    pub store: &'r Store,
    pub model: &'r Model,
    pub vm: &'vm Mmu<Host>,
    pub worker: RefCell<Option<Worker<&'vm Mmu<Host>>>>,
    pub answered: Cell<Answered>,
    pub rng: RefCell<fastrand::Rng>,
}

impl Hands<'_, '_> {
    fn answer(&self, query: &FrameQuery) -> Result<Resolution, Violation> {
        let host = self.vm.host();
        host.turns().point();
        let whole = page_of(query.backing, query.page);
        let Some(page) = whole else {
            return Err(Violation::new(format!("a page nobody has was asked for: {query:?}")));
        };
        let is_write = query.access.contains(Access::WRITE);
        if is_write {
            self.store.protection.open(page, block_of(page));
        }
        let place = *lock(&self.store.pages[page].place);
        let found = match place {
            Place::Hole => Resolution::Hole,
            Place::Away(_) if self.rng.borrow_mut().u8(..8) == 0 => Resolution::Pending,
            Place::Away(_) => match self.store.bring_back(host.arena(), page)? {
                Some(pfn) => frame(pfn, Level::Size4K, self.unprotected(page)),
                None => Resolution::Retry,
            },
            Place::Zeros if is_write => {
                let (mut worker, n) = (self.worker.borrow_mut(), self.rng.borrow_mut().u8(..));
                let through = match &mut *worker {
                    Some(worker) if n % 2 == 0 => Through::Worker(worker),
                    _ => Through::Mmu,
                };
                let way = (through, Manner::of(n / 2));
                self.store.change(self.vm, way, self.model, page..page + 1, Change::Move)?;
                Resolution::Retry
            }
            Place::Zeros => frame(Arena::ZEROS, Level::Size4K, Access::READ | Access::EXEC),
            Place::Frame(pfn) if pfn != home_of(page) => {
                frame(pfn, Level::Size4K, self.allowed(page, is_write))
            }
            Place::Frame(pfn) => {
                // The access first: who protects a page counts its block before that.
                let access = self.allowed(page, is_write);
                let is_whole = self.store.is_whole(block_of(page));
                let level = match query.backing {
                    _ if page % 2 == 1 && is_write => Level::Size4K,
                    HUGE_BACKING if is_whole => Level::Size1G,
                    HUGE_BACKING => Level::Size4K,
                    _ if is_whole => Level::Size2M,
                    _ => Level::Size4K,
                };
                frame(pfn, level, access)
            }
        };
        host.turns().point();
        Ok(match found {
            // Somebody has made it read-only again meanwhile.
            Resolution::Frame(frame) if !frame.access.contains(query.access) => Resolution::Retry,
            found => found,
        })
    }

    /// Some pages are given for reading first, as if they had to be copied before a write; and
    /// for writing only one by one, so that a write splits what a read has mapped in one piece.
    fn allowed(&self, page: usize, is_write: bool) -> Access {
        if page % 2 == 1 && !is_write {
            Access::READ | Access::EXEC
        } else {
            self.unprotected(page)
        }
    }

    /// Everything, unless the page may only be read for now.
    fn unprotected(&self, page: usize) -> Access {
        let is_open = self.store.protection.is_open(page);
        if is_open { Access::all() } else { Access::READ | Access::EXEC }
    }
}

fn frame(pfn: u64, level: Level, access: Access) -> Resolution {
    Resolution::Frame(HostFrame { pfn: Pfn(pfn), level, access, memory: MemoryType::WriteBack })
}

// SAFETY: the arena knows whose each frame is, and the torture moves pages inside invalidations.
unsafe impl Backing for Hands<'_, '_> {
    fn find(&self, query: &FrameQuery) -> Resolution {
        let found = self.answer(query).unwrap_or_else(|violation| {
            self.vm.host().turns().fail(violation);
            Resolution::Hole
        });
        self.answered.set(match found {
            Resolution::Frame(_) => Answered::Frame,
            Resolution::Hole | Resolution::Poisoned => Answered::Hole,
            Resolution::Pending => Answered::Pending,
            Resolution::Retry => Answered::Retry,
        });
        found
    }
}

// SAFETY: pages of the arena, mapped for as long as the torture runs.
unsafe impl GuestMemory for Hands<'_, '_> {
    fn bytes(&self, pfn: Pfn) -> Option<NonNull<GuestPage>> {
        self.vm.host().arena().bytes(pfn.0).map(NonNull::cast)
    }
}

const _: () = assert!(TOUCHED < 512);

#[cfg(test)]
mod tests {
    use super::*;

    /// What the checker is told may be mapped for the first page of the blocks, after `change`.
    fn after(change: Change) -> (Arena, Witness) {
        let arena = Arena::new().unwrap();
        let (store, model) = (Store::new(&arena).unwrap(), Model::new());
        store.transform(&arena, &model, 0, change).unwrap();
        let (backing, page) = name_of(0).unwrap();
        let witness = store.witness(backing, page);
        (arena, witness)
    }

    #[test]
    fn the_checker_is_told_what_may_be_mapped_and_where_nothing_may() {
        for change in [Change::Touch, Change::Home] {
            assert_eq!(after(change).1, Witness::Frame(Pfn(home_of(0)), Access::all()));
        }
        let (arena, moved) = after(Change::Move);
        let Witness::Frame(pfn, _) = moved else { panic!("{moved:?}") };
        assert_ne!(pfn.0, home_of(0));
        assert_eq!(arena.owner(pfn.0), Some(crate::arena::Owner::Page(0)));
        let zeros = Witness::Frame(Pfn(Arena::ZEROS), Access::READ | Access::EXEC);
        assert_eq!(after(Change::Empty).1, zeros);
        for change in [Change::Steal, Change::Punch] {
            assert_eq!(after(change).1, Witness::Nothing, "{change:?}");
        }
    }

    #[test]
    fn a_page_that_is_at_home_again_makes_its_block_whole() {
        let arena = Arena::new().unwrap();
        let (store, model) = (Store::new(&arena).unwrap(), Model::new());
        for change in [Change::Move, Change::Steal, Change::Empty, Change::Punch] {
            arena.set_contents(home_of(3), &[7; WORDS]);
            store.transform(&arena, &model, 3, change).unwrap();
            assert!(!store.is_whole(0), "{change:?}");
            store.transform(&arena, &model, 3, Change::Home).unwrap();
            assert!(store.is_whole(0), "{change:?}");
            let kept = matches!(change, Change::Move | Change::Steal);
            let expected = if kept { [7; WORDS] } else { [0; WORDS] };
            assert_eq!(arena.contents(home_of(3)), expected, "{change:?}");
        }
    }
}
