//! What a hypervisor calls.

pub mod check;
pub mod dump;
pub mod hold;
pub mod memory;
pub mod mmu;
pub mod notify;
pub mod seat;
pub mod stats;
pub mod vcpu;
pub mod worker;
