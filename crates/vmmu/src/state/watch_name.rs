//! The name of a watch from one opening to its closing.
//!
//! The hazard: vCPU A asks the host for page P and vCPU B for page Q. The host's thread hands B the
//! answer to A's question. Both watches are open and neither is hit, so nothing refuses it, and the
//! guest finds the contents of P at Q.
//!
//! The rule: a question carries the name of the watch it was asked under, and so does its answer. A
//! request takes an answer of its own name only.

use crate::state::participant::WatchPlace;

/// Which watch of which MMU, and which of its openings: no two requests have the same.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WatchName {
    pub(crate) mmu: u64,
    pub(crate) place: WatchPlace,
    pub(crate) count: u64,
}
