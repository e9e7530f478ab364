//! What a processor sees in an entry, read from raw bits as the manuals number them.

use super::super::{MemoryType, Value};
use super::product::{Manual, Setup};
use crate::addr::Level;

/// What the page walker makes of an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Seen {
    NotPresent,
    /// EPT misconfiguration, or a nested page fault for a reserved bit.
    Refused,
    Table {
        address: u64,
        accessed: bool,
    },
    Leaf {
        address: u64,
        read: bool,
        write: bool,
        exec: bool,
        accessed: bool,
        dirty: bool,
        memory: MemoryType,
    },
}

fn bit(v: u64, n: u32) -> bool {
    v >> n & 1 == 1
}

/// Bits `high` to `low`, shifted down.
fn field(v: u64, high: u32, low: u32) -> u64 {
    v << (63 - high) >> (63 - high + low)
}

/// The lowest bit of the address in an entry of `level`.
fn low(level: Level, leaf: bool) -> u32 {
    match level {
        Level::Size2M if leaf => 21,
        Level::Size1G if leaf => 30,
        _ => 12,
    }
}

impl Setup {
    pub fn hardware(&self, value: Value, level: Level) -> Seen {
        let v = value.0;
        if self.phys_bits < 52
            && field(v, 51, self.phys_bits) != 0
            && (if self.manual == Manual::Intel { field(v, 2, 0) != 0 } else { bit(v, 0) })
        {
            return Seen::Refused;
        }
        match self.manual {
            Manual::Intel => self.ept(v, level),
            Manual::Amd => self.npt(v, level),
        }
    }

    /// Intel SDM volume 3, tables 30-1 to 30-7 and 30.3.3.1, with mode-based execution,
    /// guest-paging verification and supervisor shadow stacks off.
    fn ept(&self, v: u64, level: Level) -> Seen {
        let (read, write, exec) = (bit(v, 0), bit(v, 1), bit(v, 2));
        if !read && !write && !exec {
            return Seen::NotPresent;
        }
        if !read && (write || !self.exec_only) {
            return Seen::Refused;
        }
        let leaf = level == Level::Size4K || (level <= Level::Size1G && bit(v, 7));
        let address = field(v, 51, 12) << 12;
        if !leaf {
            return if field(v, 7, 3) == 0 {
                Seen::Table { address, accessed: bit(v, 8) }
            } else {
                Seen::Refused
            };
        }
        if level > self.largest || address & ((1 << low(level, true)) - 1) != 0 {
            return Seen::Refused;
        }
        let memory = match field(v, 5, 3) {
            0 => MemoryType::Uncached,
            1 => MemoryType::WriteCombining,
            4 => MemoryType::WriteThrough,
            5 => MemoryType::WriteProtected,
            6 => MemoryType::WriteBack,
            _ => return Seen::Refused,
        };
        assert!(bit(v, 6), "the guest's PAT must not change the memory type");
        let (accessed, dirty) = (bit(v, 8), bit(v, 9));
        Seen::Leaf { address, read, write, exec, accessed, dirty, memory }
    }

    /// AMD APM volume 2, 5.3.3 to 5.3.5, 5.4 and 15.25.5: a nested walk is a user access, and NX
    /// is on.
    fn npt(&self, v: u64, level: Level) -> Seen {
        if !bit(v, 0) {
            return Seen::NotPresent;
        }
        let leaf = level == Level::Size4K || (level <= Level::Size1G && bit(v, 7));
        let address = field(v, 51, 12) << 12;
        // U and W of every level are joined by "and"; NX by "or".
        if !leaf {
            let reserved = level >= Level::L4 && field(v, 8, 7) != 0;
            assert!(bit(v, 1) && bit(v, 2) && !bit(v, 63), "a table takes no permission away");
            return if reserved {
                Seen::Refused
            } else {
                Seen::Table { address, accessed: bit(v, 5) }
            };
        }
        // Bit 12 of a huge leaf is the PAT bit, not an address bit.
        if level > self.largest || address & ((1 << low(level, true)) - 1) & !(1 << 12) != 0 {
            return Seen::Refused;
        }
        let pat = bit(v, if level == Level::Size4K { 7 } else { 12 });
        let memory = match (pat, bit(v, 4), bit(v, 3)) {
            (false, false, false) => MemoryType::WriteBack,
            (false, false, true) => MemoryType::WriteThrough,
            (false, true, true) => MemoryType::Uncached,
            other => panic!("{other:?} selects a PAT entry that the library does not use"),
        };
        let read = bit(v, 2);
        let (write, exec) = (read && bit(v, 1), read && !bit(v, 63));
        let (accessed, dirty) = (bit(v, 5), bit(v, 6));
        Seen::Leaf { address, read, write, exec, accessed, dirty, memory }
    }

    /// Bits no value of the library's differs in from a legal one with the same presence: ignored
    /// by hardware or reserved, and not used by software. Turning one over is corruption.
    pub fn unused(&self, present: bool, table: bool, level: Level) -> u64 {
        let bits = |high: u32, low: u32| (u64::MAX << (63 - high) >> (63 - high + low)) << low;
        let above = if self.phys_bits < 52 { bits(51, self.phys_bits) } else { 0 };
        match (self.manual, present, table) {
            (_, false, _) => bits(2, 0) | bits(10, 5) | bits(63, 52),
            (Manual::Intel, true, true) => above | bits(10, 3) & !bits(8, 8) | bits(63, 52),
            (Manual::Amd, true, true) => above | bits(4, 3) | bits(10, 6) | bits(63, 52),
            (_, true, false) => {
                let huge = low(level, true);
                let aligned = if huge > 12 { bits(huge - 1, 12) } else { bits(7, 7) };
                let free = above | aligned | bits(62, 58) | bits(10, 10);
                match self.manual {
                    Manual::Intel => free | bits(63, 63) | bits(6, 6),
                    Manual::Amd => free | bits(9, 8) | bits(55, 54) | bits(52, 52),
                }
            }
        }
    }
}
