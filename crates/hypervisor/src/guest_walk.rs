//! From a guest's linear address to its guest-physical one, for instructions the hypervisor
//! carries out. AMD64 APM vol. 2, sections 5.2, 5.3, 5.6.
//!
//! Protection keys and reserved bits are not judged: the processor's own walk has been through
//! the same entries before the hypervisor was called.

use crate::registers::{cr0, cr4, efer};

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// The registers a walk depends on.
#[derive(Debug, Clone, Copy)]
pub struct Paging {
    /// CR0.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// EFER.
    pub efer: u64,
    /// RFLAGS.
    pub rflags: u64,
    /// Current privilege level.
    pub cpl: u8,
}

/// What the address is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Data read.
    Read,
    /// Data write.
    Write,
    /// Instruction fetch.
    Fetch,
}

/// Why there is no address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// #PF with this error code.
    Page(u32),
    /// A table lies where the guest has no RAM.
    Table {
        /// Guest-physical address of the entry.
        gpa: u64,
    },
}

/// The guest's own page tables.
pub trait Tables {
    /// The entry of `bytes` (4 or 8) at `gpa`, or `None` where there is no RAM.
    fn entry(&mut self, gpa: u64, bytes: u8) -> Option<u64>;
    /// Sets bits of the low word of the entry at `gpa`, atomically.
    fn set(&mut self, gpa: u64, bits: u32);
}

/// The guest-physical address behind `linear`. Sets accessed and dirty bits as a processor does.
///
/// # Errors
/// The fault the access would take.
pub fn translate(
    paging: &Paging,
    linear: u64,
    access: Access,
    tables: &mut impl Tables,
) -> Result<u64, Fault> {
    if paging.cr0 & cr0::PG == 0 {
        return Ok(linear & 0xffff_ffff);
    }
    let long = paging.efer & efer::LMA != 0;
    let pae = paging.cr4 & cr4::PAE != 0;
    let (mut level, bits) = match (long, pae) {
        (true, _) if paging.cr4 & cr4::LA57 != 0 => (5, 9),
        (true, _) => (4, 9),
        (false, true) => (3, 9),
        (false, false) => (2, 10),
    };
    let width: u8 = if bits == 9 { 8 } else { 4 };
    let linear = if long { linear } else { linear & 0xffff_ffff };
    let mut table = match (long, pae) {
        (true, _) => paging.cr3 & ADDRESS,
        (false, true) => paging.cr3 & 0xffff_ffe0,
        (false, false) => paging.cr3 & 0xffff_f000,
    };
    let mut allowed = WRITABLE | USER;
    let mut no_execute = 0;
    loop {
        let shift = 12 + bits * (level - 1);
        let index = linear >> shift & ((1 << bits) - 1);
        // The four entries of PAE's top table have neither permissions nor accessed bits.
        let top_of_pae = !long && pae && level == 3;
        let gpa = table + index * u64::from(width);
        let entry = tables.entry(gpa, width).ok_or(Fault::Table { gpa })?;
        if entry & PRESENT == 0 {
            return Err(Fault::Page(error(paging, access, 0)));
        }
        if top_of_pae {
            table = entry & ADDRESS;
            level -= 1;
            continue;
        }
        allowed &= entry;
        no_execute |= entry & NO_EXECUTE;
        let large = match level {
            1 => true,
            2 => entry & LARGE != 0 && (bits == 9 || paging.cr4 & cr4::PSE != 0),
            3 => entry & LARGE != 0 && long,
            _ => false,
        };
        if !large {
            if entry & ACCESSED == 0 {
                tables.set(gpa, ACCESSED as u32);
            }
            table = entry & if width == 8 { ADDRESS } else { 0xffff_f000 };
            level -= 1;
            continue;
        }
        check(paging, access, allowed, no_execute)?;
        let marks = ACCESSED | if access == Access::Write { DIRTY } else { 0 };
        if entry & marks != marks {
            tables.set(gpa, marks as u32);
        }
        let offset = (1_u64 << shift) - 1;
        let base = match (width, level) {
            // 4 MiB pages keep address bits 39:32 in bits 20:13 (APM vol. 2, section 5.2.2).
            (4, 2) => entry & 0xffc0_0000 | (entry >> 13 & 0xff) << 32,
            (4, _) => entry & 0xffff_f000,
            _ => entry & ADDRESS,
        };
        return Ok(base & !offset | linear & offset);
    }
}

fn check(paging: &Paging, access: Access, allowed: u64, no_execute: u64) -> Result<(), Fault> {
    let user_page = allowed & USER != 0;
    let supervisor = paging.cpl != 3;
    let has = |bit| paging.cr4 & bit != 0;
    let denied = match access {
        _ if !supervisor && !user_page => true,
        Access::Fetch => {
            no_execute != 0 && paging.efer & efer::NXE != 0
                || supervisor && user_page && has(cr4::SMEP)
        }
        _ if supervisor && user_page && has(cr4::SMAP) && paging.rflags >> 18 & 1 == 0 => true,
        Access::Write => allowed & WRITABLE == 0 && (!supervisor || paging.cr0 & cr0::WP != 0),
        Access::Read => false,
    };
    if denied { Err(Fault::Page(error(paging, access, 1))) } else { Ok(()) }
}

