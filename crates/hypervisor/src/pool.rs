//! Host memory: naturally aligned frames of 4 KiB, 2 MiB and 1 GiB.
//!
//! One bit per block and size, set while the block is free *as a whole at that size*. Taking a
//! smaller block splits a larger one, giving back joins again, so that after a guest is gone the
//! next one finds the large blocks the first one found. The lowest block that fits is taken:
//! the same requests get the same frames in every run.

use alloc::{vec, vec::Vec};

/// Bytes of the smallest block.
pub const FRAME: u64 = 4096;

/// Size of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Size {
    /// 4 KiB.
    K4,
    /// 2 MiB.
    M2,
    /// 1 GiB.
    G1,
}

impl Size {
    /// All, smallest first.
    pub const ALL: [Self; 3] = [Self::K4, Self::M2, Self::G1];

    /// 4 KiB frames in a block of this size.
    pub const fn frames(self) -> u64 {
        1 << (9 * self as u32)
    }

    /// Bytes in a block of this size.
    pub const fn bytes(self) -> u64 {
        FRAME * self.frames()
    }

    /// The next larger size.
    pub const fn larger(self) -> Option<Self> {
        match self {
            Self::K4 => Some(Self::M2),
            Self::M2 => Some(Self::G1),
            Self::G1 => None,
        }
    }

    /// The next smaller size.
    pub const fn smaller(self) -> Option<Self> {
        match self {
            Self::K4 => None,
            Self::M2 => Some(Self::K4),
            Self::G1 => Some(Self::M2),
        }
    }
}

#[derive(Debug, Default)]
struct Level {
    /// Bit n: block n is free as a whole.
    bits: Vec<u64>,
    free: u64,
    /// No free block lies below this word.
    hint: usize,
}

impl Level {
    fn set(&mut self, block: u64) {
        let word = (block / 64) as usize;
        self.bits[word] |= 1 << (block % 64);
        self.free += 1;
        self.hint = self.hint.min(word);
    }

    fn clear(&mut self, block: u64) {
        self.bits[(block / 64) as usize] &= !(1 << (block % 64));
        self.free -= 1;
    }

    fn is_set(&self, block: u64) -> bool {
        self.bits[(block / 64) as usize] >> (block % 64) & 1 == 1
    }

    fn take_lowest(&mut self) -> Option<u64> {
        if self.free == 0 {
            return None;
        }
        let (word, bits) =
            self.bits.iter().enumerate().skip(self.hint).find(|(_, bits)| **bits != 0)?;
        let block = word as u64 * 64 + u64::from(bits.trailing_zeros());
        self.hint = word;
        self.clear(block);
        Some(block)
    }

    /// The 512 blocks that make up `parent` of the next larger size.
    fn siblings(&mut self, parent: u64) -> &mut [u64] {
        let first = (parent * 8) as usize;
        &mut self.bits[first..first + 8]
    }
}

/// The free frames.
#[derive(Debug, Default)]
pub struct Pool {
    levels: [Level; 3],
    free: u64,
    total: u64,
}

impl Pool {
    /// A pool for frames below `end` (a frame number), empty at first.
    pub fn new(end: u64) -> Self {
        let gigas = end.div_ceil(Size::G1.frames()).next_multiple_of(64);
        let level = |size: Size| Level {
            bits: vec![0; (gigas * (Size::G1.frames() / size.frames()) / 64) as usize],
            free: 0,
            hint: 0,
        };
        Self { levels: Size::ALL.map(level), free: 0, total: 0 }
    }

    /// Bytes of bookkeeping a pool for frames below `end` needs.
    pub const fn bookkeeping(end: u64) -> u64 {
        let gigas = end.div_ceil(Size::G1.frames()).next_multiple_of(64);
        gigas / 8 * (1 + 512 + 512 * 512)
    }

    /// Adds the frames `first..end`, which the pool never had.
    pub fn add(&mut self, first: u64, end: u64) {
        self.total += end.saturating_sub(first);
        let mut frame = first;
        while frame < end {
            let fits =
                |size: &Size| frame.is_multiple_of(size.frames()) && frame + size.frames() <= end;
            let size = Size::ALL.into_iter().rev().find(fits).unwrap_or(Size::K4);
            self.put(frame, size);
            frame += size.frames();
        }
    }

    /// The lowest free block of this size, as the number of its first frame.
    pub fn take(&mut self, size: Size) -> Option<u64> {
        let block = match self.levels[size as usize].take_lowest() {
            Some(block) => block,
            None => self.split(size)?,
        };
        self.free -= size.frames();
        Some(block * size.frames())
    }

