//! What the hypervisor is made of and can be tested on the host.
#![no_std]

extern crate alloc;

pub mod alu;
pub mod apic;
pub mod cpuid;
pub mod emulate;
pub mod events;
pub mod exit;
pub mod frames;
pub mod guest_walk;
pub mod map;
pub mod mtrr;
pub mod policy;
pub mod pool;
pub mod ram;
pub mod registers;
pub mod wire;
