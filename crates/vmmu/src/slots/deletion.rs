//! A slot that is being deleted in steps.

use crate::revoke::chain::PausedWalk;
use crate::revoke::dying_slot::SlotDying;
use crate::slots::drain::Drain;

/// A slot that is being deleted in steps. While it is not done, the slot is dying: faults on it
/// answer [`Busy::SlotDying`](crate::Busy::SlotDying), and its number is taken.
#[must_use = "the slot stays dying until the deletion is done"]
#[derive(Debug)]
pub struct Deletion {
    pub(crate) rest: Option<PausedWalk<SlotDying>>,
    /// Roots that this change of the slots has made worth replacing; begun when the slot is gone.
    pub(crate) renewal: Option<Drain>,
}