    /// Takes a block of the next larger size apart and gives its first part.
    fn split(&mut self, size: Size) -> Option<u64> {
        let larger = size.larger()?;
        let parent = match self.levels[larger as usize].take_lowest() {
            Some(parent) => parent,
            None => self.split(larger)?,
        };
        let level = &mut self.levels[size as usize];
        level.siblings(parent).fill(!0);
        level.free += 512;
        level.hint = level.hint.min((parent * 8) as usize);
        level.clear(parent * 512);
        Some(parent * 512)
    }

    /// Gives a block back that [`Self::take`] gave, or a part of one.
    pub fn put(&mut self, frame: u64, size: Size) {
        self.free += size.frames();
        let mut block = frame / size.frames();
        let mut size = size;
        debug_assert!(!self.levels[size as usize].is_set(block), "frame {frame:#x} given twice");
        loop {
            self.levels[size as usize].set(block);
            let Some(larger) = size.larger() else { return };
            let level = &mut self.levels[size as usize];
            if level.siblings(block / 512).iter().any(|bits| *bits != !0) {
                return;
            }
            level.siblings(block / 512).fill(0);
            level.free -= 512;
            block /= 512;
            size = larger;
        }
    }

    /// Free frames of 4 KiB, in blocks of any size.
    pub const fn free(&self) -> u64 {
        self.free
    }

    /// Frames of 4 KiB the pool has ever got.
    pub const fn total(&self) -> u64 {
        self.total
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeMap;

    fn assert_consistent(pool: &Pool) {
        for level in &pool.levels {
            let bits: u64 = level.bits.iter().map(|word| u64::from(word.count_ones())).sum();
            assert_eq!(level.free, bits);
            assert!(level.bits[..level.hint].iter().all(|word| *word == 0));
        }
    }

    #[test]
    fn blocks_are_naturally_aligned_and_never_overlap() {
        let mut pool = Pool::new(4 << 18);
        pool.add(0x123, 0x9_f123);
        let mut taken: BTreeMap<u64, Size> = BTreeMap::new();
        let mut state = 1_u64;
        for round in 0..4_000 {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let choice = state >> 33;
            let size = Size::ALL[[0, 0, 0, 0, 1, 1, 2][(choice % 7) as usize]];
            if choice & 0x100 == 0 || taken.is_empty() {
                let Some(frame) = pool.take(size) else { continue };
                assert_eq!(frame % size.frames(), 0);
                assert!(frame >= 0x123 && frame + size.frames() <= 0x9_f123);
                let below = taken.range(..frame + size.frames()).next_back();
                if let Some((&other, &other_size)) = below {
                    assert!(other + other_size.frames() <= frame, "round {round}");
                }
                taken.insert(frame, size);
            } else {
                let nth = (choice >> 9) as usize % taken.len();
                let (&frame, &size) = taken.iter().nth(nth).unwrap();
                taken.remove(&frame);
                pool.put(frame, size);
            }
            if round % 100 == 0 {
                assert_consistent(&pool);
            }
            let out: u64 = taken.values().map(|size| size.frames()).sum();
            assert_eq!(pool.free() + out, pool.total());
        }
    }

    #[test]
    fn what_was_split_joins_again() {
        let mut pool = Pool::new(2 << 18);
        pool.add(0, 2 << 18);
        let frames: Vec<u64> = core::iter::from_fn(|| pool.take(Size::K4)).collect();
        assert_eq!(frames.len(), 2 << 18);
        assert_eq!(pool.take(Size::M2), None);
        // Odd frames first, so that every join happens late.
        for parity in [1, 0] {
            for frame in frames.iter().filter(|frame| *frame % 2 == parity) {
                pool.put(*frame, Size::K4);
            }
        }
        assert_consistent(&pool);
        assert_eq!(pool.take(Size::G1), Some(0));
        assert_eq!(pool.take(Size::G1), Some(1 << 18));
        assert_eq!(pool.free(), 0);
    }

    #[test]
    fn the_lowest_block_is_taken() {
        let mut pool = Pool::new(1 << 18);
        pool.add(3, 2048);
        assert_eq!(pool.take(Size::K4), Some(3));
        assert_eq!(pool.take(Size::M2), Some(512));
        assert_eq!(pool.take(Size::K4), Some(4));
        pool.put(3, Size::K4);
        assert_eq!(pool.take(Size::K4), Some(3));
        assert_eq!(pool.take(Size::G1), None);
        let last = (0..200).filter_map(|_| pool.take(Size::K4)).last();
        assert_eq!(last, Some(204));
        pool.put(7, Size::K4);
        assert_eq!(pool.take(Size::K4), Some(7));
    }

    #[test]
    fn a_large_block_can_be_given_back_in_parts() {
        let mut pool = Pool::new(1 << 18);
        pool.add(0, 1 << 18);
        let frame = pool.take(Size::G1).unwrap();
        for part in 0..512 {
            pool.put(frame + part * 512, Size::M2);
        }
        assert_eq!(pool.take(Size::G1), Some(frame));
    }
}
