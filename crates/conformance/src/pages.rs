//! Whether a host's [`TablePages`] keep their promises.
//!
//! Pages are written to where the host says they are. A host that names memory that is not there
//! crashes the check: nothing in a process can look at an address without touching it.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::with_exposed_provenance_mut;
use std::sync::{Barrier, Mutex};
use std::thread;

use fastrand::Rng;
use vmmu::host::{Contents, Placement, TablePage, TablePages};

use crate::report::{Breaches, Report, Rule, Verdict};

const GIVES: Rule = Rule { id: "P1", sentence: "take gives as many pages as are asked for" };
const RULES: [Rule; 11] = [
    Rule { id: "P2", sentence: "frame 0 is never given" },
    Rule { id: "P3", sentence: "a frame's number fits the physical width" },
    Rule { id: "P4", sentence: "the words of a page are aligned" },
    Rule { id: "P5", sentence: "no page is given while it is in use" },
    Rule { id: "P6", sentence: "a page that is said to be zeroed is" },
    Rule { id: "P7", sentence: "what is written to a page stays while others come and go" },
    Rule { id: "P8", sentence: "the window never changes" },
    Rule { id: "P9", sentence: "a page ends at or below what was asked for" },
    Rule { id: "P10", sentence: "pages given back can be had again" },
    Rule { id: "P11", sentence: "several processors may take and release at once" },
    Rule { id: "P12", sentence: "a host that has run out says so, and recovers" },
];

/// How to check table pages.
#[derive(Clone, Copy, Debug)]
pub struct PagesOptions {
    /// Pages to hold at a time; the host must have twice as many.
    pub pages: usize,
    /// How often that many are taken and released.
    pub rounds: usize,
    /// Threads that take and release at once.
    pub threads: usize,
    /// Physical address width in bits.
    pub phys_bits: u32,
    /// Limits to ask for, in bytes of host-physical address. A host may have no page below one and
    /// then gives none.
    pub below: &'static [u64],
    /// Pages after which the host is to have run out. `None`: it is not asked to.
    pub exhausted_after: Option<usize>,
    /// Chooses the order of things.
    pub seed: u64,
}

impl Default for PagesOptions {
    fn default() -> Self {
        PagesOptions {
            pages: 64,
            rounds: 32,
            threads: 4,
            phys_bits: 52,
            below: &[1 << 20, 1 << 32, 1 << 46],
            exhausted_after: None,
            seed: 1,
        }
    }
}

/// Words of a table page.
const WORDS: usize = 512;

/// The words of a page that is held.
///
/// # Safety
///
/// `page` was given by a host with this window, is aligned to words, and is in use by the caller
/// alone; the host keeps the promise of [`TablePages`].
unsafe fn words<'a>(window: u64, page: TablePage) -> &'a mut [u64] {
    let address = (page.pfn.0 << 12).wrapping_add(window);
    // SAFETY: the host promises 4096 bytes of exposed memory there until the page is released; the
    // caller, that they are aligned and nobody else's.
    unsafe { std::slice::from_raw_parts_mut(with_exposed_provenance_mut(address as usize), WORDS) }
}

fn is_aligned(window: u64, page: TablePage) -> bool {
    (page.pfn.0 << 12).wrapping_add(window).is_multiple_of(8)
}

/// Pages held, given back at the end. One that came twice goes back once, and one whose words
/// cannot be used is never touched.
struct Held<'h, H: TablePages> {
    host: &'h H,
    window: u64,
    pages: BTreeMap<u64, TablePage>,
    twice: u64,
}

impl<'h, H: TablePages> Held<'h, H> {
    fn new(host: &'h H) -> Self {
        Held { host, window: host.window(), pages: BTreeMap::new(), twice: 0 }
    }

    /// Takes so many, or as many as there are.
    fn take(host: &'h H, count: usize) -> Self {
        let mut held = Held::new(host);
        for _ in 0..count {
            let Some(page) = host.take(Placement::default()) else { break };
            held.add(page);
        }
        held
    }

    fn add(&mut self, page: TablePage) {
        self.twice += u64::from(self.pages.insert(page.pfn.0, page).is_some());
    }

    fn fill(&self, salt: u64) {
        for page in self.usable() {
            // SAFETY: held, once; aligned.
            let words = unsafe { words(self.window, page) };
            for (index, word) in words.iter_mut().enumerate() {
                *word = mark(page, index, salt);
            }
        }
    }

