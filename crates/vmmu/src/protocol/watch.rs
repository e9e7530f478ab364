//! The right to a written watch; closing it when the right is dropped.

use crate::state::core::Core;
use crate::state::participant::WatchPlace;

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

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        if let Some(words) = self.core.participants.watch_words(self.place) {
            words.close();
        }
    }
}
