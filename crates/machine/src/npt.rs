//! AMD's nested page tables (AMD APM volume 2, 15.25 "Nested Paging", 5.3 "Long-Mode Page
//! Translation", 5.4 "Page-Translation-Table Entry Fields").
//!
//! The format is that of long mode:
//!
//! * P, R/W and U/S are bits 0 to 2, A and D bits 5 and 6, PS bit 7, NX bit 63.
//! * Every nested access is a user access: U/S must be set on the whole way. CR0.WP does not
//!   matter, since it is about supervisors.
//! * Reserved are: address bits above the physical width; NX while EFER.NXE is clear; PS in entries
//!   of levels 4 and 5, and in level 3 without 1 GiB pages; the address bits below the size of a
//!   large page, but for bit 12, which is PAT there; bit 8 in pointers of levels 3 to 5 (in
//!   pointers of level 2 it is ignored).
//! * PWT, PCD, PAT and G, bits 9 to 11 and 52 to 62 have no meaning for where an access goes.
//! * A is set on every level, D in the leaf and by writes only.
//! * Reading the guest's own tables counts as writing the pages they are in.
//!
//! VMEXIT_NPF tells in EXITINFO1 the error code of a page fault (P, R/W, U/S, RSV, I/D in bits 0 to
//! 4; I/D only while EFER.NXE is set), with bit 32 if the guest's final address was being
//! translated and bit 33 if it was the address of one of the guest's tables.
//!
//! The manual does not say what a guest-physical address is to 4-level tables when it has more
//! than 48 bits; here it is not present.

use crate::entry::{Entry, address, beyond, misaligned};
pub use crate::fault::Fault;
use crate::want::{Part, Wants};
use crate::{Allows, Exit};

const PRESENT: u64 = 1;
const WRITE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const LARGE: u64 = 1 << 7;
const BIT8: u64 = 1 << 8;
const NO_EXECUTE: u64 = 1 << 63;

/// The accessed flag.
pub(crate) const ACCESSED: u64 = 1 << 5;
/// The dirty flag.
pub(crate) const DIRTY: u64 = 1 << 6;

/// What the processor allows in nested page tables.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Npt {
    /// Levels of the tables: 4, or 5 when the host runs with CR4.LA57.
    pub levels: u8,
    /// Physical address width in bits (CPUID 8000_0008 EAX): address bits above it are reserved.
    pub phys_bits: u8,
    /// The host's EFER.NXE. Without it bit 63 is reserved.
    pub nx: bool,
    /// Whether there are 1 GiB leaves (CPUID 8000_0001 EDX bit 26).
    pub gib_pages: bool,
}

impl Npt {
    /// 4 levels, 48 address bits, no-execute and 1 GiB pages.
    pub const fn new() -> Self {
        Npt { levels: 4, phys_bits: 48, nx: true, gib_pages: true }
    }

    pub(crate) fn entry(&self, word: u64, level: u8) -> Entry {
        let Npt { phys_bits, nx, gib_pages, .. } = *self;
        long_mode(word, level, &LongMode { phys_bits, nx, gib_pages, bit8_reserved: true })
    }

    pub(crate) fn exit(&self, gpa: u64, wants: Wants, why: u64) -> Exit {
        let mut code = why | Fault::USER;
        if wants.needs.contains(Allows::WRITE) {
            code |= Fault::WRITE;
        }
        if self.nx && wants.needs.contains(Allows::FETCH) {
            code |= Fault::FETCH;
        }
        code |= match wants.part {
            Part::Final => Fault::FINAL,
            Part::Table => Fault::TABLE,
        };
        Exit::NestedFault(Fault { code, gpa })
    }
}

impl Default for Npt {
    fn default() -> Self {
        Npt::new()
    }
}

/// What decides how an entry of long mode reads, in nested tables and in the guest's own.
pub(crate) struct LongMode {
    pub phys_bits: u8,
    pub nx: bool,
    pub gib_pages: bool,
    /// AMD reserves bit 8 of pointers above level 2, Intel ignores it.
    pub bit8_reserved: bool,
}

/// Reads an entry of long mode.
pub(crate) fn long_mode(word: u64, level: u8, mode: &LongMode) -> Entry {
    if word & PRESENT == 0 {
        return Entry::Absent;
    }
    let leaf = level == 1 || (word & LARGE != 0 && level <= 3);
    let mut reserved = beyond(mode.phys_bits);
    if !mode.nx {
        reserved |= NO_EXECUTE;
    }
    if level > 3 || (level == 3 && !mode.gib_pages) {
        reserved |= LARGE;
    }
    if leaf && level > 1 {
        reserved |= misaligned(level, 13);
    }
    if !leaf && level > 2 && mode.bit8_reserved {
        reserved |= BIT8;
    }
    if word & reserved != 0 {
        return Entry::Wrong;
    }
    let mut allows = Allows::READ;
    allows.set(Allows::WRITE, word & WRITE != 0);
    allows.set(Allows::USER, word & USER != 0);
    allows.set(Allows::FETCH, word & NO_EXECUTE == 0);
    if leaf {
        let low = if level == 1 { 0 } else { misaligned(level, 12) };
        Entry::Leaf(address(word) & !low, allows)
    } else {
        Entry::Table(address(word), allows)
    }
}
