//! What one thread of the host does in steps, and what it has put aside half done. Whatever is
//! changed between two steps of a walk, it ends.

use vmmu::{Deletion, Drain, Mmu, Progress, Worker, Zap};

use crate::Violation;
use crate::host::Host;
use crate::op::Leaving;
use crate::places::{Occupant, Place, Places};
use crate::play::{Actor, DELETION_MET_CHANGE, DRAIN_MET_CHANGE, ZAP_MET_CHANGE};

/// See the module.
#[derive(Default)]
pub struct Walks<'r> {
    deletion: Option<InSteps<Deleting<'r>>>,
    zap: Option<InSteps<Zap>>,
    drain: Option<InSteps<Drain>>,
    aside: Vec<Aside>,
}

/// A deletion, with the right to the place of its slot.
struct Deleting<'r> {
    deletion: Deletion,
    place: Place<'r>,
    occupant: Occupant,
}

/// A walk whose next step comes late, if at all.
enum Aside {
    Zap(Zap),
    Drain(Drain),
    Deletion(Deletion),
}

/// The most that one thread puts aside.
const ASIDE: usize = 4;

/// A walk in steps, with what is judged of it: that it ends.
struct InSteps<W> {
    walk: W,
    /// Changes of slots up to its last step.
    changes: u64,
    /// Table pages that it may still visit.
    left: u64,
}

/// Table pages and waits that a walk over so many frames takes at most: in every root, each table of
/// leaves, what lies between two of them, and the tables above.
fn most_visits(frames: u64) -> u64 {
    16 * (2 * (frames / 512 + 2) + 8) + 2000
}

impl<W> InSteps<W> {
    fn new(walk: W, places: &Places, visits: u64) -> Self {
        InSteps { walk, changes: places.changes(), left: visits }
    }

    /// A step begins. Whether a slot has come or gone since the last one.
    fn met_change(&mut self, places: &Places) -> bool {
        let before = std::mem::replace(&mut self.changes, places.changes());
        self.changes != before
    }

    /// A step has ended before the walk has. `false`: it must have ended.
    fn may_go_on(&mut self, budget: u64) -> bool {
        self.left = self.left.saturating_sub(budget);
        self.left > 0
    }
}

impl<'r> Walks<'r> {
    /// Whether a deletion was begun and has not ended.
    pub fn is_deleting(&self) -> bool {
        self.deletion.is_some()
    }

    /// The same for a zap.
    pub fn is_zapping(&self) -> bool {
        self.zap.is_some()
    }

    /// The same for a drain.
    pub fn is_draining(&self) -> bool {
        self.drain.is_some()
    }

    /// The deletion of the slot in a place was begun. Guests use so many frames of it at most.
    pub fn begin_deletion(
        &mut self,
        deletion: Deletion,
        place: Place<'r>,
        occupant: Occupant,
        frames: u64,
        places: &Places,
    ) {
        let walk = Deleting { deletion, place, occupant };
        self.deletion = Some(InSteps::new(walk, places, most_visits(frames)));
    }

    /// A zap of so many frames was.
    pub fn begin_zap(&mut self, zap: Zap, frames: u64, places: &Places) {
        self.zap = Some(InSteps::new(zap, places, most_visits(frames)));
    }

    /// A drain was. How much the roots hold is not known.
    pub fn begin_drain(&mut self, drain: Drain, places: &Places) {
        self.drain = Some(InSteps::new(drain, places, u64::MAX));
    }

    /// The next steps of the deletion, if there is one. Gives the place, and what was in it, when it
    /// has ended.
    pub fn delete_some(
        &mut self,
        actor: &Actor<'_, '_, '_>,
        worker: &mut Worker<&Mmu<Host>>,
        budget: u64,
    ) -> Result<Option<(Place<'r>, Occupant)>, Violation> {
        let Some(begun) = &mut self.deletion else { return Ok(None) };
        if begun.met_change(actor.play.places) {
            actor.note(DELETION_MET_CHANGE);
        }
        if worker.delete_some(&mut begun.walk.deletion, budget) == (Progress::More {}) {
            if !begun.may_go_on(budget) {
                return Err(actor.bad("a deletion in steps does not end"));
            }
            return Ok(None);
        }
        let ended = self.deletion.take().map(|deletion| deletion.walk);
        Ok(ended.map(|ended| (ended.place, ended.occupant)))
    }

