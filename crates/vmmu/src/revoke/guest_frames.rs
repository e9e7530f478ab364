//! Guest frames whose mappings must be made anew.

use crate::addr::{GfnRange, Level};
use crate::revoke::chain::{Revocation, Sealed};
use crate::revoke::hull::with_huge_leaves;
use crate::state::core::Core;
use crate::state::slot::AddressSpace;
use crate::state::slot_set::SlotSet;
use crate::table::walk::{Order, Piece, PieceKey, Target};

/// Guest frames whose mappings must be made anew, because what a new one would say has changed.
///
/// The caller has changed that before; requests under way, which may still know the old, are hit.
#[derive(Debug)]
pub struct GuestFrames {
    /// Address space.
    pub(crate) space: AddressSpace,
    /// Frames.
    pub(crate) range: GfnRange,
    hull: GfnRange,
}

impl GuestFrames {
    /// The frames.
    pub fn new(space: AddressSpace, range: GfnRange) -> Self {
        GuestFrames { space, range, hull: range }
    }
}

impl Revocation for GuestFrames {}

impl Sealed for GuestFrames {
    fn announce(&mut self, _: &Core) {}

    fn hit(&mut self, core: &Core, _: &SlotSet) {
        let first = self.range.start().leaf(Level::Size4K);
        let range = if defect!(HitsAroundFirstFrame) { first } else { self.range };
        core.participants.hit(|w| w.space == self.space && w.range.overlaps(range));
        if !defect!(ZapsBlockForPage) {
            self.hull = with_huge_leaves(self.range, core.largest);
        }
    }

    fn hull(&self) -> GfnRange {
        self.hull
    }
}

impl Target for GuestFrames {
    fn order(&self) -> Order {
        Order::Leaves
    }

    fn piece(&self, _: &SlotSet, from: PieceKey) -> Option<Piece> {
        let key = PieceKey::ONLY;
        (from <= key).then_some(Piece { key, space: self.space, range: self.range })
    }
}
