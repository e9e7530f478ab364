//! A whole VM with the author's host: faults, entries, invalidations by the author's own code, and
//! a processor that walks the tables the library builds in the author's pages and uses stale
//! translations wherever it may.
//!
//! The guest's memory is compared word by word with what was last written to it. One thread does
//! everything in turns, so that a failure repeats from its seed; what happens at the same time is
//! for [`check_cpus`](crate::check_cpus) and for the library's own tests.

use std::collections::{BTreeMap, BTreeSet};
use std::ptr::with_exposed_provenance_mut;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use fastrand::Rng;
use machine::npt::Fault;
use machine::{Context, Ept, Exit, Habits, Memory, Nested, Npt, Paging};
use vmmu::addr::{Gfn, GfnRange, Gpa, Level, Pfn};
use vmmu::check::Witness;
use vmmu::entry::ept::EptOptions;
use vmmu::entry::npt::NptOptions;
use vmmu::entry::{Access, Format, FormatError, Record, ept, npt};
use vmmu::host::{
    Backing, Cpus, Event, FrameQuery, GuestMemory, Host, Observer, Placement, Resolution,
    TablePage, TablePages, VcpuId, Wait,
};
use vmmu::slot::{AddressSpace, Mutability, SlotId, SlotSpec, Source};
use vmmu::{
    AccessError, AccessFailure, Config, EnterError, FaultStep, Flush, Mmu, Processor, Role,
    VcpuMmu, Worker,
};
use vmmu::{Busy, Cause, Outcome, PageFault};

use crate::report::{Breaches, Report, Rule, Verdict};

const WHOLE: Rule = Rule { id: "V0", sentence: "no hook panics" };
const RULES: [Rule; 11] = [
    Rule { id: "V1", sentence: "the guest's accesses succeed after a few faults" },
    Rule { id: "V2", sentence: "the guest reads what was last written" },
    Rule { id: "V3", sentence: "the guest reaches the frame that the backing names" },
    Rule { id: "V4", sentence: "the library reads and writes the same memory as the guest" },
    Rule { id: "V5", sentence: "table pages hold what the library wrote" },
    Rule { id: "V6", sentence: "no table page is given while it is in use" },
    Rule { id: "V7", sentence: "taking a page back invalidates that page" },
    Rule { id: "V8", sentence: "the checker finds nothing at the end" },
    Rule { id: "V9", sentence: "every table page is given back at the end" },
    Rule { id: "V10", sentence: "a page is replaced only inside an invalidation" },
    Rule { id: "V11", sentence: "taking back invalidates though only a request is open" },
];

/// Pages that are looked at one by one at the end.
const LOOKED_AT: usize = 32;

/// Whose tables to build.
#[derive(Clone, Copy, Debug)]
pub enum Tables {
    /// AMD's.
    Npt(NptOptions),
    /// Intel's.
    Ept(EptOptions),
}

impl Tables {
    fn format(&self) -> Result<Format, FormatError> {
        match *self {
            Tables::Npt(options) => npt::format(options),
            Tables::Ept(options) => ept::format(options),
        }
    }

    fn nested(&self) -> Nested {
        let levels = |top| if top == Level::L5 { 5 } else { 4 };
        match *self {
            Tables::Npt(NptOptions { top, largest, phys_bits, .. }) => Nested::Npt(Npt {
                levels: levels(top),
                phys_bits: phys_bits as u8,
                nx: true,
                gib_pages: largest == Level::Size1G,
            }),
            Tables::Ept(EptOptions { top, largest, phys_bits, record, exec_only, .. }) => {
                Nested::Ept(Ept {
                    levels: levels(top),
                    phys_bits: phys_bits as u8,
                    ad: record == Record::Hardware,
                    exec_only,
                    mib_pages: largest >= Level::Size2M,
                    gib_pages: largest >= Level::Size1G,
                })
            }
        }
    }
}

/// What to run.
#[derive(Clone, Copy, Debug)]
pub struct TogetherOptions {
    /// The tables.
    pub tables: Tables,
    /// vCPUs.
    pub vcpus: u32,
    /// Processors they move between.
    pub processors: u32,
    /// The backing to name when the slot is made.
    pub backing: u64,
    /// Its first page.
    pub first: u64,
    /// The slot's guest frames.
    pub range: GfnRange,
    /// The largest leaf.
    pub largest: Level,
    /// What to do how often.
    pub steps: u32,
    /// Faults that one access may take.
    pub patience: u32,
    /// Seed of all choices.
    pub seed: u64,
}

