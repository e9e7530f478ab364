//! Taking mappings back: invalidations by the host, in its own terms, and zaps of guest frames.

use core::fmt;

use crate::addr::{GfnRange, HostRange};
use crate::api::worker::Worker;
use crate::host::host::Host;
use crate::protocol::section::Owing;
use crate::revoke::chain::PausedWalk;
use crate::revoke::guest_frames::GuestFrames;
use crate::revoke::host_pages::HostPages;
use crate::revoke::progress::Progress;
use crate::state::core::Core;
use crate::state::invalidations::InvalidationPlace;
use crate::state::slot::AddressSpace;
use crate::table::page::Page;

/// A range under invalidation: until this is dropped, nothing can be mapped from it.
#[must_use = "dropping it ends the invalidation"]
#[derive(Debug)]
pub struct Invalidation<'vm> {
    core: &'vm Core,
    place: InvalidationPlace,
}

impl Drop for Invalidation<'_> {
    fn drop(&mut self) {
        self.core.invalidations.remove(self.place);
    }
}

/// No invalidation of this range is under way that [`Worker::invalidate_begin`] began.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NotInvalidating(pub HostRange);

impl fmt::Display for NotInvalidating {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let HostRange { backing, first, .. } = self.0;
        let end = self.0.end();
        write!(
            f,
            "no invalidation of backing {backing}, pages {first:#x}..{end:#x} is under way: end \
             exactly what was begun"
        )
    }
}

impl core::error::Error for NotInvalidating {}

/// A zap in steps.
#[must_use = "mappings stay until the zap is done"]
#[derive(Debug)]
pub struct Zap {
    rest: Option<PausedWalk<GuestFrames>>,
}

impl<'vm, H: Host> Worker<'vm, H> {
    /// The host takes pages back. When this returns, no vCPU reaches them by any translation, in
    /// any root, also not by a huge leaf that overlaps them by one page; and while the result
    /// lives nothing is mapped from them.
    ///
    /// Takes no sleeping lock, waits for no vCPU's resolving.
    pub fn invalidate_range(&mut self, range: HostRange) -> Invalidation<'vm> {
        let core = self.core();
        let place = self.take_back(HostPages::new(range));
        Invalidation { core, place }
    }

    /// The same for notifiers with separate callbacks: [`invalidate_end`](Self::invalidate_end)
    /// with the same range follows, as often as this was called.
    ///
    /// Any number may be under way. Beyond [`Config::invalidations`](crate::Config::invalidations) of
    /// them, each refuses the blocks its range touches instead of its pages alone.
    pub fn invalidate_begin(&mut self, range: HostRange) {
        self.take_back(HostPages::named(range));
    }

    /// Ends what [`invalidate_begin`](Self::invalidate_begin) began. End exactly what was begun: an
    /// end of a range that nobody began is a mistake of the host, and most of them are found.
    ///
    /// An error has changed nothing. It is certain while at most
    /// [`Config::invalidations`](crate::Config::invalidations) are under way, because each of those is
    /// known by its range. Of the others only the blocks they touch are known, as counts. So an end of
    /// a range that was never begun is taken for that of another one beyond the places whose range
    /// counts in the same blocks, or in blocks that fall on the same counter; that one's pages may
    /// then be mapped before it ends, and its own end is an error. Ranges without any page are told
    /// apart by nothing, and refuse nothing. An [`Invalidation`] is never ended by this.
    pub fn invalidate_end(&mut self, range: HostRange) -> Result<(), NotInvalidating> {
        if self.core().invalidations.end(&range) { Ok(()) } else { Err(NotInvalidating(range)) }
    }

    fn take_back(&mut self, pages: HostPages) -> InvalidationPlace {
        let core = self.core();
        self.participant.words().counters.invalidations.add(1);
        let walked = self
            .participant
            .announce(pages)
            .synchronize()
            .walk(|page| page.each(|entry| entry.zap()));
        let revoked = walked.finish();
        // It is this VM's promise, of a range that was announced.
        revoked.open(core).and_then(|pages| pages.place()).unwrap_or(InvalidationPlace::Nowhere)
    }

    /// Drops every mapping of guest frames, so that faults make them anew: leaves only, and an
    /// overlapping huge leaf goes whole. Requests under way are refused. Call it after changing
    /// what a mapping would say.
    pub fn zap(&mut self, space: AddressSpace, range: GfnRange) {
        let mut zap = self.begin_zap(space, range);
        while self.zap_some(&mut zap, u64::MAX) == Progress::More {}
    }

    /// Begins a [`zap`](Self::zap) in steps.
    pub fn begin_zap(&mut self, space: AddressSpace, range: GfnRange) -> Zap {
        let frames = GuestFrames::new(space, range);
        Zap { rest: Some(self.participant.announce(frames).synchronize().pause()) }
    }

    /// Goes on with a zap for at most `budget` table pages. Only when it is done is everything
    /// gone that was mapped when it began. A zap that another VM began is left alone.
    pub fn zap_some(&mut self, zap: &mut Zap, budget: u64) -> Progress {
        let visit = |page: &Page<'_, Owing<'_>>| page.each(|entry| entry.zap());
        let _gone = self.participant.walk_on(&mut zap.rest, budget, visit);
        Progress::of(&zap.rest)
    }
}
