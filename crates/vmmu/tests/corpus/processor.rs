//! The software processor under a vCPU: it keeps every translation and every upper entry until it
//! is told to drop them, tagged by the vCPU and not by the root, as SVM does.

use std::cell::Cell;
use std::sync::atomic::AtomicU64;

use machine::{Context, Habits, Memory, Nested, Npt, Paging};
use vmmu::Outcome;
use vmmu::addr::Hpa;
use vmmu::entry::Access;
use vmmu::host::{Backing, FrameQuery, Host, Resolution, TablePages};
use vmmu::{Flush, Mmu, Processor as Number, VcpuMmu};

use crate::support::{Frames, fault_at};

/// See the module.
#[derive(Debug)]
pub struct Processor {
    number: u32,
    hardware: machine::Processor,
    tables: Tables,
}

/// What an access of the guest met.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Met {
    /// This host frame.
    Frame(u64),
    /// No translation, or one that does not allow the access.
    Nothing,
}

/// Has a frame so many times, and then none: a fault that is refused again and again ends all the
/// same, and tells.
#[derive(Debug)]
struct Patient<'f> {
    frames: &'f Frames,
    left: Cell<u32>,
}

// SAFETY: as that of the frames.
unsafe impl Backing for Patient<'_> {
    fn find(&self, query: &FrameQuery) -> Resolution {
        match self.left.get().checked_sub(1) {
            Some(left) => {
                self.left.set(left);
                self.frames.find(query)
            }
            None => Resolution::Hole,
        }
    }
}

/// The table pages of the tests' host, as a page walker reaches them.
#[derive(Debug)]
struct Tables {
    /// Difference between where a page is for a walker and where it is for this process.
    window: u64,
}

impl Memory for Tables {
    fn word(&self, address: u64) -> Option<&AtomicU64> {
        let word = std::ptr::with_exposed_provenance::<AtomicU64>(
            address.wrapping_add(self.window) as usize,
        );
        // SAFETY: the tables lead to table pages of the tests' host only, which stay allocated as
        // long as the host does; everybody accesses their words atomically, or while they are
        // nobody's.
        Some(unsafe { &*word })
    }
}

impl Processor {
    /// That of a number, on the tables of a host.
    pub fn new(number: u32, host: &impl TablePages) -> Self {
        let hardware = machine::Processor::with_habits(u64::from(number), Habits::oldest());
        Processor { number, hardware, tables: Tables { window: host.window() } }
    }

    /// The vCPU's name for what is cached.
    fn tag(&self) -> u16 {
        self.number as u16 + 1
    }

    /// Drops everything, as an entry with a flush does.
    pub fn flush(&mut self) {
        self.hardware.invalidate_tag(self.tag());
    }

    /// One access while in the guest, on the tables at `root`.
    pub fn reach(&mut self, root: Hpa, gfn: u64, write: bool) -> Met {
        let nested = Nested::Npt(Npt::new());
        let guest = Context { tag: self.tag(), nested, root: root.0, paging: Paging::Off };
        let access = if write { machine::Access::Write } else { machine::Access::Read };
        match self.hardware.translate(&self.tables, &guest, gfn << 12, access) {
            Ok(reached) => Met::Frame(reached.hpa >> 12),
            Err(_) => Met::Nothing,
        }
    }

    /// The vCPU enters, accesses one page, and leaves.
    pub fn run<H: Host>(&mut self, vcpu: &mut VcpuMmu<&Mmu<H>>, gfn: u64, write: bool) -> Met {
        vcpu.load_root().unwrap();
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
        vcpu: &mut VcpuMmu<&Mmu<H>>,
        frames: &Frames,
        gfn: u64,
        access: Access,
    ) -> Result<u64, String> {
        let write = access.contains(Access::WRITE);
        let patient = Patient { frames, left: Cell::new(100) };
        for _ in 0..8 {
            if let Met::Frame(frame) = self.run(vcpu, gfn, write) {
                return Ok(frame);
            }
            let outcome = vcpu.handle_fault(&patient, fault_at(gfn, access));
            match outcome {
                Outcome::Fixed(_) | Outcome::Spurious | Outcome::Busy(_) => {}
                other => return Err(format!("gfn {gfn:#x}: {other:?}")),
            }
        }
        Err(format!("gfn {gfn:#x}: the guest faults for ever"))
    }
}