impl TogetherOptions {
    /// For the first `pages` of `backing` at guest frame 0.
    pub fn new(tables: Tables, backing: u64, pages: u64) -> Self {
        TogetherOptions {
            tables,
            vcpus: 2,
            processors: 2,
            backing,
            first: 0,
            range: GfnRange::sized(Gfn(0), pages).unwrap_or(GfnRange::EMPTY),
            largest: Level::Size1G,
            steps: 20_000,
            patience: 64,
            seed: 1,
        }
    }

    fn page(&self, gfn: Gfn) -> u64 {
        self.first + (gfn.0 - self.range.start().0)
    }

    fn query(&self, gfn: Gfn, access: Access) -> FrameQuery {
        let page = (self.backing, self.page(gfn));
        FrameQuery::of_nobody(SlotId(0), page, gfn, access, self.largest)
    }
}

/// The author's host, with an eye on its table pages.
#[derive(Debug)]
pub struct Judged<'h, H> {
    host: &'h H,
    in_use: Mutex<BTreeSet<u64>>,
    twice: Mutex<Vec<u64>>,
    foreign: Mutex<Vec<u64>>,
}

impl<'h, H: Host> Judged<'h, H> {
    fn new(host: &'h H) -> Self {
        Judged {
            host,
            in_use: Mutex::default(),
            twice: Mutex::default(),
            foreign: Mutex::default(),
        }
    }

    /// The author's host.
    pub fn host(&self) -> &'h H {
        self.host
    }
}

// SAFETY: the author's promise, passed on. A page that comes twice is not passed on.
unsafe impl<H: Host> TablePages for Judged<'_, H> {
    fn window(&self) -> u64 {
        self.host.window()
    }

    fn take(&self, placement: Placement) -> Option<TablePage> {
        let page = self.host.take(placement)?;
        if self.in_use.lock().is_ok_and(|mut all| all.insert(page.pfn.0)) {
            return Some(page);
        }
        if let Ok(mut twice) = self.twice.lock() {
            twice.push(page.pfn.0);
        }
        None
    }

    fn release(&self, page: Pfn) {
        if self.in_use.lock().is_ok_and(|mut all| all.remove(&page.0)) {
            self.host.release(page);
        } else if let Ok(mut foreign) = self.foreign.lock() {
            foreign.push(page.0);
        }
    }
}

impl<H: Host> Cpus for Judged<'_, H> {
    fn kick(&self, vcpu: VcpuId) {
        self.host.kick(vcpu);
    }

    fn wait(&self, wait: Wait) {
        self.host.wait(wait);
    }
}

impl<H: Host> Observer for Judged<'_, H> {
    fn event(&self, event: Event) {
        self.host.event(event);
    }
}

/// The table pages, as the processor reads them.
impl<H: Host> Memory for Judged<'_, H> {
    fn word(&self, address: u64) -> Option<&AtomicU64> {
        if !self.in_use.lock().is_ok_and(|all| all.contains(&(address >> 12))) {
            return None;
        }
        let at = address.wrapping_add(self.host.window()) & !7;
        // SAFETY: a word of a page that the host gave, readable and writable until it is released.
        // One thread does everything: nothing is released while a walk looks.
        Some(unsafe { AtomicU64::from_ptr(with_exposed_provenance_mut(at as usize)) })
    }
}

/// What went wrong, rule by rule.
#[derive(Default)]
struct Wrong {
    stuck: Breaches,
    words: Breaches,
    frames: Breaches,
    library: Breaches,
    tables: Breaches,
    kept: Breaches,
    replaced: Breaches,
    overtaken: Breaches,
}

/// What was done.
#[derive(Default)]
struct Done {
    accesses: u64,
    faults: u64,
    denied: u64,
    compared: u64,
    copies: u64,
    mapped: u64,
    open: u64,
}

struct Run<'o, 'b, B> {
    options: &'o TogetherOptions,
    backing: &'b B,
    rng: Rng,
    processors: Vec<machine::Processor>,
    /// Pages of the slot where something happens just now.
    hot: [u64; 4],
    /// Guest-physical address of a word to what was last written, or first read.
    words: BTreeMap<u64, u64>,
    wrong: Wrong,
    done: Done,
}

impl<B: Backing + GuestMemory> Run<'_, '_, B> {
    /// Somewhere in the slot, mostly where something has happened lately: what a processor has
    /// cached must be touched again soon after it was taken back.
    fn word(&mut self) -> u64 {
        let place = self.rng.usize(..self.hot.len());
        if self.rng.u8(..8) == 0 {
            self.hot[place] = self.rng.u64(..self.options.range.pages());
        }
        let gfn = self.options.range.start().0 + self.hot[place];
        // Few words of each page, so that they are met again.
        (gfn << 12) + self.rng.u64(..4) * 1016
    }

