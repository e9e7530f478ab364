//! A slot that is being deleted.

use crate::addr::GfnRange;
use crate::revoke::chain::{Revocation, Sealed};
use crate::state::core::Core;
use crate::state::slot::{AddressSpace, SlotId, SlotWord};
use crate::state::slot_set::SlotSet;
use crate::table::walk::{Order, Piece, PieceKey, Target};

/// A slot that is dying, made by the slot guard.
#[derive(Debug)]
pub struct SlotDying {
    /// The VM whose slot it is.
    pub(crate) vm: u64,
    pub(crate) id: SlotId,
    /// Its word since it is dying: its revision tells it from a successor of the same number.
    pub(crate) word: SlotWord,
    pub(crate) space: AddressSpace,
    pub(crate) range: GfnRange,
}

impl Revocation for SlotDying {}

impl Sealed for SlotDying {
    /// The slot guard has put the word down already.
    fn announce(&mut self, _: &Core) {}

    fn hull(&self) -> GfnRange {
        self.range
    }
}

impl Target for SlotDying {
    fn order(&self) -> Order {
        Order::Leaves
    }

    fn piece(&self, _: &SlotSet, from: PieceKey) -> Option<Piece> {
        let key = PieceKey::ONLY;
        (from <= key).then_some(Piece { key, space: self.space, range: self.range })
    }
}
