//! Time, and the signal that makes processor 0 look around a few times a second.
//!
//! The high precision event timer and the I/O APIC belong to the hypervisor; guests see neither.
//! One comparator, routed to a pin that no guest device uses, sends a non-maskable interrupt to
//! processor 0: it leaves the guest whatever the guest does with its interrupt flag.

use core::ptr;
use core::sync::atomic::{AtomicU64, Ordering};

const HPET: u64 = 0xfed0_0000;
const IO_APIC: u64 = 0xfec0_0000;

static TICKS_PER_MS: AtomicU64 = AtomicU64::new(1_000_000);

fn hpet(register: u64) -> u64 {
    // SAFETY: the page is mapped and its registers can be read at any time.
    unsafe { ptr::read_volatile((HPET + register) as *const u64) }
}

fn set_hpet(register: u64, value: u64) {
    // SAFETY: the timer belongs to the hypervisor.
    unsafe { ptr::write_volatile((HPET + register) as *mut u64, value) };
}

fn set_io_apic(register: u32, value: u32) {
    // SAFETY: the I/O APIC belongs to the hypervisor; the first write selects a register.
    unsafe {
        ptr::write_volatile(IO_APIC as *mut u32, register);
        ptr::write_volatile((IO_APIC + 0x10) as *mut u32, value);
    }
}

/// Femtoseconds of one tick of the event timer, if there is one.
fn period() -> Option<u64> {
    let period = hpet(0) >> 32;
    // IA-PC HPET specification 1.0a, section 2.3.4: at most 100 ns.
    (1..=100_000_000).contains(&period).then_some(period)
}

/// Starts the event timer and measures the time-stamp counter against it. False without a timer.
pub fn open() -> bool {
    let Some(period) = period() else { return false };
    set_hpet(0x10, hpet(0x10) | 1);
    let ten_ms = 10_000_000_000_000 / period;
    let (start, start_ticks) = (hpet(0xf0), now());
    while hpet(0xf0).wrapping_sub(start) < ten_ms {
        core::hint::spin_loop();
    }
    let (end, end_ticks) = (hpet(0xf0), now());
    let femtoseconds = u128::from(end.wrapping_sub(start)) * u128::from(period);
    let per_ms = u128::from(end_ticks - start_ticks) * 1_000_000_000_000 / femtoseconds.max(1);
    TICKS_PER_MS.store((per_ms as u64).max(1), Ordering::Relaxed);
    true
}

/// Makes processor 0 take an NMI every `ms` milliseconds. False if the machine cannot.
pub fn start_signal(ms: u64) -> bool {
    let Some(period) = period() else { return false };
    let comparator = hpet(0x100);
    let periodic = comparator >> 4 & 1 == 1;
    // Pins up to 15 are wired to the guest's interrupt controllers as well.
    let Some(pin) = (16..24).find(|pin| comparator >> (32 + pin) & 1 == 1) else { return false };
    if !periodic {
        return false;
    }
    let interval = ms * 1_000_000_000_000 / period;
    set_io_apic(0x11 + 2 * pin, 0);
    set_io_apic(0x10 + 2 * pin, 4 << 8);
    set_hpet(0x100, u64::from(pin) << 9 | 1 << 2 | 1 << 3 | 1 << 6);
    set_hpet(0x108, hpet(0xf0) + interval);
    set_hpet(0x108, interval);
    true
}

/// The time-stamp counter.
pub fn now() -> u64 {
    // SAFETY: reading the counter has no effect.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Ticks of [`now`] a millisecond.
pub fn ticks_per_ms() -> u64 {
    TICKS_PER_MS.load(Ordering::Relaxed)
}

/// Waits, busily.
pub fn wait_us(us: u32) {
    let start = now();
    while now().wrapping_sub(start) < ticks_per_ms() * u64::from(us) / 1_000 {
        core::hint::spin_loop();
    }
}
