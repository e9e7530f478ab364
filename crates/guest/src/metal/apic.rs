//! The local APIC, at its address after reset (AMD64 Architecture Programmer's Manual, volume 2,
//! chapter 16).

use super::trap;

/// Guest-physical address of the registers; mapped at the same linear address.
pub const BASE: u64 = 0xfee0_0000;

/// End of interrupt.
pub const EOI: u32 = 0xb0;
/// Spurious vector and software enable.
pub const SPURIOUS: u32 = 0xf0;
/// Interrupt command, low half.
pub const COMMAND: u32 = 0x300;
/// Interrupt command, high half.
pub const COMMAND_HIGH: u32 = 0x310;
/// Local vector of the timer.
pub const TIMER: u32 = 0x320;
/// Local vector of pin 0, to which the interrupt controller of the PC is wired.
pub const LINT0: u32 = 0x350;
/// Initial count of the timer.
pub const INITIAL: u32 = 0x380;
/// Current count of the timer.
pub const CURRENT: u32 = 0x390;
/// Divisor of the timer.
pub const DIVIDE: u32 = 0x3e0;

/// INIT to all but this processor.
pub const INIT_OTHERS: u32 = 0xc_4500;
/// Start-up to all but this processor; the page number goes into the low byte.
pub const START_OTHERS: u32 = 0xc_4600;
/// Fixed interrupt to all but this processor; the vector goes into the low byte.
pub const FIXED_OTHERS: u32 = 0xc_4000;

/// Reads a register.
pub fn read(register: u32) -> u32 {
    // SAFETY: the page is mapped; reading has no effect on memory.
    unsafe { ((BASE + u64::from(register)) as *const u32).read_volatile() }
}

/// Writes a register.
pub fn write(register: u32, value: u32) {
    // SAFETY: the page is mapped; the callers write what the manual allows, or are hostile by
    // intent and alone on their machine.
    unsafe { ((BASE + u64::from(register)) as *mut u32).write_volatile(value) }
}

/// Switches it on. Pin 0 passes the interrupts of the PC's own controller through.
pub fn enable() {
    write(SPURIOUS, 0x100 | u32::from(trap::SPURIOUS));
    write(LINT0, 0x700);
    write(TIMER, 0x1_0000);
}

/// Sends an interrupt command and waits until it has left.
pub fn send(command: u32) {
    write(COMMAND_HIGH, 0);
    write(COMMAND, command);
    super::cpu::wait(super::cpu::PATIENCE, || read(COMMAND) & 0x1000 == 0);
}

/// Lets the timer interrupt once after `count` of its ticks (bus clock divided by 16).
pub fn timer_once(count: u32) {
    write(DIVIDE, 3);
    write(TIMER, u32::from(trap::APIC_TIMER));
    write(INITIAL, count);
}

/// Ends the interrupt in service.
pub fn end() {
    write(EOI, 0);
}
