//! The MMU of one virtual machine: made with a host and a configuration, taken down by value.

use alloc::sync::Arc;
use core::fmt;
use core::mem::ManuallyDrop;

use crate::addr::{ENTRIES, Level, Pfn};
use crate::api::stats::Stats;
use crate::entry::format::Format;
use crate::host::host::Host;
use crate::state::abandoned;
use crate::state::broken::Broken;
use crate::state::core::{Core, Sizes};
use crate::state::root::Root;
use crate::state::table::Table;

/// The MMU of one virtual machine: its slots, and the tables that its processors walk.
///
/// A vCPU or worker holds it by a borrow or by an `Arc`. When the MMU is dropped, which its last
/// holder does, every table page goes back to the host; [`teardown`](Self::teardown) and
/// [`teardown_shared`](Self::teardown_shared) give the host back as well.
#[derive(Debug)]
pub struct Mmu<H: Host> {
    pub(crate) core: Core,
    /// Taken out by `teardown` alone.
    host: ManuallyDrop<H>,
}

/// What an MMU is made for.
#[derive(Clone, Copy, Debug)]
pub struct Config<'a> {
    /// Which hardware walks its tables.
    pub format: Format,
    /// vCPUs, at least 1.
    pub vcpus: u32,
    /// Workers beyond the vCPUs: for changing slots, for completing faults elsewhere, for reading
    /// and writing guest memory.
    pub workers: u32,
    /// Participants of the MMU's own, for [`Mmu::invalidate_begin`] and
    /// [`Mmu::invalidate_range`]: as many of these run at the same time without waiting for one
    /// another. At least 1.
    pub notifiers: u32,
    /// Slot numbers.
    pub slots: u32,
    /// Invalidations begun and not ended yet that refuse exactly their own pages.
    ///
    /// Any number more may be under way. Those refuse whole blocks, of 4 KiB, 2 MiB, 1 GiB or 512
    /// GiB, whichever is the first that is not shorter than their range, and a few blocks elsewhere
    /// that fall on the same counters. A fault on a page that is refused answers
    /// [`Busy::Invalidation`](crate::Busy::Invalidation) until they end; one on a page beside them may find a
    /// smaller leaf. Each place costs 32 bytes, and a fault a look at it while any invalidation is
    /// under way.
    pub invalidations: u32,
    /// The largest leaf anywhere.
    pub largest: Level,
    /// Table pages that faults where no slot is may link below one root, because a guest chooses how
    /// many it makes. What memory needs is not counted. A fault beyond is emulated all the same, and
    /// not remembered unless the table for it is there.
    pub mmio_tables: u32,
    /// Host frames, half-open, that no guest may be given: the hypervisor's own, table pages among
    /// them. No linear slot may cover one. A backing's answer whose leaf would map one ends the fault as
    /// [`MemoryFault::Reserved`](crate::MemoryFault::Reserved). In any order; they may overlap.
    pub reserved: &'a [(Pfn, Pfn)],
}

impl Config<'_> {
    /// For a format and a number of vCPUs: two workers, four notifiers, 512 slots, 16
    /// invalidations, leaves as large as the format has them, 64 table pages for MMIO, nothing
    /// reserved.
    pub const fn new(format: Format, vcpus: u32) -> Self {
        Config {
            format,
            vcpus,
            workers: 2,
            notifiers: 4,
            slots: 512,
            // A model explores every look at a place.
            invalidations: if cfg!(any(loom, shuttle)) { 2 } else { 16 },
            largest: format.largest(),
            mmio_tables: 64,
            reserved: &[],
        }
    }
}

/// Why an MMU could not be made. The host comes back.
#[derive(Debug)]
pub struct NewError<H> {
    /// The host.
    pub host: H,
    /// Why.
    pub why: NewReason,
}

/// Why an MMU could not be made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NewReason {
    /// An MMU has 1 to 4096 vCPUs.
    Vcpus(u32),
    /// An MMU has at least one and at most 32,768 slot numbers.
    Slots(u32),
    /// There was no memory for the words of participants, vCPUs and slots.
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
    /// An MMU without slots.
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
            // Models leave them out where they have no part: each is one more word to look at.
            own: config.notifiers.max(u32::from(!cfg!(any(loom, shuttle)))) as usize,
            vcpus: config.vcpus as usize,
            slots: config.slots as usize,
            mmio_tables: config.mmio_tables,
            invalidations: config.invalidations as usize,
        };
        let largest = config.largest.min(config.format.largest());
        match Core::new(config.format, largest, host.window(), &sizes, config.reserved) {
            Ok(core) => Ok(Mmu { core, host: ManuallyDrop::new(host) }),
            Err(_) => Err(NewError { host, why: NewReason::NoMemory }),
        }
    }

    /// The host.
    pub fn host(&self) -> &H {
        &self.host
    }

    /// Why the MMU is dead, if it is.
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
    /// No lock and no flush: everything that borrowed the MMU is gone, so no vCPU is left that
    /// could walk its tables.
    pub fn teardown(self) -> H {
        let mut this = ManuallyDrop::new(self);
        this.release_tables();
        // SAFETY: neither the host nor the MMU is used or dropped after this: it is in a
        // `ManuallyDrop`, and the core is dropped by itself.
        unsafe {
            core::ptr::drop_in_place(&mut this.core);
            ManuallyDrop::take(&mut this.host)
        }
    }

    /// The same for an MMU that is shared: `Err` gives the share back, because others hold one.
    pub fn teardown_shared(this: Arc<Self>) -> Result<H, Arc<Self>> {
        Arc::try_unwrap(this).map(Self::teardown)
    }

    fn release_tables(&mut self) {
        for root in self.core.roots.iter() {
            free_below(&self.core, &*self.host, root);
        }
        let mut next = self.core.abandoned.take();
        while let Some(pfn) = next {
            // SAFETY: nothing else runs; the chain is this function's alone.
            next = unsafe { abandoned::next(&self.core.format, self.core.window, pfn) };
            self.host.release(pfn);
        }
    }
}

impl<H: Host> Drop for Mmu<H> {
    fn drop(&mut self) {
        self.release_tables();
        // SAFETY: dropped once, here; `teardown` does not come here.
        unsafe { ManuallyDrop::drop(&mut self.host) }
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
