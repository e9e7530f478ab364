//! Cases drawn by chance.
//!
//! A case begins as a path that works, down to a leaf of any size; every entry gets what hardware
//! ignores at random, and now and then one rule is broken: not present, read-only, supervisor,
//! no-execute, an address beyond the physical width, a large page off its boundary, a large page
//! where there is none, a table where a page was, another page of the arena, an address without
//! memory, or nothing but random bits.
//!
//! What is drawn depends on the seed and the number of the case, and on nothing else.

use fastrand::Rng;
use hypervisor::probe::{BLOCK, BLOCKS, Case, FRAMES, Registers, Word};

use super::stage::{
    self, ARENA, CODE_SLOT, ENTRY, FLAT_CODE_SLOT, HIGH_SLOT, OFFSET, at, bit, page, slot,
};

/// Whose entries are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// The nested tables'.
    Nested,
    /// The guest's own.
    Guest,
    /// Both.
    Both,
    /// The nested tables' again, under a guest without paging.
    Flat,
}

/// What the guest does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Loads a word.
    Read,
    /// Stores a word.
    Write,
    /// Loads a word, then stores one.
    Update,
    /// Exchanges a word with a register.
    Exchange,
    /// Executes at the address.
    Fetch,
}

/// A case, and what it is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drawn {
    /// Its number in the run.
    pub number: u32,
    /// Whose entries are drawn.
    pub class: Class,
    /// What the guest does.
    pub access: Access,
    /// With which linear address. Data is accessed at it; without paging, where it is 32 bits, at
    /// the upper half of the word.
    pub linear: u64,
    /// The case.
    pub case: Case,
}

/// What is stored.
pub const STORED: u64 = 0x7772_6974_7465_6e21;

/// Linear addresses of the instructions that make an access, and of the VMMCALL behind them.
/// Nothing for a fetch, which needs none.
pub fn code(access: Access, class: Class) -> Vec<u64> {
    // In 32-bit code the first byte of an instruction is another one.
    let (address, first): (fn(u64) -> u64, u64) = match class {
        Class::Flat => (stage::flat_code, 1),
        _ => (stage::code, 0),
    };
    let offsets = match access {
        Access::Read => vec![first, 3],
        Access::Write => vec![8 + first, 11],
        Access::Exchange => vec![16 + first, 22],
        Access::Update => vec![32 + first, 35 + first, 38],
        Access::Fetch => vec![],
    };
    offsets.into_iter().map(address).collect()
}

impl Drawn {
    /// Whether the guest has no paging.
    pub fn flat(&self) -> bool {
        self.class == Class::Flat
    }
}

/// Case `number` of the run with `seed`.
pub fn draw(seed: u64, number: u32) -> Drawn {
    Draw::new(seed, number).case(number)
}

struct Draw {
    rng: Rng,
    class: Class,
    access: Access,
    words: Vec<Word>,
    /// Chance of an entry to break a rule, of 256.
    breaks: u16,
    /// Entry of the nested PDPT in use.
    high: usize,
    /// Whether the guest's entries are a user's.
    user: bool,
}

/// Which tables an entry is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Nested,
    Guest,
}

impl Draw {
    fn new(seed: u64, number: u32) -> Self {
        let mut rng = Rng::with_seed(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ u64::from(number));
        let (class, entries) = match rng.u8(0..8) {
            0..3 => (Class::Nested, 4),
            3..5 => (Class::Guest, 4),
            // Every entry of the guest is found through up to four others.
            5..7 => (Class::Both, 16),
            _ => (Class::Flat, 3),
        };
        // Rules broken on the way.
        let breaks = [64, 192, 400][rng.usize(0..3)] / entries;
        let high = match class {
            Class::Flat => rng.usize(0..FLAT_CODE_SLOT),
            _ => Self::entry_number(&mut rng),
        };
        let access = match rng.u8(0..10) {
            0..3 => Access::Read,
            3..5 => Access::Write,
            5 => Access::Update,
            6 => Access::Exchange,
            _ => Access::Fetch,
        };
        let user = rng.bool();
        Self { rng, class, access, words: Vec::new(), breaks, high, user }
    }

