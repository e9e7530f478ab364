//! Every wait of the library lets others run through the host's hook, and through nothing else: two
//! threads share one baton, as two threads share one processor without preemption, and only the
//! hook passes it on. A wait that spun by itself would never end here.

#![allow(missing_docs, reason = "a test")]
#![cfg(feature = "protocol")]

mod support;

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex};
use std::thread;
use std::time::Duration;

use support::hooked::{Hooked, Hooks};
use support::{Frames, backed, enter, fault_at, linear, npt, pages, range};
use vmmu::addr::{Gpa, Level};
use vmmu::entry::Access;
use vmmu::host::{Event, VcpuId, Wait, WaitFor};
use vmmu::slot::AddressSpace;
use vmmu::{Config, LoadError, Mmu, Outcome, Progress, Role};

/// Who runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Thread {
    A,
    B,
}

/// Only the thread that has it runs.
#[derive(Debug)]
struct Baton {
    holder: Mutex<Thread>,
    passed: Condvar,
}

impl Baton {
    fn take(&self, me: Thread) {
        let holder = self.holder.lock().unwrap();
        let patience = Duration::from_secs(120);
        let (_holder, ended) =
            self.passed.wait_timeout_while(holder, patience, |holder| *holder != me).unwrap();
        assert!(!ended.timed_out(), "{me:?} never ran again: somebody waits without the hook");
    }

    fn pass(&self, to: Thread) {
        *self.holder.lock().unwrap() = to;
        self.passed.notify_all();
    }
}

/// Two threads with the baton.
#[derive(Debug)]
struct Turns {
    baton: Baton,
    /// The largest `asked` of each kind of wait, plus one.
    seen: Mutex<BTreeMap<String, u64>>,
    /// In whose events the baton is passed on, as if the thread were preempted there.
    preempted: Mutex<Option<(Thread, Event)>>,
}

std::thread_local! {
    static ME: std::cell::Cell<Thread> = const { std::cell::Cell::new(Thread::A) };
}

fn other(me: Thread) -> Thread {
    if me == Thread::A { Thread::B } else { Thread::A }
}

type Host = Hooked<Turns>;

impl Turns {
    fn new() -> Self {
        let baton = Baton { holder: Mutex::new(Thread::B), passed: Condvar::new() };
        Turns { baton, seen: Mutex::default(), preempted: Mutex::default() }
    }

    /// Lets the other thread run until it gives the baton back.
    fn step_aside(&self) {
        let me = ME.get();
        self.baton.pass(other(me));
        self.baton.take(me);
    }
}

impl Hooks for Turns {
    fn wait(&self, wait: Wait) {
        let mut seen = self.seen.lock().unwrap();
        let kind = format!("{:?}", wait.on);
        assert_eq!(wait.asked, seen.get(&kind).copied().unwrap_or(0), "counted from 0: {wait:?}");
        *seen.entry(kind).or_insert(0) += 1;
        drop(seen);
        self.step_aside();
    }

    fn event(&self, event: Event) {
        let mut preempted = self.preempted.lock().unwrap();
        if *preempted == Some((ME.get(), event)) {
            *preempted = None;
            drop(preempted);
            self.step_aside();
        }
    }
}

/// `b` runs first until it steps aside, then `a`, which must meet a wait of that kind.
fn meet(on: WaitFor, b: impl FnOnce(&Mmu<Host>) + Send, a: impl FnOnce(&Mmu<Host>) + Send) {
    let config = Config { notifiers: 1, workers: 4, ..Config::new(npt(), 2) };
    let mmu = Mmu::new(Host::new(Turns::new()), &config).unwrap();
    mmu.worker().unwrap().create_slot(&backed(0, range(0, 16))).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            ME.set(Thread::B);
            mmu.host().hooks.baton.take(Thread::B);
            b(&mmu);
            mmu.host().hooks.baton.pass(Thread::A);
        });
        scope.spawn(|| {
            ME.set(Thread::A);
            mmu.host().hooks.baton.take(Thread::A);
            a(&mmu);
            mmu.host().hooks.baton.pass(Thread::B);
        });
    });
    let seen = mmu.host().hooks.seen.lock().unwrap().clone();
    assert!(seen.contains_key(&format!("{on:?}")), "{on:?} was not waited for: {seen:?}");
}

/// Passes the baton on when this thread meets the next event of that kind.
fn preempt_at(mmu: &Mmu<Host>, event: Event) {
    *mmu.host().hooks.preempted.lock().unwrap() = Some((ME.get(), event));
}

