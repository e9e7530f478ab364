//! Roots that are taken away with everything below them.

use crate::addr::GfnRange;
use crate::host::host::Host;
use crate::revoke::chain::{Quiesced, Revocation, Sealed};
use crate::state::core::Core;
use crate::state::root::{PLACES, Root, RootName};
use crate::state::slot::AddressSpace;
use crate::state::slot_set::SlotSet;
use crate::table::walk::{Order, Piece, PieceKey, Target};

/// Roots that have become invalid together, made by the slot guard.
#[derive(Debug)]
pub struct RootInvalid {
    pub(crate) names: [Option<RootName>; PLACES],
}

impl Revocation for RootInvalid {}

impl Sealed for RootInvalid {
    /// The slot guard has changed the phases already.
    fn announce(&mut self, _: &Core) {}

    fn hull(&self) -> GfnRange {
        GfnRange::ALL
    }
}

impl Target for RootInvalid {
    fn order(&self) -> Order {
        Order::TablesBottomUp
    }

    /// One for each address space.
    fn piece(&self, _: &SlotSet, from: PieceKey) -> Option<Piece> {
        let PieceKey { major, minor } = from;
        let major = if minor == 0 { major } else { major.saturating_add(1) };
        let key = PieceKey { major, minor: 0 };
        let space = *AddressSpace::ALL.get(usize::try_from(major).ok()?)?;
        Some(Piece { key, space, range: GfnRange::ALL })
    }

    fn wants(&self, root: &Root) -> bool {
        self.names.contains(&Some(root.name)) || defect!(DrainsNewRoots)
    }
}

/// Invalid roots that every vCPU has left: what is cleared below them owes no flush.
#[derive(Debug)]
pub struct Unloaded(pub(crate) RootInvalid);

impl Unloaded {
    pub(crate) fn names(self) -> [Option<RootName>; PLACES] {
        self.0.names
    }
}

impl Revocation for Unloaded {
    const WAIVED: bool = true;
}

impl Sealed for Unloaded {
    fn announce(&mut self, _: &Core) {}

    fn hull(&self) -> GfnRange {
        self.0.hull()
    }
}

impl Target for Unloaded {
    fn order(&self) -> Order {
        self.0.order()
    }

    fn piece(&self, slots: &SlotSet, from: PieceKey) -> Option<Piece> {
        self.0.piece(slots, from)
    }

    fn wants(&self, root: &Root) -> bool {
        self.0.wants(root)
    }
}

impl<'p, H: Host> Quiesced<'p, H, RootInvalid> {
    /// Waits until every vCPU has been outside the guest once. At its next entry it loads another
    /// root, and flushes with that; so nothing below these can be cached any more.
    pub fn unload(self) -> Quiesced<'p, H, Unloaded> {
        let in_time = !defect!(WaivesBeforeUnload);
        if in_time && !defect!(DrainsUnderGuest) {
            self.local.outside_once();
        }
        Quiesced { local: self.local, what: Unloaded(self.what), cursor: self.cursor }
    }
}
