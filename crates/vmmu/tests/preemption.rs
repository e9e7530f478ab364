//! The two functions by which a host holds preemption off: around every section, around nothing else,
//! and balanced, in every operation.
#![cfg(all(feature = "protocol", not(any(loom, shuttle))))]

mod support;

use std::cell::{Cell, RefCell};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use support::{Frames, TestHost, backed, fault_at, linear, npt, pages, range};
use vmmu::addr::{Gfn, Gpa, Level, Pfn};
use vmmu::entry::Access;
use vmmu::host::{
    Backing, Cpus, Event, FrameQuery, GuestMemory, GuestPage, Observer, Placement, Preemption,
    Resolution, TablePage, TablePages, VcpuId, Wait,
};
use vmmu::slot::{AddressSpace, Mutability, SlotId, SlotSpec};
use vmmu::{Config, FaultStep, Mmu, Outcome, Processor, Progress, Role, VcpuMmu, Worker};

thread_local! {
    /// How often preemption is held off on this thread.
    static DEPTH: Cell<u64> = const { Cell::new(0) };
    /// How often it was before the operation.
    static BASE: Cell<u64> = const { Cell::new(0) };
    /// How often it has been held off.
    static HELD: Cell<u64> = const { Cell::new(0) };
    /// Hooks called.
    static HOOKS: Cell<u64> = const { Cell::new(0) };
    /// The MMU that this thread alone uses, so that no section is open but its own.
    static MMU: RefCell<Weak<Mmu<Host>>> = const { RefCell::new(Weak::new()) };
}

/// No section is open, as far as this thread can know.
fn no_section_is_open(when: &str) {
    MMU.with_borrow(|mmu| {
        let open = mmu.upgrade().map_or(0, |mmu| mmu.sections().1);
        assert_eq!(open, 0, "a section is open {when}");
    });
}

fn disable() {
    no_section_is_open("before preemption is held off");
    DEPTH.set(DEPTH.get() + 1);
    HELD.set(HELD.get() + 1);
}

fn enable() {
    no_section_is_open("when preemption is let go");
    assert!(DEPTH.get() > BASE.get(), "let go of what the library does not hold");
    DEPTH.set(DEPTH.get() - 1);
}

/// Every other hook is called while the library holds nothing off.
fn at_rest(hook: &str) {
    HOOKS.set(HOOKS.get() + 1);
    assert_eq!(DEPTH.get(), BASE.get(), "{hook} was called while preemption was held off");
    no_section_is_open(hook);
}

#[derive(Debug, Default)]
struct Host {
    pages: TestHost,
    kicked: AtomicBool,
}

// SAFETY: as for the host within.
unsafe impl TablePages for Host {
    fn window(&self) -> u64 {
        at_rest("window");
        self.pages.window()
    }

    fn take(&self, placement: Placement) -> Option<TablePage> {
        at_rest("take");
        self.pages.take(placement)
    }

    fn release(&self, page: Pfn) {
        at_rest("release");
        self.pages.release(page);
    }
}

impl Cpus for Host {
    const PREEMPTION: Option<Preemption> = Some(Preemption { disable, enable });

    fn kick(&self, _: VcpuId) {
        at_rest("kick");
        self.kicked.store(true, Ordering::SeqCst);
    }

    fn wait(&self, _: Wait) {
        at_rest("wait");
        std::thread::yield_now();
    }

    fn here(&self) -> Option<u32> {
        at_rest("here");
        None
    }
}

impl Observer for Host {
    fn event(&self, _: Event) {
        at_rest("event");
    }
}

/// Frames that are asked for outside of sections.
struct Calm(Frames);

// SAFETY: as the frames within.
unsafe impl Backing for Calm {
    fn find(&self, query: &FrameQuery) -> Resolution {
        at_rest("find");
        self.0.find(query)
    }
}

// SAFETY: as the frames within.
unsafe impl GuestMemory for Calm {
    fn bytes(&self, pfn: Pfn) -> Option<NonNull<GuestPage>> {
        at_rest("bytes");
        self.0.bytes(pfn)
    }
}

struct Write;

impl std::fmt::Write for Write {
    fn write_str(&mut self, _: &str) -> std::fmt::Result {
        at_rest("the writer of a dump");
        Ok(())
    }
}

struct World {
    mmu: Arc<Mmu<Host>>,
    worker: Worker<Arc<Mmu<Host>>>,
    vcpu: VcpuMmu<Arc<Mmu<Host>>>,
    frames: Calm,
}

const SPACE: AddressSpace = AddressSpace::Normal;
const LINEAR: u64 = 0x1000;
const MMIO: u64 = 0x8000;

