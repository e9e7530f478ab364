//! A software x86 that walks nested page tables as hardware may, and tries to catch out whoever
//! builds them.
//!
//! A hypervisor's tables are right if every processor that the manuals describe does the right
//! thing with them. A real processor is one of those, and mostly a kind one: it seldom keeps a
//! translation for long, and an emulator that flushes on every world switch never does. The
//! [`Processor`] here is written from the manuals alone (AMD APM volume 2, Intel SDM volume 3) and
//! uses every freedom they leave it, by choices made from a seed: it keeps stale translations,
//! several for one address, in pieces, and upper entries besides; it walks when nobody asked; and
//! it does so the same way again for the same seed.
//!
//! | | |
//! |---|---|
//! | AMD nested page tables, [`Npt`] | 4 and 5 levels; 4 KiB, 2 MiB, 1 GiB; error codes with bits 32 and 33 |
//! | Intel extended page tables, [`Ept`] | the same sizes; misconfigurations; execute-only; with and without accessed and dirty flags; page-modification log ([`Log`]) |
//! | the guest's own paging, [`Long`] | 4 and 5 levels, on top of either; WP, NXE, SMEP, SMAP |
//! | accessed and dirty | by compare-exchange on the words themselves; a lost exchange begins the walk again |
//! | what is cached | [`Habits`]; the rules are listed at the head of `cache.rs` |
//! | invalidation | by address, tag, root, all |
//! | other writers | may come between any two steps of a walk ([`Memory::pause`]) |
//!
//! What a processor may keep is tagged differently by the two vendors, and what forgets it differs
//! likewise:
//!
//! | to be forgotten | AMD | Intel |
//! |---|---|---|
//! | the nested tables changed | [`invalidate_tag`](Processor::invalidate_tag) | [`invalidate_root`](Processor::invalidate_root) |
//! | another nested table at the top | `invalidate_tag`, or another tag | nothing |
//! | the guest's tables changed | [`invalidate_address`](Processor::invalidate_address), [`reload_cr3`](Processor::reload_cr3), `invalidate_tag` | the same |
//! | a page of tables is freed and used again | as for the nested tables, on every processor | as for the nested tables, on every processor |
//!
//! # A hand-made table, judged
//!
//! ```
//! use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
//!
//! use machine::{Access, Context, Exit, Nested, Npt, Paging, Processor, npt};
//!
//! // Four tables that map guest-physical 0x0 to host-physical 0x9000, for reading only.
//! let memory: Vec<AtomicU64> = (0..0x5000 / 8).map(|_| AtomicU64::new(0)).collect();
//! memory[0x1000 / 8].store(0x2007, Relaxed);
//! memory[0x2000 / 8].store(0x3007, Relaxed);
//! memory[0x3000 / 8].store(0x4007, Relaxed);
//! memory[0x4000 / 8].store(0x9005, Relaxed);
//!
//! let nested = Nested::Npt(Npt::new());
//! let guest = Context { tag: 1, nested, root: 0x1000, paging: Paging::Off };
//! let mut processor = Processor::new(7);
//! let reached = processor.translate(&memory, &guest, 0x123, Access::Read).unwrap();
//! assert_eq!((reached.hpa, reached.page), (0x9123, 4096));
//! assert_eq!(memory[0x4000 / 8].load(Relaxed), 0x9025); // accessed
//!
//! let end = processor.translate(&memory, &guest, 0x123, Access::Write);
//! assert_eq!(end, Err(Exit::NestedFault(npt::Fault { code: 0x1_0000_0007, gpa: 0x123 })));
//!
//! // The page moves, and nobody flushes: sooner or later the old one is used.
//! memory[0x4000 / 8].store(0xa005, Relaxed);
//! let mut hpas = (0..100).map(|_| {
//!     processor.translate(&memory, &guest, 0x123, Access::Read).unwrap().hpa
//! });
//! assert!(hpas.any(|hpa| hpa == 0x9123));
//!
//! processor.invalidate_tag(1);
//! let reached = processor.translate(&memory, &guest, 0x123, Access::Read).unwrap();
//! assert_eq!(reached.hpa, 0xa123);
//! ```
//!
//! # What it leaves out
//!
//! Memory types (read, judged for legality, and without effect); protection keys, shadow stacks,
//! process-context identifiers, mode-based execution, sub-page permissions, virtualization
//! exceptions, guest-mode execution traps, memory encryption; 32-bit and PAE paging of the guest;
//! non-canonical addresses.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod access;
mod cache;
mod context;
mod counts;
mod entry;
mod ept;
mod exit;
mod fault;
mod guest;
mod habits;
mod log;
mod memory;
pub mod npt;
mod processor;
mod translation;
mod walk;
mod want;

pub use access::Access;
pub(crate) use access::Allows;
pub use context::{Context, Nested};
pub use counts::Counts;
pub use ept::{Ept, qualification};
pub use exit::{Exit, Reached};
pub use guest::{Long, Paging, page_fault};
pub use habits::{Habits, Keep};
pub use log::Log;
pub use memory::Memory;
pub use npt::Npt;
pub use processor::Processor;