    fn chance(&mut self, percent: u8) -> bool {
        self.rng.u8(0..100) < percent
    }

    /// An entry of an upper table, often a low one: tables that refer to each other in unusual
    /// ways then meet entries that are there.
    fn entry_number(rng: &mut Rng) -> usize {
        loop {
            let number = if rng.bool() { rng.usize(0..FRAMES) } else { rng.usize(0..512) };
            if number != ENTRY {
                return number;
            }
        }
    }

    fn put(&mut self, frame: usize, entry: usize, value: u64) {
        self.words.push(Word { index: slot(0, frame, entry), value });
    }

    fn any_page(&mut self) -> u64 {
        at(self.rng.usize(0..BLOCKS), self.rng.usize(0..FRAMES))
    }

    /// A drawn guest-physical address from one below the arena's length.
    fn high(&self, low: u64) -> u64 {
        (HIGH_SLOT as u64) << 39 | (self.high as u64) << 30 | low
    }

    /// Guest-physical address of something in the arena, for an entry of the guest.
    fn gpa(&mut self, physical: u64) -> u64 {
        match self.class {
            Class::Both if self.rng.bool() => self.high(physical - ARENA),
            _ => physical,
        }
    }

    /// Everything a processor ignores or keeps for itself.
    fn ignored(&mut self, level: u8, leaf: bool) -> u64 {
        let mut bits = 0;
        let mut sometimes = |percent: u8, mask: u64| {
            if self.rng.u8(0..100) < percent {
                bits |= self.rng.u64(..) & mask;
            }
        };
        sometimes(80, bit::A);
        sometimes(80, bit::D);
        sometimes(40, 3 << 3);
        sometimes(50, 7 << 9);
        sometimes(50, 0x7f << 52);
        sometimes(25, 0xf << 59);
        match (level, leaf) {
            (1, _) => sometimes(50, bit::PS | bit::G),
            (_, true) => sometimes(50, bit::G | 1 << 12),
            (2, false) => sometimes(20, bit::G),
            (_, false) => sometimes(3, bit::G),
        }
        bits
    }

    /// An entry that leads to `target`, or breaks a rule.
    fn entry(&mut self, side: Side, level: u8, leaf: bool, target: u64) -> u64 {
        let user = side == Side::Nested || self.user;
        let mut entry = target | bit::P | bit::W | self.ignored(level, leaf);
        if user {
            entry |= bit::U;
        }
        if leaf && level > 1 {
            entry |= bit::PS;
        }
        if self.rng.u16(0..256) >= self.breaks {
            return entry;
        }
        let with = |entry: u64, address: u64| entry & !bit::ADDRESS | address;
        match self.rng.u8(0..100) {
            0..10 => entry & !bit::P,
            10..28 => entry & !bit::W,
            28..44 => entry ^ bit::U,
            44..62 => entry | bit::NX,
            62..70 => entry | 1 << self.rng.u32(40..52),
            70..78 if leaf && level > 1 => {
                let off = self.any_page() - ARENA;
                // Bit 12 is the memory type's.
                entry | off & !(1 << 12)
            }
            70..84 => entry ^ bit::PS,
            // Without paging, what is executed where nothing is could reach anything.
            84..88 if (self.class, self.access) != (Class::Flat, Access::Fetch) => {
                entry | 1 << self.rng.u32(33..39)
            }
            88..96 => {
                let page = self.any_page();
                let page = if side == Side::Guest { self.gpa(page) } else { page };
                with(entry, page)
            }
            _ => {
                let page = self.any_page();
                let page = if side == Side::Guest { self.gpa(page) } else { page };
                with(self.rng.u64(..), page) | bit::P
            }
        }
    }

