//! Mappings made, protected, moved, cut and given back, over and over.

use nix::sys::mman::ProtFlags;
use workload::pattern::{self, PAGE_WORDS};

use super::{Outcome, call};
use crate::mapping::{Mapping, READ_WRITE, Sharing};

const ROUNDS: u64 = 48;
/// Mappings alive at one time.
const ALIVE: usize = 6;
/// 1.5 MiB, so that neither start nor end falls on the boundary of a huge page for long.
const PAGES: usize = 384;
const SEED: u64 = 0x6d617073;

/// Every round makes a mapping, moves and cuts others, and checks what it touched.
pub fn run() -> Outcome {
    let mut alive: Vec<(u64, Mapping)> = Vec::new();
    let mut sum = 0u64;
    for round in 0..ROUNDS {
        let mut mapping = Mapping::new(PAGES, Sharing::Private).map_err(call("mmap"))?;
        pattern::fill(mapping.words_mut(), SEED + round, 0);
        alive.push((round, mapping));

        let at = (round as usize * 7) % alive.len();
        let (seed, mapping) = &mut alive[at];
        sum = sum.wrapping_add(churn(SEED + *seed, mapping)?);

        if alive.len() > ALIVE {
            let (seed, mut mapping) = alive.remove((round as usize * 3) % ALIVE);
            // The middle third is given back; what is left must not notice.
            let tail = mapping.pages() / 3 * 2;
            let tail = (tail, mapping.split_off(tail));
            let middle = mapping.split_off(tail.0 / 2);
            drop(middle);
            let first = (tail.0 * PAGE_WORDS) as u64;
            for (part, first) in [(&mapping, 0), (&tail.1, first)] {
                let read = pattern::check(part.words(), SEED + seed, first);
                sum = sum.wrapping_add(read.map_err(|m| format!("after munmap: {m}"))?);
            }
        }
    }
    for (seed, mapping) in &alive {
        let read = pattern::check(mapping.words(), SEED + seed, 0);
        sum = sum.wrapping_add(read.map_err(|m| format!("at the end: {m}"))?);
    }
    Ok(sum)
}

/// Protects, grows, shrinks; the pattern stays.
fn churn(seed: u64, mapping: &mut Mapping) -> Outcome {
    let pages = mapping.pages();
    mapping.protect(0, pages / 2, ProtFlags::PROT_READ).map_err(call("mprotect"))?;
    let mut sum =
        pattern::check(mapping.words(), seed, 0).map_err(|m| format!("read-only: {m}"))?;
    mapping.protect(0, pages / 2, READ_WRITE).map_err(call("mprotect"))?;
    // Written again page by page: each is a write to a page that was just read-only.
    for (number, page) in
        mapping.words_mut()[..pages / 2 * PAGE_WORDS].chunks_mut(PAGE_WORDS).enumerate()
    {
        pattern::fill(&mut page[..8], seed, (number * PAGE_WORDS) as u64);
    }
    mapping.resize(pages * 2).map_err(call("mremap"))?;
    let grown = &mut mapping.words_mut()[pages * PAGE_WORDS..];
    if let Some(word) = grown.iter().find(|word| **word != 0) {
        return Err(format!("a fresh page holds {word:016x}"));
    }
    pattern::fill(grown, seed, (pages * PAGE_WORDS) as u64);
    sum = sum.wrapping_add(
        pattern::check(mapping.words(), seed, 0).map_err(|m| format!("after mremap: {m}"))?,
    );
    mapping.resize(pages).map_err(call("mremap"))?;
    let rest = pattern::check(mapping.words(), seed, 0);
    Ok(sum.wrapping_add(rest.map_err(|m| format!("after shrinking: {m}"))?))
}
