//! Everything that needs the machine itself.

mod alarm;
mod apic;
mod boot;
mod churn;
mod control;
mod exits;
mod guest_ram;
mod intrinsics;
mod io;
mod live;
mod machine;
mod memory;
mod mmio;
mod msr;
mod nested;
mod nmi;
mod ports;
mod probe;
mod processor;
mod report;
mod session;
mod start;
mod svm;
mod timer;
mod traps;
mod vcpu;
