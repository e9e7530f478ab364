//! A virtual machine's memory: made with a host and a configuration, taken down by value.

use core::fmt;

use crate::addr::{ENTRIES, Level, Pfn};
use crate::api::stats::Stats;
use crate::entry::format::Format;
use crate::host::host::Host;
use crate::state::broken::Broken;
use crate::state::core::{Core, Sizes};
use crate::state::root::Root;
use crate::state::table::Table;

/// The memory of one virtual machine.
///
/// Everything it lends borrows it. A host that keeps it in an `Arc` makes each vCPU in its
/// thread, from its own `Arc`. Take it down with [`teardown`](Self::teardown): a `Mmu` that is
/// merely dropped leaks its table pages.
#[derive(Debug)]
pub struct Mmu<H> {
    pub(crate) core: Core,
    pub(crate) host: H,
}

/// What a VM is made for.
#[derive(Clone, Copy, Debug)]
pub struct Config<'a> {
    /// Which hardware walks its tables.
    pub format: Format,
    /// vCPUs, at least 1.
    pub vcpus: u32,
    /// Participants beyond the vCPUs: for slots, invalidations, statistics, and host callbacks
    /// that may run on top of a vCPU's thread.
    pub workers: u32,
    /// Slot numbers.
    pub slots: u32,
    /// Invalidations begun and not ended yet that refuse exactly their own pages.
    ///
    /// There may be more at one time, without end. Those refuse whole blocks, of 4 KiB, 2 MiB, 1 GiB
    /// or 512 GiB, whichever is the first that is not shorter than their range, and a few blocks
    /// elsewhere that fall on the same counters. A fault on a page that is refused answers
    /// [`Retry`](crate::Outcome::Retry) until they end; one on a page beside them may find a smaller
    /// leaf. Each place costs 32 bytes, and a fault a look at it while any invalidation is under way.
    pub invalidations: u32,
    /// The largest leaf anywhere.
    pub largest: Level,
    /// Host frames, half-open, that no linear slot may cover: the hypervisor's own.
    pub reserved: &'a [(Pfn, Pfn)],
}

impl Config<'_> {
    /// For a format and a number of vCPUs: two workers, 512 slots, 16 invalidations, leaves as large
    /// as the format has them, nothing reserved.
    pub const fn new(format: Format, vcpus: u32) -> Self {
        let largest = format.largest();
        // A model explores every look at a place.
        let invalidations = if cfg!(any(loom, shuttle)) { 2 } else { 16 };
        Config { format, vcpus, workers: 2, slots: 512, invalidations, largest, reserved: &[] }
    }
}

/// Why a VM could not be made. The host comes back.
#[derive(Debug)]
pub struct NewError<H> {
    /// The host.
    pub host: H,
    /// Why.
    pub why: NewReason,
}

/// Why a VM could not be made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NewReason {
    /// A VM has 1 to 4096 vCPUs.
    Vcpus(u32),
    /// A VM has at least one and at most 32,768 slot numbers.
    Slots(u32),
    /// Memory for lines and words ran out.
    NoMemory,
}

impl fmt::Display for NewReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NewReason::Vcpus(n) => write!(f, "{n} vCPUs: give 1 to 4096"),
            NewReason::Slots(n) => write!(f, "{n} slot numbers: give 1 to 32768"),
            NewReason::NoMemory => f.write_str("out of memory"),
        }
    }
}

impl<H> fmt::Display for NewError<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.why.fmt(f)
    }
}

impl<H: fmt::Debug> core::error::Error for NewError<H> {}

impl<H: Host> Mmu<H> {
    /// A VM without slots.
    pub fn new(host: H, config: &Config<'_>) -> Result<Self, NewError<H>> {
        let why = if config.vcpus == 0 || config.vcpus > 4096 {
            Some(NewReason::Vcpus(config.vcpus))
        } else if config.slots == 0 || config.slots > 32_768 {
            Some(NewReason::Slots(config.slots))
        } else {
            None
        };
        if let Some(why) = why {
            return Err(NewError { host, why });
        }
        let sizes = Sizes {
            participants: config.vcpus.saturating_add(config.workers) as usize,
            vcpus: config.vcpus as usize,
            slots: config.slots as usize,
            invalidations: config.invalidations as usize,
        };
        let largest = config.largest.min(config.format.largest());
        match Core::new(config.format, largest, host.window(), &sizes, config.reserved) {
            Ok(core) => Ok(Mmu { core, host }),
            Err(_) => Err(NewError { host, why: NewReason::NoMemory }),
        }
    }

    /// The host.
    pub fn host(&self) -> &H {
        &self.host
    }

    /// Why the VM is dead, if it is.
    pub fn broken(&self) -> Option<Broken> {
        self.core.broken()
    }

    /// The format of its tables.
    pub fn format(&self) -> &Format {
        &self.core.format
    }

    /// What has been counted, summed over all participants, past ones included.
    pub fn stats(&self) -> Stats {
        Stats::sum(&self.core)
    }

    /// Gives every table page back to the host, and the host to the caller.
    ///
    /// No lock and no flush: everything the VM lent has been given back, so no vCPU is left that
    /// could walk its tables.
    pub fn teardown(self) -> H {
        let Mmu { core, host } = self;
        for root in core.roots.iter() {
            free_below(&core, &host, root);
        }
        host
    }
}

/// Releases a root's tables, deepest first.
fn free_below<H: Host>(core: &Core, host: &H, root: Root) {
    let mut path = [(root.top, 0usize); 5];
    let (mut depth, mut level) = (0usize, core.format.top());
    while let Some((pfn, index)) = path.get_mut(depth).map(|(pfn, index)| {
        *index += 1;
        (*pfn, *index - 1)
    }) {
        // SAFETY: nothing else runs; the table is linked and has not been released.
        let table = unsafe { Table::at(core.window, pfn) };
        match (table.cell(index), level.below()) {
            (Some(cell), Some(below)) => {
                let value = cell.get();
                if core.format.is_table(value, level)
                    && let Some(next) = path.get_mut(depth + 1)
                {
                    *next = (core.format.pfn(value), 0);
                    depth += 1;
                    level = below;
                }
            }
            (Some(_), None) => {
                // A table of leaves has no tables below it.
                if let Some((_, index)) = path.get_mut(depth) {
                    *index = ENTRIES;
                }
            }
            (None, _) => {
                host.release(pfn);
                let (Some(up), Some(above)) = (depth.checked_sub(1), level.above()) else {
                    return;
                };
                depth = up;
                level = above;
            }
        }
    }
}
