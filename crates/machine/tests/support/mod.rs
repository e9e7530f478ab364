//! Tables made by hand, for one guest, in a little memory. Its bits are its own.
#![allow(dead_code, reason = "every test file uses some of it")]

use std::sync::atomic::{AtomicU64, Ordering};

use machine::{Access, Context, Ept, Exit, Habits, Long, Nested, Npt, Paging, Processor, Reached};

/// Bytes of memory: enough for 64 tables.
const MEMORY: u64 = 256 << 10;
/// Guest-physical addresses of the guest's tables are this much above where they are.
pub const TABLES: u64 = 64 << 30;
/// Address bits of an entry.
pub const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Whose nested tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Vendor {
    Amd,
    Intel,
}

/// Memory with nested tables and the guest's own in it.
pub struct Rig {
    pub ram: Vec<AtomicU64>,
    free: u64,
    pub nested: Nested,
    pub root: u64,
    pub cr3: u64,
}

impl Rig {
    pub fn new(nested: Nested) -> Rig {
        let ram = (0..MEMORY / 8).map(|_| AtomicU64::new(0)).collect();
        let mut rig = Rig { ram, free: 0x1000, nested, root: 0, cr3: 0 };
        rig.root = rig.frame();
        rig
    }

    pub fn npt() -> Rig {
        Rig::new(Nested::Npt(Npt::new()))
    }

    pub fn ept() -> Rig {
        Rig::new(Nested::Ept(Ept::new()))
    }

    pub fn of(vendor: Vendor) -> Rig {
        match vendor {
            Vendor::Amd => Rig::npt(),
            Vendor::Intel => Rig::ept(),
        }
    }

    /// A frame of zeroes: its host-physical address.
    pub fn frame(&mut self) -> u64 {
        let frame = self.free;
        self.free += 0x1000;
        assert!(self.free <= MEMORY, "out of memory");
        frame
    }

    pub fn set(&self, address: u64, word: u64) {
        self.ram[address as usize / 8].store(word, Ordering::Release);
    }

    pub fn word(&self, address: u64) -> u64 {
        self.ram[address as usize / 8].load(Ordering::Acquire)
    }

    fn levels(&self) -> u32 {
        match self.nested {
            Nested::Npt(npt) => npt.levels.into(),
            Nested::Ept(ept) => ept.levels.into(),
        }
    }

    /// Bits of an entry that allows everything.
    pub fn all(&self) -> u64 {
        7
    }

    /// Where the nested entry of a level for `gpa` is.
    pub fn at(&self, gpa: u64, level: u32) -> u64 {
        self.below(self.root, gpa, level)
    }

    fn below(&self, root: u64, gpa: u64, level: u32) -> u64 {
        let mut table = root;
        for upper in (level + 1..=self.levels()).rev() {
            table = self.word(table + index(gpa, upper)) & ADDRESS;
            assert_ne!(table, 0, "no table above level {level}");
        }
        table + index(gpa, level)
    }

    /// The nested entry of a level for `gpa`.
    pub fn get(&self, gpa: u64, level: u32) -> u64 {
        self.word(self.at(gpa, level))
    }

    /// Sets and clears bits of a nested entry.
    pub fn edit(&self, gpa: u64, level: u32, set: u64, clear: u64) {
        self.set(self.at(gpa, level), self.get(gpa, level) & !clear | set);
    }

    /// Maps `gpa` to `hpa` by a leaf of a level that allows everything.
    pub fn map(&mut self, gpa: u64, hpa: u64, level: u32) {
        self.map_under(self.root, gpa, hpa, level);
    }

    pub fn map_under(&mut self, root: u64, gpa: u64, hpa: u64, level: u32) {
        let mut table = root;
        for upper in (level + 1..=self.levels()).rev() {
            let entry = table + index(gpa, upper);
            if self.word(entry) == 0 {
                let next = self.frame();
                self.set(entry, next | self.all());
            }
            table = self.word(entry) & ADDRESS;
        }
        let large = if level > 1 { 1 << 7 } else { 0 };
        let write_back = match self.nested {
            Nested::Npt(_) => 0,
            Nested::Ept(_) => 6 << 3,
        };
        self.set(table + index(gpa, level), hpa | self.all() | large | write_back);
    }

    /// A table of the guest's: its guest-physical address.
    pub fn guest_table(&mut self) -> u64 {
        let frame = self.frame();
        self.map(frame + TABLES, frame, 1);
        frame + TABLES
    }

    /// Maps `linear` to `gpa` in the guest's tables by a leaf of a level with `bits`; upper entries
    /// allow everything.
    pub fn guest_map(&mut self, linear: u64, gpa: u64, level: u32, bits: u64) {
        if self.cr3 == 0 {
            self.cr3 = self.guest_table();
        }
        let mut table = self.cr3;
        for upper in (level + 1..=4).rev() {
            let entry = table - TABLES + index(linear, upper);
            if self.word(entry) == 0 {
                let next = self.guest_table();
                self.set(entry, next | 7);
            }
            table = self.word(entry) & ADDRESS;
        }
        let large = if level > 1 { 1 << 7 } else { 0 };
        self.set(table - TABLES + index(linear, level), gpa | bits | large);
    }

    /// Guest-physical address of the entry of a level for `linear` in the guest's tables.
    pub fn guest_at(&self, linear: u64, level: u32) -> u64 {
        let mut table = self.cr3;
        for upper in (level + 1..=4).rev() {
            table = self.word(table - TABLES + index(linear, upper)) & ADDRESS;
        }
        table + index(linear, level)
    }

    pub fn guest_get(&self, linear: u64, level: u32) -> u64 {
        self.word(self.guest_at(linear, level) - TABLES)
    }

    pub fn guest_edit(&self, linear: u64, level: u32, set: u64, clear: u64) {
        let entry = self.guest_at(linear, level) - TABLES;
        self.set(entry, self.word(entry) & !clear | set);
    }

    /// The guest without paging.
    pub fn off(&self) -> Context {
        Context { tag: 1, nested: self.nested, root: self.root, paging: Paging::Off }
    }

    /// The guest in long mode.
    pub fn long(&self) -> Context {
        self.paged(Long::new(self.cr3))
    }

    pub fn paged(&self, long: Long) -> Context {
        Context { paging: Paging::Long(long), ..self.off() }
    }

    /// One access by a processor that caches nothing.
    pub fn once(&self, context: &Context, address: u64, access: Access) -> Result<Reached, Exit> {
        let mut processor = Processor::with_habits(0, Habits::nothing());
        processor.translate(&self.ram, context, address, access)
    }

    /// One access without paging, by a processor that caches nothing.
    pub fn touch(&self, gpa: u64, access: Access) -> Result<Reached, Exit> {
        self.once(&self.off(), gpa, access)
    }
}

/// Bytes from the start of a table to the entry for an address.
pub fn index(address: u64, level: u32) -> u64 {
    (address >> (12 + 9 * (level - 1)) & 511) * 8
}

/// Bytes of a page of a level.
pub fn bytes(level: u32) -> u64 {
    1 << (12 + 9 * (level - 1))
}

/// The accesses there are.
pub const ACCESSES: [Access; 3] = [Access::Read, Access::Write, Access::Fetch];

/// All (levels, leaf, level) with `level` on the way to the leaf.
pub fn ways() -> Vec<(u8, u32, u32)> {
    let mut ways = vec![];
    for levels in [4, 5] {
        for leaf in 1..=3 {
            ways.extend((leaf..=levels.into()).map(|level| (levels, leaf, level)));
        }
    }
    ways
}
