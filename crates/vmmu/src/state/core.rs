//! What all participants of one MMU share: the passive parts, without any host.

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::addr::{Level, Pfn};
use crate::entry::format::Format;
use crate::error::NoMemory;
use crate::state::abandoned::Abandoned;
use crate::state::broken::Broken;
use crate::state::invalidations::Invalidations;
use crate::state::participant::Participants;
use crate::state::reserved::Reserved;
use crate::state::root::Roots;
use crate::state::slots::Slots;
use crate::state::vcpu::{FlushNumbers, VcpuWords};
use crate::sync;
use crate::sync::{AtomicU64, Ordering};

/// What all participants share; see the module.
#[derive(Debug)]
pub(crate) struct Core {
    /// No two MMUs have the same, and it is not an address: an MMU may move.
    pub id: u64,
    pub format: Format,
    pub window: u64,
    /// The largest leaf of any slot.
    pub largest: Level,
    /// Tables that MMIO faults may link below one root.
    pub mmio_tables: u64,
    pub participants: Participants,
    pub invalidations: Invalidations,
    pub roots: Roots,
    pub slots: Slots,
    /// Table pages that only the end of the MMU gives back.
    pub abandoned: Abandoned,
    pub vcpus: Box<[VcpuWords]>,
    pub flushes: FlushNumbers,
    /// Host frames no guest may be given.
    pub reserved: Reserved,
    dead: AtomicU64,
}

/// Sizes of a [`Core`].
pub(crate) struct Sizes {
    pub participants: usize,
    pub own: usize,
    pub vcpus: usize,
    pub slots: usize,
    pub mmio_tables: u32,
    pub invalidations: usize,
}

impl Core {
    pub(crate) fn new(
        format: Format,
        largest: Level,
        window: u64,
        sizes: &Sizes,
        reserved: &[(Pfn, Pfn)],
    ) -> Result<Core, NoMemory> {
        let mut vcpus = Vec::new();
        vcpus.try_reserve_exact(sizes.vcpus).map_err(|_| NoMemory)?;
        vcpus.extend((0..sizes.vcpus).map(|_| VcpuWords::new()));
        Ok(Core {
            id: sync::unique(),
            format,
            window,
            largest,
            mmio_tables: u64::from(sizes.mmio_tables),
            participants: Participants::new(sizes.participants, sizes.own)?,
            invalidations: Invalidations::new(sizes.invalidations)?,
            roots: Roots::new(),
            slots: Slots::new(sizes.slots)?,
            abandoned: Abandoned::new(),
            vcpus: vcpus.into_boxed_slice(),
            flushes: FlushNumbers::new(),
            reserved: Reserved::new(reserved)?,
            dead: AtomicU64::new(0),
        })
    }

    /// `Err`: why the MMU is dead.
    #[inline]
    pub(crate) fn alive(&self) -> Result<(), Broken> {
        self.broken().map_or(Ok(()), Err)
    }

    /// The MMU is dead from now on. The first reason is kept.
    #[cold]
    pub(crate) fn kill(&self, why: Broken) {
        let _ = self.dead.compare_exchange(0, why.pack(), Ordering::AcqRel, Ordering::Relaxed);
    }

    #[inline]
    pub(crate) fn broken(&self) -> Option<Broken> {
        match self.dead.load(Ordering::Relaxed) {
            0 => None,
            word => Broken::unpack(word),
        }
    }
}
