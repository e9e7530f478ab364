//! Processes that share memory until one of them writes.

use std::process::exit;

use nix::{
    sys::mman::ProtFlags,
    sys::{
        signal::Signal,
        wait::{WaitStatus, waitpid},
    },
    unistd::{ForkResult, Pid, fork},
};
use workload::pattern;

use super::{Outcome, call};
use crate::mapping::{Mapping, Sharing};

const FORKS: u64 = 64;
/// Children alive at one time.
const AT_ONCE: u64 = 4;
/// 4 MiB.
const PAGES: usize = 1024;
/// Every child writes each page whose number leaves its own remainder by this.
const STRIDE: usize = 4;
const SEED: u64 = 0x666f726b;

/// Forks in waves; each child finds the parent's data, changes a part of its copy, checks both,
/// and answers in shared memory.
pub fn run() -> Outcome {
    let mut copied = Mapping::new(PAGES, Sharing::Private).map_err(call("mmap"))?;
    let mut answers = Mapping::new(1, Sharing::Shared).map_err(call("mmap"))?;
    pattern::fill(copied.words_mut(), SEED, 0);
    let mut sum = 0u64;
    for wave in 0..FORKS / AT_ONCE {
        let mut children = Vec::new();
        for child in wave * AT_ONCE..(wave + 1) * AT_ONCE {
            children.push((child, spawn(child, &mut copied, &mut answers)?));
        }
        for (child, pid) in children {
            match waitpid(pid, None).map_err(call("waitpid"))? {
                WaitStatus::Exited(_, 0) => {}
                other => return Err(format!("child {child} ended with {other:?}")),
            }
            let answer = answers.words()[child as usize];
            if answer != pattern::word(SEED, child) {
                return Err(format!("child {child} answered {answer:016x}"));
            }
        }
        let read = pattern::check(copied.words(), SEED, 0);
        sum = sum.wrapping_add(read.map_err(|m| format!("the parent's copy: {m}"))?);
    }
    denied(&mut copied)?;
    Ok(sum)
}

fn spawn(child: u64, copied: &mut Mapping, answers: &mut Mapping) -> Result<Pid, String> {
    // SAFETY: this program has one thread while parts of this kind run, so the child finds every
    // lock free.
    match unsafe { fork() }.map_err(call("fork"))? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            let right = work(child, copied);
            answers.words_mut()[child as usize] = match right {
                true => pattern::word(SEED, child),
                false => 0,
            };
            exit(i32::from(!right));
        }
    }
}

/// A child's work on its copy.
fn work(child: u64, copied: &mut Mapping) -> bool {
    let seed = SEED + 1 + child;
    let mine = |page: usize| page % STRIDE == child as usize % STRIDE;
    if pattern::check(copied.words(), SEED, 0).is_err() {
        return false;
    }
    let pages = |page: usize| (page * pattern::PAGE_WORDS) as u64;
    for (number, page) in copied.words_mut().chunks_mut(pattern::PAGE_WORDS).enumerate() {
        if mine(number) {
            pattern::fill(page, seed, pages(number));
        }
    }
    copied.words().chunks(pattern::PAGE_WORDS).enumerate().all(|(number, page)| {
        let seed = if mine(number) { seed } else { SEED };
        pattern::check(page, seed, pages(number)).is_ok()
    })
}

/// A write that protection forbids must end the writer and change nothing.
fn denied(copied: &mut Mapping) -> Result<(), String> {
    copied.protect(0, PAGES, ProtFlags::PROT_READ).map_err(call("mprotect"))?;
    // SAFETY: as in `spawn`.
    match unsafe { fork() }.map_err(call("fork"))? {
        ForkResult::Child => {
            copied.words_mut()[0] = 0;
            exit(0);
        }
        ForkResult::Parent { child } => match waitpid(child, None).map_err(call("waitpid"))? {
            WaitStatus::Signaled(_, Signal::SIGSEGV, _) => {}
            other => return Err(format!("a forbidden write ended with {other:?}")),
        },
    }
    pattern::check(copied.words(), SEED, 0).map_err(|m| m.to_string()).map(drop)
}
