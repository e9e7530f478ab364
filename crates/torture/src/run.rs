//! One run: a VM, its threads, and what came of it.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use fastrand::Rng;
use machine::{Ept, Habits, Keep, Nested, Npt, Processor};
use serde::{Deserialize, Serialize};
use vmmu::addr::Level;
use vmmu::entry::{Format, Record, ept, npt};
use vmmu::host::VcpuId;
use vmmu::{Config, Mmu, Role, Stats};

use crate::Violation;
use crate::arena::{Arena, PHYS_BITS};
use crate::guest::Guest;
use crate::guest_tables;
use crate::host::Host;
use crate::keeper::{self, Keeper};
use crate::model::{Model, SITES};
use crate::op::{Access, At, Op, Touch, Where};
use crate::open::PLACES;
use crate::places::Places;
use crate::play::{Actor, MAPPED_BEYOND_PLACES, NOTES, Play, REFUSED_BEYOND_PLACES, Tally};
use crate::store::{Answered, Hands, Store};
use crate::turns::Turns;
use crate::vcpu::Vcpu;

/// Threads of the host.
const HOSTS: usize = 3;
/// Those that have no worker.
const NOTIFIERS: usize = 2;
/// Faults that found nothing while an invalidation had no place, after which one must have found
/// something.
const REFUSALS: u64 = 300;
/// The most vCPUs: every thread has a word of its own in each page.
pub const MOST_VCPUS: usize = 12;
/// Steps after which everybody goes elsewhere.
const FOCUS: u64 = 1024;
/// Operations of each thread that are kept for a replay.
const KEPT: usize = 20_000;

/// Which tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Tables {
    /// AMD's nested page tables.
    Npt,
    /// Intel's extended page tables.
    Ept,
    /// The same, on a processor without accessed and dirty flags.
    EptWithoutFlags,
    /// Nested page tables of five levels.
    Npt5,
    /// Extended page tables of five levels.
    Ept5,
}

impl Tables {
    /// All of them.
    pub const ALL: [Tables; 5] =
        [Tables::Npt, Tables::Ept, Tables::EptWithoutFlags, Tables::Npt5, Tables::Ept5];

    /// The name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Tables::Npt => "npt",
            Tables::Ept => "ept",
            Tables::EptWithoutFlags => "ept-without-flags",
            Tables::Npt5 => "npt5",
            Tables::Ept5 => "ept5",
        }
    }

    fn levels(self) -> u8 {
        if matches!(self, Tables::Npt5 | Tables::Ept5) { 5 } else { 4 }
    }

    fn format(self) -> Format {
        let phys_bits = u32::from(PHYS_BITS);
        let top = if self.levels() == 5 { Level::L5 } else { Level::L4 };
        match self {
            Tables::Npt | Tables::Npt5 => {
                npt::format(npt::NptOptions { top, phys_bits, ..Default::default() })
            }
            Tables::Ept | Tables::Ept5 => {
                ept::format(ept::EptOptions { top, phys_bits, ..Default::default() })
            }
            Tables::EptWithoutFlags => {
                let record = Record::Software;
                ept::format(ept::EptOptions { phys_bits, record, ..Default::default() })
            }
        }
        .expect("all of these are legal")
    }

    fn nested(self) -> Nested {
        let (levels, phys_bits) = (self.levels(), PHYS_BITS);
        match self {
            Tables::Npt | Tables::Npt5 => {
                Nested::Npt(Npt { levels, phys_bits, nx: true, gib_pages: true })
            }
            Tables::Ept | Tables::Ept5 | Tables::EptWithoutFlags => Nested::Ept(Ept {
                levels,
                phys_bits,
                ad: self != Tables::EptWithoutFlags,
                exec_only: true,
                mib_pages: true,
                gib_pages: true,
            }),
        }
    }
}

/// What to run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Settings {
    /// Every choice follows from it.
    pub seed: u64,
    /// Operations and accesses of all threads together.
    pub steps: u64,
    /// vCPUs, each a thread: 1 to [`MOST_VCPUS`].
    pub vcpus: usize,
    /// Which tables.
    pub tables: Tables,
    /// Whether threads take turns.
    pub deterministic: bool,
}

