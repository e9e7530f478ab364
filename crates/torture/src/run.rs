//! One run: a VM, its threads, and what came of it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use fastrand::Rng;
use machine::{Habits, Keep, Processor};
use vmmu::{Config, Mmu, Stats};

use crate::Violation;
use crate::arena::Arena;
use crate::guest_tables;
use crate::host::Host;
use crate::keeper;
use crate::model::{Model, SITES};
use crate::op::{Access, At, Op, Touch, Where};
use crate::open::PLACES;
use crate::places::Places;
use crate::plan::{MOST_VCPUS, Plan, Settings, seed};
use crate::play::{MAPPED_BEYOND_PLACES, NOTES, Play, REFUSED_BEYOND_PLACES};
use crate::store::Store;
use crate::thread::{self, HOSTS, NOTIFIERS, Source};
use crate::turns::Turns;

/// Faults that found nothing while an invalidation had no place, after which one must have found
/// something.
const REFUSALS: u64 = 300;

/// What a run did.
#[derive(Clone, Debug)]
pub struct Report {
    /// Operations and accesses, in all.
    pub steps: u64,
    /// How often each ran; all kinds that there are.
    pub operations: BTreeMap<&'static str, u64>,
    /// What came of them.
    pub outcomes: BTreeMap<&'static str, u64>,
    /// The library's counts.
    pub stats: Stats,
    /// The processors' counts, summed.
    pub processors: machine::Counts,
    /// Equal for two runs that went the same way.
    pub digest: u64,
    /// How long it took.
    pub took: Duration,
}

impl Report {
    /// Operations that never ran.
    pub fn missing(&self) -> Vec<&'static str> {
        self.operations.iter().filter(|(_, n)| **n == 0).map(|(name, _)| *name).collect()
    }
}

/// A run that found something.
#[derive(Clone, Debug)]
pub struct Failure {
    /// What must not be.
    pub violation: Violation,
    /// The last operations of each thread.
    pub plan: Plan,
    /// Steps done until then.
    pub steps: u64,
}

/// Runs operations chosen by the seed. `progress` hears now and then how many steps are done.
pub fn run(settings: Settings, progress: &mut dyn FnMut(u64)) -> Result<Report, Box<Failure>> {
    let threads = 0..settings.vcpus + HOSTS + NOTIFIERS;
    let sources = threads.map(|n| Source::by_seed(&settings, n));
    whole(settings, sources.collect(), progress)
}

/// Runs the operations of a plan again.
pub fn replay(plan: &Plan) -> Result<Report, Box<Failure>> {
    let sources = plan.threads.iter().map(|list| Source::List(list.clone().into_iter()));
    let settings = Settings { steps: u64::MAX, ..plan.settings };
    whole(settings, sources.collect(), &mut |_| {})
}

/// Everything that ran, with names for what must have.
fn all_operations() -> BTreeMap<&'static str, u64> {
    let mut names = BTreeMap::new();
    for name in [
        "guest reads",
        "guest writes",
        "guest fetches",
        "guest adds",
        "fault",
        "fault on a guest's table",
    ] {
        names.insert(name, 0);
    }
    names.extend(NOTES.iter().map(|name| (*name, 0)));
    // Every kind is chosen sooner or later.
    let mut rng = Rng::with_seed(0);
    for _ in 0..20_000 {
        let focus = At::focus(&mut rng);
        names.insert(Op::of_guest(&mut rng, focus).name(), 0);
        names.insert(Op::of_host(&mut rng, focus).name(), 0);
    }
    names
}