#[test]
fn a_grace_period_lets_the_thread_run_that_is_in_a_section() {
    meet(
        WaitFor::GracePeriod,
        |mmu| {
            let mut participant = mmu.participant().unwrap();
            let section = participant.section();
            mmu.host().hooks.step_aside();
            drop(section);
        },
        |mmu| mmu.worker().unwrap().zap(AddressSpace::Normal, range(0, 1)),
    );
}

#[test]
fn a_flush_lets_the_vcpu_run_that_is_in_the_guest() {
    meet(
        WaitFor::Vcpu(VcpuId(0)),
        |mmu| {
            let mut vcpu = mmu.vcpu(VcpuId(0)).unwrap();
            let frames = Frames::new(Level::Size4K);
            let outcome = vcpu.handle_fault(&frames, fault_at(0, Access::READ));
            assert_eq!(outcome, Outcome::Fixed(Level::Size4K));
            let inside = enter(&mut vcpu);
            mmu.host().hooks.step_aside();
            inside.after_exit();
        },
        |mmu| mmu.invalidate_begin(pages(0, 1)),
    );
}

#[test]
fn a_change_of_slots_lets_the_thread_run_that_has_the_guard() {
    meet(
        WaitFor::SlotGuard,
        |mmu| {
            preempt_at(mmu, Event::GracePeriod);
            mmu.worker().unwrap().create_slot(&backed(1, range(0x100, 1))).unwrap();
        },
        |mmu| mmu.worker().unwrap().create_slot(&backed(2, range(0x200, 1))).unwrap(),
    );
}

#[test]
fn a_vcpu_without_a_place_for_its_root_lets_the_thread_run_that_drains_one() {
    meet(
        WaitFor::Drain,
        |mmu| {
            mmu.vcpu(VcpuId(0)).unwrap().load_root().unwrap();
            let mut worker = mmu.worker().unwrap();
            let mut drain = worker.invalidate_roots();
            // The grace period between the end of the root and the release of its table.
            preempt_at(mmu, Event::GracePeriod);
            assert_eq!(worker.drain(&mut drain, 64), Progress::Done);
        },
        |mmu| {
            let mut vcpu = mmu.vcpu(VcpuId(1)).unwrap();
            for flavour in 1..16 {
                vcpu.set_role(Role { flavour, ..Role::PLAIN });
                vcpu.load_root().unwrap();
            }
            vcpu.set_role(Role { flavour: 16, ..Role::PLAIN });
            let first = vcpu.load_root();
            assert!(matches!(first, Ok(()) | Err(LoadError::RootsBusy)), "{first:?}");
            vcpu.load_root().unwrap();
        },
    );
}

/// Of a drain in steps, a step that has waited does less of the rest.
#[test]
fn a_wait_for_a_drain_that_somebody_else_is_at_is_part_of_the_budget() {
    const BUDGET: u64 = 3;
    let begun = Mutex::new(None);
    meet(
        WaitFor::Drain,
        |mmu| {
            let frames = Frames::new(Level::Size4K);
            let (mut vcpu, mut worker) = (mmu.vcpu(VcpuId(0)).unwrap(), mmu.worker().unwrap());
            for flavour in 0..16 {
                vcpu.set_role(Role { flavour, ..Role::PLAIN });
                let outcome = vcpu.handle_fault(&frames, fault_at(0, Access::READ));
                assert_eq!(outcome, Outcome::Fixed(Level::Size4K));
            }
            *begun.lock().unwrap() = Some(worker.invalidate_roots());
            // There is no place for another root, so the vCPU empties one. Its tables are gone
            // when the grace period ends, and its place is not free yet.
            vcpu.set_role(Role { flavour: 16, ..Role::PLAIN });
            preempt_at(mmu, Event::GracePeriod);
            vcpu.load_root().unwrap();
        },
        |mmu| {
            let mut drain = begun.lock().unwrap().take().unwrap();
            let before = mmu.stats().tables;
            assert_eq!(mmu.worker().unwrap().drain(&mut drain, BUDGET), Progress::More);
            let waits = mmu.host().hooks.seen.lock().unwrap()[&format!("{:?}", WaitFor::Drain)];
            assert_eq!((waits, before - mmu.stats().tables), (1, BUDGET - 1));
        },
    );
}

/// Whoever has waited for another one's drain of a root does not know whether that came to its end.
#[test]
fn a_drain_of_a_root_that_somebody_else_is_at_is_not_done() {
    let begun = Mutex::new(None);
    meet(
        WaitFor::Drain,
        |mmu| {
            let mut vcpu = mmu.vcpu(VcpuId(0)).unwrap();
            for flavour in 0..16 {
                vcpu.set_role(Role { flavour, ..Role::PLAIN });
                vcpu.load_root().unwrap();
            }
            *begun.lock().unwrap() = Some(mmu.worker().unwrap().invalidate_roots());
            // As above: the vCPU is at the first of them.
            vcpu.set_role(Role { flavour: 16, ..Role::PLAIN });
            preempt_at(mmu, Event::GracePeriod);
            vcpu.load_root().unwrap();
        },
        |mmu| {
            let mut drain = begun.lock().unwrap().take().unwrap();
            let mut worker = mmu.worker().unwrap();
            assert_eq!(worker.drain(&mut drain, u64::MAX), Progress::More);
            assert_eq!(worker.drain(&mut drain, u64::MAX), Progress::Done);
        },
    );
}