    /// One access of the guest's.
    fn access<H: Host>(&mut self, vcpu: &mut VcpuMmu<&Mmu<Judged<'_, H>>>, memory: &Judged<'_, H>) {
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
    fn copy<H: Host>(&mut self, worker: &mut Worker<&Mmu<H>>) {
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

impl<B: Backing + GuestMemory> Run<'_, '_, B> {
    /// Where the tables lead for a page.
    fn mapped<H: Host>(worker: &mut Worker<&Mmu<H>>, gfn: Gfn) -> Option<Pfn> {
        worker.translate(Role::PLAIN, gfn.gpa()).map(|there| Pfn(there.hpa.0 >> 12))
    }

    /// What the backing says of a page: `None` if it does not say.
    fn named(&self, gfn: Gfn) -> Option<Option<Pfn>> {
        match self.backing.find(&self.options.query(gfn, Access::READ)) {
            Resolution::Frame(frame) => Some(Some(frame.pfn)),
            Resolution::Hole | Resolution::Poisoned => Some(None),
            Resolution::Pending | Resolution::Retry => None,
        }
    }

    /// A page is taken back while it and those beside it are mapped.
    fn while_mapped<'v, H: Host>(
        &mut self,
        vm: &'v Mmu<Judged<'_, H>>,
        vcpu: &mut VcpuMmu<&'v Mmu<Judged<'_, H>>>,
        worker: &mut Worker<&'v Mmu<Judged<'_, H>>>,
        gfn: Gfn,
        take_back: &mut impl FnMut(&mut Worker<&'v Mmu<Judged<'_, H>>>, u64),
    ) {
        let around = [gfn.0.wrapping_sub(1), gfn.0, gfn.0 + 1].map(Gfn);
        let around =
            around.map(|near| Some(near).filter(|near| self.options.range.contains(*near)));
        for near in around.into_iter().flatten() {
            let (gpa, access) = (near.gpa(), Access::READ);
            let fault = PageFault { gpa, access, cause: Cause::Guest };
            let backing: &B = self.backing;
            let patience = self.options.patience;
            let mut asked = (0..patience).map(|_| vcpu.handle_fault(backing, fault));
            asked.find(|outcome| !matches!(outcome, Outcome::Busy(_)));
        }
        let [_, page, _] = around.map(|near| near.and_then(|near| Self::mapped(worker, near)));
        let before = vm.stats().invalidations;
        take_back(worker, self.options.page(gfn));
        let invalidates = vm.stats().invalidations > before;
        if page.is_some() {
            self.done.mapped += 1;
        }
        for near in around.into_iter().flatten() {
            let Some(is) = Self::mapped(worker, near) else { continue };
            let named = self.named(near);
            let is_replaced = named.is_some_and(|named| named != Some(is));
            // Said of this page by one rule alone.
            if near == gfn && (invalidates || !is_replaced) {
                self.wrong.kept.add(|| format!("{near:?} was taken back, and is mapped to {is}"));
            } else if is_replaced {
                self.wrong
                    .replaced
                    .add(|| format!("{near:?} is mapped to {is}, and the backing names {named:?}"));
            }
        }
    }

    /// A page is taken back while a vCPU has asked for it and nothing is mapped.
    fn while_asked<'v, H: Host>(
        &mut self,
        vcpu: &mut VcpuMmu<&'v Mmu<Judged<'_, H>>>,
        worker: &mut Worker<&'v Mmu<Judged<'_, H>>>,
        gfn: Gfn,
        take_back: &mut impl FnMut(&mut Worker<&'v Mmu<Judged<'_, H>>>, u64),
    ) {
        worker.zap(AddressSpace::Normal, gfn.leaf(Level::Size4K));
        let fault = PageFault { gpa: gfn.gpa(), access: Access::READ, cause: Cause::Guest };
        if vcpu.load_root().is_err() || worker.reserve(0).is_err() {
            return;
        }
        let FaultStep::Resolve(request) = vcpu.begin_fault(fault) else { return };
        let query = request.query();
        let Resolution::Frame(found) = self.backing.find(&query) else { return };
        take_back(worker, self.options.page(gfn));
        self.done.open += 1;
        let Ok(request) = request.resolve(query.answer(found)) else { return };
        let Ok(outcome) = worker.complete(request) else { return };
        let (is, named) = (Self::mapped(worker, gfn), self.named(gfn));
        let is_replaced = is.is_some() && named.is_some_and(|named| named != is);
        self.wrong.overtaken.add_if(is_replaced, || {
            format!("{gfn:?}: a request of before ended as {}, at {is:?}, and the backing names {named:?}", outcome.name())
        });
        // Nobody is to meet it.
        worker.zap(AddressSpace::Normal, gfn.leaf(Level::Size4K));
    }
}

/// Checks a host at work: a VM on `host`, with `backing`, whose pages `take_back` takes away.
///
/// `take_back` does for one page of the backing what the hypervisor does when it moves or reclaims
/// one: it invalidates through the worker
/// ([`invalidate_range`](Worker::invalidate_range), or
/// [`invalidate_begin`](Worker::invalidate_begin) and [`invalidate_end`](Worker::invalidate_end)),
/// and in between puts the page's contents elsewhere. A page that the backing cannot give again is
/// left out from then on; contents may not change. The vCPUs are outside the guest meanwhile.
pub fn check_together<H: Host, B: Backing + GuestMemory>(
    host: &H,
    backing: &B,
    mut take_back: impl FnMut(&mut Worker<&Mmu<Judged<'_, H>>>, u64),
    options: &TogetherOptions,
) -> Report {
    let mut report = Report::new("host, backing and library together");
    let format = match options.tables.format() {
        Ok(format) => format,
        Err(error) => {
            report.skip(&RULES, &format!("no such format: {error:?}"));
            return report;
        }
    };
    let config = Config { largest: options.largest, ..Config::new(format, options.vcpus) };
    let mut vm = match Mmu::new(Judged::new(host), &config) {
        Ok(vm) => vm,
        Err(error) => {
            report.skip(&RULES, &format!("no VM: {error}"));
            return report;
        }
    };
    let mut run = Run {
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
    };
    let [stuck, words, frames, library, tables, rest @ ..] = RULES;
    let mut played = false;
    report.rule(WHOLE, || {
        let verdict = play(&vm, &mut run, &mut take_back);
        played = true;
        verdict
    });
    if !played {
        report.skip(&RULES, "a hook panicked");
        return report;
    }
    let wrong = std::mem::take(&mut run.wrong);
    let (accesses, faults, denied) = (run.done.accesses, run.done.faults, run.done.denied);
    let seen = format!("{accesses} accesses, {faults} faults, {denied} denied");
    let is_stuck = wrong.stuck.any();
    report.rule(stuck, || wrong.stuck.verdict(seen));
    let (compared, known) = (run.done.compared, run.words.len());
    report.rule(words, || match compared {
        0 if !wrong.words.any() => Verdict::Skipped("no frame could be reached".into()),
        _ => wrong.words.verdict(format!("{compared} reads of {known} words")),
    });
    report.rule(frames, || wrong.frames.verdict("at every access"));
    report.rule(library, || match run.done.copies {
        0 if !wrong.library.any() => Verdict::Skipped("no frame could be reached".into()),
        copies => wrong.library.verdict(format!("{copies} copies")),
    });
    report.rule(tables, || wrong.tables.verdict("in every walk"));
    let [twice, invalidates, checker, returned, replaced, overtaken] = rest;
    at_the_end(&mut report, &mut vm, backing, options, [twice, checker]);
    // After the checker: what is wrong from here on is for the rules that look for it.
    let mut looked = Err("the guest could not go on".to_owned());
    report.rule(invalidates, || {
        if !is_stuck {
            looked = look_closely(&vm, &mut run, &mut take_back);
        }
        let breaches = std::mem::take(&mut run.wrong.kept);
        closely(&looked, breaches, run.done.mapped, "pages while they were mapped")
    });
    for (rule, breaches, count, seen) in [
        (replaced, run.wrong.replaced, run.done.mapped, "pages, and those beside them"),
        (overtaken, run.wrong.overtaken, run.done.open, "pages while a request was open"),
    ] {
        report.rule(rule, || closely(&looked, breaches, count, seen));
    }
    let Judged { in_use, foreign, .. } = vm.teardown();
    let left = in_use.into_inner().unwrap_or_default();
    report.rule(returned, || {
        let mut breaches = Breaches::default();
        for pfn in &left {
            breaches.add(|| format!("frame {pfn:#x} was not"));
        }
        for pfn in foreign.into_inner().unwrap_or_default() {
            breaches.add(|| format!("frame {pfn:#x} was, and had not been taken"));
        }
        breaches.verdict("all of them")
    });
    report.findings.sort_by_key(|finding| RULES.iter().position(|rule| rule.id == finding.rule.id));
    report
}

/// What a close look came to.
fn closely(looked: &Result<(), String>, breaches: Breaches, count: u64, seen: &str) -> Verdict {
    match looked {
        Err(why) => Verdict::Skipped(why.clone()),
        Ok(()) if count == 0 && !breaches.any() => Verdict::Skipped("no page was mapped".into()),
        Ok(()) => breaches.verdict(format!("{count} {seen}")),
    }
}

/// Everything in turns.
fn play<H: Host, B: Backing + GuestMemory>(
    vm: &Mmu<Judged<'_, H>>,
    run: &mut Run<'_, '_, B>,
    take_back: &mut impl FnMut(&mut Worker<&Mmu<Judged<'_, H>>>, u64),
) -> Verdict {
    let options = run.options;
    let mut worker = match vm.worker() {
        Ok(worker) => worker,
        Err(error) => return Verdict::Failed(format!("no worker: {error}")),
    };
    let made = worker.create_slot(&SlotSpec {
        id: SlotId(0),
        space: AddressSpace::Normal,
        range: options.range,
        source: Source::Backed { backing: options.backing, first: options.first },
        mutability: Mutability::ReadWrite,
        largest: options.largest,
    });
    if let Err(error) = made {
        return Verdict::Failed(format!("no slot: {error}"));
    }
    let mut vcpus: Vec<_> = (0..options.vcpus).filter_map(|id| vm.vcpu(VcpuId(id)).ok()).collect();
    if vcpus.is_empty() {
        return Verdict::Failed("no vCPU".into());
    }
    for _ in 0..options.steps {
        match run.rng.u8(..32) {
            0 | 1 => {
                let gpa = run.word();
                take_back(&mut worker, options.page(Gpa(gpa).gfn()));
            }
            2..6 => run.copy(&mut worker),
            _ => {
                let who = run.rng.usize(..vcpus.len());
                run.access(&mut vcpus[who], vm.host());
            }
        }
        // Every access would only say the same again.
        if run.wrong.stuck.any() {
            break;
        }
    }
    Verdict::Passed(format!("{} steps", options.steps))
}

/// Pages one by one.
fn look_closely<H: Host, B: Backing + GuestMemory>(
    vm: &Mmu<Judged<'_, H>>,
    run: &mut Run<'_, '_, B>,
    take_back: &mut impl FnMut(&mut Worker<&Mmu<Judged<'_, H>>>, u64),
) -> Result<(), String> {
    let mut worker = vm.worker().map_err(|error| format!("no worker: {error}"))?;
    let mut vcpu = vm.vcpu(VcpuId(0)).map_err(|error| format!("no vCPU: {error}"))?;
    // Every leaf is of one page from here on, so that what an invalidation has taken away shows which
    // pages it was about.
    let limited = worker.limit_slot(SlotId(0), Level::Size4K);
    limited.map_err(|error| format!("the slot cannot be limited: {error}"))?;
    for _ in 0..LOOKED_AT {
        let range = run.options.range;
        let gfn = Gfn(range.start().0 + run.rng.u64(..range.pages()));
        run.while_mapped(vm, &mut vcpu, &mut worker, gfn, take_back);
        run.while_asked(&mut vcpu, &mut worker, gfn, take_back);
    }
    Ok(())
}

fn at_the_end<H: Host, B: Backing + GuestMemory>(
    report: &mut Report,
    vm: &mut Mmu<Judged<'_, H>>,
    backing: &B,
    options: &TogetherOptions,
    rules: [Rule; 2],
) {
    let [twice, checker] = rules;
    let again = vm.host().twice.lock().map(|twice| twice.clone()).unwrap_or_default();
    report.rule(twice, || {
        let mut breaches = Breaches::default();
        for pfn in &again {
            breaches.add(|| format!("frame {pfn:#x} came twice"));
        }
        breaches.verdict("never")
    });
    report.rule(checker, || {
        let witness = |_: u64, page: u64| {
            let gfn = Gfn(options.range.start().0 + (page - options.first));
            match backing.find(&options.query(gfn, Access::READ)) {
                Resolution::Frame(frame) => Witness::Frame(frame.pfn, frame.access),
                Resolution::Hole | Resolution::Poisoned => Witness::Nothing,
                Resolution::Pending | Resolution::Retry => Witness::Unknown,
            }
        };
        match vm.check(witness) {
            Err(_) => Verdict::Skipped("no memory for it".into()),
            Ok(checked) => {
                let mut breaches = Breaches::default();
                for violation in &checked.violations {
                    breaches.add(|| violation.to_string());
                }
                breaches.verdict(format!("{} entries", checked.entries))
            }
        }
    });
}
