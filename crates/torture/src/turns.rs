//! Who runs when: all threads at once, or one at a time by seed; and when everybody stops.
//!
//! With free threads each actor is a thread of the operating system, and where they meet is its
//! affair. With *turns* all actors are coroutines on one thread. An actor runs until it comes to a
//! *point*: between two accesses of a guest, between two steps of a processor's walk, in a hook of
//! the host, in a wait; and, in a build with the feature `step`, before every access of the library
//! to a shared word. There the seed decides who goes on. Nothing else in a run depends on time, so
//! a seed repeats it exactly.

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use corosensei::stack::DefaultStack;
use corosensei::{Coroutine, CoroutineResult, Yielder};
use fastrand::Rng;

use crate::Violation;

thread_local! {
    /// The number of the actor that runs on this thread.
    static ME: Cell<Option<usize>> = const { Cell::new(None) };
    /// What the actor that runs on this thread takes part in.
    static TURNS: RefCell<Option<Arc<Turns>>> = const { RefCell::new(None) };
    /// How the coroutine that runs on this thread lets others run; null: it is none.
    static YIELDER: Cell<*const Yielder<(), ()>> = const { Cell::new(std::ptr::null()) };
}

/// One in so many points passes the turn on.
const EVERY: u32 = 4;
/// One in so many accesses of the library to a shared word does.
#[cfg(feature = "step")]
const EVERY_ACCESS: u32 = 24;
/// With free threads, one in so many is interrupted there.
#[cfg(feature = "step")]
const INTERRUPT: u32 = 4096;
/// One in so many who pass the turn on falls asleep, as if its processor had been taken away; and
/// for how many turns at most. What happens to others meanwhile is what short turns never show.
const ASLEEP: u32 = 2048;
const SLEEP: u64 = 6000;
/// Turns without a single step after which nothing will ever move again.
const STANDSTILL: u64 = 20_000_000;
/// Time without a single step of free threads after which somebody is told.
const PATIENCE: Duration = Duration::from_secs(30);
/// Bytes of a coroutine's stack.
const STACK: usize = 1 << 20;

/// See the module.
#[derive(Debug)]
pub struct Turns {
    by_seed: Option<Mutex<Rng>>,
    stop: AtomicBool,
    violation: Mutex<Option<Violation>>,
    guard: AtomicBool,
}

impl Turns {
    /// With a seed, actors take turns.
    pub fn new(seed: Option<u64>) -> Self {
        Turns {
            by_seed: seed.map(|seed| Mutex::new(Rng::with_seed(seed))),
            stop: AtomicBool::new(false),
            violation: Mutex::new(None),
            guard: AtomicBool::new(false),
        }
    }

    /// Runs every actor to its end and gives what they returned, in order. `look` is called now
    /// and then, and says how far they are.
    pub fn run<T: Default + Send>(
        self: &Arc<Self>,
        actors: Vec<impl FnOnce() -> T + Send>,
        look: &mut dyn FnMut() -> u64,
    ) -> Vec<T> {
        #[cfg(feature = "step")]
        vmmu::internals::schedule(|step| {
            // Not in a thread that is ending, nor for one that is no actor.
            let turns = TURNS.try_with(|turns| turns.borrow().clone()).ok().flatten();
            match (turns, step) {
                (None, _) => {}
                (Some(turns), vmmu::internals::SchedulePoint::Access) => turns.access(),
                (Some(turns), vmmu::internals::SchedulePoint::Wait) => turns.relax(),
            }
        });
        match &self.by_seed {
            None => self.all_at_once(actors, look),
            Some(rng) => self.by_turns(rng, actors, look),
        }
    }

    /// One actor from its beginning to its end.
    fn act<T: Default>(self: &Arc<Self>, actor: impl FnOnce() -> T) -> T {
        catch_unwind(AssertUnwindSafe(actor)).unwrap_or_else(|_| {
            self.fail(Violation::new("the library panicked; see above".into()));
            T::default()
        })
    }

