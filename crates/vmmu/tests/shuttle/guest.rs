//! A processor that runs the guest: a page walker, a TLB and a paging-structure cache that drop
//! nothing they are not told to drop, and a vCPU's loop.

use shuttle::rand::{Rng, thread_rng};
use vmmu::addr::{Gfn, Gpa, Hpa, Level, Pfn};
use vmmu::entry::{Access, State, Value};
use vmmu::{Cause, EnterError, LoadError, Mmu, Outcome, PageFault};
use vmmu::{Flush, Processor, VcpuMmu};

use crate::explore::saw;
use crate::machine::{Machine, format};

/// A vCPU and what its processor holds.
pub struct Guest<'vm> {
    pub vcpu: VcpuMmu<&'vm Mmu<Machine>>,
    machine: &'vm Machine,
    processor: Processor,
    tlb: Vec<(Gfn, Pfn)>,
    upper: Vec<(Gfn, Hpa)>,
}

impl<'vm> Guest<'vm> {
    pub fn new(vcpu: VcpuMmu<&'vm Mmu<Machine>>, machine: &'vm Machine) -> Self {
        let processor = Processor(vcpu.id().0);
        Guest { vcpu, machine, processor, tlb: Vec::new(), upper: Vec::new() }
    }

    /// Enters, reads some pages or until there is no translation, and leaves: the page that
    /// faulted.
    fn run(&mut self, pages: &[Gfn]) -> Option<Gfn> {
        let Guest { vcpu, machine, processor, tlb, upper } = self;
        let inside = loop {
            match vcpu.load_root() {
                Ok(()) => {}
                Err(LoadError::RootsBusy) => {
                    saw("no place for a root");
                    shuttle::thread::yield_now();
                    return None;
                }
                Err(why) => {
                    machine.complain(&format!("no root: {why}"));
                    return None;
                }
            }
            match vcpu.before_enter(*processor) {
                Ok(inside) => break inside,
                Err(EnterError::LoadRoot) => saw("a root that went before the entry"),
                Err(why) => {
                    machine.complain(&format!("no entry: {why}"));
                    return None;
                }
            }
        };
        if inside.flush() == Flush::Needed {
            tlb.clear();
            upper.clear();
        }
        let root = inside.root();
        let mut fault = None;
        for gfn in pages {
            let held = tlb.iter().find(|(held, _)| held == gfn).map(|(_, frame)| *frame);
            let frame = held.or_else(|| {
                let base = gfn.leaf(Level::Size2M).start();
                let cached = upper.iter().find(|(held, _)| *held == base).map(|(_, t)| *t);
                let from = cached.map_or((root, format().top()), |table| (table, Level::Size4K));
                let (frame, table, level) = walk(machine, from, *gfn)?;
                if level == Level::Size4K && cached.is_none() {
                    upper.push((base, table));
                }
                tlb.push((*gfn, frame));
                Some(frame)
            });
            match frame {
                Some(frame) => machine.guest_reads(*gfn, frame),
                None => {
                    fault = Some(*gfn);
                    break;
                }
            }
        }
        // A processor forgets translations as it likes, and keeps the upper levels.
        if thread_rng().gen_bool(0.25) {
            tlb.clear();
        }
        inside.after_exit();
        fault
    }

    /// The guest's life: reads, faults, reads again.
    pub fn live(&mut self, rounds: usize, choose: impl Fn() -> Gfn) {
        for _ in 0..rounds {
            let pages: [Gfn; 4] = std::array::from_fn(|_| choose());
            if let Some(gfn) = self.run(&pages) {
                let access = if thread_rng().gen_bool(0.5) { Access::WRITE } else { Access::READ };
                let fault = PageFault { gpa: Gpa(gfn.gpa().0), access, cause: Cause::Guest };
                let outcome = self.vcpu.handle_fault(self.machine, fault);
                saw(outcome.name());
                match outcome {
                    Outcome::Fixed(_) | Outcome::Spurious | Outcome::Emulate | Outcome::Busy(_) => {
                    }
                    other => self.machine.complain(&format!("a fault ends as {other:?}")),
                }
            }
        }
    }
}

/// The frame the tables translate `gfn` to, the table that says so and its level, as a processor
/// walks them from a table of some level on.
fn walk(machine: &Machine, from: (Hpa, Level), gfn: Gfn) -> Option<(Pfn, Hpa, Level)> {
    let format = format();
    let (mut table, mut level) = from;
    loop {
        let value = machine.walker_loads(table, gfn.index(level));
        match format.read(Value(value), level) {
            State::Table(next) => {
                table = next.hpa();
                level = level.below()?;
            }
            State::Leaf(leaf) => {
                let frame = Pfn(leaf.pfn.0 + (gfn.0 & (level.pages() - 1)));
                return Some((frame, table, level));
            }
            _ => return None,
        }
    }
}
