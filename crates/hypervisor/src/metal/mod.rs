//! Everything that needs the machine itself.

mod apic;
mod boot;
mod control;
mod intrinsics;
mod memory;
mod ports;
mod processor;
mod start;
mod svm;
mod timer;
mod traps;