impl World {
    fn new() -> World {
        let mmu = Mmu::new(Host::default(), &Config::new(npt(), 2)).unwrap_or_else(|_| panic!());
        let mmu = Arc::new(mmu);
        MMU.set(Arc::downgrade(&mmu));
        let mut worker = Worker::new(Arc::clone(&mmu)).unwrap();
        worker.create_slot(&backed(1, range(0, 0x800))).unwrap();
        worker.create_slot(&linear(2, range(LINEAR, 0x400), 0x5000)).unwrap();
        let rom = SlotSpec { mutability: Mutability::ReadOnly, ..backed(3, range(0x2000, 1)) };
        worker.create_slot(&rom).unwrap();
        let vcpu = VcpuMmu::new(Arc::clone(&mmu), VcpuId(0)).unwrap();
        let mut world = World { mmu, worker, vcpu, frames: Calm(Frames::new(Level::Size2M)) };
        // A huge leaf, a small one, one of the linear slot, and an MMIO entry.
        world.fault(3, Access::WRITE);
        *world.frames.0.level.lock().unwrap() = Level::Size4K;
        for gfn in [0x203, LINEAR, MMIO] {
            world.fault(gfn, Access::READ);
        }
        world
    }

    fn fault(&mut self, gfn: u64, access: Access) {
        let _outcome = self.vcpu.handle_fault(&self.frames, fault_at(gfn, access));
    }
}

