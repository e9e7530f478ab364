//! A software x86 that walks nested page tables as hardware may.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod access;
mod counts;
mod ept;
mod guest;
mod habits;
mod log;
mod memory;
pub mod npt;
mod processor;

pub use access::{Access, Allows};
pub use counts::Counts;
pub use ept::Ept;
pub use guest::{Long, Paging};
pub use habits::{Habits, Keep};
pub use log::Log;
pub use memory::Memory;
pub use npt::Npt;
pub use processor::{Context, Exit, Nested, Processor, Reached};
