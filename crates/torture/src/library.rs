//! What the library does to guest memory on its own, in the thread of a vCPU or of the host: it
//! reads, writes, exchanges and translates, and what came of it is judged as a guest's access is.

use vmmu::addr::{Gpa, Level};
use vmmu::{AccessError, AccessFailure, Mmu, Role, Worker};

use crate::Violation;
use crate::host::Host;
use crate::op::Op;
use crate::play::{Actor, Seen, Spot};
use crate::store::Answered;

impl Actor<'_, '_, '_> {
    /// The library reads, writes, exchanges or translates on its own.
    pub fn access_by_library(
        &mut self,
        worker: &mut Worker<&Mmu<Host>>,
        space: u8,
        op: &Op,
    ) -> Result<(), Violation> {
        let is_done = match op {
            Op::Read { at, word } => self.library_reads(worker, Spot::of(space, *at), *word)?,
            Op::Write { at } => self.library_writes(worker, Spot::of(space, *at))?,
            Op::Exchange { at } => self.library_exchanges(worker, Spot::of(space, *at))?,
            Op::Translate { at } => {
                let spot = Spot::of(space, *at);
                let role = Role { space: spot.space(), flavour: 0 };
                if let Some(there) = worker.translate(role, spot.gpa()) {
                    self.met(if there.level == Level::Size4K {
                        "translated 4K"
                    } else {
                        "translated"
                    });
                }
                true
            }
            other => return Err(self.bad(format!("no thread does {}", other.name()))),
        };
        self.did(op, is_done);
        Ok(())
    }

    fn library_reads(
        &mut self,
        worker: &mut Worker<&Mmu<Host>>,
        spot: Spot,
        word: u8,
    ) -> Result<bool, Violation> {
        let word = word as usize % 16;
        let look = self.play.look(spot);
        let page = self.play.since(look).only();
        let before = page.map(|page| self.play.model.pages[page].before(word));
        self.hands.answered.set(Answered::Nothing);
        let gpa = Gpa(spot.gpa().0 + 8 * word as u64);
        let mut bytes = [0; 8];
        let read = worker.read(&self.hands, spot.space(), gpa, &mut bytes);
        let seen = self.play.since(look);
        self.judge_library(read, spot, &seen, false)?;
        if let (Ok(()), Some(page), Some(before)) = (read, page, before)
            && seen.only() == Some(page)
        {
            let value = u64::from_le_bytes(bytes);
            let judged = self.play.model.pages[page].judge(word, before, value);
            judged.map_err(|what| self.bad(format!("the library read page {page}: {what}")))?;
        }
        Ok(read.is_ok())
    }

    fn library_writes(
        &mut self,
        worker: &mut Worker<&Mmu<Host>>,
        spot: Spot,
    ) -> Result<bool, Violation> {
        // Which page it writes is known only while nobody changes the slot.
        let (word, value) = (self.word(), self.next_value());
        let look = self.play.look(spot);
        let Some(page) = self.play.since(look).only() else { return Ok(false) };
        let Some(_place) = spot.site.and_then(|(site, _)| self.play.places.occupy(site)) else {
            return Ok(false);
        };
        if self.play.since(look).only() != Some(page) {
            return Ok(false);
        }
        let words = &self.play.model.pages[page];
        let epoch = words.start(word, value);
        self.hands.answered.set(Answered::Nothing);
        let gpa = Gpa(spot.gpa().0 + 8 * word as u64);
        let wrote = worker.write(&self.hands, spot.space(), gpa, &value.to_le_bytes());
        self.judge_library(wrote, spot, &self.play.since(look), true)?;
        if wrote.is_ok() {
            words.complete(word, value, epoch);
        }
        Ok(wrote.is_ok())
    }

    fn library_exchanges(
        &mut self,
        worker: &mut Worker<&Mmu<Host>>,
        spot: Spot,
    ) -> Result<bool, Violation> {
        let (word, value) = (self.word(), self.next_value());
        let look = self.play.look(spot);
        let Some(_place) = spot.site.and_then(|(site, _)| self.play.places.occupy(site)) else {
            return Ok(false);
        };
        let Some(page) = self.play.since(look).only() else { return Ok(false) };
        let words = &self.play.model.pages[page];
        let seen = words.before(word).value();
        let epoch = words.start(word, value);
        self.hands.answered.set(Answered::Nothing);
        let gpa = Gpa(spot.gpa().0 + 8 * word as u64);
        let exchanged = worker.compare_exchange(&self.hands, spot.space(), gpa, seen, value);
        let result = exchanged.map(drop);
        self.judge_library(result, spot, &self.play.since(look), true)?;
        match exchanged {
            Ok(Ok(_)) => words.complete(word, value, epoch),
            Ok(Err(now)) => {
                // The host may have emptied the page meanwhile, or a late write of this thread's
                // own may stand in an epoch that began before it.
                self.met("exchange lost");
                let before = words.before(word);
                let judged = words.judge(word, before, now);
                judged.map_err(|what| self.bad(format!("exchange in page {page}: {what}")))?;
            }
            Err(_) => {}
        }
        Ok(matches!(exchanged, Ok(Ok(_))))
    }

    fn judge_library(
        &self,
        result: Result<(), AccessError>,
        spot: Spot,
        seen: &Seen,
        is_write: bool,
    ) -> Result<(), Violation> {
        let Err(error) = result else {
            if seen.some(false) || seen.some(true) && !is_write {
                return Ok(());
            }
            return Err(self.bad(format!("the library reached {spot:x?}, and there was {seen:?}")));
        };
        let is_right = match error.why {
            AccessFailure::NoMemory => seen.nothing(),
            AccessFailure::ReadOnly => is_write && seen.some(true),
            AccessFailure::Hole => self.hands.answered.get() == Answered::Hole,
            AccessFailure::Busy(_) => true,
            _ => false,
        };
        if is_right {
            return Ok(());
        }
        Err(self.bad(format!("{error}; there may have been {seen:?}")))
    }
}
