//! The page cache: files written, read again, cut and removed.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    path::PathBuf,
};

use workload::pattern::{self, PAGE, PAGE_WORDS};

use super::Outcome;

const FILES: u64 = 6;
/// 4 MiB each.
const PAGES: usize = 1024;
/// Written and read in pieces of this many pages, which is no power of two on purpose.
const PIECE: usize = 37;
const SEED: u64 = 0x66696c65;

/// Writes all files, then reads all, so that the first is long out of every cache of the CPU.
pub fn run() -> Outcome {
    work().map_err(|e| e.to_string())?
}

fn work() -> io::Result<Outcome> {
    let mut sum = 0u64;
    for number in 0..FILES {
        let mut file = File::create(path(number))?;
        for piece in pieces(PAGES) {
            file.write_all(&bytes(SEED + number, piece.0, piece.1))?;
        }
    }
    for number in 0..FILES {
        match read(number, PAGES)? {
            Ok(read) => sum = sum.wrapping_add(read),
            Err(what) => return Ok(Err(what)),
        }
    }
    // Every other file is cut to its half and grows again: what comes back must be zeros.
    for number in (0..FILES).step_by(2) {
        let mut file = OpenOptions::new().read(true).write(true).open(path(number))?;
        file.set_len((PAGES / 2 * PAGE) as u64)?;
        file.set_len((PAGES * PAGE) as u64)?;
        match read(number, PAGES / 2)? {
            Ok(read) => sum = sum.wrapping_add(read),
            Err(what) => return Ok(Err(what)),
        }
        file.seek(SeekFrom::Start((PAGES / 2 * PAGE) as u64))?;
        let mut rest = Vec::new();
        file.read_to_end(&mut rest)?;
        if rest.iter().any(|byte| *byte != 0) {
            return Ok(Err(format!("file {number} grew by something else than zeros")));
        }
    }
    for number in 0..FILES {
        fs::remove_file(path(number))?;
    }
    Ok(Ok(sum))
}

fn path(number: u64) -> PathBuf {
    std::env::temp_dir().join(format!("workload-{number}"))
}

/// First page and number of pages of each piece of a file.
fn pieces(pages: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..pages).step_by(PIECE).map(move |first| (first, PIECE.min(pages - first)))
}

fn bytes(seed: u64, first: usize, pages: usize) -> Vec<u8> {
    let from = (first * PAGE_WORDS) as u64;
    let words = (from..from + (pages * PAGE_WORDS) as u64).map(|index| pattern::word(seed, index));
    words.flat_map(u64::to_le_bytes).collect()
}

fn read(number: u64, pages: usize) -> io::Result<Outcome> {
    let mut file = File::open(path(number))?;
    let mut sum = 0u64;
    for (first, count) in pieces(pages) {
        let mut found = vec![0; count * PAGE];
        file.read_exact(&mut found)?;
        let words: Vec<u64> =
            found.as_chunks().0.iter().map(|bytes| u64::from_le_bytes(*bytes)).collect();
        match pattern::check(&words, SEED + number, (first * PAGE_WORDS) as u64) {
            Ok(read) => sum = sum.wrapping_add(read),
            Err(m) => return Ok(Err(format!("file {number}: {m}"))),
        }
    }
    Ok(Ok(sum))
}