/// Operations, by thread: vCPUs first, then threads of the host.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Plan {
    /// What it was made for.
    pub settings: Settings,
    /// By thread.
    pub threads: Vec<Vec<Op>>,
}

impl Plan {
    /// All operations.
    pub fn len(&self) -> usize {
        self.threads.iter().map(Vec::len).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

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

/// What a thread is.
enum Kind {
    Guest,
    Keeper,
    Notifier,
}

impl Kind {
    fn of(n: usize, vcpus: usize) -> Kind {
        match n.checked_sub(vcpus) {
            None => Kind::Guest,
            Some(n) if n < HOSTS => Kind::Keeper,
            Some(_) => Kind::Notifier,
        }
    }
}

/// Where operations come from.
enum Source {
    Seed(Box<Rng>, fn(&mut Rng, At) -> Op),
    List(std::vec::IntoIter<Op>),
}

impl Source {
    fn next(&mut self, settings: &Settings, done: u64) -> Option<Op> {
        match self {
            Source::Seed(rng, next) => {
                let mut when = Rng::with_seed(settings.seed ^ (done / FOCUS));
                Some(next(rng, At::focus(&mut when)))
            }
            Source::List(list) => list.next(),
        }
    }
}

/// Runs operations chosen by the seed. `progress` hears now and then how many steps are done.
pub fn run(settings: Settings, progress: &mut dyn FnMut(u64)) -> Result<Report, Box<Failure>> {
    let sources = (0..settings.vcpus + HOSTS + NOTIFIERS).map(|n| {
        let rng = Rng::with_seed(seed(&settings, 1, n));
        Source::Seed(
            Box::new(rng),
            match Kind::of(n, settings.vcpus) {
                Kind::Guest => Op::of_guest,
                Kind::Keeper => Op::of_host,
                Kind::Notifier => Op::of_notifier,
            },
        )
    });
    whole(settings, sources.collect(), progress)
}

/// Runs the operations of a plan again.
pub fn replay(plan: &Plan) -> Result<Report, Box<Failure>> {
    let sources = plan.threads.iter().map(|list| Source::List(list.clone().into_iter()));
    let settings = Settings { steps: u64::MAX, ..plan.settings };
    whole(settings, sources.collect(), &mut |_| {})
}

fn seed(settings: &Settings, what: u64, n: usize) -> u64 {
    Rng::with_seed(settings.seed ^ what << 56 ^ (n as u64) << 48).u64(..)
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
        let threads = all_threads(&play, &settings, sources, progress);
        posted.lock().expect("no panic under it").clear();
        let ended = match turns.violation() {
            Some(violation) => Err(violation),
            None => keeper(&play, &settings, vcpus)
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

fn actor<'p, 'r, 'vm>(
    play: &'p Play<'r, 'vm>,
    settings: &Settings,
    number: usize,
) -> Result<Actor<'p, 'r, 'vm>, Violation> {
    let worker = match Kind::of(number, play.vcpus) {
        Kind::Notifier => None,
        _ => Some(play.vm.worker().map_err(|why| Violation::new(format!("a worker: {why}")))?),
    };
    let hands = Hands {
        store: play.store,
        model: play.model,
        vm: play.vm,
        worker: RefCell::new(worker),
        answered: Cell::new(Answered::Nothing),
        rng: RefCell::new(Rng::with_seed(seed(settings, 4, number))),
    };
    Ok(Actor { play, number, hands, tally: RefCell::default(), value: 0 })
}

fn guest<'p, 'r, 'vm>(
    play: &'p Play<'r, 'vm>,
    settings: &Settings,
    number: usize,
) -> Result<Guest<'p, 'r, 'vm>, Violation> {
    let vcpu = Vcpu::new(play.vm, VcpuId(number as u32), number % 4 == 1);
    let vcpu = vcpu.map_err(|why| Violation::new(format!("vCPU {number}: {why}")))?;
    let worker = play.vm.worker().map_err(|why| Violation::new(format!("a worker: {why}")))?;
    Ok(Guest { actor: actor(play, settings, number)?, vcpu, worker, number, role: Role::PLAIN })
}

