//! Bad page tables of the guest's own.

use super::physical_end;
use crate::metal::Machine;
use crate::metal::console::say;
use crate::metal::paging::{NO_EXECUTE, PRESENT, WRITABLE, Window};
use crate::metal::trap::{Fault, attempt};

/// Reads eight bytes, if it can.
fn read(address: u64) -> Result<(), Fault> {
    // SAFETY: reads; a fault is an answer.
    unsafe { attempt!("mov {value}, [{address}]"; value = out(reg) _, address = in(reg) address) }
}

/// The table of the window's small pages is where nothing is.
pub fn in_hole(machine: &Machine) {
    let window = Window::of(0);
    let table = window.table() | PRESENT | WRITABLE;
    for hole in [machine.hole(), machine.hole() + 0x5000, physical_end() - 4096] {
        window.set_table(hole | PRESENT | WRITABLE);
        let result = read(window.address(1));
        window.set_table(table);
        say!("table at {hole:#x}: {result:x?}");
    }
}

/// Entries of random bits. The frames are read only, so it does not matter what they hit.
pub fn random(machine: &Machine) {
    let window = Window::of(0);
    let mut random = fastrand::Rng::with_seed(machine.seed);
    let end = physical_end();
    let (mut read_well, mut faults) = (0u32, 0u32);
    for round in 0..4000 {
        let bits = random.u64(..);
        let entry = match round % 4 {
            // Anything, reserved bits included.
            0 => bits | PRESENT,
            // Frames anywhere below the end of physical memory.
            1 | 2 => bits & (end - 1) | PRESENT,
            // Frames below 4 GiB: RAM, devices and holes.
            _ => bits & (NO_EXECUTE | 0xffff_ffff) | PRESENT,
        };
        let page = 32 + round % 400;
        window.set(page, entry);
        match read(window.address(page) + (bits >> 52 & 0xff8)) {
            Ok(()) => read_well += 1,
            Err(_) => faults += 1,
        }
        window.set(page, 0);
    }
    say!("{read_well} reads, {faults} page faults");
}
