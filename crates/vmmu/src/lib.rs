//! The memory-management unit of a hypervisor: EPT and NPT tables that many vCPUs fill at once,
//! kept right while the host takes pages back.
//!
//! It does for any Rust hypervisor what KVM's x86 MMU does for Linux: two-dimensional tables
//! filled lazily by concurrent faults, slots, host invalidations, roots that live until they are
//! invalidated, MMIO entries. It has no VM-wide lock, and its rules are types.
//!
//! ## In a hypervisor of your own
//!
//! ```
//! use vmmu::addr::{Gfn, GfnRange, Gpa, Level, Pfn};
//! use vmmu::entry::{Access, MemoryType, npt};
//! use vmmu::host::{Contents, Cpus, Observer, Placement, TablePage, TablePages, VcpuId};
//! use vmmu::slot::{AddressSpace, Mutability, SlotId, SlotSpec, Source};
//! use vmmu::{PageFault, Cause, Outcome};
//! use vmmu::{Config, Processor, Mmu};
//!
//! # use std::alloc::{Layout, alloc, dealloc};
//! # const PAGE: Layout = Layout::new::<Page>();
//! # #[repr(align(4096))]
//! # struct Page([u8; 4096]);
//! struct MyHost;
//!
//! // SAFETY: whole pages, mapped at their own addresses, used by nobody else.
//! unsafe impl TablePages for MyHost {
//!     fn window(&self) -> u64 {
//!         0 // virtual = physical + 0: an identity map
//!     }
//!     fn take(&self, _: Placement) -> Option<TablePage> {
//!         let page = unsafe { alloc(PAGE) }.expose_provenance() as u64; // your allocator
//!         Some(TablePage { pfn: Pfn(page >> 12), contents: Contents::Unknown })
//!     }
//!     fn release(&self, page: Pfn) {
//!         let page = core::ptr::with_exposed_provenance_mut((page.0 << 12) as usize);
//!         unsafe { dealloc(page, PAGE) }
//!     }
//! }
//! impl Cpus for MyHost {
//!     fn kick(&self, _: VcpuId) { /* interrupt the processor the vCPU runs on */ }
//! }
//! impl Observer for MyHost {}
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let format = npt::format(npt::NptOptions::default())?;
//! let vm = Mmu::new(MyHost, &Config::new(format, 1)).map_err(|error| error.why.to_string())?;
//! let mut worker = vm.worker().ok_or("no place")?;
//! worker.create_slot(&SlotSpec {
//!     id: SlotId(0),
//!     space: AddressSpace(0),
//!     range: GfnRange::sized(Gfn(0), 0x10000).ok_or("too long")?, // 256 MiB of guest memory
//!     source: Source::Linear { pfn: Pfn(0x100000), memory: MemoryType::WriteBack },
//!     mutability: Mutability::ReadWrite,
//!     largest: Level::Size2M,
//! })?;
//!
//! let mut vcpu = vm.vcpu(VcpuId(0)).ok_or("no such vCPU")?; // in its thread
//! let entry = vcpu.before_enter(Processor(0))?;
//! let (_ncr3, _flush) = (entry.root(), entry.flush()); // into the VMCB, then VMRUN
//! entry.after_exit();
//! let fault = PageFault { gpa: Gpa(0x1234567), access: Access::WRITE, cause: Cause::Guest };
//! # struct NoBacking;
//! # impl vmmu::host::Backing for NoBacking {
//! #     fn find(&self, _: &vmmu::host::FrameQuery) -> vmmu::host::Resolution {
//! #         vmmu::host::Resolution::Hole
//! #     }
//! # }
//! # let backing = NoBacking;
//! assert_eq!(vcpu.handle_fault(&backing, fault), Outcome::Fixed(Level::Size2M)); // on a nested fault
//!
//! drop((worker, vcpu));
//! vm.teardown(); // by value: every table page goes back
//! # Ok(())
//! # }
//! ```
//!
//! ## Principles
//!
//! * *The law decides*: what a change of an entry obliges to is a pure function of what changed
//!   ([`entry::law`]).
//! * *Modify is not insert*: only a permit, which an invalid root, a range under invalidation or a
//!   changed slot cannot give, lets anybody populate an entry.
//! * *A lock is a value*, and *a flush is a debt* opened before the first clear.
//! * *The fault path shares nothing it does not have to*: its participant's words, and the entry.
//! * *No panic* that a guest, a host hook or a failed allocation can reach. Contradictions kill the
//!   VM ([`Broken`]), not the host.
//!
//! ## What a hypervisor calls
//!
//! [`Mmu`] makes [`VcpuMmu`]s and [`Worker`]s. A vCPU enters with [`VcpuMmu::before_enter`] and faults
//! with [`VcpuMmu::handle_fault`], or in two steps with [`VcpuMmu::fault`] and [`Worker::complete`] if the
//! frame is found elsewhere. A worker changes slots, answers invalidations, reads and writes guest
//! memory, and drains roots. [`host`] says what the hypervisor provides, and in which context each
//! hook is called.
//!
//! ## Features
//!
//! `protocol`, `defects`, `record` and `step` are for this crate's own models and tests.

