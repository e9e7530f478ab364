//! A thread of a run: what it is, where its operations come from, and that it does them.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::sync::atomic::Ordering;

use fastrand::Rng;
use vmmu::Role;
use vmmu::host::VcpuId;

use crate::Violation;
use crate::guest::Guest;
use crate::keeper::{self, Keeper};
use crate::op::{At, Op};
use crate::plan::{Settings, seed};
use crate::play::{Actor, Play, Tally};
use crate::store::{Answered, Hands};
use crate::vcpu::Vcpu;

/// Threads of the host.
pub const HOSTS: usize = 3;
/// Those that have no worker.
pub const NOTIFIERS: usize = 2;
/// Steps after which everybody goes elsewhere.
const FOCUS: u64 = 1024;
/// Operations of each thread that are kept for a replay.
const KEPT: usize = 20_000;

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
pub enum Source {
    Seed(Box<Rng>, fn(&mut Rng, At) -> Op),
    List(std::vec::IntoIter<Op>),
}

impl Source {
    /// What the seed chooses for thread `n`.
    pub fn by_seed(settings: &Settings, n: usize) -> Source {
        let next = match Kind::of(n, settings.vcpus) {
            Kind::Guest => Op::of_guest,
            Kind::Keeper => Op::of_host,
            Kind::Notifier => Op::of_notifier,
        };
        Source::Seed(Box::new(Rng::with_seed(seed(settings, 1, n))), next)
    }

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

pub fn guest<'p, 'r, 'vm>(
    play: &'p Play<'r, 'vm>,
    settings: &Settings,
    number: usize,
) -> Result<Guest<'p, 'r, 'vm>, Violation> {
    let vcpu = Vcpu::new(play.vm, VcpuId(number as u32), number % 4 == 1);
    let vcpu = vcpu.map_err(|why| Violation::new(format!("vCPU {number}: {why}")))?;
    let worker = play.vm.worker().map_err(|why| Violation::new(format!("a worker: {why}")))?;
    Ok(Guest { actor: actor(play, settings, number)?, vcpu, worker, number, role: Role::PLAIN })
}

pub fn keeper<'p, 'r, 'vm>(
    play: &'p Play<'r, 'vm>,
    settings: &Settings,
    number: usize,
) -> Result<Keeper<'p, 'r, 'vm>, Violation> {
    let worker = play.vm.worker().map_err(|why| Violation::new(format!("a worker: {why}")))?;
    let actor = actor(play, settings, number)?;
    Ok(keeper::new(actor, worker))
}

/// Runs every thread to its end, and gives what it counted and did last.
pub fn all(
    play: &Play<'_, '_>,
    settings: &Settings,
    sources: Vec<Source>,
    progress: &mut dyn FnMut(u64),
) -> Vec<(Tally, Vec<Op>)> {
    let actors = sources.into_iter().enumerate();
    let actors = actors.map(|(n, source)| move || one(play, settings, n, source));
    play.turns.run(actors.collect(), &mut || {
        let done = play.done.load(Ordering::Relaxed);
        progress(done);
        done
    })
}

fn one(play: &Play<'_, '_>, settings: &Settings, n: usize, source: Source) -> (Tally, Vec<Op>) {
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

/// Does one operation after another, and keeps the last ones.
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
