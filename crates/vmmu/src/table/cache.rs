//! Pages for tables, taken from the host ahead of a section, because a section does not allocate.

use alloc::vec::Vec;

use crate::addr::{Level, Pfn};
use crate::error::NoMemory;
use crate::host::host::Host;
use crate::host::pages::{Contents, Placement};
use crate::protocol::releasing::Releasing;
use crate::state::abandoned;
use crate::state::broken::Broken;
use crate::state::core::Core;
use crate::state::table::Table;

/// Table pages in stock, all empty tables. Belongs to one worker or vCPU.
#[derive(Debug)]
pub struct Cache {
    pages: Vec<Pfn>,
    /// Tables that one leaf may need: one for each level below the top.
    need: usize,
}

/// Pages lent to a section. From [`reserved`](Cache::reserved): proof that the tables one leaf may
/// need are there.
#[derive(Debug)]
pub struct ReservedPages<'c>(&'c mut Cache);

/// How many pages are missing.
#[must_use]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MissingPages(pub usize);

impl Cache {
    /// An empty cache with room for one leaf's tables.
    pub(crate) fn new(top: Level) -> Result<Self, NoMemory> {
        let need = top as usize - 1;
        let need = if defect!(StocksForFourLevels) { need.min(3) } else { need };
        let mut pages = Vec::new();
        pages.try_reserve_exact(need).map_err(|_| NoMemory)?;
        Ok(Cache { pages, need })
    }

    /// Proof for one leaf, or what is missing.
    #[inline]
    pub fn reserved(&mut self) -> Result<ReservedPages<'_>, MissingPages> {
        match self.missing() {
            MissingPages(0) => Ok(ReservedPages(self)),
            missing => Err(missing),
        }
    }

    /// What one leaf may need more than there is.
    #[inline]
    pub(crate) fn missing(&self) -> MissingPages {
        MissingPages(self.need.saturating_sub(self.pages.len()))
    }

    /// What there is, be it nothing: for who can do without.
    pub(crate) fn in_stock(&mut self) -> ReservedPages<'_> {
        ReservedPages(self)
    }

    /// Takes pages from the host until `stock` are there, at least one leaf's tables. On failure
    /// what was taken stays.
    pub(crate) fn fill<H: Host>(
        &mut self,
        host: &H,
        core: &Core,
        stock: usize,
    ) -> Result<(), NoMemory> {
        let stock = stock.max(self.need);
        let more = stock.saturating_sub(self.pages.len());
        self.pages.try_reserve_exact(more).map_err(|_| NoMemory)?;
        for _ in 0..more {
            let page = host.take(Placement::default()).ok_or(NoMemory)?;
            if page.pfn.0 == 0 || page.pfn.0 >> (core.format.phys_bits() - 12) != 0 {
                core.kill(Broken::TableUnusable);
                host.release(page.pfn);
                return Err(NoMemory);
            }
            if page.contents == Contents::Unknown || core.format.empty().0 != 0 {
                // SAFETY: just taken, linked nowhere.
                unsafe { Table::at(core.window, page.pfn) }.clear(&core.format);
            }
            self.pages.push(page.pfn);
        }
        Ok(())
    }

    /// One empty table.
    pub(crate) fn take(&mut self) -> Option<Pfn> {
        self.pages.pop()
    }

    /// Takes back a table that is empty again. There is room: it came from here.
    pub(crate) fn put_back(&mut self, pfn: Pfn) {
        debug_assert!(self.pages.len() < self.pages.capacity(), "a page from elsewhere");
        self.pages.push(pfn);
    }

    /// Gives everything back.
    pub(crate) fn release_all<H: Host>(&mut self, core: &Core, host: &H) {
        let mut first = None;
        while let Some(pfn) = self.pages.pop() {
            // SAFETY: in stock, so linked nowhere and this stock's alone.
            unsafe { abandoned::link(&core.format, core.window, pfn, first) };
            first = Some(pfn);
        }
        // SAFETY: as above.
        unsafe { Releasing::new(core, first) }.release(host);
    }
}

impl ReservedPages<'_> {
    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.0.pages.len()
    }

    pub(crate) fn take(&mut self) -> Option<Pfn> {
        self.0.take()
    }

    pub(crate) fn put_back(&mut self, pfn: Pfn) {
        self.0.put_back(pfn);
    }
}