    /// Pages whose words are not what [`fill`](Self::fill) wrote.
    fn changed(&self, salt: u64) -> Vec<(u64, usize)> {
        let mut changed = Vec::new();
        for page in self.usable() {
            // SAFETY: held, once; aligned.
            let words = unsafe { words(self.window, page) };
            let differs = (0..WORDS).find(|&index| words[index] != mark(page, index, salt));
            changed.extend(differs.map(|index| (page.pfn.0, index)));
        }
        changed
    }

    fn usable(&self) -> impl Iterator<Item = TablePage> {
        self.pages
            .values()
            .copied()
            .filter(|page| page.pfn.0 != 0 && is_aligned(self.window, *page))
    }
}

impl<H: TablePages> Drop for Held<'_, H> {
    fn drop(&mut self) {
        for page in self.pages.values() {
            self.host.release(page.pfn);
        }
    }
}

fn mark(page: TablePage, index: usize, salt: u64) -> u64 {
    (page.pfn.0 ^ salt << 40).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ index as u64
}

/// Checks table pages; see [`TablePages`].
pub fn check_table_pages<H: TablePages>(host: &H, options: &PagesOptions) -> Report {
    let mut report = Report::new("table pages");
    let [zero, width, aligned, twice, zeroed, stays, window, below, again, threads, exhausted] =
        RULES;
    let count = options.pages;
    let mut first = None;
    report.rule(GIVES, || {
        let held = Held::take(host, count);
        let got = held.pages.len() + held.twice as usize;
        first = Some(held);
        if got == count {
            Verdict::Passed(format!("{count} pages"))
        } else {
            Verdict::Failed(format!("{got} of {count} pages"))
        }
    });
    let Some(held) = first.filter(|held| !held.pages.is_empty()) else {
        report.skip(&RULES, "no pages");
        return report;
    };
    let pages: Vec<_> = held.pages.values().copied().collect();

    report.rule(zero, || {
        let mut breaches = Breaches::default();
        breaches.add_if(held.pages.contains_key(&0), || "frame 0 was given".into());
        breaches.verdict(format!("lowest frame {:#x}", pages[0].pfn.0))
    });
    report.rule(width, || {
        let mut breaches = Breaches::default();
        for page in &pages {
            let fits = page.pfn.0 >> (options.phys_bits - 12) == 0;
            breaches.add_if(!fits, || format!("frame {:#x}", page.pfn.0));
        }
        breaches.verdict(format!("highest frame {:#x}", pages[pages.len() - 1].pfn.0))
    });
    report.rule(aligned, || {
        let mut breaches = Breaches::default();
        for &page in &pages {
            breaches.add_if(!is_aligned(held.window, page), || {
                format!("frame {:#x} with window {:#x}", page.pfn.0, held.window)
            });
        }
        breaches.verdict(format!("window {:#x}", held.window))
    });
    report.rule(twice, || {
        let mut breaches = Breaches::default();
        for _ in 0..held.twice {
            breaches.add(|| "a frame came twice".into());
        }
        breaches.verdict(format!("{} different frames", held.pages.len()))
    });
    report.rule(zeroed, || zeroed_are_zero(host, options));
    report.rule(stays, || {
        let mut breaches = Breaches::default();
        held.fill(1);
        for round in 0..options.rounds as u64 {
            let others = Held::take(host, count);
            others.fill(2 + round);
            for (pfn, index) in others.changed(2 + round) {
                breaches.add(|| format!("frame {pfn:#x}, word {index}: what was written is gone"));
            }
        }
        for (pfn, index) in held.changed(1) {
            breaches.add(|| format!("frame {pfn:#x}, word {index} changed while it was held"));
        }
        breaches.verdict(format!("{} pages through {} rounds", pages.len(), options.rounds))
    });
    report.rule(window, || {
        let mut breaches = Breaches::default();
        for _ in 0..options.rounds {
            let _others = Held::take(host, 2);
            let now = host.window();
            breaches.add_if(now != held.window, || format!("{:#x}, then {now:#x}", held.window));
        }
        breaches.verdict(format!("{:#x} every time", held.window))
    });
    report.rule(below, || stays_below(host, options));
    drop(held);
    report.rule(again, || can_be_had_again(host, options));
    report.rule(threads, || from_several_threads(host, options));
    report.rule(exhausted, || runs_out(host, options));
    report
}

fn zeroed_are_zero<H: TablePages>(host: &H, options: &PagesOptions) -> Verdict {
    let mut breaches = Breaches::default();
    let (mut said, mut dirtied) = (0, 0);
    // What is given back dirty must not come back as zeroed.
    for round in 0..options.rounds as u64 {
        let held = Held::take(host, options.pages);
        for page in held.usable().filter(|page| page.contents == Contents::Zeroed) {
            said += 1;
            // SAFETY: held, once; aligned.
            let words = unsafe { words(held.window, page) };
            let dirt = words.iter().position(|word| *word != 0);
            if let Some(index) = dirt {
                breaches.add(|| {
                    format!("frame {:#x}, word {index}: {:#x}", page.pfn.0, { words[index] })
                });
            }
        }
        held.fill(round);
        dirtied += held.pages.len();
    }
    breaches.verdict(format!("{said} said so, {dirtied} dirtied in between"))
}

