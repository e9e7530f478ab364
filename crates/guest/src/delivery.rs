//! Faults while an event is delivered: which event, which structure the processor needs for it,
//! and what is wrong with the page that structure is on.
//!
//! Delivery through an interrupt gate in long mode reads the gate, then the code segment's
//! descriptor, then, for a gate with a stack index, the task-state segment, and pushes the frame
//! (AMD64 Architecture Programmer's Manual, volume 2, section 8.9). A page fault on the way is
//! an exception of its own, unless the event itself was a page fault: then it is a double fault,
//! and a fault during that is a shutdown (section 8.2.9).

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
    /// The first four of them, one after the other in one delivery.
    All,
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

impl Delivery {
    /// Reads a case's name, `hostile-delivery-EVENT-TABLE-PLACE`.
    pub fn parse(name: &str) -> Option<Self> {
        let mut words = name.strip_prefix("hostile-delivery-")?.split('-');
        let event = match words.next()? {
            "int3" => Event::Int3,
            "int80" => Event::Int80,
            "pit" => Event::Pit,
            _ => return None,
        };
        let table = match words.next()? {
            "idt" => Table::Idt,
            "gdt" => Table::Gdt,
            "tss" => Table::Tss,
            "ist" => Table::Ist,
            "stack" => Table::Stack,
            "all" => Table::All,
            _ => return None,
        };
        let place = match words.next()? {
            "unmapped" => Place::Unmapped,
            "hole" => Place::Hole,
            "cold" => Place::Cold,
            _ => return None,
        };
        words.next().is_none().then_some(Self { event, table, place })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::CASES;

    #[test]
    fn every_delivery_case_can_be_read() {
        let mut seen = Vec::new();
        for case in CASES.iter().filter(|case| case.name.starts_with("hostile-delivery")) {
            let delivery = Delivery::parse(case.name).unwrap();
            assert!(!seen.contains(&delivery), "{} twice", case.name);
            seen.push(delivery);
        }
        assert_eq!(seen.len(), 3 * 5 * 3 + 3);
    }

    #[test]
    fn other_names_are_refused() {
        for name in ["", "hostile-delivery", "hostile-delivery-int3-idt", "hostile-delivery-x-y-z"]
        {
            assert_eq!(Delivery::parse(name), None);
        }
        assert_eq!(Delivery::parse("hostile-delivery-int3-idt-hole-more"), None);
    }
}
