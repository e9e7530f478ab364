//! The memory map: where RAM is, and where nothing is.

use arrayvec::ArrayVec;

/// Regions kept of a loader's map.
pub const MAX_REGIONS: usize = 64;

/// Guest-physical range, bytes, half open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span {
    /// First byte.
    pub start: u64,
    /// Byte after the last.
    pub end: u64,
}

impl Span {
    /// Length in bytes.
    pub const fn bytes(&self) -> u64 {
        self.end - self.start
    }

    /// The whole 4 KiB pages inside.
    pub const fn pages(&self) -> Span {
        let start = self.start.next_multiple_of(4096);
        let end = self.end & !4095;
        if start < end { Span { start, end } } else { Span { start, end: start } }
    }

    /// Whether the two share a byte.
    pub const fn overlaps(&self, other: &Span) -> bool {
        self.start < other.end && other.start < self.end
    }
}

/// RAM, in ascending order, without overlaps or touching neighbours.
#[derive(Debug, Clone, Default)]
pub struct Ram(ArrayVec<Span, MAX_REGIONS>);

impl Ram {
    /// Adds a range. Returns `false` when there is no place left.
    #[must_use]
    pub fn add(&mut self, mut span: Span) -> bool {
        if span.start >= span.end {
            return true;
        }
        self.0.retain(|old| {
            let apart = old.end < span.start || span.end < old.start;
            if !apart {
                span = Span { start: old.start.min(span.start), end: old.end.max(span.end) };
            }
            apart
        });
        let at = self.0.partition_point(|old| old.start < span.start);
        self.0.try_insert(at, span).is_ok()
    }

    /// Takes a range out. Returns `false` when there is no place left for the rest of a split.
    #[must_use]
    pub fn remove(&mut self, hole: Span) -> bool {
        let mut rest = ArrayVec::new();
        let mut kept = true;
        for old in &self.0 {
            let below = Span { start: old.start, end: old.end.min(hole.start) };
            let above = Span { start: old.start.max(hole.end), end: old.end };
            let parts =
                if old.overlaps(&hole) { [Some(below), Some(above)] } else { [Some(*old), None] };
            for part in parts.into_iter().flatten().filter(|part| part.start < part.end) {
                kept &= rest.try_push(part).is_ok();
            }
        }
        self.0 = rest;
        kept
    }

    /// The ranges.
    pub fn spans(&self) -> &[Span] {
        &self.0
    }

    /// Whether there is RAM anywhere in the range.
    pub fn overlaps(&self, span: &Span) -> bool {
        self.0.iter().any(|ram| ram.overlaps(span))
    }

    /// Bytes of RAM.
    pub fn bytes(&self) -> u64 {
        self.0.iter().map(Span::bytes).sum()
    }

    /// What is not RAM below `limit`, in ascending order.
    pub fn holes(&self, limit: u64) -> impl Iterator<Item = Span> + '_ {
        let ends = core::iter::once(0).chain(self.0.iter().map(|ram| ram.end));
        let starts = self.0.iter().map(|ram| ram.start).chain(core::iter::once(limit));
        ends.zip(starts)
            .map(move |(start, end)| Span { start, end: end.min(limit) })
            .filter(|hole| hole.start < hole.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(start: u64, end: u64) -> Span {
        Span { start, end }
    }

    fn ram(spans: &[(u64, u64)]) -> Ram {
        let mut ram = Ram::default();
        for &(start, end) in spans {
            assert!(ram.add(span(start, end)));
        }
        ram
    }

    #[test]
    fn ranges_are_sorted_and_joined() {
        let ram = ram(&[(50, 60), (10, 20), (20, 25), (58, 70), (5, 5)]);
        assert_eq!(ram.spans(), [span(10, 25), span(50, 70)]);
        assert_eq!(ram.bytes(), 35);
    }

    #[test]
    fn taking_out_cuts_and_splits() {
        let mut ram = ram(&[(0, 100), (200, 300), (400, 500)]);
        assert!(ram.remove(span(50, 60)));
        assert!(ram.remove(span(250, 450)));
        assert_eq!(ram.spans(), [span(0, 50), span(60, 100), span(200, 250), span(450, 500)]);
        assert!(ram.remove(span(0, 1000)));
        assert!(ram.spans().is_empty());
    }

    #[test]
    fn a_full_map_says_so() {
        let mut ram = Ram::default();
        for region in 0..MAX_REGIONS as u64 {
            assert!(ram.add(span(region * 10, region * 10 + 5)));
        }
        assert!(!ram.add(span(10_000, 10_001)));
        assert!(!ram.remove(span(2, 3)));
    }

    #[test]
    fn holes_are_what_is_left() {
        let ram = ram(&[(10, 20), (30, 40)]);
        let holes: Vec<Span> = ram.holes(100).collect();
        assert_eq!(holes, [span(0, 10), span(20, 30), span(40, 100)]);
        let holes: Vec<Span> = ram.holes(35).collect();
        assert_eq!(holes, [span(0, 10), span(20, 30)]);
        let holes: Vec<Span> = ram.holes(25).collect();
        assert_eq!(holes, [span(0, 10), span(20, 25)]);
        assert_eq!(Ram::default().holes(7).collect::<Vec<_>>(), [span(0, 7)]);
    }

    #[test]
    fn pages_are_whole() {
        assert_eq!(span(1, 3 * 4096 + 1).pages(), span(4096, 3 * 4096));
        assert_eq!(span(1, 4097).pages().bytes(), 0);
    }
}
