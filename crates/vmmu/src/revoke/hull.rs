//! The range that a revocation concerns, with the huge leaves that reach over its edges.

use crate::addr::{Gfn, GfnRange, Level};

/// The range with all huge leaves that overlap it: they go whole. None overlaps an empty range.
pub(crate) fn with_huge_leaves(range: GfnRange, largest: Level) -> GfnRange {
    if range.is_empty() {
        return GfnRange::EMPTY;
    }
    let last = Gfn(range.end().0.saturating_sub(1));
    let (first, last) = (range.start().leaf(largest), last.leaf(largest));
    GfnRange::new(first.start(), last.end()).unwrap_or(GfnRange::ALL)
}
