//! Threads that use memory while others take theirs away: every unmapping has to reach every
//! processor that runs a thread of this process.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    thread,
};

use nix::sys::mman::{MmapAdvise, ProtFlags};
use workload::pattern::{self, PAGE_WORDS};

use super::{Outcome, call};
use crate::mapping::{Mapping, READ_WRITE, Sharing};

const THREADS: u64 = 4;
const ROUNDS: u64 = 24;
/// 512 KiB each.
const PAGES: usize = 128;
const SEED: u64 = 0x74687264;

/// Each thread works on mappings of its own; all count in one word.
pub fn run() -> Outcome {
    let count = &AtomicU64::new(0);
    let sums = thread::scope(|scope| {
        let threads: Vec<_> =
            (0..THREADS).map(|number| scope.spawn(move || work(number, count))).collect();
        let joined = threads.into_iter().map(|thread| thread.join());
        joined
            .map(|sum| sum.unwrap_or_else(|_| Err("a thread panicked".into())))
            .collect::<Vec<_>>()
    });
    let expected = THREADS * ROUNDS * PAGES as u64;
    if count.load(Relaxed) != expected {
        return Err(format!("{} increments instead of {expected}", count.load(Relaxed)));
    }
    sums.into_iter().try_fold(0u64, |all, sum| Ok(all.wrapping_add(sum?)))
}

fn work(number: u64, count: &AtomicU64) -> Outcome {
    let mut sum = 0u64;
    let mut kept = Mapping::new(PAGES, Sharing::Private).map_err(call("mmap"))?;
    pattern::fill(kept.words_mut(), SEED + number, 0);
    for round in 0..ROUNDS {
        let seed = SEED + THREADS + number * ROUNDS + round;
        let mut fresh = Mapping::new(PAGES, Sharing::Private).map_err(call("mmap"))?;
        for (page, words) in fresh.words_mut().chunks_mut(PAGE_WORDS).enumerate() {
            pattern::fill(words, seed, (page * PAGE_WORDS) as u64);
            count.fetch_add(1, Relaxed);
        }
        fresh.protect(0, PAGES, ProtFlags::PROT_READ).map_err(call("mprotect"))?;
        sum = sum.wrapping_add(
            pattern::check(fresh.words(), seed, 0).map_err(|m| format!("protected: {m}"))?,
        );
        fresh.protect(0, PAGES, READ_WRITE).map_err(call("mprotect"))?;
        fresh.advise(0, PAGES, MmapAdvise::MADV_DONTNEED).map_err(call("madvise"))?;
        if fresh.words().iter().any(|word| *word != 0) {
            return Err("pages given back are not zero".into());
        }
        drop(fresh);
        sum = sum.wrapping_add(
            pattern::check(kept.words(), SEED + number, 0).map_err(|m| format!("kept: {m}"))?,
        );
    }
    Ok(sum)
}
