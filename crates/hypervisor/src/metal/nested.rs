//! The guest's nested tables: the seam to the library.

use super::guest_ram::GuestRam;
use super::machine::Machine;
use alloc::string::String;
use hypervisor::wire::{End, Guest, Job, Stats, Verdict};
use core::marker::PhantomData;

/// The nested tables of one guest.
pub struct Nested<'m>(PhantomData<&'m ()>);

/// A vCPU may run the guest while this lives.
pub struct Entry;

impl Entry {
    /// Physical address of the top table.
    pub fn root(&self) -> u64 {
        0
    }

    /// Whether the processor's translations of this guest must go first.
    pub fn flush(&self) -> bool {
        true
    }
}

/// What became of a nested fault.
pub enum Answer {
    /// The guest tries again.
    Again,
    /// No plain memory: the instruction has to be carried out.
    Device,
    /// The guest cannot go on.
    End(End),
}

impl<'m> Nested<'m> {
    /// Refuses until the library has a VM to offer.
    pub fn new(_: &Job<'_>, _: &Guest<'_>, _: &'m GuestRam<'m>) -> Result<Self, String> {
        Err(String::from("this build has no memory-management unit"))
    }

    /// Refuses.
    pub fn enter(&self, _: usize) -> Result<Entry, End> {
        Err(End::Broken { what: String::from("no memory-management unit") })
    }

    /// Refuses.
    pub fn fault(&self, _: &Machine<'_>, _: usize, _: u64, _: bool, _: bool) -> Answer {
        Answer::End(End::Broken { what: String::from("no memory-management unit") })
    }

    /// Nothing to count.
    pub fn stats(&self) -> Stats {
        Stats::default()
    }

    /// Nothing to check.
    pub fn check(&self) -> Verdict {
        Verdict::default()
    }

    /// Nothing to take down.
    pub fn teardown(self) {}
}
