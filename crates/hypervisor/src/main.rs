//! The bare-metal binary.
#![no_std]
#![no_main]
