//! Pages given back and asked for by advice.

use nix::sys::mman::MmapAdvise;
use workload::pattern::{self, PAGE_WORDS};

use super::{Outcome, call};
use crate::mapping::{Mapping, Sharing};

const ROUNDS: u64 = 4;
/// 12 MiB: several huge pages wherever it starts.
const PAGES: usize = 3072;
/// Pages between two that are given back.
const STRIDE: usize = 5;
const SEED: u64 = 0x61647669;

/// Each round: huge pages asked for and refused in turn, single pages and whole stretches given
/// back (they must read zero, their neighbours as before), and pages the kernel may take.
pub fn run() -> Outcome {
    let mut sum = 0u64;
    for round in 0..ROUNDS {
        let seed = SEED + round;
        let mut memory = Mapping::new(PAGES, Sharing::Private).map_err(call("mmap"))?;
        let huge = match round % 2 {
            0 => MmapAdvise::MADV_HUGEPAGE,
            _ => MmapAdvise::MADV_NOHUGEPAGE,
        };
        // A kernel without huge pages does not know the advice.
        memory.advise(0, PAGES, huge).ok();
        pattern::fill(memory.words_mut(), seed, 0);
        for page in (0..PAGES).step_by(STRIDE) {
            memory.advise(page, 1, MmapAdvise::MADV_DONTNEED).map_err(call("madvise"))?;
        }
        sum = sum.wrapping_add(each(&memory, seed, |page| page % STRIDE == 0)?);
        pattern::fill(memory.words_mut(), seed, 0);
        memory.advise(PAGES / 4, PAGES / 2, MmapAdvise::MADV_DONTNEED).map_err(call("madvise"))?;
        let middle = PAGES / 4..PAGES / 4 + PAGES / 2;
        sum = sum.wrapping_add(each(&memory, seed, |page| middle.contains(&page))?);
        taken(&mut memory, seed)?;
    }
    Ok(sum)
}

/// Checks every page: zero if `gone`, else the pattern.
fn each(memory: &Mapping, seed: u64, gone: impl Fn(usize) -> bool) -> Outcome {
    let mut sum = 0u64;
    for (number, page) in memory.words().chunks(PAGE_WORDS).enumerate() {
        if !gone(number) {
            let read = pattern::check(page, seed, (number * PAGE_WORDS) as u64);
            sum = sum.wrapping_add(read.map_err(|m| format!("beside pages given back: {m}"))?);
        } else if page.iter().any(|word| *word != 0) {
            return Err(format!("page {number} was given back and is not zero"));
        }
    }
    Ok(sum)
}

/// `MADV_FREE`: each page is either as it was or zero, whole; one written after it stays.
fn taken(memory: &mut Mapping, seed: u64) -> Result<(), String> {
    pattern::fill(memory.words_mut(), seed, 0);
    memory.advise(0, PAGES, MmapAdvise::MADV_FREE).map_err(call("madvise"))?;
    for page in memory.words_mut().chunks_mut(PAGE_WORDS).step_by(STRIDE) {
        page[0] = seed;
    }
    for (number, page) in memory.words().chunks(PAGE_WORDS).enumerate() {
        let rest = match number % STRIDE {
            0 if page[0] != seed => return Err(format!("a write to page {number} was lost")),
            0 => &page[1..],
            _ => page,
        };
        let first = (number * PAGE_WORDS + PAGE_WORDS - rest.len()) as u64;
        if rest.iter().any(|word| *word != 0) {
            pattern::check(rest, seed, first).map_err(|m| format!("after MADV_FREE: {m}"))?;
        }
    }
    Ok(())
}