    fn all_at_once<T: Default + Send>(
        self: &Arc<Self>,
        actors: Vec<impl FnOnce() -> T + Send>,
        look: &mut dyn FnMut() -> u64,
    ) -> Vec<T> {
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..)
                .zip(actors)
                .map(|(me, actor)| {
                    scope.spawn(move || {
                        ME.set(Some(me));
                        TURNS.set(Some(Arc::clone(self)));
                        let result = self.act(actor);
                        TURNS.set(None);
                        result
                    })
                })
                .collect();
            let (mut seen, mut moved) = (0, Instant::now());
            while threads.iter().any(|thread| !thread.is_finished()) {
                std::thread::sleep(Duration::from_millis(10));
                let done = look();
                if done != seen {
                    (seen, moved) = (done, Instant::now());
                } else if moved.elapsed() > PATIENCE {
                    // Nobody can end a thread from outside; but nobody is to wonder, either.
                    eprintln!(
                        "vmmu: no step for {} s: do threads wait for each other?",
                        PATIENCE.as_secs()
                    );
                    moved = Instant::now();
                }
            }
            let ended = threads.into_iter().map(std::thread::ScopedJoinHandle::join);
            ended.map(Result::unwrap_or_default).collect()
        })
    }

    fn by_turns<T: Default + Send>(
        self: &Arc<Self>,
        rng: &Mutex<Rng>,
        actors: Vec<impl FnOnce() -> T + Send>,
        look: &mut dyn FnMut() -> u64,
    ) -> Vec<T> {
        struct Actor<T> {
            coroutine: Coroutine<(), (), T>,
            yielder: *const Yielder<(), ()>,
            result: Option<T>,
            asleep_until: u64,
        }
        let mut results: Vec<Actor<T>> = Vec::new();
        for actor in actors {
            let body = move |yielder: &Yielder<(), ()>, ()| {
                YIELDER.set(yielder);
                self.act(actor)
            };
            let stack = DefaultStack::new(STACK).expect("memory for a stack");
            // SAFETY: what the actor borrows outlives this call, and the coroutine, which lives in
            // `results`, does not: it is run to its end, or dropped with it, before this returns.
            let coroutine = unsafe { Coroutine::with_stack_unchecked(stack, body) };
            let yielder = std::ptr::null();
            results.push(Actor { coroutine, yielder, result: None, asleep_until: 0 });
        }
        TURNS.set(Some(Arc::clone(self)));
        let mut alive: Vec<usize> = (0..results.len()).collect();
        let (mut turns, mut seen, mut moved) = (0u64, 0, 0);
        while !alive.is_empty() {
            let next = {
                let mut rng = rng.lock().unwrap_or_else(PoisonError::into_inner);
                let any = rng.usize(..alive.len());
                // The first from there on who is awake; if nobody is, whoever it is.
                let awake = |n: &usize| results[alive[*n]].asleep_until <= turns;
                (any..alive.len()).chain(0..any).find(awake).unwrap_or(any)
            };
            let me = alive[next];
            let actor = &mut results[me];
            ME.set(Some(me));
            YIELDER.set(actor.yielder);
            match actor.coroutine.resume(()) {
                CoroutineResult::Yield(()) => {
                    actor.yielder = YIELDER.get();
                    let mut rng = rng.lock().unwrap_or_else(PoisonError::into_inner);
                    if rng.u32(..ASLEEP) == 0 {
                        actor.asleep_until = turns + rng.u64(..SLEEP);
                    }
                }
                CoroutineResult::Return(result) => {
                    actor.result = Some(result);
                    alive.remove(next);
                }
            }
            turns += 1;
            if turns.is_multiple_of(1024) {
                let done = look();
                if done != seen {
                    (seen, moved) = (done, turns);
                } else if turns - moved > STANDSTILL {
                    self.fail(Violation::new(format!(
                        "standstill: {} actors wait, and none has moved for {STANDSTILL} turns",
                        alive.len()
                    )));
                    break;
                }
            }
        }
        // Whoever stands still is unwound where it is, and lets nobody else run meanwhile.
        YIELDER.set(std::ptr::null());
        ME.set(None);
        TURNS.set(None);
        let ended = results.into_iter().map(|actor| actor.result.unwrap_or_default());
        ended.collect()
    }

    /// Whether actors take turns, so that whoever waits has let others run each time.
    pub fn are_by_seed(&self) -> bool {
        self.by_seed.is_some()
    }

    /// Somebody else may run here.
    pub fn point(&self) {
        match &self.by_seed {
            Some(rng) => pass(rng, EVERY),
            None if fastrand::u32(..64) == 0 => std::thread::yield_now(),
            None => {}
        }
    }

    /// The library is about to look at or change a shared word.
    #[cfg(feature = "step")]
    fn access(&self) {
        match &self.by_seed {
            Some(rng) => pass(rng, EVERY_ACCESS),
            None if fastrand::u32(..INTERRUPT) == 0 => {
                for _ in 0..fastrand::u32(1..8) {
                    std::thread::yield_now();
                }
            }
            None => {}
        }
    }

    /// Somebody else has to run for this actor to go on.
    pub fn relax(&self) {
        match &self.by_seed {
            Some(rng) => pass(rng, 1),
            None => std::thread::yield_now(),
        }
    }

    /// Held across what takes the library's slot guard: in a build without the feature `step` an
    /// actor that waited for that one would spin without letting anybody else have a turn.
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

