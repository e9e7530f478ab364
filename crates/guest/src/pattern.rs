//! What is written to memory and must be read back: a word that depends on its own address, so
//! that a page mapped in the place of another shows.

/// The word for the eight bytes at guest-physical `address` in round `salt`.
pub const fn word(address: u64, salt: u64) -> u64 {
    // The finisher of splitmix64: a bijection, so different addresses get different words.
    let mut word = address.wrapping_add(salt.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_and_far_pages_differ() {
        let mut words: Vec<u64> = (0..4096).map(|page| word(page << 12, 1)).collect();
        words.extend((0..4096).map(|page| word(1 << 40 | page << 12, 1)));
        words.extend((0..4096).map(|page| word(page << 12, 2)));
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), 3 * 4096);
    }
}
