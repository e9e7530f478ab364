//! Which slot is in which site, and who is changing that.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use vmmu::addr::Level;
use vmmu::slot::SlotId;

use crate::model::SITES;

/// See the module.
#[derive(Debug)]
pub struct Places {
    busy: Box<[AtomicBool]>,
    slots: Box<[Mutex<Option<Occupant>>]>,
    free: Mutex<Vec<SlotId>>,
    changes: AtomicU64,
}

/// A slot as the host knows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Occupant {
    pub id: SlotId,
    /// Its largest leaf.
    pub largest: Level,
    /// Its deletion was begun, and whoever began it is gone.
    pub is_dying: bool,
}

impl Places {
    pub fn new() -> Self {
        Places {
            busy: SITES.iter().map(|_| AtomicBool::new(false)).collect(),
            slots: SITES.iter().map(|_| Mutex::new(None)).collect(),
            free: Mutex::new((0..SITES.len() as u32 + 2).map(SlotId).collect()),
            changes: AtomicU64::new(0),
        }
    }

    /// What is in a site now.
    pub fn occupant(&self, site: usize) -> Option<Occupant> {
        *self.slots[site].lock().expect("no panic under it")
    }

    /// Whether there is a slot in a site now.
    pub fn has_slot(&self, site: usize) -> bool {
        self.occupant(site).is_some()
    }

    /// The right to change what is in a site, unless somebody else has it.
    pub fn occupy(&self, site: usize) -> Option<Place<'_>> {
        let is_free = !self.busy[site].swap(true, Ordering::SeqCst);
        is_free.then(|| Place { places: self, site })
    }

    /// How often a slot has come or gone.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::SeqCst)
    }
}

/// The right to change what is in one site.
#[derive(Debug)]
pub struct Place<'r> {
    places: &'r Places,
    pub site: usize,
}

impl Place<'_> {
    pub fn occupant(&self) -> Option<Occupant> {
        self.places.occupant(self.site)
    }

    /// The slot, if it is one that lives.
    pub fn slot(&self) -> Option<SlotId> {
        self.occupant().filter(|occupant| !occupant.is_dying).map(|occupant| occupant.id)
    }

    pub fn set(&self, occupant: Option<Occupant>) {
        let mut now = self.places.slots[self.site].lock().expect("no panic under it");
        let id = |occupant: Option<Occupant>| occupant.map(|occupant| occupant.id);
        if id(*now) != id(occupant) {
            self.places.changes.fetch_add(1, Ordering::SeqCst);
        }
        *now = occupant;
    }

    /// A number no slot has.
    pub fn number(&self) -> Option<SlotId> {
        self.places.free.lock().expect("no panic under it").pop()
    }

    /// A number no slot has any more.
    pub fn free(&self, slot: SlotId) {
        self.places.free.lock().expect("no panic under it").push(slot);
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.places.busy[self.site].store(false, Ordering::SeqCst);
    }
}
