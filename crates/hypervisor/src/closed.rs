//! Accesses of ports and addresses behind which nothing is: how often each was used, so that a guest
//! that waits for a device it does not have can be told by what it asks.

use alloc::{format, string::String, vec::Vec};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Where nothing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// A port.
    Port(u16),
    /// A guest-physical address.
    Address(u64),
}

/// Places that are told apart: the first that are used. What comes after them is counted together.
const PLACES: usize = 64;

/// Marks a key as a port's; no physical address reaches so far.
const PORT: u64 = 1 << 63;
/// Marks a key as taken.
const TAKEN: u64 = 1 << 62;

/// Counts by place; any processor adds at any time.
#[derive(Debug)]
pub struct Closed {
    keys: [AtomicU64; PLACES],
    counts: [AtomicU64; PLACES],
    others: AtomicU64,
}

impl Default for Closed {
    fn default() -> Self {
        Self::new()
    }
}

impl Closed {
    /// Nothing yet.
    pub const fn new() -> Self {
        Self {
            keys: [const { AtomicU64::new(0) }; PLACES],
            counts: [const { AtomicU64::new(0) }; PLACES],
            others: AtomicU64::new(0),
        }
    }

    /// One access. Addresses are told apart by aligned words of 16 bytes, as registers are laid out.
    pub fn add(&self, place: Place) {
        let key = match place {
            Place::Port(port) => PORT | TAKEN | u64::from(port),
            Place::Address(address) => TAKEN | address & !15 & !PORT,
        };
        for (known, count) in self.keys.iter().zip(&self.counts) {
            let mut seen = known.load(Relaxed);
            if seen == 0 {
                seen = known
                    .compare_exchange(0, key, Relaxed, Relaxed)
                    .map_or_else(|now| now, |_| key);
            }
            if seen == key {
                count.fetch_add(1, Relaxed);
                return;
            }
        }
        self.others.fetch_add(1, Relaxed);
    }

    /// All accesses.
    pub fn total(&self) -> u64 {
        let counts = self.counts.iter().map(|count| count.load(Relaxed));
        counts.sum::<u64>() + self.others.load(Relaxed)
    }

    /// The places used most, with their counts, most used first.
    pub fn most(&self, places: usize) -> Vec<(String, u64)> {
        let used = self.keys.iter().zip(&self.counts);
        let mut used: Vec<(u64, u64)> = used
            .map(|(key, count)| (key.load(Relaxed), count.load(Relaxed)))
            .filter(|(key, _)| *key != 0)
            .collect();
        used.sort_by_key(|(key, count)| (core::cmp::Reverse(*count), *key));
        used.truncate(places);
        let name = |key: u64| match key & PORT != 0 {
            true => format!("closed port 0x{:x}", key as u16),
            false => format!("closed address 0x{:x}", key & !TAKEN),
        };
        used.into_iter().map(|(key, count)| (name(key), count)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::borrow::ToOwned;

    #[test]
    fn the_most_used_come_first_and_by_name() {
        let closed = Closed::new();
        for _ in 0..3 {
            closed.add(Place::Port(0x64));
        }
        closed.add(Place::Address(0xb000_0004));
        closed.add(Place::Address(0xb000_0008));
        closed.add(Place::Port(0));
        let expected = [("closed port 0x64", 3), ("closed address 0xb0000000", 2)];
        assert_eq!(closed.most(2), expected.map(|(name, count)| (name.to_owned(), count)));
        assert_eq!(closed.total(), 6);
    }

    #[test]
    fn more_places_than_there_is_room_for_are_counted_all_the_same() {
        let closed = Closed::new();
        for port in 0..100 {
            closed.add(Place::Port(port));
        }
        assert_eq!((closed.total(), closed.most(1000).len()), (100, PLACES));
    }
}
