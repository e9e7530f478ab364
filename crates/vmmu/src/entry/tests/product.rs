//! Every state an entry can have, for every configuration.
//!
//! Numbers that only travel through an entry (frames, generations, owners, links) are represented
//! by two values each; everything else is complete.

use super::super::{Format, Leaf, MemoryType, Record, State, Tracked, Value, Writable, ept, npt};
use crate::addr::{Level, Pfn};

/// Which manual the table is walked by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Manual {
    Intel,
    Amd,
}

/// A format and what a test must know to judge it without asking it.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    pub format: Format,
    pub manual: Manual,
    pub top: Level,
    pub largest: Level,
    pub phys_bits: u32,
    pub record: Record,
    pub exec_only: bool,
}

const fn intel(
    top: Level,
    largest: Level,
    phys_bits: u32,
    record: Record,
    exec_only: bool,
) -> Setup {
    let format = match ept::format(ept::EptOptions { top, largest, phys_bits, record, exec_only }) {
        Ok(format) => format,
        Err(_) => panic!("a legal configuration"),
    };
    Setup { format, manual: Manual::Intel, top, largest, phys_bits, record, exec_only }
}

const fn amd(top: Level, largest: Level, phys_bits: u32) -> Setup {
    let format = match npt::format(npt::NptOptions { top, largest, phys_bits }) {
        Ok(format) => format,
        Err(_) => panic!("a legal configuration"),
    };
    let record = Record::Hardware;
    Setup { format, manual: Manual::Amd, top, largest, phys_bits, record, exec_only: false }
}

impl Setup {
    pub const ALL: [Setup; 14] = [
        intel(Level::L4, Level::Size1G, 46, Record::Hardware, true),
        intel(Level::L5, Level::Size1G, 52, Record::Hardware, true),
        intel(Level::L4, Level::Size1G, 39, Record::Hardware, false),
        intel(Level::L5, Level::Size1G, 46, Record::Hardware, false),
        intel(Level::L4, Level::Size1G, 46, Record::Software, true),
        intel(Level::L5, Level::Size1G, 52, Record::Software, true),
        intel(Level::L4, Level::Size2M, 36, Record::Software, false),
        intel(Level::L5, Level::Size1G, 46, Record::Software, false),
        intel(Level::L4, Level::Size4K, 46, Record::WriteProtect, false),
        amd(Level::L4, Level::Size1G, 40),
        amd(Level::L4, Level::Size2M, 48),
        amd(Level::L4, Level::Size1G, 52),
        amd(Level::L5, Level::Size1G, 40),
        amd(Level::L5, Level::Size1G, 52),
    ];

    pub fn levels(&self) -> impl Iterator<Item = Level> + use<> {
        let top = self.top;
        [Level::Size4K, Level::Size2M, Level::Size1G, Level::L4, Level::L5]
            .into_iter()
            .filter(move |level| *level <= top)
    }

    fn memory(&self) -> &'static [MemoryType] {
        match self.manual {
            Manual::Intel => &MemoryType::ALL,
            // PA0, PA1 and PA3 of the PAT after reset (AMD APM volume 2, 7.8.2).
            Manual::Amd => &[MemoryType::Uncached, MemoryType::WriteThrough, MemoryType::WriteBack],
        }
    }

    fn has_mmio(&self) -> bool {
        self.manual == Manual::Intel || self.phys_bits < 52
    }

    fn last_frame(&self) -> u64 {
        (1 << (self.phys_bits - 12)) - 1
    }

    fn can_record(&self, record: Record) -> bool {
        match (self.manual, self.record) {
            (Manual::Amd, _) => record != Record::Software,
            (Manual::Intel, Record::Software) => record == Record::Software,
            (Manual::Intel, _) => true,
        }
    }

    /// Whether hardware and library can have this leaf, by the rules in words.
    pub fn expresses(&self, leaf: &Leaf, level: Level) -> bool {
        let writes = leaf.writable == Writable::Yes;
        let software = leaf.record == Record::Software;
        level <= self.largest
            && leaf.pfn.0.is_multiple_of(level.pages())
            && leaf.pfn.0 <= self.last_frame()
            && self.memory().contains(&leaf.memory)
            && self.can_record(leaf.record)
            && (leaf.read || (leaf.exec && self.exec_only && !writes))
            && (!software || !(leaf.accessed || leaf.dirty))
            && (leaf.tracked == Tracked::No || (software && !writes))
    }

    /// Every combination of a leaf's fields, sensible or not.
    pub fn every_leaf(&self, level: Level) -> Vec<Leaf> {
        let mut all = Vec::new();
        let last = self.last_frame();
        // The first, and the last that fits the width: no address bit goes unused.
        for pfn in [Pfn(0), Pfn(last - last % level.pages())] {
            for bits in 0..16 {
                let bit = |n: u32| bits >> n & 1 == 1;
                for writable in Writable::ALL {
                    for record in Record::ALL {
                        for tracked in [Tracked::No, Tracked::Yes] {
                            for memory in MemoryType::ALL {
                                all.push(Leaf {
                                    pfn,
                                    read: bit(0),
                                    exec: bit(1),
                                    writable,
                                    accessed: bit(2),
                                    dirty: bit(3),
                                    record,
                                    tracked,
                                    memory,
                                });
                            }
                        }
                    }
                }
            }
        }
        all
    }

    /// Every legal state of an entry of `level` with its value.
    pub fn states(&self, level: Level) -> Vec<(State, Value)> {
        let mut states = vec![State::Empty, State::Dead { next: None }];
        if self.has_mmio() {
            states.extend([0, (1 << 19) - 1].map(|generation| State::Mmio { generation }));
        }
        for owner in [0, (1 << 20) - 1] {
            states.extend([State::Hold { owner }, State::Claim { owner }]);
        }
        for pfn in [Pfn(0x123), Pfn(self.last_frame())] {
            states.push(State::Dead { next: Some(pfn) });
            if level > Level::Size4K {
                states.push(State::Table(pfn));
            }
        }
        let leaves = self.every_leaf(level);
        states
            .extend(leaves.into_iter().filter(|leaf| self.expresses(leaf, level)).map(State::Leaf));
        let value = |state| self.format.make(state, level).expect("a legal state has a value");
        states.into_iter().map(|state| (state, value(state))).collect()
    }

    /// How many [`states`](Self::states) there are, by arithmetic.
    pub fn count(&self, level: Level) -> u64 {
        // Empty; two holds, two claims, three dead.
        let absent = 8 + if self.has_mmio() { 2 } else { 0 };
        let tables = if level > Level::Size4K { 2 } else { 0 };
        if level > self.largest {
            return absent + tables;
        }
        let memory = if self.manual == Manual::Intel { 5 } else { 3 };
        // R and RX with four ways of writing each; X alone with the three that do not write.
        let permissions = 8 + if self.exec_only { 3 } else { 0 };
        let recording = if self.record == Record::Software { 0 } else { 2 };
        let not_recording = if self.manual == Manual::Intel { 1 } else { 0 };
        // Hidden by aging: never written by hardware.
        let hidden = 6 + if self.exec_only { 3 } else { 0 };
        let leaves = recording * permissions * 4 + not_recording * (permissions + hidden);
        absent
            + tables
            + 2 * memory
                * if self.record == Record::Software { permissions + hidden } else { leaves }
    }
}
