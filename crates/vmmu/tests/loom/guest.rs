//! A processor that runs the guest: a page walker, a TLB of one entry, and a vCPU's loop.

use vmmu::addr::{Gfn, Gpa, Hpa, Level, Pfn};
use vmmu::entry::{Access, State, Value};
use vmmu::host::HostFrame;
use vmmu::{Cause, FaultStep, Mmu, Outcome, PageFault, Request, ResolvedFault};
use vmmu::{EnterError, Flush, Processor, VcpuMmu};

use crate::explore::saw;
use crate::machine::{Machine, format};

/// The answer to a request.
pub fn resolve(request: Request<'_>, found: HostFrame) -> ResolvedFault<'_> {
    let answer = request.query().answer(found);
    request.resolve(answer).expect("its own answer")
}

/// A vCPU and the translations its processor holds.
pub struct Guest<'vm> {
    pub vcpu: VcpuMmu<&'vm Mmu<Machine>>,
    machine: &'vm Machine,
    keeps: Keeps,
    tlb: Option<(Gfn, Pfn)>,
    upper: Option<(Gfn, Hpa)>,
}

/// What a processor keeps of a walk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Keeps {
    /// The translation.
    Leaf,
    /// The table it is in: a paging-structure cache.
    Table,
}

/// What an access of the guest met.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Met {
    /// Memory.
    Page,
    /// No translation: a fault is due.
    Nothing,
}

/// What a guest's read asks.
pub fn read(gfn: Gfn) -> PageFault {
    PageFault { gpa: gfn.gpa(), access: Access::READ, cause: Cause::Guest }
}

/// What a guest's write asks.
pub fn write(gfn: Gfn) -> PageFault {
    PageFault { gpa: Gpa(gfn.gpa().0), access: Access::WRITE, cause: Cause::Guest }
}

impl<'vm> Guest<'vm> {
    pub fn new(vcpu: VcpuMmu<&'vm Mmu<Machine>>, machine: &'vm Machine) -> Self {
        Guest { vcpu, machine, keeps: Keeps::Leaf, tlb: None, upper: None }
    }

    /// The host.
    pub fn machine(&self) -> &'vm Machine {
        self.machine
    }

    /// The same on a processor that keeps something else.
    pub fn keeping(self, keeps: Keeps) -> Self {
        Guest { keeps, ..self }
    }

    /// Runs the guest: enters, reads `gfn` so many times or until there is no translation, and
    /// leaves. Kicks are not looked at: a kick may come as late as it likes.
    pub fn run(&mut self, gfn: Gfn, times: usize) -> Met {
        loop {
            if let Err(why) = self.vcpu.load_root() {
                self.machine.complain(&format!("no entry: {why}"));
                return Met::Nothing;
            }
            // Another round of `load_root` ends, because models invalidate so often only.
            if let Some(met) = self.try_run(gfn, times) {
                return met;
            }
        }
    }

    /// The same once, on the root the vCPU has: a new one, on which nothing is mapped, is nothing to
    /// the model. `None` if that root is not valid any more.
    pub fn try_run(&mut self, gfn: Gfn, times: usize) -> Option<Met> {
        let Guest { vcpu, machine, keeps, tlb, upper } = self;
        let inside = match vcpu.before_enter(Processor(0)) {
            Ok(inside) => inside,
            Err(EnterError::LoadRoot) => return None,
            Err(why) => {
                machine.complain(&format!("no entry: {why}"));
                return Some(Met::Nothing);
            }
        };
        if inside.flush() == Flush::Needed {
            (*tlb, *upper) = (None, None);
        }
        let root = inside.root();
        let mut met = Met::Page;
        for _ in 0..times {
            *tlb = tlb.filter(|(held, _)| *held == gfn).or_else(|| {
                let top = (root, format().top());
                let cached = upper.filter(|(held, _)| *held == gfn);
                let from = cached.map_or(top, |(_, table)| (table, Level::Size4K));
                let (frame, table) = walk(machine, from, gfn)?;
                *upper = Some((gfn, table));
                Some((gfn, frame))
            });
            let Some((_, frame)) = *tlb else {
                met = Met::Nothing;
                break;
            };
            machine.guest_reads(frame);
            match keeps {
                Keeps::Leaf => *upper = None,
                Keeps::Table => *tlb = None,
            }
        }
        inside.after_exit();
        Some(met)
    }

    /// One try to resolve a fault: both halves, with the host in between.
    pub fn fault(&mut self, fault: PageFault, level: Level) -> Outcome {
        let outcome = self.both_halves(fault, level);
        saw(outcome.name());
        outcome
    }

    fn both_halves(&mut self, fault: PageFault, level: Level) -> Outcome {
        let request = match self.vcpu.begin_fault(fault) {
            FaultStep::Done(outcome) => return outcome,
            FaultStep::Resolve(request) => request,
            // As a vCPU does that enters next.
            FaultStep::LoadRoot => return Outcome::Retry,
            FaultStep::MissingPages(_) => {
                self.machine.complain("the rig gave too few table pages");
                return Outcome::OutOfMemory;
            }
        };
        let found = self.machine.find(&request.query(), level);
        match self.vcpu.complete(crate::guest::resolve(request, found)) {
            Ok(outcome) => outcome,
            Err(_) => {
                self.machine.complain("the rig gave too few table pages");
                Outcome::OutOfMemory
            }
        }
    }
}

/// The frame the tables translate `gfn` to, and the table that says so, as a processor walks them
/// from a table of some level on.
pub fn walk(machine: &Machine, from: (Hpa, Level), gfn: Gfn) -> Option<(Pfn, Hpa)> {
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
                return Some((frame, table));
            }
            _ => return None,
        }
    }
}

/// The frame the tables translate `gfn` to when the guest is not running.
pub fn look(guest: &mut Guest<'_>, gfn: Gfn) -> Option<Pfn> {
    guest.vcpu.load_root().unwrap();
    let inside = guest.vcpu.before_enter(Processor(0)).expect("a root");
    let top = (inside.root(), format().top());
    walk(guest.machine, top, gfn).map(|(frame, _)| frame)
}
