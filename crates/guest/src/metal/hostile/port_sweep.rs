//! Every port.

use crate::metal::Machine;
use crate::metal::console::{self, say};
use core::arch::asm;
use guest::port::{LEFT_OUT, Width, writable};
use x86_64::instructions::port::Port;

/// Ports at which an access of this width begins.
fn starts(width: Width) -> impl Iterator<Item = u16> {
    (0..=(0x1_0000 - width.bytes()) as u16).chain(None)
}

/// Reads them all.
pub fn read() {
    for width in Width::ALL {
        let mut answers = 0u32;
        for port in starts(width) {
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
    for width in Width::ALL {
        for port in starts(width).filter(|&port| writable(port, width)) {
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
