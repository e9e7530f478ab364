//! Memory taken back from under the running guest, on request (`Job::churn`).
//!
//! Every so many exits, the vCPU that had the last one moves a block of guest RAM to other frames,
//! zaps mappings, takes large leaves away, or drops every root. The frames that were left are
//! filled with a pattern before they go back to the pool, so a guest that still reaches them by a
//! stale translation works with garbage, and its own checks fail.

use super::guest_ram::Moved;
use super::nested::{GUEST_RAM, Host};
use super::vcpu::Vcpu;
use core::sync::atomic::{AtomicU64, Ordering};
use hypervisor::pool::{FRAME, Size};
use vmmu::addr::{Gfn, GfnRange, Level};
use vmmu::slot::{AddressSpace, SlotId};
use vmmu::{HostRange, Mmu, Progress, Worker};

/// How much has been done.
pub struct Churn {
    exits: AtomicU64,
    /// Blocks moved, and mappings dropped otherwise.
    pub moved: AtomicU64,
    /// Zaps, limits and drained roots.
    pub dropped: AtomicU64,
}

impl Churn {
    /// Nothing yet.
    pub const fn new() -> Self {
        Self { exits: AtomicU64::new(0), moved: AtomicU64::new(0), dropped: AtomicU64::new(0) }
    }
}

/// An exit of `vcpu` has been dealt with.
pub fn tick(vcpu: &mut Vcpu<'_>) {
    let machine = vcpu.machine;
    let Some(every) = machine.job.churn else { return };
    let exits = machine.churn.exits.fetch_add(1, Ordering::Relaxed) + 1;
    if !exits.is_multiple_of(every) {
        return;
    }
    let turn = exits / every;
    // Any number that differs from turn to turn and repeats from run to run.
    let random = turn.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 16;
    let Some(range) = machine.guest.ram.get(random as usize % machine.guest.ram.len()) else {
        return;
    };
    let gfn = range.gpa / FRAME + random % (range.bytes / FRAME);
    match turn % 16 {
        0 | 4 | 8 => {
            // A vCPU is no worker. There is a place for one on each processor.
            let Ok(mut worker) = machine.nested.worker() else { return };
            match turn % 16 {
                0 => worker.zap_all(),
                4 => zap(&mut worker, gfn),
                _ => limit(&mut worker, machine.guest.ram.len() as u64, random),
            }
        }
        _ => {
            if relocate(vcpu, gfn) {
                machine.churn.moved.fetch_add(1, Ordering::Relaxed);
            }
            return;
        }
    }
    machine.churn.dropped.fetch_add(1, Ordering::Relaxed);
}

/// Moves the block around a guest frame to other frames, as a host does that compacts its memory.
fn relocate(vcpu: &mut Vcpu<'_>, gfn: u64) -> bool {
    let ram = vcpu.machine.ram;
    // Copying a gigabyte would hold the guest up for longer than it has patience.
    let Some((first, size)) = ram.block(gfn).filter(|(_, size)| *size < Size::G1) else {
        return false;
    };
    let pages = HostRange { backing: GUEST_RAM, first, pages: size.frames() };
    let invalidation = vcpu.machine.nested.mmu().invalidate_range(pages);
    // No vCPU reaches the block now, and none will until the invalidation ends.
    let moved = ram.relocate(first, size) == Moved::Yes;
    drop(invalidation);
    moved
}

/// Drops the mappings of some pages in small steps.
fn zap(worker: &mut Worker<&Mmu<Host>>, gfn: u64) {
    let Some(range) = GfnRange::sized(Gfn(gfn), 0x800) else { return };
    let mut zap = worker.begin_zap(AddressSpace::Normal, range);
    while worker.zap_some(&mut zap, 1) == Progress::More {}
}

/// Takes the large leaves of a RAM slot away, and allows them again.
fn limit(worker: &mut Worker<&Mmu<Host>>, slots: u64, random: u64) {
    let id = SlotId((random % slots) as u32);
    let Ok(slot) = worker.slot(id) else { return };
    // Both can fail only for a slot that does not exist, or a VM that is dead: its next entry
    // says so.
    let _ = worker.limit_slot(id, Level::Size4K);
    let _ = worker.limit_slot(id, slot.spec.largest);
}