fn error(paging: &Paging, access: Access, present: u32) -> u32 {
    let fetch_shown =
        paging.efer & efer::NXE != 0 && paging.cr4 & cr4::PAE != 0 || paging.cr4 & cr4::SMEP != 0;
    present
        | u32::from(access == Access::Write) << 1
        | u32::from(paging.cpl == 3) << 2
        | u32::from(access == Access::Fetch && fetch_shown) << 4
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeMap;

    #[derive(Default)]
    struct Map(BTreeMap<u64, u64>);

    impl Tables for Map {
        fn entry(&mut self, gpa: u64, bytes: u8) -> Option<u64> {
            if gpa >= 0x10_0000 {
                return None;
            }
            let value = self.0.get(&gpa).copied().unwrap_or(0);
            Some(if bytes == 4 { value & 0xffff_ffff } else { value })
        }
        fn set(&mut self, gpa: u64, bits: u32) {
            *self.0.entry(gpa).or_default() |= u64::from(bits);
        }
    }

    const LONG: Paging = Paging {
        cr0: cr0::PG | cr0::PE | cr0::WP,
        cr3: 0x1000,
        cr4: cr4::PAE,
        efer: efer::LMA | efer::LME | efer::NXE,
        rflags: 2,
        cpl: 0,
    };

    fn four_levels(leaf: u64) -> Map {
        let mut map = Map::default();
        map.0.extend([(0x1000, 0x2007), (0x2000, 0x3007), (0x3008, 0x4007), (0x4010, leaf)]);
        map
    }

    #[test]
    fn without_paging_the_address_is_physical() {
        let paging = Paging { cr0: 0, ..LONG };
        let mut map = Map::default();
        assert_eq!(translate(&paging, 0x1234_5678, Access::Write, &mut map), Ok(0x1234_5678));
    }

    #[test]
    fn four_levels_down_to_a_page() {
        let mut map = four_levels(0xabc_d003);
        let gpa = translate(&LONG, 0x20_2abc, Access::Read, &mut map);
        assert_eq!(gpa, Ok(0xabc_dabc));
        assert_eq!(map.0[&0x4010] & (ACCESSED | DIRTY), ACCESSED);
        translate(&LONG, 0x20_2abc, Access::Write, &mut map).unwrap();
        assert_eq!(map.0[&0x4010] & DIRTY, DIRTY);
        assert_eq!(map.0[&0x1000] & ACCESSED, ACCESSED);
    }

    #[test]
    fn large_pages() {
        let mut map = Map::default();
        map.0.extend([
            (0x1000, 0x2003),
            (0x2008, 0x4000_0083),
            (0x2000, 0x3003),
            (0x3008, 0x60_0083),
        ]);
        assert_eq!(translate(&LONG, 0x4abc_def0, Access::Read, &mut map), Ok(0x4abc_def0));
        assert_eq!(translate(&LONG, 0x21_2345, Access::Read, &mut map), Ok(0x61_2345));
    }

    #[test]
    fn thirty_two_bit_and_pae() {
        let mut map = Map::default();
        let old = Paging { cr4: cr4::PSE, efer: 0, ..LONG };
        map.0.extend([(0x1000, 0x2003), (0x2008, 0x7003), (0x1004, 0x40_2083)]);
        assert_eq!(translate(&old, 0x2042, Access::Read, &mut map), Ok(0x7042));
        assert_eq!(translate(&old, 0x41_2345, Access::Read, &mut map), Ok(0x1_0041_2345));
        let mut map = Map::default();
        let pae = Paging { efer: 0, ..LONG };
        map.0.extend([(0x1008, 0x2001), (0x2000, 0x3003), (0x3000, 0x9003)]);
        assert_eq!(translate(&pae, 0x4000_0123, Access::Write, &mut map), Ok(0x9123));
        assert_eq!(map.0[&0x1008], 0x2001, "no accessed bit in the top table");
    }

    #[test]
    fn permissions() {
        let page = |code| Err(Fault::Page(code));
        let user = Paging { cpl: 3, ..LONG };
        let at = |paging: &Paging, access, leaf| {
            translate(paging, 0x20_2000, access, &mut four_levels(leaf))
        };
        assert_eq!(at(&LONG, Access::Read, 0), page(0));
        assert_eq!(at(&LONG, Access::Write, 0x5001), page(3));
        assert_eq!(at(&Paging { cr0: cr0::PG, ..LONG }, Access::Write, 0x5001), Ok(0x5000));
        assert_eq!(at(&user, Access::Read, 0x5003), page(5));
        assert_eq!(at(&user, Access::Write, 0x5005), page(7));
        assert_eq!(at(&user, Access::Write, 0x5007), Ok(0x5000));
        assert_eq!(at(&LONG, Access::Fetch, 0x5003 | NO_EXECUTE), page(0x11));
        let guarded = Paging { cr4: cr4::PAE | cr4::SMEP | cr4::SMAP, ..LONG };
        assert_eq!(at(&guarded, Access::Fetch, 0x5007), page(0x11));
        assert_eq!(at(&guarded, Access::Read, 0x5007), page(1));
        assert_eq!(at(&Paging { rflags: 1 << 18, ..guarded }, Access::Read, 0x5007), Ok(0x5000));
    }

    #[test]
    fn tables_outside_memory_are_told() {
        let mut map = Map::default();
        map.0.insert(0x1000, 0x4000_0003);
        let fault = translate(&LONG, 0, Access::Read, &mut map);
        assert_eq!(fault, Err(Fault::Table { gpa: 0x4000_0000 }));
    }
}