/// Every operation; whether it opens a section.
type Operation = (&'static str, bool, fn(&mut World));

const OPERATIONS: &[Operation] = &[
    ("reserve", false, |w| w.worker.reserve(40).unwrap()),
    ("load_root", true, |w| {
        w.vcpu.set_role(Role { flavour: 1, ..Role::PLAIN });
        w.vcpu.load_root().unwrap();
    }),
    ("enter and leave", false, |w| w.vcpu.before_enter(Processor(0)).unwrap().after_exit()),
    ("a fault, backed", true, |w| w.fault(0x404, Access::WRITE)),
    ("a fault, linear", true, |w| w.fault(LINEAR + 0x200, Access::WRITE)),
    ("a fault, MMIO", true, |w| w.fault(MMIO + 1, Access::WRITE)),
    ("a fault, MMIO remembered", true, |w| w.fault(MMIO, Access::WRITE)),
    ("a fault, spurious", true, |w| w.fault(3, Access::READ)),
    ("a fault, read-only", true, |w| w.fault(0x2000, Access::WRITE)),
    ("a fault beyond the tables", false, |w| w.fault(1 << 36, Access::WRITE)),
    ("a fault, a hole", true, |w| {
        w.frames.0.answer(0x500, Resolution::Hole);
        w.fault(0x500, Access::WRITE);
    }),
    ("a fault without a page", true, |w| {
        w.mmu.host().pages.budget.set(0);
        let mut vcpu = VcpuMmu::new(Arc::clone(&w.mmu), VcpuId(1)).unwrap();
        vcpu.set_role(Role { flavour: 2, ..Role::PLAIN });
        let outcome = vcpu.handle_fault(&w.frames, fault_at(0x404, Access::READ));
        assert_eq!(outcome, Outcome::OutOfMemory);
        w.mmu.host().pages.budget.set(u64::MAX);
    }),
    ("a fault that moves a page", true, |w| {
        w.frames.0.move_page(0x203, 0x9_0000);
        w.fault(0x203, Access::WRITE);
    }),
    ("a fault in two steps", true, |w| {
        w.vcpu.reserve(0).unwrap();
        w.worker.reserve(0).unwrap();
        let FaultStep::Resolve(parked) = w.vcpu.begin_fault(fault_at(0x405, Access::READ)) else {
            panic!("no request")
        };
        let Resolution::Frame(found) = w.frames.find(&parked.query()) else { panic!("no frame") };
        let answer = parked.query().answer(found);
        let Ok(outcome) = w.worker.complete_parked(parked, answer) else { panic!("not completed") };
        assert_eq!(outcome, Outcome::Fixed(Level::Size4K));
    }),
    ("a fault in two steps, dropped", true, |w| {
        drop(w.vcpu.begin_fault(fault_at(0x405, Access::READ)));
    }),
    ("create_slot", false, |w| w.worker.create_slot(&backed(9, range(0x9000, 1))).unwrap()),
    ("create_slot, refused", false, |w| {
        w.worker.create_slot(&backed(9, range(0, 1))).unwrap_err();
    }),
    ("delete_slot", true, |w| w.worker.delete_slot(SlotId(1)).unwrap()),
    ("delete_some", true, |w| {
        let mut deletion = w.worker.begin_delete(SlotId(1)).unwrap();
        while w.worker.delete_some(&mut deletion, 1) == Progress::More {}
    }),
    ("move_slot", true, |w| w.worker.move_slot(SlotId(1), Gfn(0xa000)).unwrap()),
    ("limit_slot", true, |w| w.worker.limit_slot(SlotId(1), Level::Size4K).unwrap()),
    ("slot", true, |w| assert!(w.worker.slot(SlotId(1)).is_ok())),
    ("zap", true, |w| w.worker.zap(SPACE, range(0, 0x800))),
    ("zap_some", true, |w| {
        let mut zap = w.worker.begin_zap(SPACE, range(0, 0x800));
        while w.worker.zap_some(&mut zap, 1) == Progress::More {}
    }),
    ("zap_all", true, |w| w.worker.zap_all()),
    ("invalidate_roots and drain", true, |w| {
        let mut drain = w.worker.invalidate_roots();
        while w.worker.drain(&mut drain, 1) == Progress::More {}
    }),
    ("invalidate_range", true, |w| drop(w.mmu.invalidate_range(pages(3, 1)))),
    ("invalidate_begin and end", true, |w| {
        w.mmu.invalidate_begin(pages(3, 1));
        w.mmu.invalidate_end(pages(3, 1)).unwrap();
    }),
    ("try_invalidate_begin", true, |w| {
        w.mmu.try_invalidate_begin(pages(3, 1)).unwrap();
        w.worker.invalidate_end(pages(3, 1)).unwrap();
    }),
    ("a worker's invalidate_begin", true, |w| {
        w.worker.invalidate_begin(pages(3, 1));
        w.worker.invalidate_end(pages(3, 1)).unwrap();
    }),
    ("read", true, |w| {
        w.worker.read(&w.frames, SPACE, Gpa(0x3ff8), &mut [0; 16]).unwrap();
        w.worker.read(&w.frames, SPACE, Gpa(LINEAR << 12), &mut [0; 16]).unwrap();
    }),
    ("write", true, |w| w.vcpu.write(&w.frames, Gpa(0x3ff8), &[0; 16]).unwrap()),
    ("compare_exchange", true, |w| {
        let _word = w.vcpu.compare_exchange(&w.frames, Gpa(0x3ff8), 0u64, 1).unwrap();
    }),
    ("translate", true, |w| assert!(w.worker.translate(Role::PLAIN, Gpa(0x3000)).is_some())),
    ("dump", true, |w| w.worker.dump(&mut Write).unwrap()),
    ("stats", false, |w| assert_eq!(w.mmu.stats().roots, 1)),
    ("handles", false, |w| drop(Worker::new(Arc::clone(&w.mmu)).unwrap())),
];

#[test]
fn preemption_is_held_off_around_every_section_and_around_nothing_else() {
    // The second time the caller holds it off already, as some context of a kernel may.
    for base in [0, 1, 2] {
        DEPTH.set(base);
        BASE.set(base);
        for (name, has_sections, operation) in OPERATIONS {
            let mut world = World::new();
            let (before, _) = world.mmu.sections();
            HELD.set(0);
            operation(&mut world);
            let (after, open) = world.mmu.sections();
            assert_eq!(DEPTH.get(), base, "{name} is not balanced");
            assert_eq!((HELD.get(), open), (after - before, 0), "{name}: held off, and sections");
            assert_eq!(after > before, *has_sections, "{name}");
            drop((world.worker, world.vcpu));
            let mmu = world.mmu;
            let host = Mmu::teardown_shared(mmu).unwrap_or_else(|_| panic!("shared"));
            assert_eq!(host.pages.in_use(), 0, "{name}");
            assert_eq!(DEPTH.get(), base, "the end after {name} is not balanced");
        }
    }
    assert!(HOOKS.get() > 1000, "the hooks were called");
}

/// The same beside a vCPU that has to be interrupted and waited for.
#[test]
fn vcpus_are_interrupted_and_waited_for_while_nothing_is_held_off() {
    let mut world = World::new();
    // Two threads use the MMU, so what is open may be the other one's.
    MMU.take();
    let World { mmu, worker, vcpu, .. } = &mut world;
    let (before, hooks) = (mmu.sections().0, HOOKS.get());
    HELD.set(0);
    vcpu.load_root().unwrap();
    let entered = vcpu.before_enter(Processor(0)).unwrap().keep();
    std::thread::scope(|scope| {
        let mmu = &*mmu;
        scope.spawn(move || {
            while !mmu.host().kicked.load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
            for _ in 0..100 {
                std::thread::yield_now();
            }
            vcpu.leave(entered);
        });
        worker.zap(SPACE, range(3, 1));
    });
    assert_eq!((DEPTH.get(), HELD.get()), (0, mmu.sections().0 - before));
    assert!(HOOKS.get() > hooks);
}
