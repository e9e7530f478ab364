//! Intel's extended page tables (Intel SDM volume 3, chapter "VMX Support for Address
//! Translation", "The Extended Page Table Mechanism").
//!
//! * R, W and X are bits 0 to 2; an entry with none of them is not present. In a leaf the memory
//!   type is bits 3 to 5 and bit 6 hides the guest's PAT; bit 7 makes a leaf; A and D are bits 8
//!   and 9, ignored unless the EPT pointer switches them on.
//! * A present entry is *misconfigured* if it allows writing but not reading; if it is execute-only
//!   on a processor that has no such thing; if a reserved bit is set: address bits above the
//!   physical width, bits 3 to 7 of entries of levels 4 and 5 and 3 to 6 of other pointers, bit 7
//!   where there are no pages of that size, address bits from 12 on below the size of a large page;
//!   or if a leaf has memory type 2, 3 or 7.
//! * A misconfiguration met on the way comes before a violation of what the entries allow, which is
//!   judged at the end; an entry that is not present ends the way.
//! * A is set on every level, D in the leaf and by writes only.
//! * With A and D on, reading the guest's own tables counts as writing the pages they are in. With
//!   them off it is a read, and setting a flag in the guest's table is a write.
//!
//! The exit qualification of a violation tells in bits 0 to 2 what was wanted, in bits 3 to 5 what
//! all entries together allow (nothing if one was absent); bit 7, that a linear address led here,
//! which is always so in this crate; bit 8, that the final address was being translated, not that
//! of one of the guest's tables. Advanced information is not reported. For a read-modify-write the
//! manual leaves bit 0 to the processor; here it is clear, but for accesses to the guest's tables
//! with A and D on, where the manual wants bits 0 and 1.
//!
//! A guest-physical address with more bits than the tables translate is a violation.

use crate::entry::{Entry, address, beyond, misaligned};
use crate::want::{Part, Wants};
use crate::{Allows, Exit};

const READ: u64 = 1;
const WRITE: u64 = 1 << 1;
const EXECUTE: u64 = 1 << 2;
const LARGE: u64 = 1 << 7;

/// The accessed flag.
pub(crate) const ACCESSED: u64 = 1 << 8;
/// The dirty flag.
pub(crate) const DIRTY: u64 = 1 << 9;

/// What the processor and the EPT pointer allow in extended page tables.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Ept {
    /// Levels of the tables: 4 or 5.
    pub levels: u8,
    /// Physical address width in bits (CPUID 8000_0008 EAX): address bits above it are reserved.
    pub phys_bits: u8,
    /// Whether accessed and dirty flags are on (EPTP bit 6).
    pub ad: bool,
    /// Whether execute-only entries exist.
    pub exec_only: bool,
    /// Whether there are 2 MiB leaves.
    pub mib_pages: bool,
    /// Whether there are 1 GiB leaves.
    pub gib_pages: bool,
}

/// Bits of the exit qualification.
pub mod qualification {
    /// A read was wanted.
    pub const READ: u64 = 1;
    /// A write was wanted.
    pub const WRITE: u64 = 1 << 1;
    /// A fetch was wanted.
    pub const FETCH: u64 = 1 << 2;
    /// All entries allow reading.
    pub const READABLE: u64 = 1 << 3;
    /// All entries allow writing.
    pub const WRITABLE: u64 = 1 << 4;
    /// All entries allow fetching.
    pub const EXECUTABLE: u64 = 1 << 5;
    /// A linear address led here.
    pub const LINEAR: u64 = 1 << 7;
    /// The final address was being translated, not that of one of the guest's tables.
    pub const FINAL: u64 = 1 << 8;
}

impl Ept {
    /// 4 levels, 46 address bits, with everything optional.
    pub const fn new() -> Self {
        Ept {
            levels: 4,
            phys_bits: 46,
            ad: true,
            exec_only: true,
            mib_pages: true,
            gib_pages: true,
        }
    }

    pub(crate) fn entry(&self, word: u64, level: u8) -> Entry {
        let access = word & (READ | WRITE | EXECUTE);
        if access == 0 {
            return Entry::Absent;
        }
        if access & (READ | WRITE) == WRITE || (access == EXECUTE && !self.exec_only) {
            return Entry::Wrong;
        }
        let large = match level {
            2 => self.mib_pages,
            3 => self.gib_pages,
            _ => false,
        };
        let leaf = level == 1 || (large && word & LARGE != 0);
        let mut reserved = beyond(self.phys_bits);
        if leaf {
            // Bit 7 of a 4 KiB leaf is ignored.
            if level > 1 {
                reserved |= misaligned(level, 12);
            }
            if matches!(word >> 3 & 7, 2 | 3 | 7) {
                return Entry::Wrong;
            }
        } else {
            reserved |= 0b1111_1000;
        }
        if word & reserved != 0 {
            return Entry::Wrong;
        }
        let mut allows = Allows::USER;
        allows.set(Allows::READ, access & READ != 0);
        allows.set(Allows::WRITE, access & WRITE != 0);
        allows.set(Allows::FETCH, access & EXECUTE != 0);
        if leaf { Entry::Leaf(address(word), allows) } else { Entry::Table(address(word), allows) }
    }
}

/// The exit for an access that all entries together, allowing `allows`, forbid.
pub(crate) fn violation(gpa: u64, wants: Wants, allows: Allows) -> Exit {
    use qualification::{EXECUTABLE, FETCH, FINAL, LINEAR, READ, READABLE, WRITABLE, WRITE};
    let mut told = LINEAR;
    for (flag, wanted, allowed) in [
        (Allows::READ, READ, READABLE),
        (Allows::WRITE, WRITE, WRITABLE),
        (Allows::FETCH, FETCH, EXECUTABLE),
    ] {
        if wants.needs.contains(flag) {
            told |= wanted;
        }
        if allows.contains(flag) {
            told |= allowed;
        }
    }
    if wants.part == Part::Final {
        told |= FINAL;
    }
    Exit::EptViolation { qualification: told, gpa }
}

impl Default for Ept {
    fn default() -> Self {
        Ept::new()
    }
}
