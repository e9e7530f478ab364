//! A guest at work: its accesses by a processor that uses stale translations wherever it may, those
//! by the library, and what went wrong with them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use fastrand::Rng;
use machine::npt::Fault;
use machine::{Context, Exit, Habits, Paging};
use vmmu::addr::{Gpa, Pfn};
use vmmu::entry::Access;
use vmmu::host::{Backing, GuestMemory, Host, Resolution};
use vmmu::slot::AddressSpace;
use vmmu::{
    AccessError, AccessFailure, Busy, Cause, EnterError, Flush, Mmu, Outcome, PageFault, Processor,
    VcpuMmu, Worker,
};

use crate::report::Breaches;
use crate::together::judged::Judged;
use crate::together::options::TogetherOptions;

/// What went wrong, rule by rule.
#[derive(Default)]
pub struct Wrong {
    pub stuck: Breaches,
    pub words: Breaches,
    pub frames: Breaches,
    pub library: Breaches,
    pub tables: Breaches,
}

/// What was done.
#[derive(Default)]
pub struct Done {
    pub accesses: u64,
    pub faults: u64,
    pub denied: u64,
    pub compared: u64,
    pub copies: u64,
}

/// The guest, with the processors it moves between.
pub struct Guest<'o, 'b, B> {
    pub options: &'o TogetherOptions,
    backing: &'b B,
    pub rng: Rng,
    processors: Vec<machine::Processor>,
    /// Pages of the slot where something happens just now.
    hot: [u64; 4],
    /// Guest-physical address of a word to what was last written, or first read.
    pub words: BTreeMap<u64, u64>,
    pub wrong: Wrong,
    pub done: Done,
}

impl<'o, 'b, B> Guest<'o, 'b, B> {
    /// One that has done nothing.
    pub fn new(options: &'o TogetherOptions, backing: &'b B) -> Self {
        Guest {
            options,
            backing,
            rng: Rng::with_seed(options.seed),
            processors: (0..u64::from(options.processors))
                .map(|n| machine::Processor::with_habits(options.seed ^ n, Habits::default()))
                .collect(),
            hot: [0; 4],
            words: BTreeMap::new(),
            wrong: Wrong::default(),
            done: Done::default(),
        }
    }
}

impl<B: Backing + GuestMemory> Guest<'_, '_, B> {
    /// Somewhere in the slot, mostly where something has happened lately: what a processor has
    /// cached must be touched again soon after it was taken back.
    pub fn word(&mut self) -> u64 {
        let place = self.rng.usize(..self.hot.len());
        if self.rng.u8(..8) == 0 {
            self.hot[place] = self.rng.u64(..self.options.range.pages());
        }
        let gfn = self.options.range.start().0 + self.hot[place];
        // Few words of each page, so that they are met again.
        (gfn << 12) + self.rng.u64(..4) * 1016
    }

    /// One access of the guest's.
    pub fn access<H: Host>(
        &mut self,
        vcpu: &mut VcpuMmu<&Mmu<Judged<'_, H>>>,
        memory: &Judged<'_, H>,
    ) {
        let gpa = self.word();
        let kind = match self.rng.u8(..8) {
            0..4 => machine::Access::Read,
            4..7 => machine::Access::Write,
            _ => machine::Access::Fetch,
        };
        let wanted = match kind {
            machine::Access::Read => Access::READ,
            machine::Access::Write => Access::WRITE,
            machine::Access::Fetch => Access::EXEC,
        };
        self.done.accesses += 1;
        let on = self.rng.u32(..self.options.processors);
        let mut last = None;
        for _ in 0..self.options.patience {
            if let Err(error) = vcpu.load_root() {
                return self.wrong.stuck.add(|| format!("no root: {error}"));
            }
            let entry = match vcpu.before_enter(Processor(on)) {
                Ok(entry) => entry,
                Err(EnterError::LoadRoot) => continue,
                Err(error) => return self.wrong.stuck.add(|| format!("no entry: {error}")),
            };
            let context = Context {
                tag: 1,
                nested: self.options.tables.nested(),
                root: entry.root().0,
                paging: Paging::Off,
            };
            let processor = &mut self.processors[on as usize];
            if entry.flush() == Flush::Needed {
                processor.invalidate_tag(context.tag);
                processor.invalidate_root(context.root);
            }
            if self.rng.u8(..8) == 0 {
                let beside = gpa ^ 0x1000;
                processor.speculate(memory, &context, beside);
            }
            let end = processor.translate(memory, &context, gpa, kind);
            if let Ok(reached) = end {
                // While the guest is in it: after that the translation is worth nothing.
                self.reach(gpa, kind, reached.hpa);
            }
            entry.after_exit();
            match end {
                Ok(_) => return,
                Err(Exit::Bus { address }) => {
                    return self
                        .wrong
                        .tables
                        .add(|| format!("{gpa:#x}: a walk to {address:#x}, which is no table"));
                }
                Err(Exit::NestedFault(fault)) if fault.code & Fault::RESERVED == 0 => {}
                Err(Exit::EptViolation { .. }) => {}
                Err(other) => {
                    return self.wrong.tables.add(|| format!("{gpa:#x}: {other:x?}"));
                }
            }
            self.done.faults += 1;
            let fault = PageFault { gpa: Gpa(gpa), access: wanted, cause: Cause::Guest };
            let outcome = vcpu.handle_fault(self.backing, fault);
            last = Some(outcome);
            match outcome {
                Outcome::Busy(Busy::Pending) | Outcome::Fault(_) => {
                    self.done.denied += 1;
                    return;
                }
                Outcome::Fixed(_) | Outcome::Spurious | Outcome::Retry => {}
                Outcome::Busy(_) | Outcome::OutOfMemory => {}
                Outcome::Emulate | Outcome::WriteProtected | Outcome::Dead(_) => break,
            }
        }
        let outcome = last.map_or("none", |outcome| outcome.name());
        self.wrong.stuck.add(|| {
            format!("{wanted:?} of {gpa:#x}: {} faults, the last one {outcome}", {
                self.options.patience
            })
        });
    }

