//! Runs one model through all its executions, and says what came of it.

use std::collections::BTreeMap;
use std::env;
use std::panic::{self, AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use vmmu::internals::{Defect, switch};

type Seen = BTreeMap<&'static str, u64>;

/// What happened in the executions of the model under way, and in how many. A model in which
/// nothing happens proves nothing.
static SEEN: Mutex<Seen> = Mutex::new(BTreeMap::new());

/// Something happened in this execution that the model is about.
pub fn saw(what: &'static str) {
    *SEEN.lock().unwrap_or_else(PoisonError::into_inner).entry(what).or_default() += 1;
}

/// One model at a time: a defect is switched in for the whole process.
static TURN: Mutex<()> = Mutex::new(());

/// A model: its name in the protocol's list, and the most preemptions in one execution, in the usual
/// form and in the long one. A thread that blocks, or has ended, is not preempted.
#[derive(Clone, Copy)]
pub struct Model {
    name: &'static str,
    preemptions: usize,
    long: usize,
    run: fn(),
}

/// Says `long` for the long form: the preemptions of [`Model::long`].
const FORM: &str = "VMMU_PREEMPTIONS";

impl Model {
    /// So many preemptions in both forms: what its neighbours need, and what every run can bear.
    pub const fn new(name: &'static str, preemptions: usize, run: fn()) -> Model {
        Model { name, preemptions, long: preemptions, run }
    }

    /// The same with more preemptions in the long form.
    pub const fn long(self, preemptions: usize) -> Model {
        Model { long: preemptions, ..self }
    }

    fn bound(self) -> usize {
        let is_long = env::var_os(FORM).is_some_and(|form| form == "long");
        if is_long { self.long } else { self.preemptions }
    }

    /// Every execution ends as it should, and each of `sights` is seen in one of them.
    pub fn holds(self, sights: &[&str]) {
        let (ended, executions, seconds, seen) = self.explore(None);
        let (name, preemptions) = (self.name, self.bound());
        match ended {
            Ok(()) => println!(
                "{name} holds: {executions} executions, {seconds:.2} s, {preemptions} preemptions, \
                 {seen:?}"
            ),
            Err(why) => panic!("{name} fails after {executions} executions: {why}"),
        }
        for sight in sights {
            assert!(seen.contains_key(sight), "{name} never saw: {sight}");
        }
    }

    /// With `defect` in the library, some execution ends with exactly this complaint.
    pub fn fails(self, neighbour: &str, defect: Defect, complaint: &str) {
        let (ended, executions, seconds, _) = self.explore(Some(defect));
        match ended {
            Ok(()) => panic!("{neighbour} holds, in {executions} executions: the model is blind"),
            Err(why) => {
                println!("{neighbour} fails: {executions} executions, {seconds:.2} s: {why}");
                assert!(why.contains(complaint), "{neighbour} should fail with: {complaint}");
                println!("caught {} by loom::{neighbour}", defect.name());
            }
        }
    }

    fn explore(self, defect: Option<Defect>) -> (Result<(), String>, u64, f64, Seen) {
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(self.bound());
        builder.max_branches = 20_000;
        let executions = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&executions);
        let start = Instant::now();
        SEEN.lock().unwrap_or_else(PoisonError::into_inner).clear();
        switch(defect);
        let hook = panic::take_hook();
        // Every thread of every execution ends in a panic of the checker's own; what matters comes
        // back below.
        panic::set_hook(Box::new(|_| {}));
        let ended = catch_unwind(AssertUnwindSafe(|| {
            builder.check(move || {
                counted.fetch_add(1, Ordering::Relaxed);
                (self.run)();
            });
        }));
        panic::set_hook(hook);
        switch(None);
        let ended = ended.map_err(|why| {
            let text = why.downcast_ref::<String>().cloned();
            text.or_else(|| why.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_default()
        });
        let seen = std::mem::take(&mut *SEEN.lock().unwrap_or_else(PoisonError::into_inner));
        (ended, executions.load(Ordering::Relaxed), start.elapsed().as_secs_f64(), seen)
    }
}
