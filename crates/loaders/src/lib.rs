//! Guests made ready to run: what lies in their RAM and how they start.
//!
//! Kernels come from anywhere, so nothing in their headers is believed: what cannot be is refused
//! with the reason, and no header makes a loader panic. `fuzz/` looks for one that does.

pub mod acpi;
pub mod linux;
pub mod multiboot;
pub mod ram;
pub mod size;

use hypervisor::wire::{Guest, Range, Segment, Start};

/// One guest, owning its bytes.
#[derive(Debug)]
pub struct Plan {
    /// For people.
    pub name: String,
    /// vCPUs.
    pub cpus: u32,
    /// RAM ranges.
    pub ram: Vec<Range>,
    /// State at the first instruction.
    pub start: Start,
    /// Guest-physical address and bytes of each piece.
    pub segments: Vec<(u64, Vec<u8>)>,
}

impl Plan {
    fn new(name: String, cpus: u32, start: Start, image: ram::Image) -> Self {
        let (ram, segments) = image.into_parts();
        Plan { name, cpus, ram, start, segments }
    }

    /// As the hypervisor is told.
    pub fn wire(&self) -> Guest<'_> {
        Guest {
            name: self.name.clone(),
            cpus: self.cpus,
            ram: self.ram.clone(),
            start: self.start,
            segments: self.segments.iter().map(|(gpa, data)| Segment { gpa: *gpa, data }).collect(),
        }
    }
}
