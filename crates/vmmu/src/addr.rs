//! Addresses, frame numbers, levels and ranges, each a type of its own.
//!
//! Guest-physical and host-physical numbers never mix by accident, and a range is checked once,
//! when it is made. All ranges are half-open. Nothing here overflows: frame numbers have at most
//! 52 bits, so the end of the largest range still fits.

use core::fmt;

/// Bits of a frame number that select an entry in one table (Intel SDM volume 3, 4.5 and 30.3.2;
/// AMD APM volume 2, 5.3).
///
/// Models shrink the tables so that a checker can exhaust them; no hardware walks those.
pub const INDEX_BITS: u32 = if cfg!(any(loom, shuttle)) { 2 } else { 9 };

/// Entries in one table page.
pub const ENTRIES: usize = 1 << INDEX_BITS;

/// Bytes in a page.
pub const PAGE_SIZE: u64 = 4096;

const PAGE_SHIFT: u32 = 12;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[repr(transparent)]
        pub struct $name(pub u64);

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
    };
}

number!(
    /// A guest-physical address, in bytes.
    Gpa
);
number!(
    /// A guest frame number: a guest-physical address divided by 4096.
    Gfn
);
number!(
    /// A host-physical address, in bytes.
    Hpa
);
number!(
    /// A host frame number: a host-physical address divided by 4096.
    Pfn
);

impl Gpa {
    /// The frame this address lies in.
    pub const fn gfn(self) -> Gfn {
        Gfn(self.0 >> PAGE_SHIFT)
    }

    /// Bytes from the start of its 4 KiB page.
    pub const fn offset(self) -> u64 {
        self.0 & (PAGE_SIZE - 1)
    }
}

impl Hpa {
    /// The frame this address lies in.
    pub const fn pfn(self) -> Pfn {
        Pfn(self.0 >> PAGE_SHIFT)
    }
}

impl Gfn {
    /// The first byte of the frame.
    pub const fn gpa(self) -> Gpa {
        Gpa(self.0 << PAGE_SHIFT)
    }

    /// Index of the entry for this frame in a table of `level`.
    #[inline]
    pub const fn index(self, level: Level) -> usize {
        (self.0 >> level.shift()) as usize & (ENTRIES - 1)
    }

    /// The first frame of the leaf of `level` that covers this frame.
    #[inline]
    pub const fn align_down(self, level: Level) -> Gfn {
        Gfn(self.0 & !(level.pages() - 1))
    }

    /// The range of the leaf of `level` that covers this frame.
    #[inline]
    pub const fn leaf(self, level: Level) -> GfnRange {
        let start = self.align_down(level);
        GfnRange { start, end: Gfn(start.0 + level.pages()) }
    }
}

impl Pfn {
    /// The first byte of the frame.
    pub const fn hpa(self) -> Hpa {
        Hpa(self.0 << PAGE_SHIFT)
    }

    /// Whether a leaf of `level` may start here.
    #[inline]
    pub const fn is_aligned(self, level: Level) -> bool {
        self.0 & (level.pages() - 1) == 0
    }
}

/// A level of the tables, counted from the leaves: an entry of a `Size4K` table maps 4 KiB.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Level {
    /// An entry maps 4 KiB.
    Size4K = 1,
    /// An entry maps 2 MiB or points at a `Size4K` table.
    Size2M = 2,
    /// An entry maps 1 GiB or points at a `Size2M` table.
    Size1G = 3,
    /// An entry points at a `Size1G` table; the top table of a 4-level format.
    L4 = 4,
    /// An entry points at an `L4` table; the top table of a 5-level format.
    L5 = 5,
}

impl Level {
    /// The three sizes a leaf can have, smallest first.
    pub const LEAVES: [Level; 3] = [Level::Size4K, Level::Size2M, Level::Size1G];

    const fn shift(self) -> u32 {
        (self as u32 - 1) * INDEX_BITS
    }

    /// 4 KiB pages covered by one entry of this level.
    #[inline]
    pub const fn pages(self) -> u64 {
        1 << self.shift()
    }

    /// The level of that number, counted from 1; the top one for larger numbers.
    #[inline]
    pub(crate) const fn from_number(number: u32) -> Level {
        match number {
            0 | 1 => Level::Size4K,
            2 => Level::Size2M,
            3 => Level::Size1G,
            4 => Level::L4,
            _ => Level::L5,
        }
    }

    /// The next smaller level.
    pub const fn below(self) -> Option<Level> {
        match self {
            Level::Size4K => None,
            Level::Size2M => Some(Level::Size4K),
            Level::Size1G => Some(Level::Size2M),
            Level::L4 => Some(Level::Size1G),
            Level::L5 => Some(Level::L4),
        }
    }

    /// The next larger level.
    pub const fn above(self) -> Option<Level> {
        match self {
            Level::Size4K => Some(Level::Size2M),
            Level::Size2M => Some(Level::Size1G),
            Level::Size1G => Some(Level::L4),
            Level::L4 => Some(Level::L5),
            Level::L5 => None,
        }
    }

    /// Whether an entry of this level can map memory (otherwise it can only point at a table).
    #[inline]
    pub const fn can_be_leaf(self) -> bool {
        (self as u8) <= Level::Size1G as u8
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Level::Size4K => "4K",
            Level::Size2M => "2M",
            Level::Size1G => "1G",
            Level::L4 => "level 4",
            Level::L5 => "level 5",
        })
    }
}

/// A half-open range of guest frames, whose end is never before its start.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct GfnRange {
    start: Gfn,
    end: Gfn,
}

impl GfnRange {
    /// The largest frame number a range may end at: 2^52, all of a 64-bit address space.
    pub const LIMIT: u64 = 1 << (64 - PAGE_SHIFT);

