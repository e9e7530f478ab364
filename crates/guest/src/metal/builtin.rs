//! The built-in guest: every part checks itself and says so in one line.

mod memory;
mod mmio;
mod processor;

use super::console::say;
use super::{Machine, cpu};

/// Runs all parts.
pub fn run(machine: &Machine) {
    map(machine);
    cpu::start_others(machine);
    processor::exceptions();
    processor::pit();
    processor::late_delivery(machine);
    processor::apic_timer(machine);
    processor::shoulders(machine);
    processor::floating_point();
    memory::race(machine);
    memory::ram(machine);
    memory::atomics(machine);
    memory::page_tables(machine);
    processor::ports();
    mmio::run(machine);
}

/// What must still work after a hostile test.
pub fn after(machine: &Machine) {
    processor::exceptions();
    super::apic::enable();
    processor::pit();
    memory::ram(machine);
}

fn map(machine: &Machine) {
    for region in machine.info.regions.iter().flatten() {
        let kind = if region.usable { "RAM" } else { "reserved" };
        say!("memory {:#014x}-{:#014x} {kind}", region.span.start, region.span.end);
    }
    say!("map ok ({} KiB of RAM, {} free)", machine.ram.bytes() >> 10, machine.free.bytes() >> 10);
}
