//! A vCPU's latest requests, remembered so that the next try for a page watches no more than the page.
//!
//! The hazard: vCPU A resolves page P in a slot whose leaves may have 1 GiB, so it watches the gibibyte
//! around P. The host takes one page after the other back, somewhere in that gibibyte, and each time
//! before A has its frame. Each of these invalidations hits A's watch, and A tries again, for ever,
//! though nobody ever touches P.
//!
//! The rule: when a request was hit, the next watch for its page is that page alone, which no
//! invalidation of another page hits. Only a hit has this effect, and it lasts until a request for the
//! page ends in another way: refusals for other reasons would make small leaves of pages that could be
//! in a huge one.
//!
//! Whoever completes a request may be another thread than the one that began it, and what it learns
//! does not come back here. But a watch that is closed keeps its hit until it is opened again. So the
//! vCPU keeps the page of its latest request, and looks at the watch before it opens it for the next.

use crate::addr::{Gfn, Level};
use crate::protocol::watch::Watch;
use crate::state::core::Core;
use crate::state::participant::WatchPlace;
use crate::state::watch::WatchWords;
use crate::state::watch_name::WatchName;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Recent {
    /// The page of the last request in the participant's own watch.
    own: Option<Gfn>,
    /// The last one in a spare watch.
    spare: Option<(WatchName, Gfn)>,
    /// Whose last request was hit.
    hit: Option<Gfn>,
}

impl Recent {
    /// Looks how those ended that have; before the participant's `own` watch is opened, which
    /// forgets it.
    #[inline]
    pub(crate) fn look(&mut self, core: &Core, own: &WatchWords) {
        if let Some(gfn) = self.own
            && !own.is_open()
        {
            self.own = None;
            self.ended(gfn, own.is_hit());
        }
        if self.spare.is_some() {
            self.look_at_spare(core);
        }
    }

    #[cold]
    fn look_at_spare(&mut self, core: &Core) {
        let Some((WatchName { place, count, .. }, gfn)) = self.spare else { return };
        match core.participants.watch_words(place) {
            Some(words) if words.count() == count => {
                if !words.is_open() {
                    self.spare = None;
                    self.ended(gfn, words.is_hit());
                }
            }
            // Somebody has opened it again, and nobody knows.
            _ => self.spare = None,
        }
    }

    #[inline]
    fn ended(&mut self, gfn: Gfn, was_hit: bool) {
        if was_hit {
            self.hit = Some(gfn);
        } else if self.hit == Some(gfn) {
            self.hit = None;
        }
    }

    /// The leaf around `gfn` that the next watch spans.
    #[inline]
    pub(crate) fn level(&self, gfn: Gfn, largest: Level) -> Level {
        if self.hit == Some(gfn) && !defect!(WatchStaysWide) { Level::Size4K } else { largest }
    }

    /// A request for `gfn` begins.
    #[inline]
    pub(crate) fn remember(&mut self, watch: &Watch<'_>, gfn: Gfn) {
        match watch.place {
            WatchPlace::Own(_) => self.own = Some(gfn),
            WatchPlace::Spare(_) => self.spare = Some((watch.name(), gfn)),
        }
    }
}
