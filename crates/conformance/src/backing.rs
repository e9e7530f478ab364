//! Whether a host's [`Backing`] keeps its contract while it is left alone: no page is invalidated
//! during the check, so no answer may come to name another frame.

use std::collections::BTreeMap;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Mutex;
use std::thread;

use fastrand::Rng;
use vmmu::addr::{Gfn, Level, Pfn};
use vmmu::entry::{Access, Format};
use vmmu::host::{Backing, FrameQuery, GuestMemory, HostFrame, Resolution};
use vmmu::slot::SlotId;

use crate::report::{Breaches, Report, Rule, Verdict};

const RULES: [Rule; 12] = [
    Rule { id: "B1", sentence: "retry is followed by another answer" },
    Rule { id: "B2", sentence: "an answer names the same frame while nothing is invalidated" },
    Rule { id: "B3", sentence: "asking to write names the frame that asking to read did" },
    Rule { id: "B4", sentence: "what is allowed contains what was asked for" },
    Rule { id: "B5", sentence: "what may be written may be read" },
    Rule { id: "B6", sentence: "a block has the size of a leaf" },
    Rule { id: "B7", sentence: "a page lies at the same place of its block as its frame" },
    Rule { id: "B8", sentence: "a block backs every page of it" },
    Rule { id: "B9", sentence: "frame and memory type are possible in the format" },
    Rule { id: "B10", sentence: "bytes are aligned to 4096" },
    Rule { id: "B11", sentence: "bytes of a frame are the same memory every time" },
    Rule { id: "B12", sentence: "bytes of different frames are different memory" },
];

/// What to ask a backing for, and how often.
#[derive(Clone, Debug)]
pub struct BackingOptions {
    /// The slot to name in questions.
    pub slot: SlotId,
    /// The backing to name in questions.
    pub backing: u64,
    /// Pages of the backing to ask for, in 4 KiB pages.
    pub pages: Range<u64>,
    /// The guest frame of the first of them.
    pub gfn: Gfn,
    /// Accesses to ask for.
    pub accesses: Vec<Access>,
    /// The largest leaf to ask for.
    pub largest: Level,
    /// The format of the tables, for what is possible in it.
    pub format: Option<Format>,
    /// How many pages to pick if there are more.
    pub samples: usize,
    /// How often to ask again.
    pub rounds: usize,
    /// Threads that ask at once.
    pub threads: usize,
    /// How often a page may answer that it is to be asked again.
    pub retries: usize,
    /// Seed of all choices.
    pub seed: u64,
}

impl BackingOptions {
    /// For `pages` of `backing`, whose guest frames have the same numbers.
    pub fn new(backing: u64, pages: Range<u64>) -> Self {
        BackingOptions {
            slot: SlotId(0),
            backing,
            gfn: Gfn(pages.start),
            pages,
            accesses: vec![Access::READ, Access::WRITE, Access::EXEC],
            largest: Level::Size1G,
            format: None,
            samples: 256,
            rounds: 8,
            threads: 4,
            retries: 1000,
            seed: 1,
        }
    }

    fn query(&self, page: u64, access: Access) -> FrameQuery {
        let gfn = Gfn(self.gfn.0 + (page - self.pages.start));
        let BackingOptions { slot, backing, largest, .. } = *self;
        FrameQuery::of_nobody(slot, (backing, page), gfn, access, largest)
    }
}

/// Asks until there is an answer.
fn find<B: Backing>(
    backing: &B,
    options: &BackingOptions,
    page: u64,
    access: Access,
) -> Option<Resolution> {
    let query = options.query(page, access);
    (0..=options.retries).map(|_| backing.find(&query)).find(|found| *found != Resolution::Retry)
}

fn frame<B: Backing>(
    backing: &B,
    options: &BackingOptions,
    page: u64,
    access: Access,
) -> Option<HostFrame> {
    match find(backing, options, page, access) {
        Some(Resolution::Frame(frame)) => Some(frame),
        _ => None,
    }
}

