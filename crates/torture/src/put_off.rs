//! Faults that vCPUs have put off: the host finds their frames and does their second halves, in
//! whatever thread comes by.

use vmmu::host::{Backing, FrameQuery, Resolution};
use vmmu::{Mmu, NotCompleted, Outcome, Worker};

use crate::Violation;
use crate::host::Host;
use crate::op::Leaving;
use crate::play::{Actor, WRONG_ANSWER};

impl<'vm> Actor<'_, '_, 'vm> {
    /// The host finds the frame for a fault that a vCPU parked.
    pub fn find_parked(&self, worker: &mut Worker<&'vm Mmu<Host>>) -> Result<bool, Violation> {
        let all = self.play.parked;
        let parked = {
            let mut all = all.lock().expect("no panic under it");
            let first = all.iter().position(|(_, answer)| answer.is_none());
            first.and_then(|n| all.remove(n))
        };
        let Some((parked, _)) = parked else { return Ok(false) };
        let query = parked.query();
        let found = self.hands.find(&query);
        let Resolution::Frame(frame) = found else {
            drop(worker.unpark(parked));
            return Ok(false);
        };
        let answered = (parked, Some(query.answer(frame)));
        all.lock().expect("no panic under it").push_back(answered);
        Ok(true)
    }

    /// The second half of a fault that a vCPU parked and whose frame was found some time ago.
    pub fn complete_parked(&self, worker: &mut Worker<&'vm Mmu<Host>>) -> Result<bool, Violation> {
        let (taken, other) = {
            let mut all = self.play.parked.lock().expect("no panic under it");
            let first = all.iter().position(|(_, answer)| answer.is_some());
            let taken = first.and_then(|n| all.remove(n));
            (taken, all.iter().find_map(|(_, answer)| *answer))
        };
        let Some((mut parked, Some(answer))) = taken else { return Ok(false) };
        // One that was found for another request, or for none, is refused, and nothing is lost.
        let FrameQuery { slot, backing, page, gfn, access, largest, .. } = parked.query();
        let nobody = FrameQuery::of_nobody(slot, (backing, page), gfn, access, largest);
        let other = other.unwrap_or_else(|| nobody.answer(answer.frame));
        match worker.complete_parked(parked, other) {
            Err(NotCompleted::WrongAnswer { parked: again, .. }) => parked = again,
            Ok(Outcome::Retry) => return Ok(true),
            ended => return Err(self.bad(format!("another's answer: {ended:?}"))),
        }
        self.note(WRONG_ANSWER);
        loop {
            match worker.complete_parked(parked, answer) {
                Ok(Outcome::Dead(why)) => {
                    return Err(self.bad(format!("completing {answer:?}: {why}")));
                }
                Ok(outcome) => {
                    self.met(outcome.name());
                    return Ok(true);
                }
                Err(NotCompleted::WrongAnswer { .. }) => {
                    return Err(self.bad("a request refused its own answer"));
                }
                Err(NotCompleted::MissingPages { parked: again, .. }) => {
                    parked = again;
                    let reserved = worker.reserve(0);
                    reserved.map_err(|why| self.bad(format!("no tables: {why}")))?;
                }
            }
        }
    }

    /// The second half of a fault that a vCPU posted.
    pub fn complete_posted(&self, worker: &mut Worker<&'vm Mmu<Host>>) -> Result<bool, Violation> {
        let posted = self.play.posted.lock().expect("no panic under it").pop_front();
        let Some(request) = posted else { return Ok(false) };
        let fault = request.query();
        let found = self.hands.find(&fault);
        let Resolution::Frame(found) = found else { return Ok(false) };
        let mut frame =
            request.resolve(fault.answer(found)).map_err(|why| self.bad(why.to_string()))?;
        loop {
            match worker.complete(frame) {
                Ok(outcome) => {
                    self.met(outcome.name());
                    return match outcome {
                        Outcome::Dead(_) => {
                            Err(self.bad(format!("completing {fault:?}: {outcome:?}")))
                        }
                        _ => Ok(true),
                    };
                }
                Err(short) => {
                    frame = short.resolved;
                    worker.reserve(0).map_err(|why| self.bad(format!("no tables: {why}")))?;
                }
            }
        }
    }

    /// One that was parked is let go, by no call of the library. Whether there was one.
    pub fn leave_parked(&self, how: Leaving) -> bool {
        let parked = self.play.parked.lock().expect("no panic under it").pop_front();
        let is_some = parked.is_some();
        how.leave(parked);
        is_some
    }

    /// All that were parked end without a second half.
    pub fn unpark_all(&self, worker: &mut Worker<&'vm Mmu<Host>>) {
        loop {
            let parked = self.play.parked.lock().expect("no panic under it").pop_front();
            let Some((parked, _)) = parked else { break };
            drop(worker.unpark(parked));
        }
    }
}