/// The actor that runs on this thread; none when nobody else is at work.
pub fn me() -> Option<usize> {
    ME.get()
}

/// A walker is about to look at or change an entry: somebody else may run first.
pub fn pause() {
    if let Some(turns) = TURNS.try_with(|turns| turns.borrow().clone()).ok().flatten() {
        turns.point();
    }
}

fn pass(rng: &Mutex<Rng>, every: u32) {
    let yielder = YIELDER.get();
    if yielder.is_null() {
        return;
    }
    let stays = every > 1 && rng.lock().unwrap_or_else(PoisonError::into_inner).u32(..every) != 0;
    if !stays {
        // SAFETY: set by the coroutine that runs on this thread now, for as long as it runs.
        unsafe { &*yielder }.suspend(());
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

    /// The order in which three actors come by, when each comes by ten times.
    fn order(seed: u64) -> Vec<usize> {
        let turns = Arc::new(Turns::new(Some(seed)));
        let order = Mutex::new(Vec::new());
        let actors = (0..3).map(|me| {
            let (turns, order) = (&turns, &order);
            move || {
                for _ in 0..10 {
                    order.lock().unwrap().push(me);
                    turns.point();
                }
            }
        });
        turns.run(actors.collect(), &mut || 0);
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
    fn every_actor_gives_its_result_either_way() {
        for seed in [None, Some(1)] {
            let turns = Arc::new(Turns::new(seed));
            let actors = (0..4).map(|n| {
                let turns = &turns;
                move || {
                    turns.relax();
                    (me(), n)
                }
            });
            let results = turns.run(actors.collect(), &mut || 0);
            assert_eq!(results, (0..4).map(|n| (Some(n), n)).collect::<Vec<_>>());
            assert_eq!(me(), None);
        }
    }

    #[test]
    fn a_panic_is_a_violation() {
        for seed in [None, Some(1)] {
            let turns = Arc::new(Turns::new(seed));
            turns.run::<()>(vec![|| panic!("on purpose")], &mut || 0);
            assert!(turns.violation().unwrap().what.contains("panicked"));
        }
    }

    #[test]
    fn a_standstill_is_a_violation() {
        let turns = Arc::new(Turns::new(Some(1)));
        let actors = (0..2).map(|_| {
            let turns = &turns;
            move || {
                loop {
                    turns.relax();
                }
            }
        });
        turns.run::<()>(actors.collect(), &mut || 0);
        assert!(turns.violation().unwrap().what.starts_with("standstill"));
    }

    #[test]
    fn the_first_violation_counts_and_stops_everybody() {
        let turns = Turns::new(None);
        assert!(!turns.is_over());
        turns.fail(Violation::new("first".into()));
        turns.fail(Violation::new("second".into()));
        assert!(turns.is_over());
        assert_eq!(turns.violation().unwrap().what, "first");
    }
}
