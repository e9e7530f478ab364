//! The PC's interrupt controller and timer (8259 and 8254), at their legacy ports.

use super::trap;
use x86_64::instructions::port::Port;

fn out(port: u16, value: u8) {
    // SAFETY: the callers below name ports of the two controllers and the timer only.
    unsafe { Port::<u8>::new(port).write(value) }
}

/// Initialises both controllers with the vectors of [`trap`], everything masked.
pub fn start() {
    for (command, data, vector, cascade) in
        [(0x20, 0x21, trap::PIC, 4), (0xa0, 0xa1, trap::PIC + 8, 2)]
    {
        out(command, 0x11);
        out(data, vector);
        out(data, cascade);
        out(data, 1);
        out(data, 0xff);
    }
    // The cascade input, so that a request in service of the second controller can be seen.
    mask(0xff);
}

/// Masks the inputs of the first controller whose bit is set.
pub fn mask(bits: u8) {
    out(0x21, bits);
}

/// Ends the interrupt in service of vector `vector`.
pub fn end(vector: u8) {
    if vector >= trap::PIC + 8 {
        out(0xa0, 0x20);
    }
    out(0x20, 0x20);
}

/// Lets the timer interrupt once, in `count` ticks of 1.193 MHz, and unmasks it.
///
/// A timer that interrupts again and again might leave no time for anything but its handler: how many
/// instructions a processor executes between two interrupts is up to whoever else wants the machine.
pub fn timer_once(count: u16) {
    // Mode 0: the output goes low here, and high at the end of the count.
    out(0x43, 0x30);
    out(0x40, count as u8);
    out(0x40, (count >> 8) as u8);
    mask(0xfe);
}

/// Masks the timer and leaves no request behind: the next start begins without one.
pub fn quiet() {
    mask(0xff);
    // Mode 0 and no count: the output is low and stays so.
    out(0x43, 0x30);
    start();
}
