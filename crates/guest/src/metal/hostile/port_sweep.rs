//! Every port.

use crate::metal::Machine;
use crate::metal::console::{self, say};
use core::arch::asm;
use guest::port::{LEFT_OUT, Width, writable};
use x86_64::instructions::port::Port;

/// Ports at which an access of this width begins. `from=` and `to=` bound them, to find the one
/// port that does harm.
fn starts(machine: &Machine, width: Width) -> impl Iterator<Item = u16> + use<> {
    let end = machine.number("to", 0xffff).min(u64::from(0x1_0000 - width.bytes()));
    machine.number("from", 0) as u16..=end as u16
}

/// Widths to use: all, or the one of `width=` bytes.
fn widths(machine: &Machine) -> impl Iterator<Item = Width> + use<> {
    let only = machine.number("width", 0);
    Width::ALL.into_iter().filter(move |width| only == 0 || u64::from(width.bytes()) == only)
}

/// Reads them all.
pub fn read(machine: &Machine) {
    for width in widths(machine) {
        let mut answers = 0u32;
        for port in starts(machine, width) {
            // SAFETY: a port of the guest's machine; reading moves no memory.
            let all_ones = unsafe {
                match width {
                    Width::One => Port::<u8>::new(port).read() == !0,
                    Width::Two => Port::<u16>::new(port).read() == !0,
                    Width::Four => Port::<u32>::new(port).read() == !0,
                }
            };
            answers += u32::from(!all_ones);
        }
        console::start();
        say!("{} bytes: {answers} ports answer", width.bytes());
    }
}

/// Writes random values to them all.
pub fn write(machine: &Machine) {
    for (first, last, why) in LEFT_OUT {
        say!("left out {first:#x}-{last:#x}: {why}");
    }
    let mut random = fastrand::Rng::with_seed(machine.seed);
    for width in widths(machine) {
        for port in starts(machine, width).filter(|&port| writable(port, width)) {
            let value = random.u32(..);
            // SAFETY: the guest has no device that moves memory; what ends it is left out.
            unsafe {
                match width {
                    Width::One => Port::<u8>::new(port).write(value as u8),
                    Width::Two => Port::<u16>::new(port).write(value as u16),
                    Width::Four => Port::<u32>::new(port).write(value),
                }
            }
        }
        console::start();
        say!("{} bytes: written", width.bytes());
    }
}

/// Asks for system management interrupts with every command.
pub fn management() {
    for command in 0..=255u8 {
        // SAFETY: firmware, if there is any, returns from its handler.
        unsafe { asm!("out 0xb2, al", in("al") command) };
    }
}
