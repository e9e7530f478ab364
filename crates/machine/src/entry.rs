//! What a walker makes of one word of a table.

use crate::Allows;

/// Bits 51 to 12 of a word: the most an address can have.
const ADDRESS: u64 = ((1 << 52) - 1) & !0xfff;

/// A word of a table, as a format reads it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Entry {
    /// Not present.
    Absent,
    /// Present, with something set that must not be.
    Wrong,
    /// The address of a table of the next level.
    Table(u64, Allows),
    /// The address of a page of this level.
    Leaf(u64, Allows),
}

/// The address field of a word.
pub(crate) const fn address(word: u64) -> u64 {
    word & ADDRESS
}

/// Address bits that a processor with so many physical address bits reserves.
pub(crate) const fn beyond(phys_bits: u8) -> u64 {
    if phys_bits >= 52 { 0 } else { ADDRESS & !((1 << phys_bits) - 1) }
}

/// Number of address bits below an entry of `level`: 12 for level 1, 21 for level 2 and so on.
pub(crate) const fn shift(level: u8) -> u8 {
    3 + 9 * level
}

/// Address bits of a leaf of `level` that lie below its size, from bit `from` on.
pub(crate) const fn misaligned(level: u8, from: u8) -> u64 {
    ((1 << shift(level)) - 1) & !((1 << from) - 1)
}

/// Bytes from the start of a table of `level` to the entry for `address`.
pub(crate) const fn offset(address: u64, level: u8) -> u64 {
    (address >> shift(level) & 0x1ff) * 8
}

/// `address` with the bits below `shift` cleared.
pub(crate) const fn base(address: u64, shift: u8) -> u64 {
    address & !((1 << shift) - 1)
}

/// The bits of `address` below `shift`.
pub(crate) const fn within(address: u64, shift: u8) -> u64 {
    address & ((1 << shift) - 1)
}
