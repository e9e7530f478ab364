//! A processor that keeps every translation it has seen until it is told to drop them, as SVM
//! tags them: by the vCPU, not by the root. It reads nested page tables by the manual (AMD APM
//! volume 2, 5.3 and 15.25), not by the library.

use std::collections::BTreeMap;

use vmmu::addr::Hpa;
use vmmu::entry::Access;
use vmmu::host::{Host, TablePages};
use vmmu::tdp::Outcome;
use vmmu::{Flush, Processor as Number, Vcpu};

use crate::support::{Frames, ask};

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const HUGE: u64 = 1 << 7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// See the module.
#[derive(Debug)]
pub struct Processor {
    number: u32,
    /// Difference between where a table page is for a walker and where it is for this process.
    window: u64,
    /// Frame and whether it may be written, by guest frame.
    tlb: BTreeMap<u64, (u64, bool)>,
    /// Table of leaves, by the guest frames it covers.
    upper: BTreeMap<u64, u64>,
}

/// What an access of the guest met.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Met {
    /// This host frame.
    Frame(u64),
    /// No translation, or one that does not allow the access.
    Nothing,
}

fn word(window: u64, table: u64, index: u64) -> u64 {
    let address = (table + index * 8).wrapping_add(window);
    // SAFETY: the tables lead to table pages of the tests' host, which stay allocated as long as
    // the host does.
    unsafe { std::ptr::with_exposed_provenance::<u64>(address as usize).read_volatile() }
}

impl Processor {
    /// That of a number, on the tables of a host.
    pub fn new(number: u32, host: &impl TablePages) -> Self {
        let window = host.window();
        Processor { number, window, tlb: BTreeMap::new(), upper: BTreeMap::new() }
    }

    /// Drops everything, as an entry with a flush does.
    pub fn flush(&mut self) {
        self.tlb.clear();
        self.upper.clear();
    }

    /// Drops translations and keeps what the paging-structure cache has.
    pub fn forget_leaves(&mut self) {
        self.tlb.clear();
    }

    /// One access while in the guest, on the tables at `root`.
    pub fn reach(&mut self, root: Hpa, gfn: u64, write: bool) -> Met {
        if let Some((frame, writable)) = self.tlb.get(&gfn)
            && (*writable || !write)
        {
            return Met::Frame(*frame);
        }
        let (mut table, mut level) = match self.upper.get(&(gfn >> 9)) {
            Some(table) => (*table, 1),
            None => (root.0, 4),
        };
        let mut writable = true;
        loop {
            let entry = word(self.window, table, gfn >> (9 * (level - 1)) & 0x1ff);
            writable &= entry & WRITABLE != 0;
            if entry & PRESENT == 0 || (write && !writable) {
                return Met::Nothing;
            }
            let pages = 1 << (9 * (level - 1));
            if level == 1 || entry & HUGE != 0 {
                let frame = (entry & ADDRESS) >> 12 | gfn & (pages - 1);
                self.tlb.insert(gfn, (frame, writable));
                return Met::Frame(frame);
            }
            table = entry & ADDRESS;
            level -= 1;
            if level == 1 {
                self.upper.insert(gfn >> 9, table);
            }
        }
    }

    /// The vCPU enters, accesses one page, and leaves.
    pub fn run<H: Host>(&mut self, vcpu: &mut Vcpu<'_, H>, gfn: u64, write: bool) -> Met {
        let inside = vcpu.before_enter(Number(self.number)).expect("an entry");
        if inside.flush() == Flush::Needed {
            self.flush();
        }
        let met = self.reach(inside.root(), gfn, write);
        inside.after_exit();
        met
    }

    /// The guest's access to a page, faults and all.
    pub fn touch<H: Host>(
        &mut self,
        vcpu: &mut Vcpu<'_, H>,
        frames: &Frames,
        gfn: u64,
        access: Access,
    ) -> Result<u64, String> {
        let write = access.contains(Access::WRITE);
        for _ in 0..8 {
            if let Met::Frame(frame) = self.run(vcpu, gfn, write) {
                return Ok(frame);
            }
            let outcome = vcpu.fault_with(frames, ask(gfn, access));
            match outcome {
                Outcome::Fixed(_) | Outcome::Spurious | Outcome::Retry => {}
                other => return Err(format!("gfn {gfn:#x}: {other:?}")),
            }
        }
        Err(format!("gfn {gfn:#x}: the guest faults for ever"))
    }
}
