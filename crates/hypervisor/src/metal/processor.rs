//! The processors: starting them, giving them work, waking them.
//!
//! A processor's number is its local APIC id; QEMU counts those from zero.

use super::{apic, boot, start, timer, traps};
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU32, Ordering};

type Work<'a> = dyn Fn(usize) + Sync + 'a;

const IDLE: u32 = 0;
const BUSY: u32 = 1;

struct Seat {
    present: AtomicU32,
    /// [`IDLE`] or [`BUSY`]; the work below belongs to the processor while busy, to processor 0
    /// otherwise.
    state: AtomicU32,
    work: UnsafeCell<Option<&'static Work<'static>>>,
}

// SAFETY: `work` is handed over by `state` (release and acquire).
unsafe impl Sync for Seat {}

static SEATS: [Seat; boot::PROCESSORS] = [const {
    Seat { present: AtomicU32::new(0), state: AtomicU32::new(IDLE), work: UnsafeCell::new(None) }
}; boot::PROCESSORS];

/// Starts every other processor and waits until `wanted` run in all, or for two seconds.
/// Gives how many run.
pub fn start_others(wanted: usize) -> usize {
    SEATS[0].present.store(1, Ordering::Release);
    if wanted > 1 {
        boot::place_trampoline();
        apic::start_others(boot::TRAMPOLINE, timer::wait_us);
        for _ in 0..2_000 {
            if present() >= wanted {
                break;
            }
            timer::wait_us(1_000);
        }
    }
    present()
}

/// Processors that run, counted from 0 without a gap.
pub fn present() -> usize {
    SEATS.iter().take_while(|seat| seat.present.load(Ordering::Acquire) == 1).count()
}

/// Runs `work(n)` on the processors 0 to `count` - 1 and waits for all of them. Only processor 0
/// may call it, and not from within `work`.
pub fn run_on(count: usize, work: &Work<'_>) {
    // SAFETY: only the lifetime changes; this function does not return before every processor has
    // put the reference away.
    let lasting: &'static Work<'static> =
        unsafe { core::mem::transmute::<&Work<'_>, &'static Work<'static>>(work) };
    for (number, seat) in SEATS.iter().enumerate().take(count).skip(1) {
        // SAFETY: the seat is idle, so its work belongs to processor 0.
        unsafe { *seat.work.get() = Some(lasting) };
        seat.state.store(BUSY, Ordering::Release);
        apic::send_nmi(number as u32);
    }
    work(0);
    for seat in SEATS.iter().take(count).skip(1) {
        while seat.state.load(Ordering::Acquire) == BUSY {
            core::hint::spin_loop();
        }
    }
}

/// The life of every processor but the first.
pub fn serve(number: usize) -> ! {
    traps::install();
    start::switch_on();
    let seat = &SEATS[number];
    seat.present.store(1, Ordering::Release);
    loop {
        traps::sleep_while(&seat.state, IDLE);
        if seat.state.load(Ordering::Acquire) == IDLE {
            continue;
        }
        // SAFETY: the seat is busy, so its work belongs to this processor.
        if let Some(work) = unsafe { (*seat.work.get()).take() } {
            work(number);
        }
        seat.state.store(IDLE, Ordering::Release);
    }
}
