//! The memory-management unit of a hypervisor.
#![cfg_attr(not(any(test, loom, shuttle)), no_std)]

extern crate alloc;

pub mod addr;
pub mod entry;
mod sync;
