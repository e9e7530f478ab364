//! The local APIC of the processor that runs this (xAPIC, AMD64 APM vol. 2, chapter 16).

use super::{ports, traps};
use core::ptr;

/// Physical address of the register page.
pub const BASE: u64 = 0xfee0_0000;

/// Task priority.
pub const TPR: u16 = 0x80;
/// End of interrupt.
pub const EOI: u16 = 0xb0;
/// Spurious vector, with the software enable bit.
pub const SVR: u16 = 0xf0;
/// First of eight words of the in-service register.
pub const ISR: u16 = 0x100;
/// Interrupt command, low word; writing it sends.
pub const ICR_LOW: u16 = 0x300;
/// Interrupt command, high word: destination.
pub const ICR_HIGH: u16 = 0x310;
/// Timer entry of the local vector table; its neighbours follow every 16 bytes.
pub const LVT_TIMER: u16 = 0x320;
/// Entry of the pin the 8259 controllers are wired to.
pub const LVT_LINT0: u16 = 0x350;
/// Error entry, the last of the local vector table.
pub const LVT_ERROR: u16 = 0x370;
/// Initial count of the timer.
pub const TIMER_COUNT: u16 = 0x380;

/// Reads a register of this processor's APIC.
pub fn read(register: u16) -> u32 {
    // SAFETY: the page is mapped (identity map), and reading its registers changes nothing here.
    unsafe { ptr::read_volatile((BASE + u64::from(register)) as *const u32) }
}

/// Writes a register of this processor's APIC.
///
/// # Safety
/// The write must not start, stop or reset a processor that runs Rust code here, except as the
/// caller has arranged for, nor change the APIC's id or place.
pub unsafe fn write(register: u16, value: u32) {
    // SAFETY: the page is mapped; the effect is the caller's business.
    unsafe { ptr::write_volatile((BASE + u64::from(register)) as *mut u32, value) };
}

/// Id of this processor's APIC.
pub fn id() -> u32 {
    read(0x20) >> 24
}

/// Makes the processor with APIC id `target` take a non-maskable interrupt.
pub fn send_nmi(target: u32) {
    send(target << 24, 0x400);
}

/// Sends INIT and two start-up IPIs to every other processor.
pub fn start_others(trampoline: u64, mut wait: impl FnMut(u32)) {
    send(0, 0xc_4500);
    wait(10_000);
    for _ in 0..2 {
        send(0, 0xc_4600 | (trampoline >> 12) as u32);
        wait(200);
    }
}

fn send(high: u32, low: u32) {
    // A guest on this processor may be between its two writes of the command register; what it
    // put into the high word must be there when it goes on.
    let guest = read(ICR_HIGH);
    while read(ICR_LOW) & 1 << 12 != 0 {
        core::hint::spin_loop();
    }
    // SAFETY: an NMI is handled on every processor (traps.rs); INIT and start-up are only sent
    // while the others are parked in firmware.
    unsafe {
        write(ICR_HIGH, high);
        write(ICR_LOW, low);
        write(ICR_HIGH, guest);
    }
}

/// Brings this processor's APIC to the state after a reset, except its id: nothing in service,
/// nothing pending, every local source masked, software-disabled.
pub fn reset() {
    // SAFETY: only local sources and priorities change. Pending interrupts are taken by the
    // handlers of traps.rs, which acknowledge and forget them.
    unsafe {
        write(TIMER_COUNT, 0);
        for entry in (LVT_TIMER..=LVT_ERROR).step_by(16) {
            write(entry, 1 << 16);
        }
        write(TPR, 0);
        write(SVR, 0x1ff);
        for _ in 0..256 {
            if (0..8).all(|word| read(ISR + word * 16) == 0) {
                break;
            }
            write(EOI, 0);
        }
        traps::drain();
        write(0xe0, !0);
        write(0xd0, 0);
        write(ICR_HIGH, 0);
        write(SVR, 0xff);
    }
}

/// Lets the 8259 controllers interrupt this processor, as firmware leaves the boot processor
/// ("virtual wire mode", AMD64 APM vol. 2, section 16.4).
pub fn wire_legacy() {
    // SAFETY: interrupts reach this processor only while a guest runs.
    unsafe {
        write(SVR, 0x1ff);
        write(LVT_LINT0, 0x700);
    }
}

/// Masks and resets the pair of 8259 interrupt controllers, the timer's rate, and the serial
/// port's and the clock's interrupts: what the next guest expects of a machine just switched on.
pub fn reset_legacy() {
    // SAFETY: these devices belong to guests alone; none runs now.
    unsafe {
        for (command, data, base, wiring) in [(0x20, 0x21, 8, 4), (0xa0, 0xa1, 0x70, 2)] {
            ports::out8(command, 0x11);
            ports::out8(data, base);
            ports::out8(data, wiring);
            ports::out8(data, 1);
            ports::out8(data, 0xff);
        }
        ports::out8(0x43, 0x36);
        ports::out8(0x40, 0);
        ports::out8(0x40, 0);
        ports::out8(0x61, ports::in8(0x61) & !3);
        // COM1: 115,200 baud, 8 bits, no interrupts, no loop-back, empty queues.
        for (offset, value) in [(3, 0x83), (0, 1), (1, 0), (3, 3), (1, 0), (2, 7), (4, 3)] {
            ports::out8(0x3f8 + offset, value);
        }
        ports::out8(0x70, 0xb);
        ports::out8(0x71, 2);
        ports::out8(0x70, 0xc);
        ports::in8(0x71);
    }
}
