//! One guest from its first instruction to its report.

use super::guest_ram::GuestRam;
use super::machine::{self, Machine};
use super::nested::Nested;
use super::vcpu::Vcpu;
use super::{apic, control, processor, report, timer};
use alloc::{format, string::String};
use core::sync::atomic::Ordering;
use hypervisor::wire::{End, Event, Guest, Job, Stats, Verdict};

/// Runs guest number `index` of the job on as many processors as it has vCPUs.
pub fn run(job: &Job<'_>, index: u32, guest: &Guest<'_>) {
    apic::reset_legacy();
    let ram = GuestRam::new(&guest.ram, machine::largest(job.pages));
    if let Err(what) = load(guest, &ram) {
        refuse(index, what);
        return;
    }
    let nested = match Nested::new(job, guest, &ram) {
        Ok(nested) => nested,
        Err(what) => {
            refuse(index, what);
            return;
        }
    };
    let (end, stats, vcpus, ticks) = {
        let machine = Machine::new(job, guest, &ram, &nested);
        control::send(&Event::Started { guest: index });
        machine.started.store(timer::now(), Ordering::Relaxed);
        processor::run_on(guest.cpus as usize, &|number| {
            apic::reset();
            match Vcpu::new(&machine, number) {
                Some(mut vcpu) => {
                    if number == 0 {
                        vcpu.start(&guest.start);
                        machine.posts[0]
                            .mode
                            .store(machine::Mode::Running as u32, Ordering::SeqCst);
                    }
                    vcpu.run();
                }
                None => machine.finish(End::Broken {
                    what: String::from("no memory for the state of a vCPU"),
                }),
            }
            apic::reset();
        });
        let ticks = machine
            .stopped
            .load(Ordering::Relaxed)
            .wrapping_sub(machine.started.load(Ordering::Relaxed));
        (machine.end(), report::stats(&machine), machine.vcpus(), ticks)
    };
    let verdict = nested.check();
    nested.teardown();
    control::send(&Event::Ended {
        guest: index,
        end,
        stats,
        vcpus,
        verdict,
        ticks,
        ticks_per_ms: timer::ticks_per_ms(),
    });
}

/// Puts the guest's segments into its memory.
fn load(guest: &Guest<'_>, ram: &GuestRam<'_>) -> Result<(), String> {
    let present = processor::present();
    if guest.cpus == 0 || guest.cpus as usize > present {
        return Err(format!("{} vCPUs, but {present} processors answer", guest.cpus));
    }
    for segment in &guest.segments {
        ram.write(segment.gpa, segment.data).map_err(|missing| {
            format!(
                "segment of {} bytes at {:#x}: no memory at {:#x}",
                segment.data.len(),
                segment.gpa,
                missing.gpa
            )
        })?;
    }
    Ok(())
}

/// Reports a guest that could not be started.
fn refuse(index: u32, what: String) {
    control::send(&Event::Ended {
        guest: index,
        end: End::Refused { vcpu: 0, what },
        stats: Stats::default(),
        vcpus: alloc::vec![],
        verdict: Verdict::default(),
        ticks: 0,
        ticks_per_ms: timer::ticks_per_ms(),
    });
}
