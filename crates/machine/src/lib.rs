//! A software x86 that walks nested page tables as hardware may.
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
mod guest;
mod habits;
mod log;
mod memory;
pub mod npt;
mod processor;
mod walk;

pub use access::{Access, Allows};
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
