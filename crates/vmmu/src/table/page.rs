//! A part of one table page, as a walk hands it to its visitor.

use core::cell::Cell;

use crate::addr::{ENTRIES, Gfn, GfnRange, Level};
use crate::protocol::section::{Inside, Liability};
use crate::state::table::Table;
use crate::sync::spin_loop;
use crate::table::entry::{Changed, Detach, Entry};

/// What a visitor wants next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Then {
    /// Go on.
    Next,
    /// Leave the section and come back to the same place: something there is frozen, or has
    /// become a table.
    Again,
    /// Stop here; the walk can be resumed.
    Pause,
}

impl From<()> for Then {
    fn from((): ()) -> Then {
        Then::Next
    }
}

impl From<Detach> for Then {
    fn from(detach: Detach) -> Then {
        match detach {
            Detach::Done => Then::Next,
            Detach::Claimed => Then::Again,
        }
    }
}

/// Which entries a visitor gets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Passes {
    /// Leaves and MMIO entries; where there is a table the walk goes down.
    Leaves,
    /// Tables, to be detached.
    Tables,
}

/// Entries of at most one table page.
#[derive(Debug)]
pub struct Page<'s, L: Liability> {
    pub(crate) inside: Inside<'s, L>,
    pub(crate) table: &'s Table,
    pub(crate) level: Level,
    /// First frame of the table.
    pub(crate) base: Gfn,
    pub(crate) from: usize,
    pub(crate) to: usize,
    pub(crate) passes: Passes,
    /// How far `each` came.
    pub(crate) at: Cell<usize>,
}

impl<'s, L: Liability> Page<'s, L> {
    /// Level of the table.
    pub fn level(&self) -> Level {
        self.level
    }

    /// The guest frames of the part.
    pub fn range(&self) -> GfnRange {
        let gfn = |index: usize| Gfn(self.base.0 + index as u64 * self.level.pages());
        GfnRange::new(gfn(self.from), gfn(self.to)).unwrap_or(GfnRange::ALL)
    }

    /// Every entry of the part, as it is now.
    pub fn entries(&self) -> impl Iterator<Item = Entry<'s, L>> {
        let (inside, table, level, base) = (self.inside, self.table, self.level, self.base);
        (self.from..self.to.min(ENTRIES)).map(move |index| {
            Entry::of(inside, table, level, Gfn(base.0 + index as u64 * level.pages()))
        })
    }

    /// Calls `f` for each entry that is not empty; again with what is there now when it lost an
    /// exchange. Stops at a frozen entry, where the walk has to go down, and where `f` has more to
    /// say than that it is done.
    pub fn each<T: Into<Then>>(
        &self,
        mut f: impl FnMut(Entry<'s, L>) -> Result<T, Changed<'s, L>>,
    ) -> Then {
        let empty = self.inside.core.format.empty();
        for (n, mut entry) in self.entries().enumerate() {
            loop {
                if entry.seen == empty {
                    break;
                }
                if entry.is_frozen() && defect!(SpinsInSection) {
                    spin_loop();
                    entry.seen = entry.cell.get();
                    continue;
                }
                if entry.is_frozen() || (self.passes == Passes::Leaves && entry.is_table()) {
                    self.at.set(self.from + n);
                    return Then::Again;
                }
                match f(entry) {
                    Ok(done) => match done.into() {
                        Then::Next => break,
                        then => {
                            self.at.set(self.from + n);
                            return then;
                        }
                    },
                    Err(changed) => entry = changed,
                }
            }
        }
        self.at.set(self.to);
        Then::Next
    }
}
