//! Shortening: the fewest operations that still fail.

use crate::op::Op;
use crate::run::{Failure, Plan, replay};

/// How often a plan with free threads is run before it counts as one that does not fail.
const TRIES: usize = 12;

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

/// Runs a plan until it fails.
fn fails(plan: &Plan, runs: &mut usize) -> Option<Box<Failure>> {
    let tries = if plan.settings.deterministic { 1 } else { TRIES };
    (0..tries).find_map(|_| {
        *runs += 1;
        replay(plan).err()
    })
}

/// Shortens a plan with at most `budget` runs: whole threads first, then ever smaller pieces of
/// what each thread does, then accesses of a guest's run.
pub fn shrink(failure: Failure, budget: usize, progress: &mut dyn FnMut(usize)) -> Shrunk {
    let mut runs = 0;
    let Some(again) = fails(&failure.plan, &mut runs) else {
        return Shrunk { failure, runs, repeats: false };
    };
    let mut best = Failure { plan: failure.plan, ..*again };
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
                        best = Failure { plan, ..*found };
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
                let Op::Run { accesses, .. } = &mut plan.threads[thread][n] else { break };
                if accesses.len() < 2 || access >= accesses.len() {
                    break;
                }
                accesses.remove(access);
                progress(plan.len());
                match fails(&plan, runs) {
                    Some(found) => *best = Failure { plan, ..*found },
                    None => access += 1,
                }
            }
        }
    }
}
