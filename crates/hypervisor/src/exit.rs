//! Exit codes (AMD64 APM vol. 2, appendix C): their names, and how often each came.

use alloc::{format, string::String, vec::Vec};
use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};

/// Codes the hypervisor can meet.
#[allow(missing_docs, reason = "the names are the manual's")]
pub mod code {
    pub const CR0_WRITE: u64 = 0x10;
    pub const CR3_WRITE: u64 = 0x13;
    pub const CR4_WRITE: u64 = 0x14;
    /// That of vector 0; 31 others follow.
    pub const EXCEPTION: u64 = 0x40;
    pub const DEBUG: u64 = 0x41;
    pub const ALIGNMENT_CHECK: u64 = 0x51;
    pub const INTERRUPT: u64 = 0x60;
    pub const NMI: u64 = 0x61;
    pub const INIT: u64 = 0x63;
    pub const RDPMC: u64 = 0x6f;
    pub const CPUID: u64 = 0x72;
    pub const RSM: u64 = 0x73;
    pub const IRET: u64 = 0x74;
    pub const INVD: u64 = 0x76;
    pub const HLT: u64 = 0x78;
    pub const INVLPGA: u64 = 0x7a;
    pub const IOIO: u64 = 0x7b;
    pub const MSR: u64 = 0x7c;
    pub const SHUTDOWN: u64 = 0x7f;
    pub const VMRUN: u64 = 0x80;
    pub const SKINIT: u64 = 0x86;
    pub const MONITOR: u64 = 0x8a;
    pub const MWAIT: u64 = 0x8b;
    pub const MWAIT_ARMED: u64 = 0x8c;
    pub const XSETBV: u64 = 0x8d;
    pub const RDPRU: u64 = 0x8e;
    pub const NESTED_FAULT: u64 = 0x400;
}

const NAMES: &[(u64, &str)] = &[
    (code::NESTED_FAULT, "nested fault"),
    (code::IOIO, "port"),
    (code::MSR, "msr"),
    (code::CPUID, "cpuid"),
    (code::HLT, "hlt"),
    (code::INTERRUPT, "interrupt"),
    (code::NMI, "signal"),
    (code::CR0_WRITE, "cr0 write"),
    (code::CR3_WRITE, "cr3 write"),
    (code::CR4_WRITE, "cr4 write"),
    (code::XSETBV, "xsetbv"),
    (code::IRET, "iret"),
    (code::DEBUG, "step"),
    (code::INVD, "invd"),
    (code::RDPMC, "rdpmc"),
    (code::RDPRU, "rdpru"),
    (code::RSM, "rsm"),
    (code::INVLPGA, "invlpga"),
    (0x80, "vmrun"),
    (0x81, "vmmcall"),
    (0x82, "vmload"),
    (0x83, "vmsave"),
    (0x84, "stgi"),
    (0x85, "clgi"),
    (0x86, "skinit"),
    (code::MONITOR, "monitor"),
    (code::MWAIT, "mwait"),
    (code::MWAIT_ARMED, "mwait"),
    (code::ALIGNMENT_CHECK, "alignment check"),
    (code::INIT, "init"),
    (code::SHUTDOWN, "shutdown"),
];

const CAUSES: usize = NAMES.len() + 1;

fn index(code: u64) -> usize {
    NAMES.iter().position(|(known, _)| *known == code).unwrap_or(NAMES.len())
}

/// The name of an exit code.
pub fn name(code: u64) -> &'static str {
    name_at(index(code))
}

fn name_at(index: usize) -> &'static str {
    NAMES.get(index).map_or("other", |(_, name)| *name)
}

/// Exits remembered one by one.
const KEPT: usize = 16;

/// The exits of one vCPU. Written by its processor alone, read by any.
pub struct Record {
    counts: [AtomicU64; CAUSES],
    last: [AtomicU8; KEPT],
    /// What the last ones were about: see [`Record::add`].
    about: [AtomicU64; KEPT],
    next: AtomicU32,
    total: AtomicU64,
}

impl Default for Record {
    fn default() -> Self {
        Self::new()
    }
}

impl Record {
    /// No exits yet.
    pub const fn new() -> Self {
        Self {
            counts: [const { AtomicU64::new(0) }; CAUSES],
            last: [const { AtomicU8::new(u8::MAX) }; KEPT],
            about: [const { AtomicU64::new(0) }; KEPT],
            next: AtomicU32::new(0),
            total: AtomicU64::new(0),
        }
    }

    /// Counts one. `about` is the port, register or address of those causes that have one.
    pub fn add(&self, code: u64, about: u64) {
        let index = index(code);
        bump(&self.counts[index]);
        bump(&self.total);
        let next = self.next.load(Relaxed);
        self.last[next as usize % KEPT].store(index as u8, Relaxed);
        self.about[next as usize % KEPT].store(about, Relaxed);
        self.next.store(next.wrapping_add(1), Relaxed);
    }

    /// All so far.
    pub fn total(&self) -> u64 {
        self.total.load(Relaxed)
    }

    /// Names of the last ones, with what they were about, newest last.
    pub fn last(&self) -> Vec<String> {
        let next = self.next.load(Relaxed) as usize;
        let at = |n: usize| {
            let place = next.wrapping_add(n) % KEPT;
            (self.last[place].load(Relaxed), self.about[place].load(Relaxed))
        };
        let name = |(index, about): (u8, u64)| {
            let name = name_at(usize::from(index));
            match NAMES.get(usize::from(index)) {
                Some((code::IOIO | code::MSR | code::NESTED_FAULT, _)) => {
                    format!("{name} 0x{about:x}")
                }
                _ => String::from(name),
            }
        };
        (0..KEPT).map(at).filter(|(index, _)| *index != u8::MAX).map(name).collect()
    }
}

/// Only the owner writes, so a load and a store do.
fn bump(counter: &AtomicU64) {
    counter.store(counter.load(Relaxed) + 1, Relaxed);
}

/// Exits by name over all records, most frequent first.
pub fn by_cause<'a>(records: impl Iterator<Item = &'a Record>) -> Vec<(String, u64)> {
    let mut sums = [0; CAUSES];
    for record in records {
        for (sum, count) in sums.iter_mut().zip(&record.counts) {
            *sum += count.load(Relaxed);
        }
    }
    let mut causes: Vec<(String, u64)> = sums
        .into_iter()
        .enumerate()
        .filter(|(_, sum)| *sum > 0)
        .map(|(index, sum)| (String::from(name_at(index)), sum))
        .collect();
    causes.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    causes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exits_are_counted_and_the_last_ones_kept_in_order() {
        let record = Record::new();
        for _ in 0..20 {
            record.add(code::IOIO, 0x64);
        }
        record.add(code::NESTED_FAULT, 0xfee0_00b0);
        record.add(0x7777, 1);
        assert_eq!(record.total(), 22);
        let last = record.last();
        assert_eq!(last.len(), KEPT);
        assert_eq!(last[KEPT - 3..], ["port 0x64", "nested fault 0xfee000b0", "other"]);
        assert_eq!(by_cause([&record, &record].into_iter())[0], (String::from("port"), 40));
    }
}
