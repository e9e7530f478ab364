//! The bare-metal binary: a multiboot kernel that runs the test its command line names.
#![no_std]
#![no_main]

mod metal;
