//! The hostile guests. What each must end in stands in [`guest::case`].

mod apic_page;
mod cold;
mod deliver;
mod hole;
mod instruction;
mod port_sweep;
mod register;
mod shutdown;
mod string;
mod table;

use super::console::say;
use super::{Machine, builtin, console, cpu, fail, interrupt};
use guest::delivery::Delivery;
use guest::exit;
use guest::memory_map::Span;

/// Runs the one with this name; it returns if the guest survives.
pub fn run(machine: &Machine, name: &str) {
    // Only when nothing else runs can all processors be halted.
    if machine.cpus > 1 && name != "hostile-halt" {
        cpu::start_others(machine);
    }
    match name {
        "hostile-holes-read" => hole::read(machine),
        "hostile-holes-write" => hole::write(machine),
        "hostile-holes-execute" => hole::execute(machine),
        "hostile-ports-in" => port_sweep::read(machine),
        "hostile-ports-out" => port_sweep::write(machine),
        "hostile-power-off" => shutdown::power_off(),
        "hostile-reset-keyboard" => shutdown::reset_keyboard(),
        "hostile-reset-chipset" => shutdown::reset_chipset(),
        "hostile-smi" => port_sweep::management(),
        "hostile-msr-read" => register::msr_read(machine),
        "hostile-msr-write" => register::msr_write(machine),
        "hostile-cr0" => register::cr0(),
        "hostile-cr0-paging-off" => register::paging_off(),
        "hostile-cr3" => register::cr3(),
        "hostile-cr3-hole" => register::load_cr3(machine.hole()),
        "hostile-cr3-garbage" => register::load_cr3(cold::page()),
        "hostile-cr4" => register::cr4(),
        "hostile-efer" => register::efer(),
        "hostile-long-mode" => register::long_mode(),
        "hostile-xcr0" => register::xcr0(),
        "hostile-debug-registers" => register::debug(machine),
        "hostile-selectors" => register::selectors(machine),
        "hostile-noncanonical" => instruction::noncanonical(),
        "hostile-instructions" => instruction::forbidden(),
        "hostile-cpuid" => instruction::cpuid(machine),
        "hostile-table-hole" => table::in_hole(machine),
        "hostile-table-random" => table::random(machine),
        "hostile-edges" => hole::edges(machine),
        "hostile-single-step" => instruction::single_step(machine),
        "hostile-apic-absent" => apic_page::absent(),
        "hostile-apic-nmi" => apic_page::nmi(),
        "hostile-apic-off" => apic_page::off(),
        "hostile-nmi-chain" => apic_page::nmi_chain(machine),
        "hostile-apic-init" => apic_page::init(),
        "hostile-apic" => apic_page::garbage(machine),
        "hostile-apic-access" => apic_page::access(),
        "hostile-apic-execute" => apic_page::execute(),
        "hostile-halt" => shutdown::halt(),
        "hostile-triple-fault" => shutdown::idt_limit(),
        "hostile-gdt-limit" => shutdown::gdt_limit(),
        "hostile-stack-zero" => shutdown::stack_zero(),
        "hostile-recursion" => shutdown::recursion(machine),
        "hostile-resume-flag" => instruction::resume_flag(),
        "hostile-self-modifying" => instruction::self_modifying(),
        "hostile-storm" => deliver::storm(machine),
        _ => {
            if let Some(delivery) = Delivery::parse(name) {
                deliver::run(machine, delivery);
            } else if let Some(form) = name.strip_prefix("hostile-string-") {
                string::run(machine, form);
            } else if let Some(form) = name.strip_prefix("hostile-mmio-") {
                hole::instruction(machine, form);
            } else {
                unknown(name);
            }
        }
    }
    // The machine must still work.
    console::start();
    interrupt::start();
    cpu::start(0);
    builtin::after(machine);
}

/// Ends the guest: the table knows a name that the binary does not.
fn unknown(name: &str) -> ! {
    fail(exit::USAGE, format_args!("there is no test {name}"))
}

/// Counts rules of the manual that the machine does not keep.
#[derive(Default)]
struct Rules {
    kept: u32,
    broken: u32,
}

impl Rules {
    /// One rule.
    fn rule(&mut self, kept: bool, what: core::fmt::Arguments<'_>) {
        if kept {
            self.kept += 1;
            return;
        }
        self.broken += 1;
        if self.broken <= 20 {
            say!("rule broken: {what}");
        }
    }

    /// Ends the guest if a rule was broken.
    fn verdict(self) {
        let Self { kept, broken } = self;
        if broken > 0 {
            fail(exit::FAILED, format_args!("{broken} of {} rules broken", kept + broken));
        }
        say!("{kept} rules kept");
    }
}

/// End of physical memory, bytes, by CPUID.
fn physical_end() -> u64 {
    // Leaf 8000_0008h: every processor with long mode has it.
    1 << (core::arch::x86_64::__cpuid(0x8000_0008).eax & 0xff)
}

/// Holes of the memory map, up to the end of physical memory, in whole pages.
fn holes(machine: &Machine) -> impl Iterator<Item = Span> + '_ {
    machine.ram.holes(physical_end()).map(|hole| hole.pages()).filter(|hole| hole.bytes() > 0)
}
