//! Hooks of the host that unwind: at the n-th call, for every n, in every operation. After that the
//! MMU goes on: nothing was freed early, nothing is stuck, and every table page comes back.

#![allow(missing_docs, reason = "a test")]

mod support;

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use support::hooked::{Hooked, Hooks};
use support::{Frames, backed, enter, fault_at, linear, npt, pages, range};
use vmmu::addr::{Gfn, Gpa, Level, Pfn};
use vmmu::check::{Invariant, Witness};
use vmmu::entry::Access;
use vmmu::host::{
    Backing, Event, FrameQuery, GuestMemory, GuestPage, Resolution, VcpuId, Wait, WaitFor,
};
use vmmu::slot::{AddressSpace, SlotId};
use vmmu::{AccessFailure, Busy, Config, Mmu, Outcome, Processor, Progress, Role, VcpuMmu, Worker};

std::thread_local! {
    /// Calls of hooks on this thread until one unwinds; 0: none will.
    static LEFT: Cell<u64> = const { Cell::new(0) };
}

/// What the hook unwinds with.
struct Unwound;

fn hook() {
    match LEFT.get() {
        0 => {}
        1 => {
            LEFT.set(0);
            std::panic::resume_unwind(Box::new(Unwound));
        }
        left => LEFT.set(left - 1),
    }
}

/// Counts every hook of the host.
#[derive(Debug, Default)]
struct Counted;

impl Hooks for Counted {
    fn taking(&self) {
        hook();
    }

    fn released(&self) {
        hook();
    }

    fn kick(&self, _: VcpuId) {
        hook();
    }

    fn wait(&self, wait: Wait) {
        hook();
        // Nothing here changes pages but the thread that asks.
        assert!(wait.on != WaitFor::PageChange || wait.asked < 1000, "waits for ever: {wait:?}");
        thread::yield_now();
    }

    fn here(&self) -> Option<u32> {
        hook();
        None
    }

    fn event(&self, _: Event) {
        hook();
    }
}

type Host = Hooked<Counted>;

struct Memory(Frames);

// SAFETY: as the tests' frames.
unsafe impl Backing for Memory {
    fn find(&self, query: &FrameQuery) -> Resolution {
        hook();
        self.0.find(query)
    }
}

// SAFETY: as the tests' frames.
unsafe impl GuestMemory for Memory {
    fn bytes(&self, pfn: Pfn) -> Option<std::ptr::NonNull<GuestPage>> {
        hook();
        self.0.bytes(pfn)
    }
}

struct World<'m> {
    mmu: &'m Mmu<Host>,
    memory: Memory,
    vcpu: VcpuMmu<&'m Mmu<Host>>,
    worker: Worker<&'m Mmu<Host>>,
}

type Operation = (&'static str, fn(&mut World<'_>));

const NORMAL: AddressSpace = AddressSpace::Normal;

/// Every operation that calls a hook, on a world in which pages are mapped and a vCPU of another
/// thread is in the guest now and then.
const OPERATIONS: &[Operation] = &[
    ("reserve", |world| {
        let _ = world.worker.reserve(20);
    }),
    ("load a root", |world| {
        world.vcpu.set_role(Role { flavour: 1, ..Role::PLAIN });
        let _ = world.vcpu.load_root();
    }),
    ("enter", |world| {
        world.vcpu.load_root().unwrap();
        drop(world.vcpu.before_enter(Processor(0)));
    }),
    ("fault, no table", |world| {
        let _ = world.vcpu.handle_fault(&world.memory, fault_at(0x4_0000, Access::WRITE));
    }),
    ("fault, table", |world| {
        let _ = world.vcpu.handle_fault(&world.memory, fault_at(9, Access::WRITE));
    }),
    ("fault on a device", |world| {
        let _ = world.vcpu.handle_fault(&world.memory, fault_at(0x900_0000, Access::READ));
    }),
    ("create", |world| {
        let _ = world.worker.create_slot(&backed(9, range(0x20_0000, 8)));
    }),
    ("create a linear one", |world| {
        let _ = world.worker.create_slot(&linear(9, range(0x20_0000, 8), 0x50_0000));
    }),
    ("delete", |world| {
        let _ = world.worker.delete_slot(SlotId(1));
    }),
    ("delete in steps", |world| {
        let Ok(mut deletion) = world.worker.begin_delete(SlotId(1)) else { return };
        while world.worker.delete_some(&mut deletion, 1) == Progress::More {}
    }),
    ("move", |world| {
        let _ = world.worker.move_slot(SlotId(1), Gfn(0x10_0000));
    }),
    ("limit", |world| {
        let _ = world.worker.limit_slot(SlotId(2), Level::Size4K);
    }),
    ("zap", |world| world.worker.zap(NORMAL, range(0, 0x400))),
    ("zap in steps", |world| {
        let mut zap = world.worker.begin_zap(NORMAL, range(0, 0x1000));
        while world.worker.zap_some(&mut zap, 1) == Progress::More {}
    }),
    ("zap all", |world| world.worker.zap_all()),
    ("drain in steps", |world| {
        let mut drain = world.worker.invalidate_roots();
        while world.worker.drain(&mut drain, 1) == Progress::More {}
    }),
    ("invalidate, held", |world| drop(world.mmu.invalidate_range(pages(3, 1)))),
    ("invalidate, named", |world| {
        world.mmu.invalidate_begin(pages(3, 2));
        world.mmu.invalidate_end(pages(3, 2)).unwrap();
    }),
    ("invalidate a block", |world| drop(world.mmu.invalidate_range(pages(0x1234, 1)))),
    ("read and write", |world| {
        let _ = world.worker.write(&world.memory, NORMAL, Gpa(0x3ffc), &[1; 8]);
        let _ = world.worker.read(&world.memory, NORMAL, Gpa(0x3ffc), &mut [0; 8]);
    }),
    ("drop a worker with a stock", |world| {
        let mut worker = world.mmu.worker().unwrap();
        LEFT.set(LEFT.get() + 20 * u64::from(LEFT.get() > 0));
        worker.reserve(16).unwrap();
        drop(worker);
    }),
];