fn stays_below<H: TablePages>(host: &H, options: &PagesOptions) -> Verdict {
    let mut breaches = Breaches::default();
    let mut given = Vec::new();
    for &limit in options.below {
        let mut held = Held::new(host);
        for _ in 0..options.pages.min(8) {
            let mut placement = Placement::default();
            placement.below = Some(limit);
            let Some(page) = host.take(placement) else { break };
            breaches.add_if((page.pfn.0 + 1) << 12 > limit, || {
                format!("frame {:#x} for a limit of {limit:#x}", page.pfn.0)
            });
            held.add(page);
        }
        given.push(format!("{} below {limit:#x}", held.pages.len()));
    }
    breaches.verdict(given.join(", "))
}

fn can_be_had_again<H: TablePages>(host: &H, options: &PagesOptions) -> Verdict {
    let mut rng = Rng::with_seed(options.seed);
    for round in 0..options.rounds {
        let mut held = Held::take(host, options.pages);
        let got = held.pages.len() + held.twice as usize;
        if got < options.pages {
            return Verdict::Failed(format!("round {round}: {got} of {}", options.pages));
        }
        // Back in any order.
        let mut order: Vec<_> = held.pages.keys().copied().collect();
        rng.shuffle(&mut order);
        for pfn in order {
            if let Some(page) = held.pages.remove(&pfn) {
                host.release(page.pfn);
            }
        }
    }
    Verdict::Passed(format!("{} pages, {} times", options.pages, options.rounds))
}

fn from_several_threads<H: TablePages>(host: &H, options: &PagesOptions) -> Verdict {
    let in_use = Mutex::new(BTreeSet::new());
    let breaches = Mutex::new(Breaches::default());
    let add = |what: String| {
        if let Ok(mut breaches) = breaches.lock() {
            breaches.add(|| what);
        }
    };
    let share = (options.pages / options.threads).max(1);
    // All hold their pages at the same time.
    let barrier = Barrier::new(options.threads);
    thread::scope(|scope| {
        for thread in 0..options.threads as u64 {
            let (in_use, add, barrier) = (&in_use, &add, &barrier);
            scope.spawn(move || {
                for round in 0..options.rounds as u64 {
                    let mut held = Held::new(host);
                    let salt = round << 8 | thread;
                    // A panic must not keep the others waiting.
                    let taken = catch_unwind(AssertUnwindSafe(|| {
                        for _ in 0..share {
                            let Some(page) = host.take(Placement::default()) else { break };
                            let pfn = page.pfn.0;
                            if in_use.lock().is_ok_and(|mut all| all.insert(pfn)) {
                                held.add(page);
                            } else {
                                add(format!("frame {pfn:#x} was in use by another thread"));
                            }
                        }
                        held.fill(salt);
                    }));
                    if taken.is_err() {
                        add("take panicked".into());
                    }
                    barrier.wait();
                    for (pfn, index) in held.changed(salt) {
                        add(format!("frame {pfn:#x}, word {index} changed by another thread"));
                    }
                    barrier.wait();
                    if let Ok(mut all) = in_use.lock() {
                        // Before they go back: from then on another thread may get them.
                        all.retain(|pfn| !held.pages.contains_key(pfn));
                    }
                    let released = catch_unwind(AssertUnwindSafe(|| drop(held)));
                    if released.is_err() {
                        add("release panicked".into());
                    }
                }
            });
        }
    });
    let seen = format!("{} threads, {} rounds each", options.threads, options.rounds);
    breaches.into_inner().unwrap_or_default().verdict(seen)
}

fn runs_out<H: TablePages>(host: &H, options: &PagesOptions) -> Verdict {
    let Some(limit) = options.exhausted_after else {
        return Verdict::Skipped("not asked to".into());
    };
    let held = Held::take(host, limit + 1);
    let got = held.pages.len();
    if got > limit {
        return Verdict::Failed(format!("page {got} of at most {limit} was given"));
    }
    drop(held);
    match Held::take(host, options.pages).pages.len() {
        again if again == options.pages => {
            Verdict::Passed(format!("None after {got} pages, then {again} again"))
        }
        again => Verdict::Failed(format!("{again} of {} after running out", options.pages)),
    }
}
