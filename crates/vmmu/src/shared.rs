//! What all participants of one VM share: the passive parts, without any host.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;

use crate::NoMemory;
use crate::active::Invalidations;
use crate::addr::{Level, Pfn};
use crate::entry::{Format, law};
use crate::line::{ParticipantWords, Participants};
use crate::root::Roots;
use crate::slot::Slots;
use crate::sync::{AtomicU64, Ordering};
use crate::tlb::VcpuWords;

/// Why a VM is dead. Its calls return errors; the host lives on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Broken {
    /// The library was about to make a change of an entry that the law forbids.
    Law(law::Illegal),
    /// A table entry holds what the library never writes: memory corruption.
    Corrupt,
    /// The host answered with less access than was asked for, a memory type the format lacks, or
    /// a frame beyond the address width.
    FrameUnusable,
    /// The host gave a table page beyond the address width, or frame 0.
    TableUnusable,
}

impl Broken {
    const ILLEGAL: [law::Illegal; 10] = [
        law::Illegal::Corrupt,
        law::Illegal::ResolvedFault,
        law::Illegal::HostWritable,
        law::Illegal::Memory,
        law::Illegal::Record,
        law::Illegal::Relink,
        law::Illegal::Dead,
        law::Illegal::Clean,
        law::Illegal::Frozen,
        law::Illegal::Mmio,
    ];

    fn pack(self) -> u64 {
        match self {
            Broken::Corrupt => 1,
            Broken::FrameUnusable => 3,
            Broken::TableUnusable => 4,
            Broken::Law(illegal) => {
                16 + Self::ILLEGAL.iter().position(|c| *c == illegal).unwrap_or(0) as u64
            }
        }
    }

    #[cold]
    fn unpack(word: u64) -> Option<Broken> {
        match word {
            0 => None,
            1 => Some(Broken::Corrupt),
            3 => Some(Broken::FrameUnusable),
            4 => Some(Broken::TableUnusable),
            _ => {
                let illegal = Self::ILLEGAL.get(word.wrapping_sub(16) as usize);
                Some(illegal.map_or(Broken::Corrupt, |illegal| Broken::Law(*illegal)))
            }
        }
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Broken::Law(illegal) => write!(f, "an illegal change of a table entry ({illegal:?})"),
            Broken::Corrupt => f.write_str("a corrupt table entry"),
            Broken::FrameUnusable => {
                f.write_str("the host found a frame that cannot be mapped as asked")
            }
            Broken::TableUnusable => {
                f.write_str("the host gave a table page that no entry can point at")
            }
        }
    }
}

impl core::error::Error for Broken {}

/// See the module.
#[derive(Debug)]
pub(crate) struct Core {
    /// No two VMs have the same, and it is not an address: a VM may move.
    pub id: u64,
    pub format: Format,
    pub window: u64,
    /// The largest leaf of any slot.
    pub largest: Level,
    pub participants: Participants,
    pub invalidations: Invalidations,
    pub roots: Roots,
    pub slots: Slots,
    pub vcpus: Box<[VcpuWords]>,
    /// Host frames no linear slot may cover.
    pub reserved: Vec<(Pfn, Pfn)>,
    dead: AtomicU64,
}

/// Sizes of a [`Core`].
pub(crate) struct Sizes {
    pub participants: usize,
    pub vcpus: usize,
    pub slots: usize,
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
        let mut kept = Vec::new();
        kept.try_reserve_exact(reserved.len()).map_err(|_| NoMemory)?;
        kept.extend_from_slice(reserved);
        Ok(Core {
            id: crate::sync::unique(),
            format,
            window,
            largest,
            participants: Participants::new(sizes.participants)?,
            invalidations: Invalidations::new(),
            roots: Roots::new(),
            slots: Slots::new(sizes.slots)?,
            vcpus: vcpus.into_boxed_slice(),
            reserved: kept,
            dead: AtomicU64::new(0),
        })
    }

    /// The first reason counts.
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

    pub(crate) fn participant(&self, place: u32) -> Option<&ParticipantWords> {
        self.participants.get(place)
    }
}
