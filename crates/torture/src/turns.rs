//! Who runs when: all threads at once, or one at a time by seed; and when everybody stops.
//!
//! With turns, a thread runs until it comes to a *point*: between two accesses of a guest, in a
//! hook of the host, in a wait; and, in a build with the feature `step`, before every access of
//! the library to a shared word. There the seed decides who goes on. Nothing else in a run depends
//! on time, so a seed repeats it exactly.

use std::cell::{Cell, RefCell};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use fastrand::Rng;

use crate::Violation;

thread_local! {
    /// The number of this thread among those that take turns.
    static ME: Cell<Option<usize>> = const { Cell::new(None) };
    /// The turns it takes part in.
    static TURNS: RefCell<Option<Arc<Turns>>> = const { RefCell::new(None) };
}

/// One in so many points passes the turn on.
const EVERY: u32 = 4;
/// One in so many accesses of the library to a shared word does.
const EVERY_ACCESS: u32 = 48;
/// With free threads, one in so many is interrupted there.
const INTERRUPT: u32 = 4096;

#[derive(Debug)]
struct State {
    current: usize,
    alive: Vec<bool>,
    rng: Rng,
}

/// See the module.
#[derive(Debug)]
pub struct Turns {
    by_seed: Option<Mutex<State>>,
    wake: Vec<Condvar>,
    stop: AtomicBool,
    violation: Mutex<Option<Violation>>,
    guard: AtomicBool,
}

impl Turns {
    /// For so many threads; with a seed they take turns.
    pub fn new(threads: usize, seed: Option<u64>) -> Self {
        let state = |seed| {
            let rng = Rng::with_seed(seed);
            Mutex::new(State { current: 0, alive: vec![true; threads], rng })
        };
        Turns {
            by_seed: seed.map(state),
            wake: (0..threads).map(|_| Condvar::new()).collect(),
            stop: AtomicBool::new(false),
            violation: Mutex::new(None),
            guard: AtomicBool::new(false),
        }
    }

    /// This thread is number `me` from now on, and waits for its first turn.
    pub fn enter(self: &Arc<Self>, me: usize) -> Seat<'_> {
        ME.set(Some(me));
        TURNS.set(Some(Arc::clone(self)));
        #[cfg(feature = "step")]
        vmmu::protocol::schedule(|step| {
            // Not in a thread that is ending, nor for the one that only looks on.
            let turns = TURNS.try_with(|turns| turns.borrow().clone()).ok().flatten();
            match (turns, step) {
                (None, _) => {}
                (Some(turns), vmmu::protocol::Step::Access) => turns.access(),
                (Some(turns), vmmu::protocol::Step::Wait) => turns.relax(),
            }
        });
        if let Some(state) = &self.by_seed {
            let state = state.lock().unwrap_or_else(PoisonError::into_inner);
            drop(self.wait(state, me));
        }
        Seat { turns: self, me }
    }

    fn wait<'m>(
        &self,
        mut state: std::sync::MutexGuard<'m, State>,
        me: usize,
    ) -> std::sync::MutexGuard<'m, State> {
        while state.current != me {
            state = self.wake[me].wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state
    }

    /// Somebody else may run here.
    pub fn point(&self) {
        match &self.by_seed {
            Some(state) => self.pass(state, EVERY),
            None if fastrand::u32(..64) == 0 => std::thread::yield_now(),
            None => {}
        }
    }

    /// The library is about to look at or change a shared word.
    #[cfg(feature = "step")]
    fn access(&self) {
        match &self.by_seed {
            Some(state) => self.pass(state, EVERY_ACCESS),
            None if fastrand::u32(..INTERRUPT) == 0 => {
                for _ in 0..fastrand::u32(1..8) {
                    std::thread::yield_now();
                }
            }
            None => {}
        }
    }

    /// Somebody else has to run for this thread to go on.
    pub fn relax(&self) {
        match &self.by_seed {
            Some(state) => self.pass(state, 1),
            None => std::thread::yield_now(),
        }
    }

    fn pass(&self, state: &Mutex<State>, every: u32) {
        let Some(me) = ME.get() else { return };
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        if every > 1 && state.rng.u32(..every) != 0 {
            return;
        }
        let State { current, alive, rng } = &mut *state;
        let others = alive.iter().filter(|alive| **alive).count();
        let nth = rng.usize(..others.max(1));
        let next = alive.iter().enumerate().filter(|(_, alive)| **alive).nth(nth);
        let next = next.map_or(me, |(n, _)| n);
        if next == me {
            return;
        }
        *current = next;
        self.wake[next].notify_one();
        drop(self.wait(state, me));
    }

    /// Held across what takes the library's slot guard: a thread that waited for that one would
    /// spin without letting anybody else have a turn.
    pub fn guard(&self) -> Option<Guard<'_>> {
        self.by_seed.as_ref()?;
        while self.guard.swap(true, Ordering::SeqCst) {
            self.relax();
        }
        Some(Guard(self))
    }

    /// Something that must not be: everybody stops. The first one counts.
    pub fn fail(&self, violation: Violation) {
        let mut first = self.violation.lock().unwrap_or_else(PoisonError::into_inner);
        first.get_or_insert(violation);
        self.stop.store(true, Ordering::SeqCst);
    }

    /// Whether everybody is to stop.
    pub fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// What must not be and was.
    pub fn violation(&self) -> Option<Violation> {
        self.violation.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// A thread's place among those that take turns; dropping it passes the turn on for good.
#[derive(Debug)]
pub struct Seat<'t> {
    turns: &'t Turns,
    me: usize,
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.turns.fail(Violation::new("the library panicked; see above".into()));
        }
        ME.set(None);
        TURNS.set(None);
        let Some(state) = &self.turns.by_seed else { return };
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        state.alive[self.me] = false;
        if let Some(next) = state.alive.iter().position(|alive| *alive) {
            state.current = next;
            self.turns.wake[next].notify_one();
        }
    }
}

/// See [`Turns::guard`].
#[derive(Debug)]
pub struct Guard<'t>(&'t Turns);

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        self.0.guard.store(false, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The order in which three threads come by, when each comes by ten times.
    fn order(seed: u64) -> Vec<usize> {
        let turns = Arc::new(Turns::new(3, Some(seed)));
        let order = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for me in 0..3 {
                let (turns, order) = (&turns, &order);
                scope.spawn(move || {
                    let _seat = turns.enter(me);
                    for _ in 0..10 {
                        order.lock().unwrap().push(me);
                        turns.point();
                    }
                });
            }
        });
        order.into_inner().unwrap()
    }

    #[test]
    fn a_seed_gives_an_order() {
        let orders: Vec<_> = (0..4).map(order).collect();
        assert!(orders.iter().all(|order| order.len() == 30));
        assert!(orders.windows(2).any(|two| two[0] != two[1]), "another seed, another order");
        for (seed, first) in (0..).zip(&orders) {
            assert_eq!(order(seed), *first);
        }
    }

    #[test]
    fn the_first_violation_counts_and_stops_everybody() {
        let turns = Turns::new(1, None);
        assert!(!turns.is_over());
        turns.fail(Violation::new("first".into()));
        turns.fail(Violation::new("second".into()));
        assert!(turns.is_over());
        assert_eq!(turns.violation().unwrap().what, "first");
    }
}