/// Checks a backing; see [`Backing`].
///
/// The bytes of its frames are read, overwritten and restored. Nothing may be invalidated or moved
/// meanwhile, and nobody else may use them.
pub fn check_backing<B: Backing + GuestMemory + Sync>(
    backing: &B,
    options: &BackingOptions,
) -> Report {
    let mut report = Report::new("backing");
    let [retry, same, write, contains, read, size, place, whole, possible, bytes @ ..] = RULES;
    let mut rng = Rng::with_seed(options.seed);
    let count = options.pages.end.saturating_sub(options.pages.start);
    let pages: Vec<u64> = if count <= options.samples as u64 {
        options.pages.clone().collect()
    } else {
        (0..options.samples).map(|_| rng.u64(options.pages.clone())).collect()
    };

    // Page and access, with what was answered first.
    let mut answers: Vec<(u64, Access, HostFrame)> = Vec::new();
    report.rule(retry, || {
        let mut breaches = Breaches::default();
        let mut without = 0;
        for &page in &pages {
            for &access in &options.accesses {
                match find(backing, options, page, access) {
                    Some(Resolution::Frame(frame)) => answers.push((page, access, frame)),
                    Some(_) => without += 1,
                    None => breaches.add(|| {
                        format!("page {page:#x}: {} times nothing but retry", options.retries)
                    }),
                }
            }
        }
        let seen =
            format!("{} questions, {without} of them without a frame", { answers.len() + without });
        breaches.verdict(seen)
    });
    if answers.is_empty() {
        report.skip(&RULES[1..], "no frames");
        return report;
    }
    let each = |check: &dyn Fn(&mut Breaches, u64, Access, &HostFrame)| {
        let mut breaches = Breaches::default();
        for (page, access, frame) in &answers {
            check(&mut breaches, *page, *access, frame);
        }
        breaches.verdict(format!("{} answers", answers.len()))
    };

    report.rule(same, || stays_the_same(backing, options, &answers));
    report.rule(write, || {
        let mut first: BTreeMap<u64, (Access, Pfn)> = BTreeMap::new();
        let mut breaches = Breaches::default();
        for &(page, access, found) in &answers {
            let &mut (before, pfn) = first.entry(page).or_insert((access, found.pfn));
            breaches.add_if(pfn != found.pfn, || {
                let now = found.pfn;
                format!("page {page:#x}: {pfn} for {before:?}, {now} for {access:?}")
            });
        }
        breaches.verdict(format!("{} pages", first.len()))
    });
    report.rule(contains, || {
        each(&|breaches, page, access, frame| {
            breaches.add_if(!frame.access.contains(access), || {
                format!("page {page:#x}: {:?} for {access:?}", frame.access)
            });
        })
    });
    report.rule(read, || {
        each(&|breaches, page, _, frame| {
            let odd = frame.access.contains(Access::WRITE) && !frame.access.contains(Access::READ);
            breaches.add_if(odd, || format!("page {page:#x}: {:?}", frame.access));
        })
    });
    report.rule(size, || {
        each(&|breaches, page, _, frame| {
            breaches.add_if(!frame.level.can_be_leaf(), || {
                format!("page {page:#x}: a block of {}", frame.level)
            });
        })
    });
    report.rule(place, || {
        each(&|breaches, page, _, frame| {
            let shifted = (page ^ frame.pfn.0) & (frame.level.pages() - 1) != 0;
            breaches.add_if(shifted, || {
                format!("page {page:#x} at frame {} in a block of {}", frame.pfn, frame.level)
            });
        })
    });
    report.rule(whole, || backs_every_page(backing, options, &answers, &mut rng));
    report.rule(possible, || match &options.format {
        None => Verdict::Skipped("no format given".into()),
        Some(format) => each(&|breaches, page, _, frame| {
            let wide = frame.pfn.0 >> (format.phys_bits() - 12) != 0;
            breaches.add_if(wide || !format.has_memory(frame.memory), || {
                format!("page {page:#x}: frame {}, {:?}", frame.pfn, frame.memory)
            });
        }),
    });
    check_bytes(&mut report, backing, &answers, bytes);
    report
}

fn stays_the_same<B: Backing + GuestMemory + Sync>(
    backing: &B,
    options: &BackingOptions,
    answers: &[(u64, Access, HostFrame)],
) -> Verdict {
    let breaches = Mutex::new(Breaches::default());
    thread::scope(|scope| {
        for thread in 0..options.threads as u64 {
            let breaches = &breaches;
            scope.spawn(move || {
                let mut rng = Rng::with_seed(options.seed ^ thread << 32);
                for _ in 0..options.rounds * answers.len() {
                    let (page, access, first) = answers[rng.usize(..answers.len())];
                    let now = match find(backing, options, page, access) {
                        Some(Resolution::Frame(frame)) if frame.pfn == first.pfn => continue,
                        Some(Resolution::Pending) => continue,
                        now => now,
                    };
                    if let Ok(mut breaches) = breaches.lock() {
                        breaches.add(|| format!("page {page:#x}: {} then {now:?}", first.pfn));
                    }
                }
            });
        }
    });
    let asked = options.threads * options.rounds * answers.len();
    let seen = format!("{asked} questions by {} threads", options.threads);
    breaches.into_inner().unwrap_or_default().verdict(seen)
}