    /// The nested tables for guest-physical addresses from 512 GiB on.
    fn nested(&mut self) {
        let leaf = self.leaf();
        if self.class != Class::Flat {
            let root = self.entry(Side::Nested, 4, false, at(0, page::N_3));
            self.put(page::N_ROOT, HIGH_SLOT, root);
        }
        for block in 0..BLOCKS {
            let (is_leaf, target) = match leaf >= 2 {
                true => (true, if self.chance(80) { at(block, 0) } else { at(1 - block, 0) }),
                false => (false, at(0, page::N_1)),
            };
            let entry = self.entry(Side::Nested, 2, is_leaf, target);
            self.put(page::N_2, block, entry);
        }
        for frame in 0..FRAMES {
            let target = if self.chance(75) { at(0, frame) } else { self.any_page() };
            let entry = self.entry(Side::Nested, 1, true, target);
            self.put(page::N_1, frame, entry);
        }
        let target = if leaf == 3 { ARENA } else { at(0, page::N_2) };
        let entry = self.entry(Side::Nested, 3, leaf == 3, target);
        let high = self.high;
        let table = if self.class == Class::Flat { page::N_FIXED_3 } else { page::N_3 };
        self.put(table, high, entry);
    }

    /// The guest's tables for `linear`.
    fn guest(&mut self, linear: u64) {
        let index = |level: u8| (linear >> (12 + 9 * (level - 1)) & 511) as usize;
        let leaf = self.leaf();
        // With nested tables drawn, the last step of the guest's leads there.
        let last = |draw: &mut Self, physical| match draw.class {
            Class::Nested => draw.high(physical - ARENA),
            Class::Guest | Class::Both | Class::Flat => draw.gpa(physical),
        };
        let target = self.gpa(at(0, page::G_3));
        let entry = self.entry(Side::Guest, 4, false, target);
        self.put(page::G_ROOT, index(4), entry);
        let target = if leaf == 3 { last(self, ARENA) } else { self.gpa(at(0, page::G_2)) };
        let entry = self.entry(Side::Guest, 3, leaf == 3, target);
        self.put(page::G_3, index(3), entry);
        for block in 0..BLOCKS {
            let target = match leaf >= 2 {
                true => last(self, at(block, 0)),
                false => self.gpa(at(0, page::G_1)),
            };
            let entry = self.entry(Side::Guest, 2, leaf >= 2, target);
            self.put(page::G_2, block, entry);
        }
        for frame in 0..FRAMES {
            let page = if self.chance(50) { at(0, page::DATA) } else { self.any_page() };
            let target = last(self, page);
            let entry = self.entry(Side::Guest, 1, true, target);
            self.put(page::G_1, frame, entry);
        }
    }

    /// The level of the leaf, if nothing is broken.
    fn leaf(&mut self) -> u8 {
        match self.rng.u8(0..10) {
            0..4 => 1,
            4..7 => 2,
            _ => 3,
        }
    }

    fn case(mut self, number: u32) -> Drawn {
        let at_user = self.rng.bool();
        let linear = self.linear();
        match self.class {
            Class::Nested => {
                // The guest's own tables are to let everything through.
                self.user = at_user;
                self.nested();
                let breaks = core::mem::replace(&mut self.breaks, 0);
                self.guest(linear);
                self.breaks = breaks;
            }
            Class::Guest => {
                self.user |= at_user;
                self.guest(linear);
            }
            Class::Both => {
                self.user |= at_user;
                self.nested();
                self.guest(linear);
            }
            Class::Flat => self.nested(),
        }
        let registers = self.registers(at_user, linear);
        let access = self.access;
        let mut words = vec![stage::code_leaf(at_user)];
        words.append(&mut self.words);
        Drawn { number, class: self.class, access, linear, case: Case { registers, words } }
    }

    /// A canonical address outside of the code's part of the address space, which leads to a
    /// probed word of the arena with pages of any size.
    fn linear(&mut self) -> u64 {
        let top = loop {
            let top = Self::entry_number(&mut self.rng);
            if top != CODE_SLOT {
                break top as u64;
            }
        };
        let high = Self::entry_number(&mut self.rng) as u64;
        let block = self.rng.u64(0..BLOCKS as u64);
        let frame = self.rng.u64(0..FRAMES as u64);
        let low = block * BLOCK + frame * 4096 + OFFSET;
        if self.class == Class::Flat {
            let half = if self.access == Access::Fetch { 0 } else { 4 };
            return (self.high as u64) << 30 | low | half;
        }
        let address = top << 39 | high << 30 | low;
        ((address << 16) as i64 >> 16) as u64
    }

