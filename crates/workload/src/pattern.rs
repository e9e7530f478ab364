//! Data that can be checked without keeping a copy: each word follows from a seed and its index.

use std::{fmt, hint::black_box};

/// Words in a page of 4 KiB.
pub const PAGE_WORDS: usize = 512;
/// Bytes in it.
pub const PAGE: usize = 4096;

/// The word at `index` of the pattern of `seed`. Different for different indexes (the
/// multiplier is odd), and for one index different for different seeds.
pub fn word(seed: u64, index: u64) -> u64 {
    (index ^ seed.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ seed
}

/// Writes the pattern of `seed` from index `first`.
pub fn fill(words: &mut [u64], seed: u64, first: u64) {
    for (index, slot) in (first..).zip(words) {
        *slot = word(seed, index);
    }
}

/// A word that is not what was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mismatch {
    /// Its index in the pattern.
    pub index: u64,
    /// What is there.
    pub found: u64,
    /// What was written.
    pub expected: u64,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Mismatch { index, found, expected } = self;
        write!(f, "word {index} is {found:016x}, not {expected:016x}")
    }
}

/// Reads it all again: the sum of all words, or the first that is wrong.
pub fn check(words: &[u64], seed: u64, first: u64) -> Result<u64, Mismatch> {
    // What the compiler knows of an earlier `fill` must not stand in for reading.
    let words = black_box(words);
    let mut sum = 0u64;
    for (index, &found) in (first..).zip(words) {
        let expected = word(seed, index);
        if found != expected {
            return Err(Mismatch { index, found, expected });
        }
        sum = sum.wrapping_add(found);
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_filled_is_found_again() {
        let mut words = vec![0; PAGE_WORDS];
        fill(&mut words, 7, 1000);
        assert!(check(&words, 7, 1000).is_ok());
        assert!(check(&words, 7, 1001).is_err());
        assert!(check(&words, 8, 1000).is_err());
    }

    #[test]
    fn every_flipped_bit_of_a_page_is_found_where_it_is() {
        let mut words = vec![0; PAGE_WORDS];
        fill(&mut words, 3, 0);
        for bit in 0..PAGE * 8 {
            words[bit / 64] ^= 1 << (bit % 64);
            assert_eq!(check(&words, 3, 0).unwrap_err().index, bit as u64 / 64);
            words[bit / 64] ^= 1 << (bit % 64);
        }
    }

    #[test]
    fn two_pages_of_one_pattern_are_never_taken_for_each_other() {
        let mut words = vec![0; 4 * PAGE_WORDS];
        fill(&mut words, 1, 0);
        words.rotate_left(PAGE_WORDS);
        assert_eq!(check(&words, 1, 0).unwrap_err().index, 0);
    }
}
