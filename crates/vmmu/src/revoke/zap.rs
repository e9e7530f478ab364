//! Zaps: mappings of guest frames are dropped, so that faults make them anew.

use crate::addr::GfnRange;
use crate::host::host::Host;
use crate::protocol::local::Local;
use crate::protocol::section::Owing;
use crate::revoke::chain::PausedWalk;
use crate::revoke::guest_frames::GuestFrames;
use crate::revoke::progress::Progress;
use crate::state::slot::AddressSpace;
use crate::table::page::Page;

/// A zap in steps.
#[must_use = "mappings stay until the zap is done"]
#[derive(Debug)]
pub struct Zap {
    pub(crate) rest: Option<PausedWalk<GuestFrames>>,
}

impl<H: Host> Local<'_, H> {
    /// Begins a zap: from now on requests under way are refused.
    pub(crate) fn begin_zap(&mut self, space: AddressSpace, range: GfnRange) -> Zap {
        let frames = GuestFrames::new(space, range);
        Zap { rest: Some(self.announce(frames).synchronize().pause()) }
    }

    /// Goes on with a zap for at most `budget` table pages.
    pub(crate) fn zap_some(&mut self, zap: &mut Zap, budget: u64) -> Progress {
        let visit = |page: &Page<'_, Owing<'_>>| page.each(|entry| entry.zap());
        let _gone = self.walk_on(&mut zap.rest, budget, visit);
        Progress::of(&zap.rest)
    }
}