fn backs_every_page<B: Backing>(
    backing: &B,
    options: &BackingOptions,
    answers: &[(u64, Access, HostFrame)],
    rng: &mut Rng,
) -> Verdict {
    let mut breaches = Breaches::default();
    let mut blocks = 0;
    for &(page, access, found) in answers {
        let size = found.level.pages();
        if size == 1 || !found.level.can_be_leaf() {
            continue;
        }
        blocks += 1;
        let block = page & !(size - 1);
        let mut others = vec![block, block + size - 1, page ^ 1];
        others.extend((0..4).map(|_| block + rng.u64(..size)));
        others.retain(|other| options.pages.contains(other));
        for other in others {
            let expected = Pfn(found.pfn.0.wrapping_add(other).wrapping_sub(page));
            let there = frame(backing, options, other, access);
            breaches.add_if(there.is_none_or(|there| there.pfn != expected), || {
                let there = there.map(|there| there.pfn);
                let level = found.level;
                format!("page {other:#x} in a block of {level}: {there:?}, not {expected}")
            });
        }
    }
    breaches.verdict(format!("{blocks} blocks"))
}

/// A page of bytes as the backing gives it.
struct Bytes(NonNull<u64>);

// SAFETY: nobody else uses the frames during the check, says its caller; its own threads use them
// one after another.
unsafe impl Send for Bytes {}

impl Bytes {
    const WORDS: usize = 512;

    fn read(&self, index: usize) -> u64 {
        // SAFETY: the backing gives 4096 bytes, aligned as was checked, that stay until an
        // invalidation; there is none.
        unsafe { self.0.add(index % Self::WORDS).read_volatile() }
    }

    fn write(&self, index: usize, word: u64) {
        // SAFETY: as in `read`.
        unsafe { self.0.add(index % Self::WORDS).write_volatile(word) }
    }
}

fn check_bytes<B: Backing + GuestMemory + Sync>(
    report: &mut Report,
    backing: &B,
    answers: &[(u64, Access, HostFrame)],
    rules: [Rule; 3],
) {
    let [aligned, same, different] = rules;
    let mut frames: Vec<Pfn> = answers.iter().map(|(_, _, found)| found.pfn).collect();
    frames.sort_unstable();
    frames.dedup();
    let bytes = |pfn: Pfn| backing.bytes(pfn).map(|bytes| Bytes(bytes.cast()));
    let mut usable = Vec::new();
    report.rule(aligned, || {
        let mut breaches = Breaches::default();
        for &pfn in &frames {
            let Some(at) = backing.bytes(pfn) else { continue };
            match at.addr().get().is_multiple_of(4096) {
                true => usable.push(pfn),
                false => breaches.add(|| format!("frame {pfn} at {at:?}")),
            }
        }
        breaches.verdict(format!("{} of {} frames can be reached", usable.len(), frames.len()))
    });
    if usable.is_empty() {
        report.skip(&[same, different], "no frame can be reached");
        return;
    }
    let value = |pfn: Pfn, salt: u64| (pfn.0 ^ salt << 50).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let places = [0, 1, 255, 511];
    let with = |each: &mut dyn FnMut(Pfn, Bytes)| {
        for &pfn in &usable {
            if let Some(bytes) = bytes(pfn) {
                each(pfn, bytes);
            }
        }
    };
    report.rule(same, || {
        let mut breaches = Breaches::default();
        with(&mut |pfn, first| {
            for index in places {
                let old = first.read(index);
                first.write(index, value(pfn, 1));
                // Asked again, here and by another thread.
                let again = bytes(pfn).map(|bytes| bytes.read(index));
                let elsewhere = thread::scope(|scope| {
                    let read = scope.spawn(|| bytes(pfn).map(|bytes| bytes.read(index)));
                    read.join().ok().flatten()
                });
                first.write(index, old);
                let expected = Some(value(pfn, 1));
                breaches.add_if(again != expected || elsewhere != expected, || {
                    format!("frame {pfn}, word {index}: what was written is not there")
                });
            }
        });
        breaches.verdict(format!("{} frames", usable.len()))
    });
    report.rule(different, || {
        let mut breaches = Breaches::default();
        for index in places {
            let mut old = Vec::new();
            with(&mut |pfn, bytes| {
                old.push((pfn, bytes.read(index)));
                bytes.write(index, value(pfn, 2));
            });
            with(&mut |pfn, bytes| {
                breaches.add_if(bytes.read(index) != value(pfn, 2), || {
                    format!("frame {pfn}, word {index} is another frame's too")
                });
            });
            // The other way round, so that what was shared gets back what it had first.
            for (pfn, word) in old.into_iter().rev() {
                if let Some(bytes) = bytes(pfn) {
                    bytes.write(index, word);
                }
            }
        }
        breaches.verdict(format!("{} frames", usable.len()))
    });
}