    /// Every frame there is.
    pub const ALL: GfnRange = GfnRange { start: Gfn(0), end: Gfn(Self::LIMIT) };

    /// No frame.
    pub const EMPTY: GfnRange = GfnRange { start: Gfn(0), end: Gfn(0) };

    /// From `start` up to, not including, `end`. `None` if the end is before the start or beyond
    /// [`LIMIT`](Self::LIMIT).
    pub const fn new(start: Gfn, end: Gfn) -> Option<GfnRange> {
        if start.0 <= end.0 && end.0 <= Self::LIMIT { Some(GfnRange { start, end }) } else { None }
    }

    /// `pages` frames from `start`. `None` if that ends beyond [`LIMIT`](Self::LIMIT).
    pub const fn sized(start: Gfn, pages: u64) -> Option<GfnRange> {
        match start.0.checked_add(pages) {
            Some(end) => Self::new(start, Gfn(end)),
            None => None,
        }
    }

    /// First frame.
    #[inline]
    pub const fn start(self) -> Gfn {
        self.start
    }

    /// The frame after the last.
    #[inline]
    pub const fn end(self) -> Gfn {
        self.end
    }

    /// Number of frames.
    pub const fn pages(self) -> u64 {
        self.end.0 - self.start.0
    }

    /// Whether it has no frame.
    pub const fn is_empty(self) -> bool {
        self.start.0 == self.end.0
    }

    /// Whether `gfn` lies in it.
    #[inline]
    pub const fn contains(self, gfn: Gfn) -> bool {
        self.start.0 <= gfn.0 && gfn.0 < self.end.0
    }

    /// Whether all of `other` lies in it.
    #[inline]
    pub const fn covers(self, other: GfnRange) -> bool {
        self.start.0 <= other.start.0 && other.end.0 <= self.end.0
    }

    /// Whether the two have a frame in common. An empty range has none with any.
    #[inline]
    pub const fn overlaps(self, other: GfnRange) -> bool {
        let start = if self.start.0 > other.start.0 { self.start.0 } else { other.start.0 };
        let end = if self.end.0 < other.end.0 { self.end.0 } else { other.end.0 };
        start < end
    }
}

impl fmt::Display for GfnRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "gfn {:#x}..{:#x}", self.start.0, self.end.0)
    }
}

/// A range of pages of one backing. The meaning of both numbers is the host's.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct HostRange {
    /// Which backing, as given when slots were created.
    pub backing: u64,
    /// First 4 KiB page.
    pub first: u64,
    /// Number of 4 KiB pages.
    pub pages: u64,
}

impl HostRange {
    /// The page after the last; saturates at the top.
    pub const fn end(&self) -> u64 {
        self.first.saturating_add(self.pages)
    }

    /// Whether it has no page. The largest number is no page's, so a range that begins there is
    /// empty, however long it is said to be.
    pub const fn is_empty(&self) -> bool {
        self.first == self.end()
    }

    /// Whether the two have a page in common. An empty range has none with any.
    pub const fn overlaps(&self, other: &HostRange) -> bool {
        let first = if self.first > other.first { self.first } else { other.first };
        let end = if self.end() < other.end() { self.end() } else { other.end() };
        self.backing == other.backing && first < end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_end_at_the_top_of_the_address_space_without_overflow() {
        assert_eq!(GfnRange::sized(Gfn(u64::MAX), 1), None);
        assert_eq!(GfnRange::sized(Gfn(1 << 52), 1), None);
        assert_eq!(GfnRange::new(Gfn(2), Gfn(1)), None);
        let top = GfnRange::sized(Gfn((1 << 52) - 1), 1).unwrap();
        assert_eq!(top.pages(), 1);
        assert!(GfnRange::ALL.covers(top));
        assert!(GfnRange::ALL.covers(Gfn((1 << 52) - 1).leaf(Level::Size1G)));
    }

    #[test]
    fn overlap_is_half_open() {
        let range = |a, b| GfnRange::new(Gfn(a), Gfn(b)).unwrap();
        assert!(range(0, 2).overlaps(range(1, 3)));
        assert!(!range(0, 2).overlaps(range(2, 3)));
        assert!(!range(1, 1).overlaps(range(0, 1)));
        assert!(!range(1, 1).overlaps(range(0, 2)) && !range(0, 2).overlaps(range(1, 1)));
        assert!(!range(1, 1).overlaps(range(1, 1)));
        let pages = |first, pages| HostRange { backing: 0, first, pages };
        assert!(pages(0, 2).overlaps(&pages(1, 2)) && !pages(0, 2).overlaps(&pages(2, 1)));
        assert!(!pages(1, 0).overlaps(&pages(0, 2)) && !pages(0, 2).overlaps(&pages(1, 0)));
        // No page has a number as large as that.
        assert!(!pages(u64::MAX, 5).overlaps(&pages(0, u64::MAX)));
        assert!(range(0, 2).contains(Gfn(1)) && !range(0, 2).contains(Gfn(2)));
    }

    #[test]
    fn a_level_covers_what_its_index_bits_say() {
        assert_eq!(Level::Size4K.pages(), 1);
        assert_eq!(Level::Size2M.pages(), ENTRIES as u64);
        assert_eq!(Gfn(0x12345).index(Level::Size4K), 0x145);
        assert_eq!(Gfn(0x12345).index(Level::Size2M), 0x91);
        assert_eq!(Gfn(0x12345).leaf(Level::Size2M).start(), Gfn(0x12200));
        for level in Level::LEAVES {
            assert_eq!(level.below().and_then(Level::above), level.below().map(|_| level));
        }
    }
}
