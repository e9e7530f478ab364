//! Holds and claims on empty entries, for tests only: no operation of the library makes any yet.
//!
//! A hold begins and ends inside one section. A claim outlives its section: it is a name, and whoever
//! made it finds its entry again by a walk from the root. Its table may be taken away meanwhile; the
//! hazard and the rule stand at [`Entry::detach`].

use crate::addr::{Gfn, Level};
use crate::entry::cell::Value;
use crate::entry::state::State;
use crate::protocol::section::{Liability, Section};
use crate::state::root::RootName;
use crate::sync::{Ordering, fence};
use crate::table::entry::Entry;

/// An empty entry that nobody else changes before this is dropped, in the same section.
#[must_use = "a hold that is dropped at once keeps nobody away"]
#[derive(Debug)]
pub struct Hold<'s, L: Liability>(Option<Entry<'s, L>>);

/// The name of a claimed entry. Give it back, or its table is never taken away.
#[must_use = "the entry stays claimed until it is given back"]
#[derive(Debug)]
pub struct Claim {
    root: RootName,
    gfn: Gfn,
    level: Level,
}

impl<L: Liability> Drop for Hold<'_, L> {
    fn drop(&mut self) {
        if let Some(held) = self.0.take() {
            put_back(held);
        }
    }
}

/// Makes a frozen entry empty again. Only its owner does, so no exchange is lost.
fn put_back<L: Liability>(frozen: Entry<'_, L>) {
    let empty = frozen.inside.core.format.empty();
    let _done = frozen.apply(empty);
}

/// Puts a frozen value in the place of nothing.
fn freeze<L: Liability>(entry: Entry<'_, L>, state: State) -> Option<Entry<'_, L>> {
    let Entry { inside, cell, level, gfn, seen } = entry;
    if seen != inside.core.format.empty() {
        return None;
    }
    let frozen: Value = inside.core.format.make(state, level)?;
    entry.apply(frozen).ok()??;
    Some(Entry { inside, cell, seen: frozen, level, gfn })
}

impl<'s, L: Liability> Entry<'s, L> {
    /// Holds an empty entry. `None`: it is not empty.
    pub fn hold(self, owner: u64) -> Option<Hold<'s, L>> {
        freeze(self, State::Hold { owner }).map(|held| Hold(Some(held)))
    }
}

impl<L: Liability> Section<'_, L> {
    /// Claims the empty entry of `level` around `gfn`. `None`: there is no table of that level, the
    /// entry is not empty, or its table is being taken away.
    pub fn claim(&self, root: RootName, gfn: Gfn, level: Level, owner: u64) -> Option<Claim> {
        let entry = self.entry(root, gfn, level).filter(|entry| entry.level == level)?;
        let claimed = freeze(entry, State::Claim { owner })?;
        fence(Ordering::SeqCst);
        // The walk from the root decides. It ends here, or above where the table is being taken away.
        let again = self.entry(root, gfn, level);
        let is_linked = again.is_some_and(|again| core::ptr::eq(again.cell, claimed.cell));
        if !is_linked && !defect!(ClaimsUnlinkedEntry) {
            put_back(claimed);
            return None;
        }
        Some(Claim { root, gfn, level })
    }

    /// Gives a claim back.
    pub fn give_back(&self, claim: Claim) {
        let Claim { root, gfn, level } = claim;
        let entry = self.entry(root, gfn, level);
        if let Some(entry) = entry
            .filter(|entry| entry.level == level && matches!(entry.state(), State::Claim { .. }))
        {
            put_back(entry);
        }
    }
}
