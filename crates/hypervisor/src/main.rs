//! The bare-metal binary: boots by PVH, reads the job, runs its guests one after another and
//! powers the machine off.
#![no_std]
#![no_main]

extern crate alloc;

mod metal;
