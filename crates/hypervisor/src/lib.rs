//! What the hypervisor is made of and can be tested on the host.
//!
//! The hypervisor boots by PVH, reads a [`wire::Job`] and runs its guests one after another, each
//! on a `vmmu::Mmu` of its own; or, with no vmmu at all, runs cases for the page walker ([`probe`]).
//! This library holds everything that is a rule or a calculation; the binary (`metal/`) holds what
//! needs the machine.
//!
//! # What a guest's doings end in
//!
//! | the guest | what happens |
//! |---|---|
//! | reads a port or an address where nothing is ([`policy`]) | all ones |
//! | writes one | nothing; it is counted |
//! | executes where nothing is | #UD: all ones is no instruction |
//! | uses an instruction there that is not carried out ([`emulate`]) | [`wire::End::Refused`] |
//! | has page tables, or has an event delivered, by way of such an address | [`wire::End::Refused`] |
//! | reads or writes a register that is not listed ([`policy::MSRS`]) | #GP |
//! | loads a control register with what its CPUID does not offer ([`registers`]) | #GP |
//! | executes an instruction of SVM, MONITOR or RSM | #UD |
//! | sends INIT, start-up or NMI to other processors ([`apic`]) | done to its vCPUs |
//! | cannot deliver an exception | [`wire::End::TripleFault`] |
//! | halts every vCPU with interrupts off | [`wire::End::Halted`] |
//! | gets the processor to refuse its state | [`wire::End::Refused`] |
//!
//! None of these is a fault of the hypervisor, and none keeps the next guest from booting.
#![no_std]

extern crate alloc;

pub mod alu;
pub mod apic;
pub mod closed;
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
pub mod probe;
pub mod ram;
pub mod registers;
pub mod wire;
