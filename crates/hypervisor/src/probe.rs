//! Asking the processor's own page walker: table words and one access go in, how it ended and
//! which words are different afterwards come out.
//!
//! In this mode the hypervisor boots no guest and uses nothing of vmmu. A [`Case`] is written into
//! the [`Arena`] word by word, a few instructions are run as a guest on whatever the words say,
//! and the [`Outcome`] is sent back. Who made the cases works out what should have come.
//!
//! # The arena
//!
//! Two blocks of 2 MiB side by side. Only the first [`FRAMES`] pages of each are used, so that a
//! page of 4 KiB, of 2 MiB and of 1 GiB can all lead to a known word. Every other word of the
//! blocks stays zero, and at the end of a run that is looked at.

use alloc::{vec, vec::Vec};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use serde::{Deserialize, Serialize};

/// Bytes of a block of the arena.
pub const BLOCK: u64 = 2 << 20;
/// Blocks of the arena.
pub const BLOCKS: usize = 2;
/// Pages at the start of each block that are used.
pub const FRAMES: usize = 16;
/// Words of a page.
pub const PER_FRAME: usize = 512;
/// Words of the arena that are used.
pub const WORDS: usize = BLOCKS * FRAMES * PER_FRAME;
/// Outcomes that travel in one frame.
pub const TOGETHER: usize = 64;

/// What to probe, as a part of the job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Probe<'a> {
    /// Physical address of the arena, aligned to two blocks.
    pub arena: u64,
    /// Words every case begins with; all others are zero.
    pub image: Vec<Word>,
    /// How many cases follow.
    pub count: u32,
    /// The cases, one [`Case`] in postcard behind the other: they are read one at a time.
    pub cases: &'a [u8],
}

/// A word of the arena.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Word {
    /// Which, from 0 to [`WORDS`]; see [`address`].
    pub index: u16,
    /// Its value.
    pub value: u64,
}

/// Words over the image, and one access.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Case {
    /// State of the processor at the guest's first instruction.
    pub registers: Registers,
    /// Words that are not the image's.
    pub words: Vec<Word>,
}

/// What the guest starts with. Flat segments, interrupts off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registers {
    /// Top nested table.
    pub n_cr3: u64,
    /// EFER.NXE of the hypervisor, which nested tables go by.
    pub host_nx: bool,
    /// Whether the code is 64-bit; 32-bit otherwise.
    pub long: bool,
    /// CR0.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// EFER; SVME is added.
    pub efer: u64,
    /// Privilege level, 0 or 3.
    pub cpl: u8,
    /// RFLAGS.
    pub rflags: u64,
    /// First instruction.
    pub rip: u64,
    /// RAX.
    pub rax: u64,
    /// RSI.
    pub rsi: u64,
    /// RDI.
    pub rdi: u64,
}

/// What came of a case.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// Exit code (AMD64 APM vol. 2, appendix C).
    pub exit: u64,
    /// EXITINFO1.
    pub info1: u64,
    /// EXITINFO2.
    pub info2: u64,
    /// The instruction it ended at.
    pub rip: u64,
    /// RBX, which was zero at the start.
    pub rbx: u64,
    /// Words that are not what they were, in the order of their numbers.
    pub changed: Vec<Word>,
}

/// Physical address of word `index` of an arena at `arena`.
pub const fn address(arena: u64, index: usize) -> u64 {
    let (block, word) = (index / (FRAMES * PER_FRAME), index % (FRAMES * PER_FRAME));
    arena + block as u64 * BLOCK + word as u64 * 8
}

/// The word at a physical address, if it is one that is used.
pub const fn index(arena: u64, address: u64) -> Option<usize> {
    let Some(offset) = address.checked_sub(arena) else { return None };
    let (block, word) = ((offset / BLOCK) as usize, (offset % BLOCK / 8) as usize);
    if block >= BLOCKS || word >= FRAMES * PER_FRAME || !offset.is_multiple_of(8) {
        return None;
    }
    Some(block * FRAMES * PER_FRAME + word)
}