#![cfg_attr(not(any(test, loom, shuttle, feature = "record", feature = "step")), no_std)]
// No panic that a guest, a hook of the host or a failed allocation could reach.
#![cfg_attr(
    not(test),
    deny(
        clippy::expect_used,
        clippy::get_unwrap,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::string_slice,
        clippy::todo,
        clippy::unimplemented,
        clippy::unreachable,
        clippy::unwrap_used,
    )
)]

extern crate alloc;

#[macro_use]
#[cfg_attr(not(feature = "defects"), allow(dead_code, reason = "switched in by the feature"))]
mod defect;

// Bottom to top: a module imports from those above it in this list, and from no others.

// Numbers.
pub mod addr;
pub mod error;
mod sync;
#[cfg(any(feature = "record", feature = "step"))]
#[cfg_attr(
    not(all(feature = "record", feature = "step")),
    allow(dead_code, reason = "each feature uses a part")
)]
mod watched;

// One entry of a table.
pub mod entry;

// What all participants share, without any behaviour.
mod state;

// What the hypervisor provides, and the words both sides speak.
pub mod fault;
pub mod host;

// Who may do what, and who waits for whom.
#[cfg_attr(not(feature = "protocol"), allow(dead_code, reason = "some of it is for models"))]
mod protocol;
#[cfg_attr(not(feature = "protocol"), allow(dead_code, reason = "some of it is for models"))]
mod revoke;
#[cfg_attr(not(feature = "protocol"), allow(dead_code, reason = "some of it is for models"))]
mod table;

// What an MMU does.
mod slots;
#[cfg_attr(not(feature = "protocol"), allow(dead_code, reason = "some of it is for models"))]
pub mod tdp;

// What a hypervisor calls.
mod api;

/// What exists for the tests of this crate only.
#[doc(hidden)]
pub mod testing;

/// Slots: which guest frames are memory, and what the host backs them with.
pub mod slot {
    pub use crate::slots::edit::Room;
    pub use crate::slots::error::SlotError;
    pub use crate::state::slot::{
        AddressSpace, Mutability, SlotId, SlotInfo, SlotSpec, SlotState, Source,
    };
}

/// The checker of tables at rest.
pub mod check {
    pub use crate::api::check::{Checked, Invariant, Violation, Where, Witness};
}

/// The protocol itself: public for models, the compile-fail tests and the software machine only,
/// with no promise of stability.
#[cfg(feature = "protocol")]
#[doc(hidden)]
pub mod internals {
    #[cfg(feature = "defects")]
    pub use crate::defect::{Defect, switch};
    pub use crate::protocol::debt::Debt;
    pub use crate::protocol::local::{Local, Participant};
    pub use crate::protocol::section::{Clearing, Liability, Owing, Plain, Section};
    pub use crate::protocol::watch::Watch;
    pub use crate::revoke::chain::{
        Announced, PausedWalk, Quiesced, Revocation, Revoked, Walk, Walked,
    };
    pub use crate::revoke::dying_slot::SlotDying;
    pub use crate::revoke::guest_frames::GuestFrames;
    pub use crate::revoke::host_pages::HostPages;
    pub use crate::revoke::roots::{RootInvalid, Unloaded};
    pub use crate::slots::guard::SlotGuard;
    pub use crate::state::table::Table;
    pub use crate::table::cache::{Cache, ReservedPages};
    pub use crate::table::entry::{Changed, Entry};
    pub use crate::table::page::{Page, Then};
    pub use crate::tdp::insert::{Insert, Mapped};
    #[cfg(feature = "step")]
    pub use crate::watched::{SchedulePoint, schedule};
}

pub use addr::HostRange;
pub use api::drain::Drain;
pub use api::dump::DumpError;
pub use api::invalidate::{Invalidation, NotInvalidating, Zap};
pub use api::memory::{AccessError, AccessFailure, GuestWord, Translation};
pub use api::mmu::{Config, Mmu, NewError, NewReason};
pub use api::slot_changes::Deletion;
pub use api::stats::Stats;
pub use api::vcpu::{EnterError, Flush, InGuest, Processor, VcpuMmu};
pub use api::worker::Worker;
pub use error::NoMemory;
pub use fault::{Cause, MemoryFault, Outcome, PageFault};
pub use revoke::progress::Progress;
pub use state::broken::Broken;
pub use state::root::{Phase, Role, RootName};
pub use table::cache::MissingPages;
pub use tdp::fault::{FaultStep, NeedsPages};
pub use tdp::request::{Parked, Refused, Request, ResolvedFault, WrongAnswer};
