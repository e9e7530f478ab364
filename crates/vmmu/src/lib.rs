//! The memory-management unit of a hypervisor: EPT and NPT tables that many vCPUs fill at once,
//! kept right while the host takes pages back.
//!
//! It does for any Rust hypervisor what KVM's x86 MMU does for Linux: two-dimensional tables
//! filled lazily by concurrent faults, slots, host invalidations, roots that live until they are
//! invalidated, MMIO entries. It has no VM-wide lock. Tables are protected as RCU protects data,
//! and most misuse of the protocol does not compile.
//!
//! ## In a hypervisor of your own
//!
//! ```
//! use vmmu::addr::{Gfn, GfnRange, Gpa, Level, Pfn};
//! use vmmu::entry::{Access, MemoryType, npt};
//! use vmmu::host::{Contents, Cpus, Observer, Placement, TablePage, TablePages, VcpuId};
//! use vmmu::slot::{AddressSpace, LinearFrames, Mutability, SlotId, SlotSpec, Source};
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
//! let mmu = Mmu::new(MyHost, &Config::new(format, 1)).map_err(|error| error.why.to_string())?;
//! let mut worker = mmu.worker()?;
//! worker.create_slot(&SlotSpec {
//!     id: SlotId(0),
//!     space: AddressSpace::Normal,
//!     range: GfnRange::sized(Gfn(0), 0x10000).ok_or("too long")?, // 256 MiB of guest memory
//!     // SAFETY: this host gives these frames to the guest and uses them for nothing else.
//!     source: Source::Linear(unsafe { LinearFrames::new(Pfn(0x100000), MemoryType::WriteBack) }),
//!     mutability: Mutability::ReadWrite,
//!     largest: Level::Size2M,
//! })?;
//!
//! let mut vcpu = mmu.vcpu(VcpuId(0))?; // in its thread
//! vcpu.load_root()?; // may sleep: interrupts are on
//! let entry = vcpu.before_enter(Processor(0))?;
//! let (_ncr3, _flush) = (entry.root(), entry.flush()); // into the VMCB, then VMRUN
//! entry.after_exit();
//! let fault = PageFault { gpa: Gpa(0x1234567), access: Access::WRITE, cause: Cause::Guest };
//! # struct NoBacking;
//! # // SAFETY: it names nothing.
//! # unsafe impl vmmu::host::Backing for NoBacking {
//! #     fn find(&self, _: &vmmu::host::FrameQuery) -> vmmu::host::Resolution {
//! #         vmmu::host::Resolution::Hole
//! #     }
//! # }
//! # let backing = NoBacking;
//! assert_eq!(vcpu.handle_fault(&backing, fault), Outcome::Fixed(Level::Size2M)); // on a nested fault
//!
//! drop((worker, vcpu));
//! mmu.teardown(); // by value: every table page goes back
//! # Ok(())
//! # }
//! ```
//!
//! ## Principles
//!
//! * *The law decides*: what a change of an entry obliges its author to do is a pure function of
//!   what changed ([`entry::law`]).
//! * *Modify is not insert*: only the holder of a permit may put a mapping where there was none, and
//!   no permit is given below an invalid root, in a range under invalidation, or for a slot that has
//!   changed since the fault began.
//! * *A lock is a value*, and *a flush is a debt*, opened before the first entry is cleared.
//! * *The fault path shares nothing it does not have to*: it writes the first line of its own
//!   participant, and the entry.
//! * *Every wait goes through the host* ([`host::Cpus::wait`]), outside of sections.
//! * *No panic* that a guest, a hook of the host or a failed allocation can reach. A contradiction
//!   kills the MMU ([`Broken`]), not the host.
//!
//! ## What a hypervisor calls
//!
//! [`Mmu`] makes [`VcpuMmu`]s and [`Worker`]s, which borrow it or own a share of it ([`Hold`]). A
//! vCPU calls [`VcpuMmu::load_root`] where it may sleep, and [`VcpuMmu::before_enter`] with
//! interrupts off; it handles a fault by [`VcpuMmu::handle_fault`], or in two steps by
//! `begin_fault` and [`Worker::complete`] if the frame is found elsewhere. A worker changes slots,
//! reads and writes guest memory, and drains roots. The host's memory manager calls
//! [`Mmu::invalidate_begin`] and [`Mmu::invalidate_end`], on any thread. [`host`] says what the
//! hypervisor provides, and in which context each hook is called; the handbook has a chapter on
//! porting (`docs/book/porting.md`), with two skeletons in `examples`.
//!
//! ## Glossary
//!
//! Names of Linux's KVM and RCU beside ours; a relative, not an equal, is meant.
//!
//! | term | in KVM | elsewhere | meaning |
//! |---|---|---|---|
//! | gfn | `gfn_t` | Xen: gfn | A guest frame number: a guest-physical address divided by 4096. |
//! | pfn | `kvm_pfn_t` | Xen: mfn | A host frame number: a host-physical address divided by 4096. |
//! | entry | SPTE | page-table entry | One 64-bit word of a table that the processor walks. |
//! | leaf | leaf SPTE (`is_last_spte`) | terminal entry | An entry that maps memory: 4 KiB, 2 MiB or 1 GiB. |
//! | table page | shadow page (`kvm_mmu_page`) | page-table page | A page of 512 entries, given by the host and released to it. |
//! | section | walking under `rcu_read_lock` | RCU: read-side critical section; crossbeam: being pinned | The time in which one thread may look at tables, slots and roots, because nothing that it can reach is freed before the end of it. |
//! | grace period | `synchronize_rcu` | RCU: grace period | A wait until every section that was open at its beginning is over; `synchronize` is the call. |
//! | participant | a reader that RCU watches | crossbeam-epoch: participant | Whoever may open sections: a vCPU, a worker, or one of the MMU's own for notifiers; it has a set of words that others read. |
//! | Local | | crossbeam-epoch: `Local` | The exclusive right to one participant's words, which lends one thing at a time: a section, a debt, a revocation or the host. |
//! | section count | RCU's `rcu_read_lock_nesting` | seqcount | A participant's word that is odd while it is in a section. |
//! | watch | `mmu_invalidate_seq`, read before the look-up | hazard pointer, of a range | The guest frames for which somebody is looking up a host frame, written where invalidations see them. |
//! | hit | `mmu_invalidate_retry` answers "retry" | | A bit of a watch, set by whoever takes one of its frames back: the answer that is being looked up must not be mapped. |
//! | request | `struct kvm_page_fault` | | An admitted watch with what the fault wants; resolved by whoever knows the frame, on any thread. |
//! | permit | `mmu_lock`, held after `mmu_invalidate_retry` | capability | The right to write one leaf in one section; a root that is invalid, a slot that has changed, a range under invalidation or a hit refuses it. |
//! | invalidation | `mmu_notifier` `invalidate_range_start` to `_end` | | A range of a backing's pages that the host is taking back: from its beginning to its end nothing of it is mapped. |
//! | notifier | `struct mmu_notifier` | | Whoever calls `invalidate_begin` and `invalidate_end`: the host's memory manager, on a thread that owns no handle. |
//! | announce | raising `mmu_invalidate_in_progress` | RCU: removal | The first step of a revocation: from here on permits are refused. |
//! | quiesced | `mmu_lock` taken for writing | RCU: after the grace period | The value that shows that a grace period has followed the announcement, so nothing is inserted behind a walk that starts now. |
//! | revoked | unmapped and flushed | RCU: reclaimable | The value that shows that what was revoked is gone from the tables and from every processor. |
//! | debt | the `flush` that a zap returns | Linux mm: `mmu_gather` | A flush that is owed because entries were cleared, with the detached tables that wait for it. |
//! | ledger | | Linux mm: `mm_tlb_flush_pending` | The words of a participant that say over which guest frames it has a debt, so that others flush who rely on these frames being gone. |
//! | shootdown | `kvm_flush_remote_tlbs` | TLB shootdown | Making every vCPU drop its translations before it runs guest code again. |
//! | kick | `kvm_vcpu_kick` | interprocessor interrupt | Making a vCPU that is in the guest leave it. |
//! | root | `root_hpa`, a root `kvm_mmu_page` | nCR3, EPTP | The top table of one tree, shared by all vCPUs of the same role; it lives until it is invalidated. |
//! | role | `kvm_mmu_page_role` | | All that decides whether two vCPUs can share a root. |
//! | drain | `kvm_mmu_zap_all_fast`, zapping of obsolete roots | | Taking the tables below invalid roots apart in steps, while vCPUs run on new ones. |
//! | zap | `kvm_unmap_gfn_range` | unmap | Making leaves and MMIO entries empty, so that the next access faults. |
//! | slot | memslot | | A range of guest frames that is memory, and what backs it. |
//! | coming, live, dying | dying: `KVM_MEMSLOT_INVALID` | | The three states of a slot that is in the set: announced, in use, being deleted. |
//! | revision | the memslots' generation, but of all slots together | | A number that no two states of any slot share; a request carries it, so a change of one slot refuses no fault on another. |
//! | generation | memslots' generation, MMIO generation | | How often what is memory has changed; its low part, the *tag*, stands in MMIO entries, and its high part, the *epoch*, is kept with each root. |
//! | backing | `userspace_addr`, `guest_memfd` | memory object | What the host backs a slot with, named by a number; the host finds its frames and may take them back. |
//! | linear | | identity or offset mapping | A slot whose frames are one pinned run of host frames: a fault on it asks nobody. |
//! | frozen | `FROZEN_SPTE` | locked entry | An entry that only its owner may replace; the next three are its kinds. |
//! | hold | | | A frozen entry whose owner ends it in the same section. |
//! | claim | | break-before-make | A frozen entry that outlives its section. |
//! | dead | `FROZEN_SPTE` in a removed table | | A frozen entry of a table that has been detached; nothing ever replaces it. |
//! | MMIO entry | MMIO SPTE | | An entry that makes the processor report an access as a device's, as of one generation of the slots. |
//! | worker | a thread that calls the VM's ioctls | | A participant without a vCPU: changes slots, drains, completes faults, reads and writes guest memory. |
//! | young | accessed, `kvm_test_age_gfn` | Linux mm: `pte_young` | Used since somebody last looked; entries record it, and the calls that ask for it do not exist yet. |
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
        AddressSpace, LinearFrames, Mutability, SlotId, SlotInfo, SlotSpec, SlotState, Source,
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
    pub use crate::table::claim::{Claim, Hold};
    pub use crate::table::entry::{Changed, Detach, Entry, Split};
    pub use crate::table::page::{Page, Then};
    pub use crate::tdp::insert::{Insert, Mapped};
    #[cfg(feature = "step")]
    pub use crate::watched::{SchedulePoint, schedule};
}

pub use addr::HostRange;
pub use api::dump::DumpError;
pub use api::hold::Hold;
pub use api::memory::{AccessError, AccessFailure, GuestWord, Translation};
pub use api::mmu::{Config, Mmu, NewError, NewReason};
pub use api::notify::WouldWait;
pub use api::stats::Stats;
pub use api::vcpu::{EnterError, Entered, Flush, InGuest, LoadError, Processor, VcpuMmu};
pub use api::worker::{HandleError, Worker};
pub use error::NoMemory;
pub use fault::{Busy, Cause, MemoryFault, Outcome, PageFault};
pub use revoke::invalidation::{Invalidation, NotInvalidating};
pub use revoke::progress::Progress;
pub use revoke::zap::Zap;
pub use slots::deletion::Deletion;
pub use slots::drain::Drain;
pub use state::broken::Broken;
pub use state::root::{Phase, Role, RootName};
pub use table::cache::MissingPages;
pub use tdp::fault::{FaultStep, NeedsPages};
pub use tdp::request::{NotCompleted, Parked, Refused, Request, ResolvedFault, WrongAnswer};