/// The words in memory, and what they were before the access.
#[derive(Debug)]
pub struct Arena<'m> {
    blocks: [&'m [AtomicU64]; BLOCKS],
    before: Vec<u64>,
    image: Vec<Word>,
}

impl<'m> Arena<'m> {
    /// The used words of each block, and what every case begins with.
    pub fn new(blocks: [&'m [AtomicU64]; BLOCKS], image: Vec<Word>) -> Self {
        Self { blocks, before: vec![0; WORDS], image }
    }

    /// Word number `index`.
    pub fn word(&self, index: usize) -> Option<&'m AtomicU64> {
        self.blocks.get(index / (FRAMES * PER_FRAME))?.get(index % (FRAMES * PER_FRAME))
    }

    /// Writes the image and a case over it.
    pub fn set(&mut self, case: &Case) {
        self.before.fill(0);
        for Word { index, value } in self.image.iter().chain(&case.words) {
            if let Some(before) = self.before.get_mut(usize::from(*index)) {
                *before = *value;
            }
        }
        for (index, value) in self.before.iter().enumerate() {
            if let Some(word) = self.word(index)
                && word.load(Relaxed) != *value
            {
                word.store(*value, Relaxed);
            }
        }
    }

    /// Words that are not what [`Self::set`] made them.
    pub fn changed(&self) -> Vec<Word> {
        let mut changed = Vec::new();
        for (index, before) in self.before.iter().enumerate() {
            let value = self.word(index).map_or(0, |word| word.load(Relaxed));
            if value != *before {
                changed.push(Word { index: index as u16, value });
            }
        }
        changed
    }

    /// Makes every word zero.
    pub fn clear(&mut self) {
        self.before.fill(0);
        for index in 0..WORDS {
            if let Some(word) = self.word(index) {
                word.store(0, Relaxed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_numbers_of_words_belong_together() {
        let arena = 128 << 20;
        for number in 0..WORDS {
            assert_eq!(index(arena, address(arena, number)), Some(number));
        }
        assert_eq!(address(arena, FRAMES * PER_FRAME), arena + BLOCK);
        for beside in [arena - 8, arena + 4, arena + 16 * 4096, arena + 2 * BLOCK] {
            assert_eq!(index(arena, beside), None, "{beside:#x}");
        }
    }

    fn case(words: &[(u16, u64)]) -> Case {
        let registers = Registers {
            n_cr3: 0,
            host_nx: true,
            long: true,
            cr0: 0,
            cr3: 0,
            cr4: 0,
            efer: 0,
            cpl: 0,
            rflags: 2,
            rip: 0,
            rax: 0,
            rsi: 0,
            rdi: 0,
        };
        let words = words.iter().map(|&(index, value)| Word { index, value }).collect();
        Case { registers, words }
    }

    #[test]
    fn what_is_different_after_a_case_is_told_and_nothing_is_left_for_the_next() {
        let memory: Vec<AtomicU64> = (0..WORDS).map(|_| AtomicU64::new(0)).collect();
        let (first, second) = memory.split_at(WORDS / 2);
        let image = vec![Word { index: 3, value: 30 }, Word { index: 5, value: 50 }];
        let mut arena = Arena::new([first, second], image);
        arena.set(&case(&[(5, 51), (16_383, 7)]));
        assert_eq!(memory[3].load(Relaxed), 30);
        assert_eq!(memory[5].load(Relaxed), 51, "a case is written over the image");
        assert_eq!(arena.changed(), []);
        memory[3].fetch_or(1, Relaxed);
        memory[9].store(90, Relaxed);
        memory[16_383].store(0, Relaxed);
        let changed = [(3, 31), (9, 90), (16_383, 0)].map(|(index, value)| Word { index, value });
        assert_eq!(arena.changed(), changed);
        arena.set(&case(&[]));
        assert_eq!(arena.changed(), []);
        assert_eq!(memory[5].load(Relaxed), 50);
        assert_eq!(memory[9].load(Relaxed), 0);
        assert_eq!(memory[16_383].load(Relaxed), 0, "nothing is left of the case before");
        arena.clear();
        assert!(memory.iter().all(|word| word.load(Relaxed) == 0));
    }
}