fn whole(
    settings: Settings,
    sources: Vec<Source>,
    progress: &mut dyn FnMut(u64),
) -> Result<Report, Box<Failure>> {
    let began = Instant::now();
    let failure = |violation: Violation, plan: Vec<Vec<Op>>, steps| {
        Box::new(Failure { violation, plan: Plan { settings, threads: plan }, steps })
    };
    let nothing = |violation| failure(violation, Vec::new(), 0);
    let vcpus = settings.vcpus.clamp(1, MOST_VCPUS);
    let arena = Arena::new();
    let arena = arena.map_err(|why| nothing(Violation::new(format!("no memory: {why}"))))?;
    let arena = Arc::new(arena);
    let store = Store::new(&arena).map_err(nothing)?;
    let model = Model::new();
    let by_seed = settings.deterministic.then_some(seed(&settings, 2, 0));
    let turns = Arc::new(Turns::new(by_seed));
    let host = Host::new(Arc::clone(&arena), Arc::clone(&turns), vcpus, sources.len());
    let config = Config {
        workers: (2 * (vcpus + HOSTS)) as u32,
        // Few, so that both run out.
        notifiers: 1,
        invalidations: PLACES as u32,
        slots: guest_tables::SLOT.0 + 1 + HOSTS as u32,
        ..Config::new(settings.tables.format(), vcpus as u32)
    };
    let mut vm = match Mmu::new(host, &config) {
        Ok(vm) => Arc::new(vm),
        Err(why) => return Err(nothing(Violation::new(why.to_string()))),
    };
    let processors: Vec<_> = (0..=vcpus)
        .map(|n| {
            let keep = if n % 3 == 2 { Keep::Oldest } else { Keep::ByChance };
            // One says how much of what it used from its caches the tables said no more.
            let habits = Habits { keep, compare: n == 0, ..Habits::default() };
            Mutex::new(Processor::with_habits(seed(&settings, 3, n), habits))
        })
        .collect();
    let places = Places::new();
    let (done, host_done) = (AtomicU64::new(0), AtomicU64::new(0));
    let guests = AtomicU64::new(vcpus as u64);
    let hosts = AtomicU64::new(sources.len().saturating_sub(vcpus) as u64);
    let (threads, mut ended) = {
        let (posted, parked) = (Mutex::new(VecDeque::new()), Mutex::new(VecDeque::new()));
        let lasting = Mutex::new(Vec::new());
        let play = Play {
            vm: &vm,
            arena: &arena,
            store: &store,
            model: &model,
            turns: &turns,
            nested: settings.tables.nested(),
            paging: guest_tables::write(&arena),
            processors: &processors,
            posted: &posted,
            parked: &parked,
            lasting: &lasting,
            places: &places,
            done: &done,
            host_done: &host_done,
            guests: &guests,
            hosts: &hosts,
            vcpus,
        };
        set_up(&play, &settings).map_err(nothing)?;
        let threads = thread::all(&play, &settings, sources, progress);
        posted.lock().expect("no panic under it").clear();
        let ended = match turns.violation() {
            Some(violation) => Err(violation),
            None => thread::keeper(&play, &settings, vcpus)
                .and_then(keeper::settle)
                .and_then(|()| at_rest(&play, &settings)),
        };
        (threads, ended)
    };
    let stats = vm.stats();
    if ended.is_ok() {
        ended = check(&mut vm, &store);
    }
    let host = match Mmu::teardown_shared(vm) {
        Ok(host) => host,
        Err(_) => return Err(nothing(Violation::new("somebody still has a share".into()))),
    };
    if ended.is_ok() {
        ended = after(&host, &store, &model);
    }
    let steps = done.load(Ordering::Relaxed);
    let mut operations = all_operations();
    let (mut outcomes, mut digest, mut plan) = (BTreeMap::new(), 0u64, Vec::new());
    for (tally, kept) in threads {
        for (name, n) in tally.operations {
            *operations.entry(name).or_default() += n;
        }
        for (name, n) in tally.outcomes {
            *outcomes.entry(name).or_default() += n;
        }
        digest = digest.rotate_left(7) ^ tally.digest;
        plan.push(kept);
    }
    // One invalidation without a place refuses what it may cover, and not everything.
    let refused = outcomes.get(REFUSED_BEYOND_PLACES).copied().unwrap_or(0);
    if ended.is_ok() && refused > REFUSALS && operations[MAPPED_BEYOND_PLACES] == 0 {
        let what = format!("of {refused} faults none found a page while places had run out");
        ended = Err(Violation::new(what));
    }
    // A split is the library's own answer to a write below a huge leaf that may only be read.
    operations.insert("split", stats.splits);
    if let Err(violation) = ended {
        return Err(failure(violation, plan, steps));
    }
    let mut counts = machine::Counts::default();
    for processor in processors {
        let processor = processor.into_inner().unwrap_or_else(PoisonError::into_inner);
        counts += processor.counts();
    }
    let took = began.elapsed();
    Ok(Report { steps, operations, outcomes, stats, processors: counts, digest, took })
}

/// A slot for the guest's own tables, and one in every site but one.
fn set_up(play: &Play<'_, '_>, settings: &Settings) -> Result<(), Violation> {
    let mut keeper = thread::keeper(play, settings, play.vcpus)?;
    let made = keeper.worker.create_slot(&guest_tables::slot());
    made.map_err(|why| Violation::new(format!("the slot of the guest's tables: {why}")))?;
    for _ in 1..SITES.len() {
        let site = Where { at: At { site: 0, page: 0 }, space: 0 };
        keeper.act(&Op::Create { site, view: 0, largest: 0 })?;
    }
    Ok(())
}

