//! The guest's own paging (AMD APM volume 2, 5.3 "Long-Mode Page Translation"; Intel SDM volume 3,
//! chapter "Paging").
//!
//! Tables have the format of long mode, at guest-physical addresses: each is translated by the
//! nested tables before it is read, and a guest's page fault that its tables give rise to comes
//! before anything its final address would.
//!
//! * A user may do what all entries allow to users. A supervisor writes to read-only pages unless
//!   CR0.WP is set, does not fetch from user pages with CR4.SMEP and does not touch data in them
//!   with CR4.SMAP.
//! * XD forbids fetching with EFER.NXE set, and is reserved otherwise.
//! * Reserved are the same bits as in AMD's nested tables; bit 8 of pointers on AMD only.
//! * A is set on every level and D in the leaf by writes, before the final address is translated.
//! * The error code has P, W/R, U/S, RSV and I/D in bits 0 to 4; I/D only while EFER.NXE or
//!   CR4.SMEP is set.
//!
//! Process-context identifiers and protection keys are off. Addresses are canonical: bits above
//! those that the tables translate are not looked at.

use crate::entry::Entry;
use crate::npt::{LongMode, long_mode};
use crate::{Access, Allows, Exit};

/// The accessed flag of the guest's entries.
pub(crate) const ACCESSED: u64 = 1 << 5;
/// The dirty flag of the guest's leaves.
pub(crate) const DIRTY: u64 = 1 << 6;
/// The global flag of the guest's leaves.
pub(crate) const GLOBAL: u64 = 1 << 8;

/// How the guest translates linear to guest-physical addresses.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Paging {
    /// Not at all (CR0.PG = 0): linear addresses are guest-physical.
    Off,
    /// Long mode.
    Long(Long),
}

/// The guest's state in long mode.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Long {
    /// Guest-physical address of the top table, in bytes.
    pub cr3: u64,
    /// Levels of the tables: 4, or 5 with CR4.LA57.
    pub levels: u8,
    /// CR0.WP: supervisor writes obey read-only entries.
    pub wp: bool,
    /// EFER.NXE: bit 63 forbids fetching. Without it bit 63 is reserved.
    pub nx: bool,
    /// CR4.SMEP: supervisors do not fetch from user pages.
    pub smep: bool,
    /// CR4.SMAP, while EFLAGS.AC is clear: supervisors do not touch data in user pages.
    pub smap: bool,
    /// Whether accesses are made as user (CPL 3).
    pub user: bool,
    /// The physical address width that the guest sees, in bits.
    pub phys_bits: u8,
    /// Whether there are 1 GiB pages.
    pub gib_pages: bool,
}

/// Bits of a page fault's error code.
pub mod page_fault {
    /// The entry was present.
    pub const PRESENT: u32 = 1;
    /// It was a write.
    pub const WRITE: u32 = 1 << 1;
    /// It was a user access.
    pub const USER: u32 = 1 << 2;
    /// A reserved bit was set.
    pub const RESERVED: u32 = 1 << 3;
    /// It was an instruction fetch.
    pub const FETCH: u32 = 1 << 4;
}

impl Long {
    /// A supervisor in 4 levels with everything on, 48 address bits and 1 GiB pages.
    pub const fn new(cr3: u64) -> Self {
        Long {
            cr3,
            levels: 4,
            wp: true,
            nx: true,
            smep: true,
            smap: true,
            user: false,
            phys_bits: 48,
            gib_pages: true,
        }
    }

    /// Reads an entry of the guest's tables, on a processor that reserves bit 8 of pointers or not.
    pub(crate) fn entry(&self, word: u64, level: u8, bit8_reserved: bool) -> Entry {
        let Long { phys_bits, nx, gib_pages, .. } = *self;
        long_mode(word, level, &LongMode { phys_bits, nx, gib_pages, bit8_reserved })
    }

    /// Whether entries that together allow `allows` permit the access.
    pub(crate) fn permits(&self, allows: Allows, access: Access) -> bool {
        let user_page = allows.contains(Allows::USER);
        if self.user && !user_page {
            return false;
        }
        let supervisor = !self.user;
        match access {
            Access::Read => !(supervisor && self.smap && user_page),
            Access::Write => {
                !(supervisor && self.smap && user_page)
                    && (allows.contains(Allows::WRITE) || (supervisor && !self.wp))
            }
            Access::Fetch => {
                allows.contains(Allows::FETCH) && !(supervisor && self.smep && user_page)
            }
        }
    }

    /// The guest's page fault; `why` says whether an entry was present or wrong.
    pub(crate) fn fault(&self, address: u64, access: Access, why: u32) -> Exit {
        let mut code = why;
        if access == Access::Write {
            code |= page_fault::WRITE;
        }
        if self.user {
            code |= page_fault::USER;
        }
        if access == Access::Fetch && (self.nx || self.smep) {
            code |= page_fault::FETCH;
        }
        Exit::PageFault { code, address }
    }
}
