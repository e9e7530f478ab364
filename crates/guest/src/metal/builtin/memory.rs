//! RAM, shared memory and the guest's own page tables.

use crate::metal::console::say;
use crate::metal::paging::{ACCESSED, DIRTY, NO_EXECUTE, PRESENT, WRITABLE, Window};
use crate::metal::trap::{Fault, attempt};
use crate::metal::{Machine, check, cpu};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use guest::memory_map::Ram;
use guest::order::Order;
use guest::{exit, pattern};
use spin::Once;

/// Pages the RAM part touches at most, spread over all RAM.
const MAX_PAGES: u64 = 32 * 1024;

struct Plan {
    ram: Ram,
    cpus: u64,
    seed: u64,
    /// Pages to touch, and every how many pages.
    pages: u64,
    stride: u64,
}

static PLAN: Once<Plan> = Once::new();

impl Plan {
    fn get() -> &'static Self {
        // The parts call `make` before any processor gets here.
        PLAN.get().unwrap_or_else(|| unreachable!())
    }

    fn make(machine: &Machine) -> &'static Self {
        PLAN.call_once(|| {
            let total = machine.free.bytes() / 4096;
            let pages = total.min(machine.number("pages", MAX_PAGES)).max(1);
            Self {
                ram: machine.free.clone(),
                cpus: machine.cpus as u64,
                seed: machine.seed,
                pages,
                stride: (total / pages).max(1),
            }
        })
    }

    /// Guest-physical address of page number `page` of the plan.
    fn address(&self, page: u64) -> u64 {
        let mut offset = page * self.stride * 4096;
        for span in self.ram.spans() {
            if offset < span.bytes() {
                return span.start + offset;
            }
            offset -= span.bytes();
        }
        unreachable!()
    }

    /// The pages of one processor's share, in an order of its own.
    fn share(&'static self, cpu: u64, seed: u64) -> impl Iterator<Item = u64> {
        let count = self.pages / self.cpus + u64::from(cpu < self.pages % self.cpus);
        Order::new(count, seed ^ cpu << 32)
            .numbers()
            .map(move |number| self.address(number * self.cpus + cpu))
    }
}

/// Writes a word into every page and reads it back from another processor, in another order.
pub fn ram(machine: &Machine) {
    let plan = Plan::make(machine);
    check!(machine.free.bytes() >= 1 << 20, exit::RAM, "less than 1 MiB of free RAM");
    cpu::on_all(machine, |index| {
        let (plan, window) = (Plan::get(), Window::of(index));
        for address in plan.share(index as u64, plan.seed) {
            let place = window.reach(address) as *mut u64;
            // SAFETY: a page of free RAM that only this processor writes.
            unsafe {
                place.write_volatile(pattern::word(address, plan.seed));
                place.add(511).write_volatile(pattern::word(address + 4088, plan.seed));
            }
        }
    });
    cpu::on_all(machine, |index| {
        let (plan, window) = (Plan::get(), Window::of(index));
        let other = (index as u64 + 1) % plan.cpus;
        for address in plan.share(other, !plan.seed) {
            let place = window.reach(address) as *const u64;
            for (offset, place) in [(0, place), (4088, place.wrapping_add(511))] {
                // SAFETY: a page of free RAM; nobody writes in this round.
                let found = unsafe { place.read_volatile() };
                let wanted = pattern::word(address + offset, plan.seed);
                check!(
                    found == wanted,
                    exit::RAM,
                    "at {:#x}: {found:#018x} instead of {wanted:#018x}",
                    address + offset
                );
            }
        }
    });
    say!("ram ok ({} pages)", plan.pages);
}

/// Every how many pages of the plan all processors touch.
const CONTESTED: u64 = 8;

/// All processors write to the same untouched pages at the same time, each its own word: two
/// faults of one page must end in one page.
pub fn race(machine: &Machine) {
    Plan::make(machine);
    // Twice, so that no processor is late because its code was never run.
    cpu::on_all(machine, |_| {});
    cpu::on_all(machine, |index| {
        let (plan, window) = (Plan::get(), Window::of(index));
        for page in (0..plan.pages / CONTESTED).map(|page| plan.address(page * CONTESTED)) {
            let word = (window.reach(page) as *mut u64).wrapping_add(index);
            // SAFETY: free RAM; the word is this processor's.
            unsafe { word.write_volatile(pattern::word(page, index as u64)) };
        }
    });
    let (plan, window) = (Plan::get(), Window::of(0));
    for page in (0..plan.pages / CONTESTED).map(|page| plan.address(page * CONTESTED)) {
        for index in 0..machine.cpus {
            let word = (window.reach(page) as *const u64).wrapping_add(index);
            // SAFETY: free RAM; the other processors wait for work.
            let found = unsafe { word.read_volatile() };
            check!(
                found == pattern::word(page, index as u64),
                exit::RAM,
                "at {page:#x}: the word of processor {index} is lost ({found:#018x})"
            );
        }
    }
    say!("race ok ({} pages)", plan.pages / CONTESTED);
}