#[test]
fn reading_a_slot_waits_for_nobody() {
    let config = Config::new(npt(), 1);
    let mmu = Mmu::new(Host::new(Turns::new()), &config).unwrap();
    mmu.worker().unwrap().create_slot(&backed(0, range(0, 16))).unwrap();
    let mut changing = mmu.participant().unwrap();
    let guard = changing.slots();
    let info = mmu.worker().unwrap().slot(vmmu::slot::SlotId(0)).unwrap();
    assert_eq!(info.spec.range, range(0, 16));
    drop(guard);
}

#[test]
fn a_notifier_lets_the_notifier_run_that_has_the_only_place() {
    meet(
        WaitFor::OwnParticipant,
        |mmu| {
            preempt_at(mmu, Event::GracePeriod);
            mmu.invalidate_begin(pages(1, 1));
        },
        |mmu| {
            // Who may not block is told so, and nothing has begun.
            assert!(mmu.try_invalidate_begin(pages(2, 1)).is_err());
            assert!(mmu.invalidate_end(pages(2, 1)).is_err());
            mmu.invalidate_begin(pages(2, 1));
        },
    );
}

#[test]
fn a_read_of_a_slot_that_is_coming_lets_the_thread_run_that_makes_it() {
    meet(
        WaitFor::PageChange,
        |mmu| {
            let mut worker = mmu.worker().unwrap();
            // The first grace period makes room, the second follows the announcement.
            worker.create_slot(&backed(1, range(0x100, 1))).unwrap();
            worker.delete_slot(vmmu::slot::SlotId(1)).unwrap();
            preempt_at(mmu, Event::GracePeriod);
            worker.create_slot(&backed(1, range(0x100, 1))).unwrap();
        },
        |mmu| {
            let frames = Frames::new(Level::Size4K);
            let mut word = [0xff; 8];
            let mut worker = mmu.worker().unwrap();
            worker.read(&frames, AddressSpace::Normal, Gpa(0x100 << 12), &mut word).unwrap();
            assert_eq!(word, [0; 8]);
        },
    );
}

#[test]
fn a_fault_in_a_slot_that_is_coming_lets_the_thread_run_that_makes_it() {
    for slot in [backed(1, range(0x100, 1)), linear(1, range(0x100, 1), 0x5000)] {
        meet(
            WaitFor::PageChange,
            |mmu| {
                let mut worker = mmu.worker().unwrap();
                worker.create_slot(&slot).unwrap();
                worker.delete_slot(vmmu::slot::SlotId(1)).unwrap();
                preempt_at(mmu, Event::GracePeriod);
                worker.create_slot(&slot).unwrap();
            },
            |mmu| {
                let mut vcpu = mmu.vcpu(VcpuId(1)).unwrap();
                let frames = Frames::new(Level::Size4K);
                let outcome = vcpu.handle_fault(&frames, fault_at(0x100, Access::READ));
                assert_eq!(outcome, Outcome::Fixed(Level::Size4K));
            },
        );
    }
}

/// What the tests above cannot meet, because nothing of the host is called while it lasts, must not
/// spin either.
#[test]
fn nothing_spins_but_the_owner_of_a_detached_table() {
    fn visit(folder: &std::path::Path, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                visit(&path, found);
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
            let spins = |line: &&str| {
                ["spin_loop()", ".lock()", "yield_now()"].iter().any(|word| line.contains(word))
            };
            found.extend(code.filter(spins).map(|line| {
                let name = path.file_name().unwrap().to_string_lossy().into_owned();
                format!("{name}: {}", line.trim())
            }));
        }
    }
    let mut found = Vec::new();
    visit(std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src")), &mut found);
    found.retain(|line| {
        // The shim of the model checkers, the hook's own default, and switched-in defects.
        !["sync.rs", "watched.rs", "cpus.rs", "page.rs", "insert.rs"]
            .iter()
            .any(|file| line.starts_with(file))
    });
    let spins = found.iter().filter(|line| !line.starts_with("entry.rs")).collect::<Vec<_>>();
    assert!(spins.is_empty(), "a wait without the host's hook: {spins:?}");
}
