//! Faults put in on purpose, to see the alarms ring.
//!
//! Breaking an entry is the one place where this hypervisor writes into a nested table; it does
//! so behind the library's back, which is the point.

use super::machine::Machine;
use super::{control, vcpu::Vcpu};
use alloc::format;
use core::sync::atomic::{AtomicU64, Ordering};
use hypervisor::pool::FRAME;
use hypervisor::wire::Inject;

/// Mapped pages remembered, so that what is damaged has been filled meanwhile.
const RECENT: usize = 16;

/// Which pages were mapped last.
pub struct Alarm {
    mapped: AtomicU64,
    recent: [AtomicU64; RECENT],
}

impl Alarm {
    /// Nothing mapped yet.
    pub const fn new() -> Self {
        Self { mapped: AtomicU64::new(0), recent: [const { AtomicU64::new(0) }; RECENT] }
    }
}

/// A fault at `gpa` has been mapped; damages something if it is time. Counts mapping faults only:
/// the others depend on the clock.
pub fn mapped(vcpu: &Vcpu<'_>, gpa: u64) {
    let machine = vcpu.machine;
    let Some(inject) = machine.job.inject else { return };
    let alarm = &machine.alarm;
    let count = alarm.mapped.fetch_add(1, Ordering::Relaxed) + 1;
    alarm.recent[count as usize % RECENT].store(gpa, Ordering::Relaxed);
    let target = alarm.recent[(count as usize + 1) % RECENT].load(Ordering::Relaxed);
    match inject {
        Inject::Flip { after } if count == after => flip(machine, target),
        Inject::Entry { after } if count == after => break_entry(vcpu, target),
        _ => {}
    }
}

/// Flips one bit in the page of `gpa`.
fn flip(machine: &Machine<'_>, gpa: u64) {
    let at = (gpa & !(FRAME - 1)) + 0x7b;
    match machine.ram.flip(at) {
        Ok(()) => control::note(&format!("flipped a bit of the byte at {at:#x}")),
        Err(_) => control::note(&format!("nothing flipped: no memory at {at:#x}")),
    }
}

/// Bit 57 of a leaf says that the library allows writing: without it, a leaf that hardware can
/// write contradicts itself. Hardware ignores the bit, so the guest goes on and only a checker can
/// notice.
const BIT: u64 = 1 << 57;

/// Changes one bit of the leaf that maps `gpa`.
fn break_entry(vcpu: &Vcpu<'_>, gpa: u64) {
    let mut table = vcpu.vmcb.n_cr3 & !(FRAME - 1);
    for level in (0..4).rev() {
        let index = gpa >> (12 + 9 * level) & 511;
        let place = (table + index * 8) as *mut u64;
        // SAFETY: the table belongs to the guest's live root, which nobody takes down while its
        // vCPU handles a fault; entries are only ever accessed atomically.
        let entry = unsafe { AtomicU64::from_ptr(place) };
        let value = entry.load(Ordering::SeqCst);
        if value & 1 == 0 {
            break;
        }
        if level == 0 || value & 1 << 7 != 0 {
            entry.fetch_xor(BIT, Ordering::SeqCst);
            control::note(&format!("changed the entry {value:#x} that maps {gpa:#x}"));
            return;
        }
        table = value & 0x000f_ffff_ffff_f000;
    }
    control::note(&format!("no entry changed: {gpa:#x} is not mapped"));
}