    fn registers(&mut self, user: bool, linear: u64) -> Registers {
        let on = |condition: bool, bit: u64| if condition { bit } else { 0 };
        let start = code(self.access, self.class).first().copied();
        if self.class == Class::Flat {
            return Registers {
                n_cr3: at(0, page::N_ROOT) | on(self.chance(20), 3 << 3),
                host_nx: self.chance(85),
                long: false,
                // NE, ET, PE; and not PG.
                cr0: 0x31 | on(self.chance(50), 1 << 16),
                cr3: 0,
                cr4: on(self.chance(50), 1 << 5),
                efer: on(self.chance(50), 1 << 11),
                cpl: if user { 3 } else { 0 },
                rflags: 2,
                rip: start.unwrap_or(linear),
                rax: 0,
                rsi: linear,
                rdi: STORED,
            };
        }
        Registers {
            n_cr3: at(0, page::N_ROOT) | on(self.chance(20), 3 << 3),
            host_nx: self.chance(85),
            long: true,
            // PG, NE, ET, PE; WP.
            cr0: 0x8000_0031 | on(self.chance(75), 1 << 16),
            cr3: at(0, page::G_ROOT) | on(self.chance(20), 3 << 3),
            // PAE; SMEP, SMAP.
            cr4: 1 << 5 | on(self.chance(40), 1 << 20) | on(self.chance(40), 1 << 21),
            // LME, LMA; NXE.
            efer: 0x500 | on(self.chance(75), 1 << 11),
            cpl: if user { 3 } else { 0 },
            // The reserved one; AC.
            rflags: 2 | on(self.chance(30), 1 << 18),
            rip: start.unwrap_or(linear),
            // Not canonical: should anything be executed that is not VMMCALL, it ends here.
            rax: 1 << 63,
            rsi: linear,
            rdi: STORED,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::size::GIB;
    use std::collections::HashSet;

    #[test]
    fn a_case_depends_on_seed_and_number_alone() {
        assert_eq!(draw(7, 3), draw(7, 3));
        assert_ne!(draw(7, 3).case, draw(7, 4).case);
        assert_ne!(draw(7, 3).case, draw(8, 3).case);
    }

    /// Whatever level it is read at, an entry that is there leads into the arena, to where nothing
    /// is, or beyond the physical width: never to memory of the hypervisor.
    #[test]
    fn no_entry_leads_to_other_memory() {
        const RAM_END: u64 = 8 * GIB;
        for number in 0..5000 {
            let drawn = draw(1, number);
            for word in stage::whole(&drawn.case) {
                let entry = usize::from(word.index) % 512;
                if word.value & bit::P == 0
                    || entry == ENTRY
                    || stage::name(word.index).starts_with("code")
                {
                    continue;
                }
                let address = word.value & bit::ADDRESS;
                let inside = (ARENA..ARENA + GIB).contains(&address);
                let high = (512 * GIB..1024 * GIB).contains(&address);
                let fits = match high {
                    // Guest-physical; the same entry of a nested table leads to no memory.
                    true => address % GIB < 4 << 20,
                    false => inside && address - ARENA < 4 << 20 || address >= RAM_END,
                };
                assert!(fits, "case {number}: {} = {:#x}", stage::name(word.index), word.value);
            }
        }
    }

    #[test]
    fn every_class_access_and_level_is_drawn() {
        let seen: HashSet<_> = (0..3000)
            .map(|number| draw(1, number))
            .map(|d| (d.class as u8, d.access as u8, d.case.registers.cpl))
            .collect();
        assert_eq!(seen.len(), 4 * 5 * 2);
    }

    #[test]
    fn addresses_are_canonical() {
        for number in 0..1000 {
            let linear = draw(3, number).linear;
            assert_eq!(((linear << 16) as i64 >> 16) as u64, linear);
            assert!(linear % GIB < 2 * BLOCK);
            assert!([OFFSET, OFFSET + 4].contains(&(linear % 4096)));
        }
    }
}