const ROUNDS: u64 = 20_000;

static COUNTER: AtomicU64 = AtomicU64::new(0);
static TICKET: AtomicU32 = AtomicU32::new(0);
static SERVED: AtomicU32 = AtomicU32::new(0);

/// All processors count in one word, and in two words under a lock.
pub fn atomics(machine: &Machine) {
    let plan = Plan::make(machine);
    // In RAM from the memory map, not in the image.
    let pair = plan.address(0) as *mut u64;
    // SAFETY: free RAM; the other processors wait for work.
    unsafe {
        pair.write_volatile(0);
        pair.add(1).write_volatile(0);
    }
    cpu::on_all(machine, |_| {
        let pair = Plan::get().address(0) as *mut u64;
        for round in 0..ROUNDS {
            COUNTER.fetch_add(1, Ordering::Relaxed);
            if round % 64 == 0 {
                let ticket = TICKET.fetch_add(1, Ordering::Relaxed);
                while SERVED.load(Ordering::Acquire) != ticket {
                    core::hint::spin_loop();
                }
                // SAFETY: free RAM; the ticket lock is held.
                unsafe {
                    let value = pair.read_volatile();
                    check!(
                        pair.add(1).read_volatile() == value * 3,
                        exit::ATOMICS,
                        "two words written under one lock differ"
                    );
                    pair.write_volatile(value + 1);
                    pair.add(1).write_volatile((value + 1) * 3);
                }
                SERVED.fetch_add(1, Ordering::Release);
            }
        }
    });
    let cpus = machine.cpus as u64;
    let counted = COUNTER.load(Ordering::Relaxed);
    check!(counted == ROUNDS * cpus, exit::ATOMICS, "{counted} counted of {}", ROUNDS * cpus);
    // SAFETY: the other processors wait for work.
    let locked = unsafe { pair.read_volatile() };
    let wanted = ROUNDS.div_ceil(64) * cpus;
    check!(locked == wanted, exit::ATOMICS, "{locked} counted under the lock of {wanted}");
    say!("atomics ok");
}

/// Every processor maps, protects and unmaps pages of its window.
pub fn page_tables(machine: &Machine) {
    Plan::make(machine);
    cpu::on_all(machine, churn);
    say!("page tables ok");
}

fn churn(index: usize) {
    let (plan, window) = (Plan::get(), Window::of(index));
    // Pages of the share that can be reached at their own address too.
    let pages = || plan.share(index as u64, plan.seed + 7).filter(|&page| page < 4 << 30);
    for (round, page) in pages().take(600).enumerate() {
        let slot = round % 512;
        let linear = window.address(slot);
        let word = pattern::word(page, round as u64);
        window.set(slot, page | PRESENT | WRITABLE);
        // SAFETY: the page is this processor's share of free RAM, under two addresses.
        let found = unsafe {
            (linear as *mut u64).write_volatile(word);
            (page as *const u64).read_volatile()
        };
        check!(found == word, exit::PAGE_TABLES, "write at {linear:#x} not at {page:#x}");
        let marks = window.get(slot) & (ACCESSED | DIRTY);
        check!(marks == ACCESSED | DIRTY, exit::PAGE_TABLES, "marks after a write: {marks:#x}");

        window.set(slot, page | PRESENT);
        check!(read(linear) == Ok(word), exit::PAGE_TABLES, "a read-only page reads otherwise");
        let marks = window.get(slot) & (ACCESSED | DIRTY);
        check!(marks == ACCESSED, exit::PAGE_TABLES, "marks after a read: {marks:#x}");
        expect(write(linear), 0b11, linear, "write to a read-only page");

        window.set(slot, page | PRESENT | NO_EXECUTE);
        expect(call(linear), 0b1_0001, linear, "fetch from a page without code");

        window.set(slot, 0);
        expect(read(linear).map(|_| ()), 0, linear, "read of an unmapped page");
        expect(write(linear), 0b10, linear, "write to an unmapped page");
    }
}

fn expect(result: Result<(), Fault>, error: u64, address: u64, what: &str) {
    let right = matches!(result, Err(fault)
        if fault.vector == 14 && fault.error == error && fault.address == address);
    check!(right, exit::PAGE_TABLES, "{what} at {address:#x}: {result:x?}");
}

fn read(address: u64) -> Result<u64, Fault> {
    let mut value = 0u64;
    // SAFETY: reads one word; a fault is the answer.
    let result: Result<(), Fault> = unsafe {
        attempt!("mov {value}, [{address}]"; value = inout(reg) value, address = in(reg) address)
    };
    result.map(|()| value)
}

fn write(address: u64) -> Result<(), Fault> {
    // SAFETY: the address is in the window, on a page of this processor's share.
    unsafe { attempt!("mov byte ptr [{address}], 1"; address = in(reg) address) }
}

fn call(address: u64) -> Result<(), Fault> {
    // SAFETY: the page cannot be fetched from; the fault is the answer.
    unsafe { attempt!("call {address}"; address = in(reg) address) }
}
