//! Memory that keeps its pattern from the first to the last moment of the run, so that a change
//! nobody made is found wherever in it and whenever it happened.

use std::fs;

use nix::sys::mman::MmapAdvise;
use workload::pattern;

use super::{Outcome, call};
use crate::mapping::{Mapping, Sharing};

/// Share of the free memory that is held, in percent; the rest is for the other parts.
const PERCENT: usize = 60;
/// Left to the other parts in any case, in pages (48 MiB).
const RESERVE: usize = 12_288;
/// Never more than this, in pages (1 GiB): a run should end.
const MOST: usize = 262_144;
const SEED: u64 = 0x68656c64;

/// Memory under a pattern.
pub struct Held(Mapping);

impl Held {
    /// Fills a large part of what is free.
    pub fn new() -> Result<Self, String> {
        let free = free_pages()?;
        let pages = (free / 100 * PERCENT).min(free.saturating_sub(RESERVE)).clamp(1024, MOST);
        let mut memory = Mapping::new(pages, Sharing::Private).map_err(call("mmap"))?;
        // Children have no use for it, and copying its page tables would be most of a fork.
        memory.advise(0, pages, MmapAdvise::MADV_DONTFORK).map_err(call("madvise"))?;
        pattern::fill(memory.words_mut(), SEED, 0);
        Ok(Held(memory))
    }

    /// Its size in MiB.
    pub fn mebibytes(&self) -> usize {
        self.0.pages() / 256
    }

    /// Reads all of it.
    pub fn check(&self) -> Outcome {
        pattern::check(self.0.words(), SEED, 0).map_err(|m| m.to_string())
    }
}

/// `MemAvailable`, in pages of 4 KiB.
fn free_pages() -> Result<usize, String> {
    let text = fs::read_to_string("/proc/meminfo").map_err(|e| format!("/proc/meminfo: {e}"))?;
    let kib: Option<usize> = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse().ok());
    Ok(kib.ok_or("no MemAvailable in /proc/meminfo")? / 4)
}