    /// The guest's access has reached a frame.
    fn reach(&mut self, gpa: u64, kind: machine::Access, hpa: u64) {
        let pfn = Pfn(hpa >> 12);
        let named = self.backing.find(&self.options.query(Gpa(gpa).gfn(), Access::READ));
        let elsewhere = match named {
            Resolution::Frame(frame) if frame.pfn == pfn => None,
            Resolution::Frame(frame) => Some(format!("at {}", frame.pfn)),
            Resolution::Hole | Resolution::Poisoned => Some(format!("has nothing ({named:?})")),
            // It does not say.
            Resolution::Pending | Resolution::Retry => None,
        };
        if let Some(elsewhere) = elsewhere {
            let frames = &mut self.wrong.frames;
            return frames
                .add(|| format!("{gpa:#x}: the guest at frame {pfn}, the backing {elsewhere}"));
        }
        let Some(bytes) = self.backing.bytes(pfn) else { return };
        let at = bytes.as_ptr().wrapping_byte_add((hpa & 0xff8) as usize).cast();
        // SAFETY: the backing gives 4096 bytes until an invalidation, which only this thread makes.
        let word = unsafe { AtomicU64::from_ptr(at) };
        if kind == machine::Access::Write {
            let new = self.rng.u64(..);
            word.store(new, Ordering::Relaxed);
            self.words.insert(gpa, new);
            return;
        }
        let now = word.load(Ordering::Relaxed);
        let expected = *self.words.entry(gpa).or_insert(now);
        self.done.compared += 1;
        self.wrong
            .words
            .add_if(now != expected, || format!("{gpa:#x}: {now:#x}, not {expected:#x}"));
        self.words.insert(gpa, now);
    }

    /// A read or write by the library.
    pub fn copy<H: Host>(&mut self, worker: &mut Worker<&Mmu<H>>) {
        let gpa = self.word();
        let (backing, space) = (self.backing, AddressSpace::Normal);
        let mut failed = |end: Result<(), AccessError>| match end {
            Ok(()) => false,
            // The host's right.
            Err(error) => {
                let fine = matches!(
                    error.why,
                    AccessFailure::Unreachable
                        | AccessFailure::Hole
                        | AccessFailure::ReadOnly
                        | AccessFailure::Busy(_)
                );
                self.wrong.library.add_if(!fine, || format!("{gpa:#x}: {:?}", error.why));
                true
            }
        };
        if self.rng.bool() {
            let new = self.rng.u64(..);
            if !failed(worker.write(backing, space, Gpa(gpa), &new.to_le_bytes())) {
                self.words.insert(gpa, new);
                self.done.copies += 1;
            }
            return;
        }
        let mut bytes = [0; 8];
        if failed(worker.read(backing, space, Gpa(gpa), &mut bytes)) {
            return;
        }
        self.done.copies += 1;
        let now = u64::from_le_bytes(bytes);
        let expected = *self.words.entry(gpa).or_insert(now);
        self.wrong
            .library
            .add_if(now != expected, || format!("{gpa:#x}: {now:#x}, not {expected:#x}"));
        self.words.insert(gpa, now);
    }
}
