//! Host frames that no guest may be given.
//!
//! The hazard: the host's books are wrong, and its answer to a fault names a frame of the hypervisor's
//! own. If it is mapped, the guest owns the hypervisor.
//!
//! The rule: every answer is compared with the reserved ranges. They are sorted once, so what a
//! participant remembers is the gap between two of them in which its last answer lay; an answer in the
//! same gap costs two comparisons.

use alloc::vec::Vec;

use crate::addr::Pfn;
use crate::error::NoMemory;

/// The ranges: sorted, without empty ones, and with a frame between any two.
#[derive(Debug)]
pub(crate) struct Reserved(Vec<(Pfn, Pfn)>);

/// Frames that are known not to be reserved: from the first up to, not including, the second.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Gap(u64, u64);

impl Reserved {
    /// Of half-open ranges, in any order, which may overlap.
    pub(crate) fn new(ranges: &[(Pfn, Pfn)]) -> Result<Self, NoMemory> {
        let mut kept: Vec<(Pfn, Pfn)> = Vec::new();
        kept.try_reserve_exact(ranges.len()).map_err(|_| NoMemory)?;
        kept.extend(ranges.iter().filter(|(start, end)| start < end));
        kept.sort_unstable();
        kept.dedup_by(|next, before| {
            let touches = next.0 <= before.1;
            if touches {
                before.1 = before.1.max(next.1);
            }
            touches
        });
        Ok(Reserved(kept))
    }

    /// The first range that has a frame of `start..end`.
    pub(crate) fn overlapping(&self, start: u64, end: u64) -> Option<(Pfn, Pfn)> {
        let next = self.0.get(self.0.partition_point(|range| range.1.0 <= start))?;
        (next.0.0 < end).then_some(*next)
    }

    /// Whether no frame of `start..end` is reserved; looks at the gap around the last answer first.
    #[inline]
    pub(crate) fn is_free(&self, start: u64, end: u64, gap: &mut Gap) -> bool {
        (gap.0 <= start && end <= gap.1) || self.is_free_in(start, end, gap)
    }

    #[cold]
    fn is_free_in(&self, start: u64, end: u64, gap: &mut Gap) -> bool {
        let next = self.0.partition_point(|range| range.1.0 <= start);
        let before = next.checked_sub(1).and_then(|before| self.0.get(before));
        let from = before.map_or(0, |range| range.1.0);
        let to = self.0.get(next).map_or(u64::MAX, |range| range.0.0);
        if to < end {
            return false;
        }
        *gap = Gap(from, to);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_free_is_what_no_range_has() {
        let ranges = [(30, 40), (5, 5), (10, 12), (11, 20), (20, 22), (9, 3), (60, 61), (31, 33)];
        let ranges = ranges.map(|(start, end)| (Pfn(start), Pfn(end)));
        let reserved = Reserved::new(&ranges).unwrap();
        let merged = [(10, 22), (30, 40), (60, 61)].map(|(start, end)| (Pfn(start), Pfn(end)));
        assert_eq!(reserved.0, merged);
        let is_free =
            |start: u64, end: u64| !ranges.iter().any(|(a, b)| a.0.max(start) < b.0.min(end));
        // After every other answer, because it may have left any gap behind.
        for last in 0..70 {
            let mut gap = Gap::default();
            let _left = reserved.is_free(last, last + 1, &mut gap);
            for start in 0..70 {
                for pages in [1, 2, 8, 16] {
                    let (end, mut gap) = (start + pages, gap);
                    let free = reserved.is_free(start, end, &mut gap);
                    assert_eq!(free, is_free(start, end), "{start}..{end} after {last}");
                    assert_eq!(reserved.overlapping(start, end).is_none(), free);
                }
            }
        }
        let none = Reserved::new(&[]).unwrap();
        assert!(none.is_free(0, u64::MAX, &mut Gap::default()));
        assert_eq!(none.overlapping(0, u64::MAX), None);
    }
}
