//! Faults while an event is delivered: which event, which structure the processor needs for it,
//! and what is wrong with the page that structure is on.
//!
//! Delivery through an interrupt gate in long mode reads the gate, then the code segment's
//! descriptor, then, for a gate with a stack index, the task-state segment, and pushes the frame
//! (AMD64 Architecture Programmer's Manual, volume 2, section 8.9). Page faults on the way are
//! combined as in section 8.2.9 (double fault).

/// What is delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The one-byte breakpoint instruction.
    Int3,
    /// `int 0x80`.
    Int80,
    /// An interrupt of the timer (PIT) through the interrupt controller.
    Pit,
}

/// What the processor needs for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Table {
    /// The interrupt descriptor table.
    Idt,
    /// The global descriptor table.
    Gdt,
    /// The task-state segment, from which the stack of the gate comes.
    Tss,
    /// The stack the gate names.
    Ist,
    /// The stack that is in use.
    Stack,
}

/// What is wrong with its page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Not mapped by the guest's own page tables.
    Unmapped,
    /// Mapped to guest-physical addresses where nothing is.
    Hole,
    /// RAM that was never touched: the fault is the hypervisor's, and the guest must not notice.
    Cold,
}

/// One combination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delivery {
    /// What is delivered.
    pub event: Event,
    /// What is needed.
    pub table: Table,
    /// What is wrong with it.
    pub place: Place,
}
