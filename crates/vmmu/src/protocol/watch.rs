//! The right to a written watch; closing it when the right is dropped.

use crate::addr::{Gfn, Level};
use crate::state::core::Core;
use crate::state::participant::WatchPlace;
use crate::state::slot::AddressSpace;
use crate::state::watch_name::WatchName;

/// A written watch: invalidations that overlap its frames will hit it.
///
/// It borrows what is shared, not the participant, and can be sent to another thread. Dropping it,
/// or the request or frame it has become, closes it.
#[must_use]
#[derive(Debug)]
pub struct Watch<'vm> {
    pub(crate) core: &'vm Core,
    pub(crate) place: WatchPlace,
}

impl<'vm> Watch<'vm> {
    /// Opens a spare one for the participant `by`.
    pub(crate) fn spare(
        core: &'vm Core,
        by: u32,
        space: AddressSpace,
        gfn: Gfn,
        level: Level,
    ) -> Option<Self> {
        let place = core.participants.open_spare(by, space, gfn, level)?;
        Some(Watch { core, place })
    }

    /// Leaves it open under its name, for whoever takes it up again.
    pub(crate) fn park(self) {
        if let Some(words) = self.core.participants.watch_words(self.place) {
            words.park();
        }
        core::mem::forget(self);
    }

    /// Its name while it is open.
    pub(crate) fn name(&self) -> WatchName {
        let words = self.core.participants.watch_words(self.place);
        let count = words.map_or(0, |words| words.count());
        WatchName { mmu: self.core.id, place: self.place, count }
    }
}

impl Drop for Watch<'_> {
    #[inline]
    fn drop(&mut self) {
        if let Some(words) = self.core.participants.watch_words(self.place) {
            words.close();
        }
    }
}
