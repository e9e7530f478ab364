//! What the guest is made of and can be tested on the host: how its command line is read, what
//! the boot loader told it, patterns, and the table of its tests with what each must end in.
//!
//! The command line names the test: `test=NAME [key=value...]`. Without one the guest is
//! `builtin`. The binary itself is in `metal` and needs the feature `bare-metal`.
#![cfg_attr(not(test), no_std)]

pub mod boot_info;
pub mod case;
pub mod command_line;
pub mod delivery;
pub mod descriptor;
pub mod exit;
pub mod memory_map;
pub mod order;
pub mod pattern;
pub mod port;
