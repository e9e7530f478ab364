//! What to run.

use machine::{Ept, Nested, Npt};
use vmmu::addr::{Gfn, GfnRange, Level};
use vmmu::entry::ept::EptOptions;
use vmmu::entry::npt::NptOptions;
use vmmu::entry::{Access, Format, FormatError, Record, ept, npt};
use vmmu::host::FrameQuery;
use vmmu::slot::SlotId;

/// Whose tables to build.
#[derive(Clone, Copy, Debug)]
pub enum Tables {
    /// AMD's.
    Npt(NptOptions),
    /// Intel's.
    Ept(EptOptions),
}

impl Tables {
    pub(crate) fn format(&self) -> Result<Format, FormatError> {
        match *self {
            Tables::Npt(options) => npt::format(options),
            Tables::Ept(options) => ept::format(options),
        }
    }

    pub(crate) fn nested(&self) -> Nested {
        let levels = |top| if top == Level::L5 { 5 } else { 4 };
        match *self {
            Tables::Npt(NptOptions { top, largest, phys_bits, .. }) => Nested::Npt(Npt {
                levels: levels(top),
                phys_bits: phys_bits as u8,
                nx: true,
                gib_pages: largest == Level::Size1G,
            }),
            Tables::Ept(EptOptions { top, largest, phys_bits, record, exec_only, .. }) => {
                Nested::Ept(Ept {
                    levels: levels(top),
                    phys_bits: phys_bits as u8,
                    ad: record == Record::Hardware,
                    exec_only,
                    mib_pages: largest >= Level::Size2M,
                    gib_pages: largest >= Level::Size1G,
                })
            }
        }
    }
}

/// What to run.
#[derive(Clone, Copy, Debug)]
pub struct TogetherOptions {
    /// The tables.
    pub tables: Tables,
    /// vCPUs.
    pub vcpus: u32,
    /// Processors they move between.
    pub processors: u32,
    /// The backing to name when the slot is made.
    pub backing: u64,
    /// Its first page.
    pub first: u64,
    /// The slot's guest frames.
    pub range: GfnRange,
    /// The largest leaf.
    pub largest: Level,
    /// What to do how often.
    pub steps: u32,
    /// Faults that one access may take.
    pub patience: u32,
    /// Seed of all choices.
    pub seed: u64,
}

impl TogetherOptions {
    /// For the first `pages` of `backing` at guest frame 0.
    pub fn new(tables: Tables, backing: u64, pages: u64) -> Self {
        TogetherOptions {
            tables,
            vcpus: 2,
            processors: 2,
            backing,
            first: 0,
            range: GfnRange::sized(Gfn(0), pages).unwrap_or(GfnRange::EMPTY),
            largest: Level::Size1G,
            steps: 20_000,
            patience: 64,
            seed: 1,
        }
    }

    /// The page of the backing that is at a guest frame.
    pub(crate) fn page(&self, gfn: Gfn) -> u64 {
        self.first + (gfn.0 - self.range.start().0)
    }

    /// A question for it.
    pub(crate) fn query(&self, gfn: Gfn, access: Access) -> FrameQuery {
        let page = (self.backing, self.page(gfn));
        FrameQuery::of_nobody(SlotId(0), page, gfn, access, self.largest)
    }
}
