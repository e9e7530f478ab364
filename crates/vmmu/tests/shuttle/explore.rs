//! Runs one model on many schedules, and says what came of it.

use std::collections::BTreeMap;
use std::env;
use std::panic::{self, AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::{Config, FailurePersistence, MaxSteps, Runner};
use vmmu::internals::{Defect, switch};

type Seen = BTreeMap<&'static str, u64>;

/// What happened in the schedules of the model under way, and how often.
static SEEN: Mutex<Seen> = Mutex::new(BTreeMap::new());

/// Something happened that the model is about.
pub fn saw(what: &'static str) {
    *SEEN.lock().unwrap_or_else(PoisonError::into_inner).entry(what).or_default() += 1;
}

/// One model at a time: a defect is switched in for the whole process.
static TURN: Mutex<()> = Mutex::new(());

/// Steps of one schedule after which it counts as one without end.
const STEPS: usize = 400_000;

/// Shuttle gives threads 60 KiB; a debug build of the library wants more.
const STACK: usize = 1 << 18;

/// How often a neighbour is given a quarter of its model's schedules, by each way.
const ROUNDS: u64 = 8;

/// How the next thread is chosen.
#[derive(Clone, Copy, Debug)]
pub enum By {
    /// Any, each time.
    Chance,
    /// The one of the highest priority, which changes at so many points: finds what needs that
    /// many (Burckhardt and others, "A randomized scheduler with probabilistic guarantees").
    Priority(usize),
}

/// The ways in which every model is run.
pub const WAYS: [By; 2] = [By::Chance, By::Priority(4)];

/// A model: its name, and what one schedule does.
#[derive(Clone, Copy)]
pub struct Model {
    pub name: &'static str,
    pub schedules: usize,
    pub run: fn(),
}

fn number(variable: &str) -> Option<u64> {
    env::var(variable).ok()?.parse().ok()
}

fn seed() -> u64 {
    number("VMMU_SEED").unwrap_or(1)
}

impl Model {
    /// Every schedule ends as it should, and each of `sights` is seen in one of them.
    pub fn holds(self, sights: &[&str]) {
        let Model { name, schedules, .. } = self;
        let schedules = schedules * number("VMMU_SCHEDULES").unwrap_or(1) as usize;
        for by in WAYS {
            let (ended, ran, seconds, seen) = self.explore(by, seed(), schedules, None);
            match ended {
                Ok(()) => println!(
                    "{name} holds: {ran} schedules, {seconds:.2} s, by {by:?}, seed {}, {seen:?}",
                    seed()
                ),
                Err(why) => {
                    panic!("{name} fails in schedule {ran} by {by:?}, seed {}: {why}", seed())
                }
            }
            for sight in sights {
                assert!(seen.contains_key(sight), "{name} never saw: {sight}");
            }
        }
    }

    /// With `defect` in the library, some schedule fails. Both ways take turns, each time with
    /// another seed, and with more schedules in all than the model without it is given.
    pub fn fails(self, defect: Defect) {
        let Model { name, .. } = self;
        let mut tried = 0;
        let mut spent = 0.0;
        for (round, by) in (0..ROUNDS).flat_map(|round| WAYS.map(|by| (round, by))) {
            let seed = seed() + round;
            let some = self.schedules.div_ceil(4);
            let (ended, ran, seconds, _) = self.explore(by, seed, some, Some(defect));
            tried += ran;
            spent += seconds;
            if let Err(why) = ended {
                println!(
                    "caught {} by shuttle::{name}: in schedule {tried}, {spent:.2} s, by {by:?}, \
                     seed {seed}: {why}",
                    defect.name()
                );
                return;
            }
        }
        panic!("{name} does not notice {} in {tried} schedules", defect.name());
    }

    fn explore(
        self,
        by: By,
        seed: u64,
        schedules: usize,
        defect: Option<Defect>,
    ) -> (Result<(), String>, u64, f64, Seen) {
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let mut config = Config::new();
        config.stack_size = STACK;
        config.max_steps = MaxSteps::FailAfter(STEPS);
        config.failure_persistence =
            if defect.is_some() { FailurePersistence::None } else { FailurePersistence::Print };
        let ran = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&ran);
        let one = move || {
            counted.fetch_add(1, Ordering::Relaxed);
            (self.run)();
        };
        SEEN.lock().unwrap_or_else(PoisonError::into_inner).clear();
        switch(defect);
        let hook = panic::take_hook();
        if defect.is_some() {
            panic::set_hook(Box::new(|_| {}));
        }
        let start = Instant::now();
        let ended = catch_unwind(AssertUnwindSafe(|| match by {
            By::Chance => {
                Runner::new(RandomScheduler::new_from_seed(seed, schedules), config).run(one)
            }
            By::Priority(points) => {
                let scheduler = PctScheduler::new_from_seed(seed, points, schedules);
                Runner::new(scheduler, config).run(one)
            }
        }));
        panic::set_hook(hook);
        switch(None);
        let ended = ended.map(|_| ()).map_err(|why| {
            let text = why.downcast_ref::<String>().cloned();
            text.or_else(|| why.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_default()
        });
        let seen = std::mem::take(&mut *SEEN.lock().unwrap_or_else(PoisonError::into_inner));
        (ended, ran.load(Ordering::Relaxed), start.elapsed().as_secs_f64(), seen)
    }
}
