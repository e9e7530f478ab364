//! Pages that the host takes back.

use crate::addr::{GfnRange, HostRange};
use crate::revoke::chain::{Revocation, Sealed};
use crate::revoke::hull::with_huge_leaves;
use crate::state::core::Core;
use crate::state::invalidations::{EndedBy, InvalidationPlace};
use crate::state::root::{Phase, Root};
use crate::state::slot::SlotId;
use crate::state::slot_set::{BackedKey, SlotSet};
use crate::table::walk::{Order, Piece, PieceKey, Target};

/// Pages that the host takes back; see [`Worker::invalidate_range`](crate::Worker::invalidate_range).
///
/// A range without a page is announced nowhere, hits no watch and concerns no debt.
#[derive(Debug)]
pub struct HostPages {
    range: HostRange,
    place: Option<InvalidationPlace>,
    by: EndedBy,
    hull: GfnRange,
    /// Generation of the slot set in which watches were hit. A slot that is in no set up to it was
    /// created after the announcement.
    newest: u64,
    /// What `AnnouncesInGuestFrames` announces instead.
    #[cfg(feature = "defects")]
    known: HostRange,
}

impl HostPages {
    /// The pages, of an invalidation that lasts until its place is withdrawn.
    pub fn new(range: HostRange) -> Self {
        HostPages {
            range,
            place: None,
            by: EndedBy::Holder,
            hull: GfnRange::ALL,
            newest: u64::MAX,
            #[cfg(feature = "defects")]
            known: range,
        }
    }

    /// The pages, of an invalidation that
    /// [`Worker::invalidate_end`](crate::Worker::invalidate_end) ends.
    pub fn named(range: HostRange) -> Self {
        HostPages { by: EndedBy::Name, ..Self::new(range) }
    }

    /// Where it is announced, if it is.
    pub(crate) fn place(&self) -> Option<InvalidationPlace> {
        self.place
    }
}

impl Revocation for HostPages {}

impl Sealed for HostPages {
    fn announce(&mut self, core: &Core) {
        if self.range.is_empty() {
            return;
        }
        #[cfg(feature = "defects")]
        let range = &self.known;
        #[cfg(not(feature = "defects"))]
        let range = &self.range;
        self.place = Some(core.invalidations.announce(range, self.by));
    }

    #[cfg(feature = "defects")]
    fn in_guest_frames(&mut self, slots: &SlotSet) {
        if slots.backed_by(&self.range, BackedKey::FIRST).next().is_none() {
            self.known.pages = 0;
        }
    }

    fn hit(&mut self, core: &Core, slots: &SlotSet) {
        if self.range.is_empty() {
            self.hull = GfnRange::EMPTY;
            return;
        }
        core.participants.hit(|watched| {
            let mut at = watched.range.start();
            // A watch on frames of no slot that is known now is hit too: the slot may be coming.
            let mut known = false;
            while let Some(region) = slots.next(watched.space, at) {
                if !region.range.overlaps(watched.range) {
                    break;
                }
                known = true;
                let part = intersection(region.range, watched.range);
                if region.host_range(part).is_some_and(|pages| pages.overlaps(&self.range)) {
                    return true;
                }
                at = region.range.end();
            }
            !known && !defect!(SlotLiveAtOnce)
        });
        self.newest = slots.generation;
        let mut hull: Option<GfnRange> = None;
        for backed in slots.backed_by(&self.range, BackedKey::FIRST) {
            if let Some(part) = backed.region.guest_range(&self.range) {
                let all = hull.unwrap_or(part);
                let start = all.start().min(part.start());
                hull = GfnRange::new(start, all.end().max(part.end()));
            }
        }
        self.hull = hull.map_or(GfnRange::EMPTY, |hull| with_huge_leaves(hull, core.largest));
    }

    fn hull(&self) -> GfnRange {
        self.hull
    }
}

fn intersection(a: GfnRange, b: GfnRange) -> GfnRange {
    GfnRange::new(a.start().max(b.start()), a.end().min(b.end())).unwrap_or(a)
}

impl Target for HostPages {
    fn order(&self) -> Order {
        Order::Leaves
    }

    /// One for each slot that was there at the announcement and shows a page of the range, by the
    /// first page of the backing that it shows, and its number.
    fn piece(&self, slots: &SlotSet, from: PieceKey) -> Option<Piece> {
        let from = BackedKey { first: from.major, id: SlotId(from.minor) };
        let mut all = slots.backed_by(&self.range, from);
        let backed = all.find(|backed| backed.born <= self.newest)?;
        let BackedKey { first, id } = backed.key();
        Some(Piece {
            key: PieceKey { major: first, minor: id.0 },
            space: backed.region.space,
            range: backed.region.guest_range(&self.range)?,
        })
    }

    fn wants(&self, root: &Root) -> bool {
        root.phase == Phase::Valid || !defect!(SkipsInvalidRoots)
    }
}