/// Nothing else runs: every page that can be had is had at once.
fn at_rest(play: &Play<'_, '_>, settings: &Settings) -> Result<(), Violation> {
    let mut guest = thread::guest(play, settings, 0)?;
    // Above everything it wrote before.
    guest.actor.value = 1 << 40;
    for role in 0..3 {
        guest.act(&Op::Role(role))?;
        for site in 0..SITES.len() as u8 {
            let accesses = [Touch::Read, Touch::Write].into_iter().flat_map(|touch| {
                (0..8).map(move |n| {
                    let at = At { site, page: 67 * n };
                    Access { touch, at, word: 1, speculates: false, lag: 0 }
                })
            });
            let accesses: Vec<_> = accesses.collect();
            // One by one: a page that cannot be had is no reason to give the others up.
            for access in accesses {
                guest.act(&Op::Run { processor: site, accesses: vec![access] })?;
            }
        }
    }
    match guest.actor.tally.take().outcomes.get("given up") {
        None => Ok(()),
        Some(n) => Err(Violation::new(format!("at rest {n} accesses made no progress"))),
    }
}

/// The library's own checker.
fn check(vm: &mut Arc<Mmu<Host>>, store: &Store) -> Result<(), Violation> {
    let vm = Arc::get_mut(vm).ok_or_else(|| Violation::new("somebody has a share".into()))?;
    let checked = vm.check(|backing, page| store.witness(backing, page));
    match checked {
        Ok(checked) if checked.is_clean() => Ok(()),
        Ok(checked) => {
            let first = checked.violations.first().map(ToString::to_string).unwrap_or_default();
            let n = checked.violations.len();
            Err(Violation::new(format!("the checker finds {n}: {first}")))
        }
        Err(why) => Err(Violation::new(format!("the checker: {why}"))),
    }
}

/// Nothing is left, and nobody has written what was released.
fn after(host: &Host, store: &Store, model: &Model) -> Result<(), Violation> {
    match host.arena().tables() {
        0 => {}
        n => return Err(Violation::new(format!("{n} tables were lost"))),
    }
    host.arena().inspect_all()?;
    store.compare(host.arena(), model)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Tables;

    fn settings(deterministic: bool) -> Settings {
        Settings { seed: 7, steps: 3000, vcpus: 2, tables: Tables::Ept, deterministic }
    }

    #[test]
    fn a_run_counts_what_it_did() {
        let mut heard = 0;
        let report = run(settings(false), &mut |done| heard = done).unwrap();
        assert!(report.steps >= 3000 && heard > 0);
        assert!(report.operations["guest reads"] > 0 && report.operations["fault"] > 0);
        assert!(report.processors.hits > 0, "nothing came from a TLB");
    }

    #[test]
    fn one_vcpu_is_enough_for_every_operation() {
        let settings = Settings { vcpus: 1, steps: 60_000, ..settings(true) };
        let report = run(settings, &mut |_| {}).unwrap();
        assert_eq!(report.missing(), <[&str; 0]>::default());
    }

    #[test]
    fn operations_that_never_ran_are_named() {
        let report = run(Settings { steps: 10, ..settings(false) }, &mut |_| {}).unwrap();
        assert!(report.missing().contains(&"zap all"), "{:?}", report.missing());
    }

    #[test]
    fn a_seed_repeats_exactly_when_threads_take_turns() {
        let once = run(settings(true), &mut |_| {}).unwrap();
        let again = run(settings(true), &mut |_| {}).unwrap();
        assert_eq!((once.digest, once.operations), (again.digest, again.operations));
        assert_eq!(once.stats, again.stats);
        let other = run(Settings { seed: 8, ..settings(true) }, &mut |_| {}).unwrap();
        assert_ne!(once.digest, other.digest);
    }

    #[test]
    fn a_plan_can_be_run_again_and_written_down() {
        let op = |page| Op::Prefault { at: At { site: 1, page }, write: true };
        let plan = Plan {
            settings: settings(true),
            threads: vec![vec![op(1), op(2)], vec![op(1)], vec![Op::ZapAll]],
        };
        assert_eq!(plan.len(), 4);
        let report = replay(&plan).unwrap();
        assert_eq!((report.operations["prefault"], report.operations["zap all"]), (3, 1));
        let text = serde_json::to_string(&plan).unwrap();
        assert_eq!(serde_json::from_str::<Plan>(&text).unwrap(), plan);
    }

    #[test]
    fn every_format_is_walked_by_the_processor_it_is_for() {
        for tables in Tables::ALL {
            let settings = Settings { tables, steps: 1500, ..settings(false) };
            let ended = run(settings, &mut |_| {});
            assert!(ended.is_ok(), "{}: {}", tables.name(), ended.unwrap_err().violation);
        }
    }
}
