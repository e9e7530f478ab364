//! What the hypervisor is made of and can be tested on the host.
#![no_std]

extern crate alloc;

pub mod frames;
pub mod map;
pub mod pool;
pub mod ram;
pub mod wire;
