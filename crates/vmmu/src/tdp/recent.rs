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
//! vCPU keeps the names of its latest requests, and looks at their watches before it opens the next.

use crate::addr::{Gfn, Level};
use crate::protocol::watch::Watch;
use crate::state::core::Core;
use crate::state::participant::WatchPlace;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Recent {
    /// In the participant's own watch, and in a spare one.
    own: Option<Asked>,
    spare: Option<Asked>,
    /// Whose last request was hit.
    hit: Option<Gfn>,
}

/// A request that began.
#[derive(Clone, Copy, Debug)]
struct Asked {
    place: WatchPlace,
    count: u64,
    gfn: Gfn,
}

impl Recent {
    /// Looks how those ended that have; before a watch is opened, which forgets it.
    #[inline]
    pub(crate) fn look(&mut self, core: &Core) {
        let Recent { own, spare, hit } = self;
        for asked in [own, spare] {
            let Some(Asked { place, count, gfn }) = *asked else { continue };
            // Somebody else may have a spare one by now; then nobody knows.
            let words = core.participants.watch_words(place).filter(|words| words.count() == count);
            match words {
                Some(words) if words.is_open() => continue,
                Some(words) if words.is_hit() => *hit = Some(gfn),
                Some(_) if *hit == Some(gfn) => *hit = None,
                _ => {}
            }
            *asked = None;
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
        let asked = Some(Asked { place: watch.place, count: watch.count, gfn });
        match watch.place {
            WatchPlace::Own(_) => self.own = asked,
            WatchPlace::Spare(_) => self.spare = asked,
        }
    }
}
