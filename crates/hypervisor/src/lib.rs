//! What the hypervisor is made of and can be tested on the host.
#![no_std]

extern crate alloc;

pub mod cpuid;
pub mod frames;
pub mod map;
pub mod policy;
pub mod pool;
pub mod ram;
pub mod registers;
pub mod wire;
