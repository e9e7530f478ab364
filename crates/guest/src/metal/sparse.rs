//! `sparse`: RAM far apart, and far above 4 GiB, holds what is written to it.
//!
//! `pages=N` bounds the pages touched in every range of the memory map (default 512): always the
//! first and the last, the others in between. `wanted=N` is the number of ranges above 4 GiB
//! there must be.

use super::console::say;
use super::paging::Window;
use super::{Machine, check};
use guest::order::Order;
use guest::{exit, pattern};

/// Writes all, then reads all, each in an order of its own.
pub fn run(machine: &Machine) {
    let window = Window::of(0);
    let limit = machine.number("pages", 512).max(2);
    let high = machine.free.spans().iter().filter(|span| span.start >= 4 << 30).count() as u64;
    let wanted = machine.number("wanted", 0);
    check!(high >= wanted, exit::BOOT, "{high} of {wanted} ranges above 4 GiB");
    for salt in 0..2 {
        for (place, span) in machine.free.spans().iter().enumerate() {
            for offset in offsets(span.bytes(), limit, machine.seed + place as u64) {
                let address = span.start + offset;
                let word = window.reach(address) as *mut u64;
                // SAFETY: free RAM, one processor.
                unsafe { word.write_volatile(pattern::word(address, salt)) };
            }
        }
        for (place, span) in machine.free.spans().iter().enumerate() {
            for offset in offsets(span.bytes(), limit, !machine.seed ^ place as u64) {
                let address = span.start + offset;
                let word = window.reach(address) as *const u64;
                // SAFETY: free RAM, one processor.
                let found = unsafe { word.read_volatile() };
                let wanted = pattern::word(address, salt);
                check!(
                    found == wanted,
                    exit::RAM,
                    "at {address:#x}: {found:#018x} instead of {wanted:#018x}"
                );
            }
        }
    }
    for span in machine.free.spans() {
        say!(
            "sparse {:#x}-{:#x} ok ({} pages)",
            span.start,
            span.end,
            (span.bytes() / 4096).min(limit)
        );
    }
}

/// Offsets of at most `limit` pages, spread over `bytes`, in an order chosen by `seed`.
fn offsets(bytes: u64, limit: u64, seed: u64) -> impl Iterator<Item = u64> {
    let pages = bytes / 4096;
    let count = pages.min(limit);
    Order::new(count, seed)
        .numbers()
        .map(move |number| if count < 2 { 0 } else { number * (pages - 1) / (count - 1) * 4096 })
}
