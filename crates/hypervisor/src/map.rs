//! Which memory is free: what the machine reports, less what is in use.

use alloc::vec::Vec;

/// A half-open range of addresses, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span {
    /// First byte.
    pub start: u64,
    /// Past the last byte.
    pub end: u64,
}

impl Span {
    /// The largest span of whole 4 KiB pages inside this one; may be empty.
    pub const fn pages_inside(self) -> Self {
        let start = self.start.next_multiple_of(4096);
        let end = self.end & !4095;
        Self { start, end: if end > start { end } else { start } }
    }

    /// Bytes.
    pub const fn bytes(self) -> u64 {
        self.end - self.start
    }
}

/// What is left of `memory` outside `used`: whole pages, ascending, not empty. A page of which one
/// byte is used is used.
pub fn free(memory: &[Span], used: &[Span]) -> Vec<Span> {
    let mut used: Vec<Span> = used
        .iter()
        .map(|span| Span { start: span.start & !4095, end: span.end.next_multiple_of(4096) })
        .collect();
    used.sort_unstable();
    let mut memory: Vec<Span> = memory.iter().map(|span| span.pages_inside()).collect();
    memory.sort_unstable();
    let mut spans = Vec::new();
    let mut floor = 0;
    for span in memory {
        let mut start = span.start.max(floor);
        floor = floor.max(span.end);
        for hole in &used {
            if hole.end <= start || hole.start >= span.end {
                continue;
            }
            if hole.start > start {
                spans.push(Span { start, end: hole.start });
            }
            start = hole.end;
        }
        if start < span.end {
            spans.push(Span { start, end: span.end });
        }
    }
    spans
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    const fn span(start: u64, end: u64) -> Span {
        Span { start, end }
    }

    #[test]
    fn used_pages_are_cut_out() {
        let memory = [span(0, 0x9_fc00), span(0x10_0000, 0x800_0000)];
        let used = [span(0x200_0000, 0x200_0001), span(0, 0x10_0000), span(0x1ff_f800, 0x200_0000)];
        assert_eq!(
            free(&memory, &used),
            vec![span(0x10_0000, 0x1ff_f000), span(0x200_1000, 0x800_0000)]
        );
    }

    #[test]
    fn a_page_is_free_exactly_if_it_is_memory_and_no_byte_is_used() {
        let mut state = 7_u64;
        let mut next = |limit: u64| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) % limit
        };
        for _ in 0..500 {
            let mut random = |count: usize| -> Vec<Span> {
                (0..count)
                    .map(|_| {
                        let start = next(64 * 4096);
                        span(start, start + 1 + next(16 * 4096))
                    })
                    .collect()
            };
            // Entries of the machine's list may touch, or overlap.
            let memory = [span(0x800, 0x1_0000), span(0xf000, 0x2_2000), span(0x3_0000, 0x4_0000)];
            let used = random(4);
            let free = free(&memory, &used);
            for page in 0..100 {
                let (start, end) = (page * 4096, page * 4096 + 4096);
                let inside = memory.iter().any(|m| m.start <= start && end <= m.end);
                let touched = used.iter().any(|u| u.start < end && start < u.end);
                let listed = free.iter().filter(|f| f.start <= start && end <= f.end).count();
                assert_eq!(listed, usize::from(inside && !touched), "page {page}");
            }
        }
    }
}
