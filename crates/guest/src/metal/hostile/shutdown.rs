//! Ways to end a machine.

use super::cold;
use crate::metal::console::say;
use crate::metal::paging::{PRESENT, WRITABLE, Window};
use crate::metal::{Machine, check, cpu, fail, trap};
use core::arch::{asm, global_asm};
use guest::descriptor::interrupt_gate;
use guest::exit;
use x86_64::instructions::port::Port;

/// Reports that the machine goes on.
fn still_here() -> ! {
    fail(exit::FAILED, format_args!("the machine goes on"))
}

/// The machine may take a moment to stop.
fn linger() -> ! {
    cpu::wait(cpu::PATIENCE / 3, || false);
    still_here()
}

/// Sleep type 0 and sleep enable in the ACPI control port: soft off on a PC of QEMU's.
pub fn power_off() {
    // SAFETY: the machine stops.
    unsafe { Port::<u16>::new(0x604).write(0x2000) };
    linger()
}

/// The keyboard controller pulses the reset line.
pub fn reset_keyboard() {
    // SAFETY: the machine stops.
    unsafe { Port::<u8>::new(0x64).write(0xfe) };
    linger()
}

/// A full reset by the chipset's register.
pub fn reset_chipset() {
    // SAFETY: the machine stops.
    unsafe {
        Port::<u8>::new(0xcf9).write(0x02);
        Port::<u8>::new(0xcf9).write(0x06);
    }
    linger()
}

/// Halts for good.
pub fn halt() {
    say!("halting");
    loop {
        // SAFETY: nothing wakes the processor.
        unsafe { asm!("cli", "hlt") };
        say!("woken although interrupts are off");
    }
}

/// No interrupt descriptor table.
pub fn idt_limit() {
    say!("no IDT");
    // SAFETY: the processor shuts down.
    unsafe {
        trap::load_idt(0, 0);
        asm!("int3");
    }
    still_here()
}

/// No global descriptor table.
pub fn gdt_limit() {
    say!("no GDT");
    // SAFETY: the processor shuts down.
    unsafe {
        cpu::load_gdt(0, 0);
        asm!("int3");
    }
    still_here()
}

/// A table with gates on the current stack only, so that no fault finds a better one.
fn load_plain_gates(breakpoint: u64) {
    let table = cold::page() as *mut [u64; 2];
    for vector in 0..=255u8 {
        let gate = match vector {
            3 if breakpoint != 0 => interrupt_gate(breakpoint, cpu::CODE, 0),
            _ => trap::gate(vector, 0),
        };
        // SAFETY: a page nobody uses.
        unsafe { table.add(usize::from(vector)).write(gate) };
    }
    // SAFETY: the gates lead to the stubs, or to code that is not meant to return.
    unsafe { trap::load_idt(table as u64, 4095) };
}

/// The stack wraps around the end of the address space, where nothing is mapped.
pub fn stack_zero() {
    say!("stack at 0");
    load_plain_gates(0);
    // SAFETY: the processor shuts down.
    unsafe { asm!("xor esp, esp", "push rax", "ud2", options(noreturn)) }
}

global_asm!(
    r#"
    .section .text.recursion, "ax"
    .balign 16
    .globl breakpoint_recursion
breakpoint_recursion:
    int3
    ud2
    "#,
    options(att_syntax)
);

unsafe extern "C" {
    static breakpoint_recursion: u8;
}

/// Breakpoints in the breakpoint's handler, on a stack of untouched pages with nothing below.
pub fn recursion(machine: &Machine) {
    let window = Window::of(0);
    let wanted = 256;
    let mut place = 512;
    let pages = machine.free.spans().iter().flat_map(|span| (span.start..span.end).step_by(4096));
    for page in pages.take(wanted) {
        place -= 1;
        window.set(place, page | PRESENT | WRITABLE);
    }
    check!(place == 512 - wanted, exit::RAM, "less than {wanted} free pages");
    load_plain_gates(&raw const breakpoint_recursion as u64);
    say!("breakpoints on a stack of {wanted} pages");
    // SAFETY: the processor shuts down.
    unsafe {
        asm!("mov rsp, {}", "int3", "ud2", in(reg) window.address(511) + 4096, options(noreturn))
    }
}
