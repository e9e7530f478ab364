//! What a hypervisor calls.

pub mod check;
pub mod drain;
pub mod dump;
pub mod invalidate;
pub mod memory;
pub mod mmu;
pub mod slot_changes;
pub mod stats;
pub mod vcpu;
pub mod worker;
