//! One guest from its first instruction to its report.

use super::guest_ram::GuestRam;
use super::machine::{self, Machine};
use super::nested::Nested;
use super::vcpu::Vcpu;
use super::{apic, control, memory, processor, report, timer};
use alloc::{format, string::String, vec::Vec};
use core::sync::atomic::Ordering;
use hypervisor::pool::{FRAME, Size};
use hypervisor::wire::{End, Event, Guest, Job, Segment, Stats, VcpuState, Verdict};

/// Runs guest number `index` of the job on as many processors as it has vCPUs.
pub fn run(job: &Job<'_>, index: u32, guest: &Guest<'_>) {
    apic::reset_legacy();
    let frames = memory::frames().0;
    let report = attempt(job, index, guest).unwrap_or_else(|what| Report {
        end: End::Refused { vcpu: 0, what },
        stats: Stats::default(),
        vcpus: Vec::new(),
        verdict: Verdict::default(),
        ticks: 0,
    });
    let Report { end, stats, vcpus, mut verdict, ticks } = report;
    // Everything the guest had is back, or something was lost.
    let left = memory::frames().0;
    if left != frames {
        let what = format!("{frames} frames were free before this guest, {left} are after it");
        verdict.violations.push((String::from("frames-returned"), what));
    }
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

struct Report {
    end: End,
    stats: Stats,
    vcpus: Vec<VcpuState>,
    verdict: Verdict,
    ticks: u64,
}

/// Runs the guest, or says why it cannot be started.
fn attempt(job: &Job<'_>, index: u32, guest: &Guest<'_>) -> Result<Report, String> {
    let present = processor::present();
    if guest.cpus == 0 || guest.cpus as usize > present {
        return Err(format!("{} vCPUs, but {present} processors answer", guest.cpus));
    }
    let ram = GuestRam::new(&guest.ram, machine::largest(job.pages));
    let mut nested = Nested::new(job, guest, &ram)?;
    load(guest, &ram, &nested)?;
    let (end, stats, vcpus, ticks) = {
        let machine = Machine::new(job, guest, &ram, &nested);
        control::send(&Event::Started { guest: index });
        machine.started.store(timer::now(), Ordering::Relaxed);
        processor::run_on(guest.cpus as usize, &|number| {
            apic::reset();
            match Vcpu::new(&machine, number) {
                Some(mut vcpu) => {
                    if number == 0 {
                        apic::wire_legacy();
                        vcpu.start(&guest.start);
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
    Ok(Report { end, stats, vcpus, verdict, ticks })
}

/// Puts the guest's segments into its memory.
fn load(guest: &Guest<'_>, ram: &GuestRam<'_>, nested: &Nested<'_>) -> Result<(), String> {
    let mut worker = nested.worker()?;
    for Segment { gpa, data } in &guest.segments {
        // Frames first, as large as they may be: a copy asks for single pages.
        for address in (*gpa..gpa.saturating_add(data.len() as u64)).step_by(FRAME as usize) {
            ram.provide(address / FRAME, Size::G1);
        }
        nested
            .fill(&mut worker, *gpa, data)
            .map_err(|error| format!("segment of {} bytes at {gpa:#x}: {error}", data.len()))?;
    }
    Ok(())
}
