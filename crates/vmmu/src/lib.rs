//! The memory-management unit of a hypervisor: EPT and NPT tables that many vCPUs fill at once,
//! kept right while the host takes pages back.
#![cfg_attr(not(any(test, loom, shuttle)), no_std)]

extern crate alloc;

#[macro_use]
#[cfg_attr(not(feature = "defects"), allow(dead_code, reason = "switched in by the feature"))]
mod defect;

mod active;
pub mod addr;
pub mod check;
mod dump;
pub mod entry;
pub mod host;
mod line;
mod memory;
mod root;
mod shared;
pub mod slot;
mod stats;
mod sync;
#[cfg_attr(not(feature = "protocol"), allow(dead_code, reason = "some of it is for models"))]
pub mod tdp;
mod vcpu;
mod vm;
mod worker;

/// The protocol itself: public for models, the compile-fail tests and the software machine only,
/// with no promise of stability.
#[cfg(feature = "protocol")]
#[doc(hidden)]
pub mod protocol {
    #[cfg(feature = "defects")]
    pub use crate::defect::{Defect, switch};
    pub use crate::section::{Clearing, Kind, Owing, Participant, Plain, Section, Turn, Watch};
    pub use crate::table::{Cache, Changed, Entry, Full, NeedPages, Page, Table, Then};
    pub use crate::tdp::{Insert, Mapped};
    pub use crate::tlb::Debt;
    pub use crate::withdraw::{
        GuestFrames, HostPages, Paused, Promise, Publication, Published, RootInvalid, SlotDying,
        Unloaded, Walk, Walked, Withdrawn,
    };
}
#[cfg_attr(not(feature = "protocol"), allow(dead_code, reason = "some of it is for models"))]
mod section;
#[cfg_attr(not(feature = "protocol"), allow(dead_code, reason = "some of it is for models"))]
mod table;
#[cfg_attr(not(feature = "protocol"), allow(dead_code, reason = "some of it is for models"))]
mod tlb;
#[cfg_attr(not(feature = "protocol"), allow(dead_code, reason = "some of it is for models"))]
mod withdraw;

pub use active::HostRange;
pub use dump::DumpError;
pub use memory::{AccessError, AccessFailure, Translation};
pub use root::{Phase, Role, RootName};
pub use shared::Broken;
pub use stats::Stats;
pub use table::NeedPages;
pub use vcpu::{EnterError, Flush, InGuest, Processor, Vcpu};
pub use vm::{Config, NewError, NewReason, Vm};
pub use worker::{Drain, Drained, Invalidation, NotInvalidating, Worker};

/// Memory ran out. Nothing has changed; give the host or the allocator more, and try again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoMemory;

impl core::fmt::Display for NoMemory {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("out of memory; nothing has changed")
    }
}

impl core::error::Error for NoMemory {}
