//! Shortening: the fewest operations that still fail.

use crate::op::Op;
use crate::plan::{Plan, Settings};
use crate::run::{Failure, replay};

/// How often a plan is run before it counts as one that does not fail: with free threads, which
/// go another way every time; by turns, with as many seeds, because one operation less changes
/// every turn.
const TRIES: usize = 12;
const SEEDS: usize = 4;

/// What came of shortening.
#[derive(Clone, Debug)]
pub struct Shrunk {
    /// The shortest plan that failed, with what it found.
    pub failure: Failure,
    /// Runs made.
    pub runs: usize,
    /// Whether the plan fails at all when it is run again.
    pub repeats: bool,
}

/// Runs a plan until it fails. The failure's own plan is what was run until then.
fn fails(plan: &Plan, runs: &mut usize) -> Option<Box<Failure>> {
    let tries = if plan.settings.deterministic { SEEDS } else { TRIES };
    (0..tries).find_map(|n| {
        *runs += 1;
        let seed = plan.settings.seed.wrapping_add(n as u64);
        let settings = Settings { seed, ..plan.settings };
        replay(&Plan { settings, threads: plan.threads.clone() }).err()
    })
}

/// Shortens a plan with at most `budget` runs: whole threads first, then ever smaller pieces of
/// what each thread does, then accesses of a guest's run.
pub fn shrink(failure: Failure, budget: usize, progress: &mut dyn FnMut(usize)) -> Shrunk {
    let mut runs = 0;
    let Some(again) = fails(&failure.plan, &mut runs) else {
        return Shrunk { failure, runs, repeats: false };
    };
    let mut best = *again;
    let mut piece = best.plan.threads.iter().map(Vec::len).max().unwrap_or(0).max(1);
    loop {
        let mut shorter = false;
        for thread in 0..best.plan.threads.len() {
            let mut start = 0;
            while start < best.plan.threads[thread].len() && runs < budget {
                let mut plan = best.plan.clone();
                let list = &mut plan.threads[thread];
                list.drain(start..(start + piece).min(list.len()));
                progress(plan.len());
                match fails(&plan, &mut runs) {
                    Some(found) => {
                        best = *found;
                        shorter = true;
                    }
                    None => start += piece,
                }
            }
        }
        if runs >= budget || piece == 1 && !shorter {
            break;
        }
        if !shorter || piece > 1 {
            piece = (piece / 2).max(1);
        }
    }
    single_accesses(&mut best, budget, &mut runs, progress);
    Shrunk { failure: best, runs, repeats: true }
}

/// Takes single accesses out of guests' runs.
fn single_accesses(
    best: &mut Failure,
    budget: usize,
    runs: &mut usize,
    progress: &mut dyn FnMut(usize),
) {
    for thread in 0..best.plan.threads.len() {
        for n in 0..best.plan.threads[thread].len() {
            let mut access = 0;
            while *runs < budget {
                let mut plan = best.plan.clone();
                // What fails earlier has fewer operations.
                let op = plan.threads[thread].get_mut(n);
                let Some(Op::Run { accesses, .. }) = op else { break };
                if accesses.len() < 2 || access >= accesses.len() {
                    break;
                }
                accesses.remove(access);
                progress(plan.len());
                match fails(&plan, runs) {
                    Some(found) => *best = *found,
                    None => access += 1,
                }
            }
        }
    }
}
