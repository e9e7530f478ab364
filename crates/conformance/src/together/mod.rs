//! A whole VM with the author's host: faults, entries, invalidations by the author's own code, and
//! a processor that walks the tables the library builds in the author's pages and uses stale
//! translations wherever it may.
//!
//! The guest's memory is compared word by word with what was last written to it. One thread does
//! everything in turns, so that a failure repeats from its seed; what happens at the same time is
//! for [`check_cpus`](crate::check_cpus) and for the library's own tests.

pub mod guest;
pub mod judged;
pub mod options;
pub mod taking_back;

use vmmu::addr::{Gfn, Gpa};
use vmmu::check::Witness;
use vmmu::entry::Access;
use vmmu::host::{Backing, GuestMemory, Host, Resolution, VcpuId};
use vmmu::slot::{AddressSpace, Mutability, SlotId, SlotSpec, Source};
use vmmu::{Config, Mmu, Worker};

use crate::report::{Breaches, Report, Rule, Verdict};
use crate::together::guest::Guest;
use crate::together::judged::Judged;
use crate::together::options::TogetherOptions;
use crate::together::taking_back::TakingBack;

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
    let mut guest = Guest::new(options, backing);
    let [stuck, words, frames, library, tables, rest @ ..] = RULES;
    let mut played = false;
    report.rule(WHOLE, || {
        let verdict = play(&vm, &mut guest, &mut take_back);
        played = true;
        verdict
    });
    if !played {
        report.skip(&RULES, "a hook panicked");
        return report;
    }
    let wrong = std::mem::take(&mut guest.wrong);
    let (accesses, faults, denied) = (guest.done.accesses, guest.done.faults, guest.done.denied);
    let seen = format!("{accesses} accesses, {faults} faults, {denied} denied");
    let is_stuck = wrong.stuck.any();
    report.rule(stuck, || wrong.stuck.verdict(seen));
    let (compared, known) = (guest.done.compared, guest.words.len());
    report.rule(words, || match compared {
        0 if !wrong.words.any() => Verdict::Skipped("no frame could be reached".into()),
        _ => wrong.words.verdict(format!("{compared} reads of {known} words")),
    });
    report.rule(frames, || wrong.frames.verdict("at every access"));
    report.rule(library, || match guest.done.copies {
        0 if !wrong.library.any() => Verdict::Skipped("no frame could be reached".into()),
        copies => wrong.library.verdict(format!("{copies} copies")),
    });
    report.rule(tables, || wrong.tables.verdict("in every walk"));
    let [twice, invalidates, checker, returned, replaced, overtaken] = rest;
    at_the_end(&mut report, &mut vm, backing, options, [twice, checker]);
    // After the checker: what is wrong from here on is for the rules that look for it.
    let mut looked = Err("the guest could not go on".to_owned());
    let mut closely = TakingBack::new(options, backing, guest.rng);
    report.rule(invalidates, || {
        if !is_stuck {
            looked = closely.look(&vm, &mut take_back);
        }
        let breaches = std::mem::take(&mut closely.kept);
        taken_back(&looked, breaches, closely.mapped, "pages while they were mapped")
    });
    for (rule, breaches, count, seen) in [
        (replaced, closely.replaced, closely.mapped, "pages, and those beside them"),
        (overtaken, closely.overtaken, closely.asked, "pages while a request was open"),
    ] {
        report.rule(rule, || taken_back(&looked, breaches, count, seen));
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

/// What taking pages back one by one came to.
fn taken_back(looked: &Result<(), String>, breaches: Breaches, count: u64, seen: &str) -> Verdict {
    match looked {
        Err(why) => Verdict::Skipped(why.clone()),
        Ok(()) if count == 0 && !breaches.any() => Verdict::Skipped("no page was mapped".into()),
        Ok(()) => breaches.verdict(format!("{count} {seen}")),
    }
}

/// Everything in turns.
fn play<H: Host, B: Backing + GuestMemory>(
    vm: &Mmu<Judged<'_, H>>,
    guest: &mut Guest<'_, '_, B>,
    take_back: &mut impl FnMut(&mut Worker<&Mmu<Judged<'_, H>>>, u64),
) -> Verdict {
    let options = guest.options;
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
        match guest.rng.u8(..32) {
            0 | 1 => {
                let gpa = guest.word();
                take_back(&mut worker, options.page(Gpa(gpa).gfn()));
            }
            2..6 => guest.copy(&mut worker),
            _ => {
                let who = guest.rng.usize(..vcpus.len());
                guest.access(&mut vcpus[who], vm.host());
            }
        }
        // Every access would only say the same again.
        if guest.wrong.stuck.any() {
            break;
        }
    }
    Verdict::Passed(format!("{} steps", options.steps))
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
