//! A thread of the host that has neither a vCPU nor a worker: it takes pages back through the MMU
//! alone, as the callbacks of a memory notifier do.

use crate::Violation;
use crate::arena::BLOCKS;
use crate::model::{SITES, TOUCHED, name_of};
use crate::notify::{self, Manner, Through};
use crate::op::{self, Change, Op};
use crate::play::{
    Actor, BEYOND_PLACES, BY_NO_WORKER, CHANGED_BEYOND_PLACES, SECOND_INVALIDATIONS, Spot,
    WRONG_END_BEYOND_PLACES,
};
use crate::store::Changed;
use vmmu::HostRange;

/// The most that last at one time.
const LASTING: usize = 9;
/// Frames of 512 GiB, and of 1 GiB.
const LARGE: [u64; 2] = [1 << 27, 1 << 18];

/// The page of the model that may be where `pages` begins, if the host may change it.
pub fn page_at(pages: &op::Pages) -> Option<usize> {
    let (site, offset) = Spot::of(pages.view & 1, pages.at).site?;
    let views = SITES[site].views;
    let page = views[pages.view as usize / 2 % views.len()].page(offset)?;
    name_of(page).map(|_| page)
}

/// Which of the model's pages: a few from a first one on, of one backing.
pub fn pages_at(pages: &op::Pages, most: usize) -> Option<std::ops::Range<usize>> {
    let mut first = page_at(pages)?;
    let count = (pages.count as usize).min(most);
    if count == 512 {
        first &= !511;
    }
    let all = BLOCKS as usize + TOUCHED;
    let end = if first < BLOCKS as usize { BLOCKS as usize } else { all };
    Some(first..end.min(first + count))
}

impl<'vm> Actor<'_, '_, 'vm> {
    /// What a thread without a worker does.
    pub fn notifies(&self, op: &Op) -> Result<(), Violation> {
        let done = match op {
            Op::Change { pages, change } => {
                let done = self.change(Through::Mmu, *pages, *change)?;
                if done {
                    self.note(BY_NO_WORKER);
                }
                done
            }
            Op::Long { pages, again } => self.begins(Through::Mmu, *pages, *again)?,
            Op::End { which } => self.ends(*which)?,
            Op::WrongEnd { pages } => self.ends_none(*pages)?,
            other => {
                return Err(self.bad(format!("no notifier does {}", other.name())));
            }
        };
        self.did(op, done);
        Ok(())
    }

    /// The host does something to pages.
    pub fn change(
        &self,
        through: Through<'_, 'vm>,
        pages: op::Pages,
        change: Change,
    ) -> Result<bool, Violation> {
        let play = self.play;
        let most = if change == Change::Punch { 2 } else { usize::MAX };
        let manner = Manner::of(pages.view / 4);
        let space = pages.view & 1;
        let Some(pages) = pages_at(&pages, most) else { return Ok(false) };
        let changed = play.store.change(play.vm, (through, manner), play.model, pages, change)?;
        if changed == Changed::MadeBeyondPlaces {
            self.note(BEYOND_PLACES);
            if change == Change::Move {
                self.note(CHANGED_BEYOND_PLACES);
            }
        }
        if changed != Changed::Not {
            self.note_space(space, SECOND_INVALIDATIONS);
        }
        Ok(changed != Changed::Not)
    }

    /// An invalidation begins that somebody will end by its name.
    pub fn begins(
        &self,
        through: Through<'_, 'vm>,
        pages: op::Pages,
        again: bool,
    ) -> Result<bool, Violation> {
        let play = self.play;
        let name = page_at(&pages).and_then(name_of);
        let Some((backing, first)) = name else { return Ok(false) };
        let mut range = HostRange { backing, first, pages: u64::from(pages.count) };
        {
            let lasting = play.lasting.lock().expect("no panic under it");
            if lasting.len() >= LASTING {
                return Ok(false);
            }
            if again && let Some(&other) = lasting.get(first as usize % lasting.len().max(1)) {
                range = other;
            }
        }
        let manner = if pages.view & 4 == 0 { Manner::Named } else { Manner::Trying };
        let Some(taken) = notify::take(play.vm, through, manner, range) else {
            self.met("notifiers busy");
            return Ok(false);
        };
        if taken.overflows {
            self.note(BEYOND_PLACES);
        }
        self.note_space(pages.view & 1, SECOND_INVALIDATIONS);
        play.lasting.lock().expect("no panic under it").push(taken.name());
        Ok(true)
    }

    /// One of those ends.
    pub fn ends(&self, which: u8) -> Result<bool, Violation> {
        let play = self.play;
        let range = {
            let mut lasting = play.lasting.lock().expect("no panic under it");
            if lasting.is_empty() {
                return Ok(false);
            }
            let n = which as usize % lasting.len();
            lasting.swap_remove(n)
        };
        notify::end(play.vm, range)?;
        Ok(true)
    }

    /// The end of what was never begun changes nothing and says so. Of ranges so long nobody begins
    /// any, so none counts where these would.
    pub fn ends_none(&self, pages: op::Pages) -> Result<bool, Violation> {
        let play = self.play;
        let name = page_at(&pages).and_then(name_of);
        let Some((backing, first)) = name else { return Ok(false) };
        let range = HostRange { backing, first, pages: LARGE[usize::from(pages.view & 1)] + 1 };
        let open = play.vm.host().open();
        let overflow = open.overflow();
        if play.vm.invalidate_end(range).is_ok() {
            return Err(self.bad(format!("an invalidation of {range:x?} ended and never began")));
        }
        if overflow.is_some_and(|overflow| open.is_still(overflow)) {
            self.note(WRONG_END_BEYOND_PLACES);
        }
        Ok(true)
    }
}
