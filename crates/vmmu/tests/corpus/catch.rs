//! Runs a scenario without a defect and with it.

use std::panic::{self, AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};

use vmmu::internals::{Defect, switch};

/// What a scenario must not show, or nothing.
pub type Verdict = Result<(), String>;

/// One scenario at a time: a defect is switched in for the whole process.
static TURN: Mutex<()> = Mutex::new(());

/// `scenario` holds, and does not with `defect`. A panic counts as not holding: the host of the
/// tests panics when a table page is written after its release, and arithmetic when it overflows.
pub fn catches(defect: Defect, scenario: fn() -> Verdict) {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let run = || {
        let ended = catch_unwind(AssertUnwindSafe(scenario));
        ended.unwrap_or_else(|why| {
            let text = why.downcast_ref::<String>().cloned();
            Err(text
                .or_else(|| why.downcast_ref::<&str>().map(ToString::to_string))
                .unwrap_or_else(|| "a panic".to_owned()))
        })
    };
    if let Err(why) = run() {
        panic!("without the defect: {why}");
    }
    switch(Some(defect));
    let hook = panic::take_hook();
    panic::set_hook(Box::new(|_| {}));
    let verdict = run();
    panic::set_hook(hook);
    switch(None);
    let name = defect.name();
    match verdict {
        Ok(()) => panic!("{name} is not noticed"),
        Err(why) => println!("caught {name} by corpus::{name}: {why}"),
    }
}

/// `Err` of what is wrong, unless it holds.
pub fn ensure(holds: bool, otherwise: impl FnOnce() -> String) -> Verdict {
    if holds { Ok(()) } else { Err(otherwise()) }
}

/// Every defect there is, for who compares them with what was caught.
#[test]
fn defects_have_names_of_their_own() {
    let mut names: Vec<_> = Defect::ALL.iter().map(|defect| defect.name()).collect();
    for defect in Defect::ALL {
        println!("defect {} [{}] {}", defect.name(), defect.ids().join(", "), defect.about());
    }
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), Defect::ALL.len());
}
