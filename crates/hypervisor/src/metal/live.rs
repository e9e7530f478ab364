//! What processor 0 does a few times a second: orders in, statistics out.

use super::machine::{Machine, STOP};
use super::{apic, control, report, timer};
use core::sync::atomic::{AtomicU64, Ordering};
use hypervisor::wire::{End, Event, Order};

static LAST: AtomicU64 = AtomicU64::new(0);

/// Milliseconds between two snapshots.
pub const INTERVAL_MS: u64 = 250;

/// Looks around. Called after every signal; in exact runs there are none.
pub fn tick(machine: &Machine<'_>) {
    if machine.job.exact {
        return;
    }
    let mut wanted = false;
    while let Some(order) = control::receive() {
        match order {
            Order::Stop => machine.finish(End::Stopped),
            Order::Report => wanted = true,
        }
    }
    let now = timer::now();
    let interval = timer::ticks_per_ms() * INTERVAL_MS * 9 / 10;
    if !wanted && now.wrapping_sub(LAST.load(Ordering::Relaxed)) < interval {
        return;
    }
    LAST.store(now, Ordering::Relaxed);
    control::send(&Event::Live { stats: report::stats(machine), vcpus: machine.vcpus() });
    // Makes the others leave the guest, so that the next snapshot tells where they are now.
    for number in 1..machine.posts.len() {
        if machine.posts[number].mail.load(Ordering::Relaxed) & STOP == 0 {
            apic::send_nmi(number as u32);
        }
    }
}
