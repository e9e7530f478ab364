//! Pages that the host takes back.

use crate::addr::{GfnRange, HostRange};
use crate::revoke::chain::{Revocation, Sealed};
use crate::revoke::hull::with_huge_leaves;
use crate::state::core::Core;
use crate::state::invalidations::{EndedBy, InvalidationPlace};
use crate::state::root::{Phase, Root};
use crate::state::slot::AddressSpace;
use crate::state::slot_set::SlotSet;
use crate::table::walk::{Order, Target};

/// Pages that the host takes back; see [`Worker::invalidate_range`](crate::Worker::invalidate_range).
#[derive(Debug)]
pub struct HostPages {
    range: HostRange,
    place: Option<InvalidationPlace>,
    by: EndedBy,
    hull: GfnRange,
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
            #[cfg(feature = "defects")]
            known: range,
        }
    }

    /// The pages, of an invalidation that
    /// [`Worker::invalidate_end`](crate::Worker::invalidate_end) ends.
    pub fn named(range: HostRange) -> Self {
        HostPages { by: EndedBy::Name, ..Self::new(range) }
    }

    /// Where it is announced.
    pub(crate) fn place(&self) -> Option<InvalidationPlace> {
        self.place
    }
}

impl Revocation for HostPages {}

impl Sealed for HostPages {
    fn announce(&mut self, core: &Core) {
        #[cfg(feature = "defects")]
        let range = &self.known;
        #[cfg(not(feature = "defects"))]
        let range = &self.range;
        self.place = Some(core.invalidations.announce(range, self.by));
    }

    #[cfg(feature = "defects")]
    fn in_guest_frames(&mut self, slots: &SlotSet) {
        if slots.backed_by(&self.range, 0).is_none() {
            self.known.pages = 0;
        }
    }

    fn hit(&mut self, core: &Core, slots: &SlotSet) {
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
        let mut hull: Option<GfnRange> = None;
        let mut n = 0;
        while let Some((at, region)) = slots.backed_by(&self.range, n) {
            if let Some(part) = region.guest_range(&self.range) {
                let all = hull.unwrap_or(part);
                let start = all.start().min(part.start());
                hull = GfnRange::new(start, all.end().max(part.end()));
            }
            n = at + 1;
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

    fn piece(&self, slots: &SlotSet, n: usize) -> Option<(usize, AddressSpace, GfnRange)> {
        let (n, region) = slots.backed_by(&self.range, n)?;
        Some((n, region.space, region.guest_range(&self.range)?))
    }

    fn wants(&self, root: &Root) -> bool {
        root.phase == Phase::Valid || !defect!(SkipsInvalidRoots)
    }
}