fn keeper<'p, 'r, 'vm>(
    play: &'p Play<'r, 'vm>,
    settings: &Settings,
    number: usize,
) -> Result<Keeper<'p, 'r, 'vm>, Violation> {
    let worker = play.vm.worker().map_err(|why| Violation::new(format!("a worker: {why}")))?;
    let actor = actor(play, settings, number)?;
    Ok(keeper::new(actor, worker))
}

/// A slot for the guest's own tables, and one in every site but one.
fn set_up(play: &Play<'_, '_>, settings: &Settings) -> Result<(), Violation> {
    let mut keeper = keeper(play, settings, play.vcpus)?;
    let made = keeper.worker.create_slot(&guest_tables::slot());
    made.map_err(|why| Violation::new(format!("the slot of the guest's tables: {why}")))?;
    for _ in 1..SITES.len() {
        let site = Where { at: At { site: 0, page: 0 }, space: 0 };
        keeper.act(&Op::Create { site, view: 0, largest: 0 })?;
    }
    Ok(())
}

/// Runs every thread to its end, and gives what it counted and did last.
fn all_threads(
    play: &Play<'_, '_>,
    settings: &Settings,
    sources: Vec<Source>,
    progress: &mut dyn FnMut(u64),
) -> Vec<(Tally, Vec<Op>)> {
    let actors = sources.into_iter().enumerate();
    let actors = actors.map(|(n, source)| move || one_thread(play, settings, n, source));
    play.turns.run(actors.collect(), &mut || {
        let done = play.done.load(Ordering::Relaxed);
        progress(done);
        done
    })
}

fn one_thread(
    play: &Play<'_, '_>,
    settings: &Settings,
    n: usize,
    source: Source,
) -> (Tally, Vec<Op>) {
    let mut kept = VecDeque::new();
    let patient = || {
        while play.is_ahead(true) {
            play.turns.relax();
        }
    };
    let result = match Kind::of(n, play.vcpus) {
        Kind::Guest => {
            let ended = guest(play, settings, n).and_then(|mut guest| {
                work(play, settings, source, &mut kept, |op| guest.act(op))?;
                Ok(guest.actor.tally.take())
            });
            play.guests.fetch_sub(1, Ordering::Relaxed);
            ended
        }
        Kind::Keeper => {
            let ended = keeper(play, settings, n).and_then(|mut keeper| {
                work(play, settings, source, &mut kept, |op| {
                    patient();
                    keeper.act(op)
                })?;
                Ok(keeper)
            });
            play.hosts.fetch_sub(1, Ordering::Relaxed);
            ended.and_then(keeper::finish)
        }
        Kind::Notifier => {
            let ended = actor(play, settings, n).and_then(|notifier| {
                work(play, settings, source, &mut kept, |op| {
                    patient();
                    notifier.notifies(op)
                })?;
                Ok(notifier.tally.take())
            });
            play.hosts.fetch_sub(1, Ordering::Relaxed);
            ended
        }
    };
    let tally = result.unwrap_or_else(|violation| {
        play.turns.fail(violation);
        Tally::default()
    });
    (tally, kept.into())
}

fn work(
    play: &Play<'_, '_>,
    settings: &Settings,
    mut source: Source,
    kept: &mut VecDeque<Op>,
    mut act: impl FnMut(&Op) -> Result<(), Violation>,
) -> Result<(), Violation> {
    while let done = play.done.load(Ordering::Relaxed)
        && done < settings.steps
        && !play.turns.is_over()
        && let Some(op) = source.next(settings, done)
    {
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back(op.clone());
        act(&op)?;
        if let Some(broken) = play.vm.broken() {
            return Err(Violation::new(format!("the MMU is dead: {broken}")));
        }
        play.turns.point();
    }
    Ok(())
}

/// Nothing else runs: every page that can be had is had at once.
fn at_rest(play: &Play<'_, '_>, settings: &Settings) -> Result<(), Violation> {
    let mut guest = guest(play, settings, 0)?;
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