/// Everything is used once more, and all of it must succeed.
fn run_on(world: &mut World<'_>) {
    let World { mmu, memory, vcpu, worker } = world;
    vcpu.set_role(Role::PLAIN);
    // Before anybody changes slots, which would bring what was begun to its end.
    for gfn in [9, 0x1234, 0x4_0000, 0x10_0000, 0x20_0000, 0x900_0000] {
        let outcome = vcpu.handle_fault(memory, fault_at(gfn, Access::WRITE));
        let expected = [Outcome::Spurious, Outcome::Emulate, Outcome::Busy(Busy::SlotDying)];
        assert!(
            matches!(outcome, Outcome::Fixed(_)) || expected.contains(&outcome),
            "{gfn:#x}: {outcome:?}"
        );
        match worker.read(memory, NORMAL, Gfn(gfn).gpa(), &mut [0; 8]).map_err(|error| error.why) {
            Ok(()) | Err(AccessFailure::NoMemory | AccessFailure::Busy(Busy::SlotDying)) => {}
            other => panic!("{gfn:#x}: {other:?}"),
        }
    }
    worker.zap_all();
    for id in [1, 2, 9] {
        let _ = worker.delete_slot(SlotId(id));
        worker.create_slot(&backed(id, range(0x100_0000 * u64::from(id), 0x1000))).unwrap();
    }
    for id in [1, 2, 9] {
        for page in [0, 3, 0x200] {
            let gfn = 0x100_0000 * id + page;
            let outcome = vcpu.handle_fault(memory, fault_at(gfn, Access::WRITE));
            assert!(
                matches!(outcome, Outcome::Fixed(_) | Outcome::Spurious),
                "{gfn:#x}: {outcome:?}"
            );
        }
        drop(mmu.invalidate_range(pages(0x100_0000 * id + 3, 1)));
        worker.delete_slot(SlotId(id as u32)).unwrap();
    }
    assert_eq!(mmu.stats().leaves, [0; 3]);
    enter(vcpu).after_exit();
}

/// Stops the other thread, also when the test fails.
struct Stops<'s>(&'s AtomicBool);

impl Drop for Stops<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Lets the n-th hook of one operation unwind. `false`: it calls fewer.
fn unwinds(operation: &Operation, n: u64) -> bool {
    let config = Config { workers: 4, ..Config::new(npt(), 2) };
    let mut mmu = Mmu::new(Host::default(), &config).unwrap();
    let did = {
        let mmu = &mmu;
        let (mut vcpu, mut worker) = (mmu.vcpu(VcpuId(0)).unwrap(), mmu.worker().unwrap());
        let memory = Memory(Frames::new(Level::Size4K));
        let blocks = Frames::new(Level::Size2M);
        worker.create_slot(&backed(1, range(0, 0x1000))).unwrap();
        worker.create_slot(&backed(2, range(0x1000, 0x1000))).unwrap();
        for gfn in [0, 3, 4, 0x200, 0x403, 0x9ff] {
            let _ = vcpu.handle_fault(&memory, fault_at(gfn, Access::WRITE));
        }
        let _ = vcpu.handle_fault(&blocks, fault_at(0x1234, Access::WRITE));
        let _ = vcpu.handle_fault(&memory, fault_at(0x800_0000, Access::READ));
        let mut world = World { mmu, memory, vcpu, worker };
        // A vCPU that flushes have to kick.
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut other = mmu.vcpu(VcpuId(1)).unwrap();
                while !stop.load(Ordering::Relaxed) {
                    if other.load_root().is_ok()
                        && let Ok(inside) = other.before_enter(Processor(1))
                    {
                        thread::yield_now();
                        inside.after_exit();
                    }
                }
            });
            let _stops = Stops(&stop);
            LEFT.set(n);
            let ended = catch_unwind(AssertUnwindSafe(|| operation.1(&mut world)));
            let did = LEFT.replace(0) == 0;
            assert_eq!(did, ended.is_err(), "{}: an unwinding was swallowed", operation.0);
            run_on(&mut world);
            did
        })
    };
    let checked = mmu.check(|_, _| Witness::Unknown).unwrap();
    for violation in &checked.violations {
        // A debt whose flush did not end is counted as leaked, and nothing else is wrong.
        assert_eq!(
            violation.invariant,
            Invariant::DebtsSettled,
            "{}, {n}: {violation}",
            operation.0
        );
    }
    assert_eq!(mmu.broken(), None);
    assert_eq!(mmu.teardown().pages.in_use(), 0, "{}, {n}: table pages lost", operation.0);
    did
}

#[test]
fn hooks_that_unwind_leave_nothing_stuck_lost_or_freed_early() {
    for operation in OPERATIONS {
        let mut n = 1;
        while unwinds(operation, n) {
            n += 1;
            assert!(n < 2000, "{} never ends", operation.0);
        }
        assert!(n > 1, "{} calls no hook", operation.0);
    }
}