    /// Those of the zap. Whether there is one.
    pub fn zap_some(
        &mut self,
        actor: &Actor<'_, '_, '_>,
        worker: &mut Worker<&Mmu<Host>>,
        budget: u64,
    ) -> Result<bool, Violation> {
        let Some(zap) = &mut self.zap else { return Ok(false) };
        if zap.met_change(actor.play.places) {
            actor.note(ZAP_MET_CHANGE);
        }
        if worker.zap_some(&mut zap.walk, budget) != (Progress::More {}) {
            self.zap = None;
        } else if !zap.may_go_on(budget) {
            return Err(actor.bad("a zap in steps does not end"));
        }
        Ok(true)
    }

    /// Those of the drain. Whether there is one.
    pub fn drain_some(
        &mut self,
        actor: &Actor<'_, '_, '_>,
        worker: &mut Worker<&Mmu<Host>>,
        budget: u64,
    ) -> bool {
        let Some(drain) = &mut self.drain else { return false };
        if drain.met_change(actor.play.places) {
            actor.note(DRAIN_MET_CHANGE);
        }
        if worker.drain(&mut drain.walk, budget) != (Progress::More {}) {
            self.drain = None;
        }
        true
    }

    /// Those of what was put aside first. Whether there is something.
    pub fn go_on_late(
        &mut self,
        actor: &Actor<'_, '_, '_>,
        worker: &mut Worker<&Mmu<Host>>,
        budget: u64,
    ) -> bool {
        if self.aside.is_empty() {
            return false;
        }
        let _guard = actor.play.turns.guard();
        let mut late = self.aside.remove(0);
        let progress = match &mut late {
            Aside::Zap(zap) => worker.zap_some(zap, budget),
            Aside::Drain(drain) => worker.drain(drain, budget),
            Aside::Deletion(deletion) => worker.delete_some(deletion, budget),
        };
        if progress == (Progress::More {}) {
            self.aside.push(late);
        } else {
            actor.met("ended late");
        }
        true
    }

    /// The zap is left half done. Whether there is one.
    pub fn leave_zap(&mut self, how: Leaving) -> bool {
        let zap = self.zap.take().map(|zap| Aside::Zap(zap.walk));
        self.leave(zap, how)
    }

    /// The drain is.
    pub fn leave_drain(&mut self, how: Leaving) -> bool {
        let drain = self.drain.take().map(|drain| Aside::Drain(drain.walk));
        self.leave(drain, how)
    }

    /// The deletion is: its slot is dying from then on, and its place is free for others.
    pub fn leave_deletion(&mut self, how: Leaving) -> bool {
        let deletion = self.deletion.take().map(|begun| {
            let Deleting { deletion, place, occupant } = begun.walk;
            place.set(Some(Occupant { is_dying: true, ..occupant }));
            Aside::Deletion(deletion)
        });
        self.leave(deletion, how)
    }

    fn leave(&mut self, left: Option<Aside>, how: Leaving) -> bool {
        let Some(left) = left else { return false };
        match how {
            Leaving::Aside if self.aside.len() < ASIDE => self.aside.push(left),
            how => how.leave(left),
        }
        true
    }

    /// Zap and drain go on to their ends.
    pub fn end(&mut self, worker: &mut Worker<&Mmu<Host>>) {
        if let Some(InSteps { walk: mut zap, .. }) = self.zap.take() {
            while worker.zap_some(&mut zap, u64::MAX) == Progress::More {}
        }
        if let Some(InSteps { walk: mut drain, .. }) = self.drain.take() {
            while worker.drain(&mut drain, u64::MAX) == Progress::More {}
        }
    }
}
