//! What to run: the tables, the size, and the operations of each thread.

use fastrand::Rng;
use machine::{Ept, Nested, Npt};
use serde::{Deserialize, Serialize};
use vmmu::addr::Level;
use vmmu::entry::{Format, Record, ept, npt};

use crate::arena::PHYS_BITS;
use crate::op::Op;

/// The most vCPUs: every thread has a word of its own in each page.
pub const MOST_VCPUS: usize = 12;

/// Which tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Tables {
    /// AMD's nested page tables.
    Npt,
    /// Intel's extended page tables.
    Ept,
    /// The same, on a processor without accessed and dirty flags.
    EptWithoutFlags,
    /// Nested page tables of five levels.
    Npt5,
    /// Extended page tables of five levels.
    Ept5,
}

impl Tables {
    /// All of them.
    pub const ALL: [Tables; 5] =
        [Tables::Npt, Tables::Ept, Tables::EptWithoutFlags, Tables::Npt5, Tables::Ept5];

    /// The name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Tables::Npt => "npt",
            Tables::Ept => "ept",
            Tables::EptWithoutFlags => "ept-without-flags",
            Tables::Npt5 => "npt5",
            Tables::Ept5 => "ept5",
        }
    }

    fn levels(self) -> u8 {
        if matches!(self, Tables::Npt5 | Tables::Ept5) { 5 } else { 4 }
    }

    /// Their format.
    pub(crate) fn format(self) -> Format {
        let phys_bits = u32::from(PHYS_BITS);
        let top = if self.levels() == 5 { Level::L5 } else { Level::L4 };
        match self {
            Tables::Npt | Tables::Npt5 => {
                npt::format(npt::NptOptions { top, phys_bits, ..Default::default() })
            }
            Tables::Ept | Tables::Ept5 => {
                ept::format(ept::EptOptions { top, phys_bits, ..Default::default() })
            }
            Tables::EptWithoutFlags => {
                let record = Record::Software;
                ept::format(ept::EptOptions { phys_bits, record, ..Default::default() })
            }
        }
        .expect("all of these are legal")
    }

    /// How a processor walks them.
    pub(crate) fn nested(self) -> Nested {
        let (levels, phys_bits) = (self.levels(), PHYS_BITS);
        match self {
            Tables::Npt | Tables::Npt5 => {
                Nested::Npt(Npt { levels, phys_bits, nx: true, gib_pages: true })
            }
            Tables::Ept | Tables::Ept5 | Tables::EptWithoutFlags => Nested::Ept(Ept {
                levels,
                phys_bits,
                ad: self != Tables::EptWithoutFlags,
                exec_only: true,
                mib_pages: true,
                gib_pages: true,
            }),
        }
    }
}

/// What to run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Settings {
    /// Every choice follows from it.
    pub seed: u64,
    /// Operations and accesses of all threads together.
    pub steps: u64,
    /// vCPUs, each a thread: 1 to [`MOST_VCPUS`].
    pub vcpus: usize,
    /// Which tables.
    pub tables: Tables,
    /// Whether threads take turns.
    pub deterministic: bool,
}

/// Operations, by thread: vCPUs first, then threads of the host.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Plan {
    /// What it was made for.
    pub settings: Settings,
    /// By thread.
    pub threads: Vec<Vec<Op>>,
}

impl Plan {
    /// All operations.
    pub fn len(&self) -> usize {
        self.threads.iter().map(Vec::len).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A seed of its own for each choice `what`, and for each thread `n`.
pub fn seed(settings: &Settings, what: u64, n: usize) -> u64 {
    Rng::with_seed(settings.seed ^ what << 56 ^ (n as u64) << 48).u64(..)
}
