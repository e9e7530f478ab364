//! What every processor does first.

use super::{apic, control, live, memory, probe, processor, session, svm, timer, traps};
use alloc::format;
use core::arch::asm;
use hypervisor::wire::{self, Event, Job};

/// The first processor comes here, with what the loader gave.
pub extern "C" fn start(info: u32) -> ! {
    traps::install();
    control::open();
    // SAFETY: `info` comes from the entry point as the loader gave it.
    let module = match unsafe { memory::open(info) } {
        Ok(module) => module,
        Err(reason) => control::fail(&format!("this machine cannot be used: {reason}")),
    };
    let job: Job<'_> = match postcard::from_bytes(module) {
        Ok(job) => job,
        Err(error) => control::fail(&format!("the boot module is no job: {error}")),
    };
    if job.version != wire::VERSION {
        control::fail(&format!("job version {}, mine is {}", job.version, wire::VERSION));
    }
    if !timer::open() {
        control::fail("no high precision event timer at 0xfed00000");
    }
    switch_on();
    let wanted = job.guests.iter().map(|guest| guest.cpus as usize).max().unwrap_or(1);
    let cpus = processor::start_others(wanted);
    control::send(&Event::Hello { version: wire::VERSION, cpus: cpus as u32 });
    if !job.exact && !timer::start_signal(live::INTERVAL_MS) {
        control::note("no timer for live statistics and orders on this machine");
    }
    if let Some(probe) = &job.probe
        && let Err(reason) = probe::run(probe)
    {
        control::fail(&format!("the probe failed: {reason}"));
    }
    for (index, guest) in (0..).zip(&job.guests) {
        session::run(&job, index, guest);
    }
    control::power_off()
}

/// Every other processor comes here, with its APIC id.
pub extern "C" fn start_other(id: u32) -> ! {
    processor::serve(id as usize)
}

/// Switches on what this processor needs to run guests. Once on each.
pub fn switch_on() {
    let xsave =
        raw_cpuid::CpuId::new().get_feature_info().is_some_and(|features| features.has_xsave());
    if xsave {
        // SAFETY: the bit only makes XSETBV and its relatives available.
        unsafe {
            asm!("mov rax, cr4", "or rax, 0x40000", "mov cr4, rax", out("rax") _);
        }
    }
    apic::reset();
    if let Err(reason) = svm::switch_on() {
        control::fail(reason);
    }
}
