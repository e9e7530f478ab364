//! Every allocation of the library may fail, of the heap and of table pages: the n-th for every n,
//! in a whole life and in every operation by itself. A failed operation says so and has changed
//! nothing. A failure of the heap that was not asked for fallibly would abort this process.

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::{Cell, UnsafeCell};
use std::ptr::NonNull;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use support::{backed, fault_at, linear, npt, range};
use vmmu::addr::{Gfn, Gpa, Level, Pfn};
use vmmu::check::Witness;
use vmmu::entry::{Access, MemoryType};
use vmmu::host::{
    Backing, Contents, Cpus, FrameQuery, GuestMemory, GuestPage, HostFrame, Observer, Placement,
    Resolution, TablePage, TablePages, VcpuId,
};
use vmmu::slot::{AddressSpace, SlotId, SlotInfo, SlotSpec};
use vmmu::{
    Broken, Config, HostRange, MissingPages, Mmu, Processor, Progress, Role, Translation, VcpuMmu,
    Worker,
};
use vmmu::{FaultStep, Outcome};

thread_local! {
    /// Allocations of this thread that still succeed.
    static LEFT: Cell<u64> = const { Cell::new(u64::MAX) };
    /// Whether one was refused.
    static REFUSED: Cell<bool> = const { Cell::new(false) };
}

/// The system's, until a thread has used up what it was allowed.
struct Failing;

// SAFETY: memory is the system's; to refuse is always allowed.
unsafe impl GlobalAlloc for Failing {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let is_left = LEFT.with(|left| match left.get() {
            0 => {
                REFUSED.set(true);
                false
            }
            u64::MAX => true,
            n => {
                left.set(n - 1);
                true
            }
        });
        // SAFETY: as for the caller.
        if is_left { unsafe { System.alloc(layout) } } else { std::ptr::null_mut() }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as for the caller.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Failing = Failing;

/// Runs `f` with `n` allocations, and says whether they were enough.
fn with_allocations<T>(n: u64, f: impl FnOnce() -> T) -> (T, bool) {
    REFUSED.set(false);
    LEFT.set(n);
    let result = f();
    LEFT.set(u64::MAX);
    (result, !REFUSED.get())
}

const PAGES: usize = 64;

#[repr(C, align(4096))]
struct Page(UnsafeCell<[u64; 512]>);

// SAFETY: a page is only touched by the library, through atomics.
unsafe impl Sync for Page {}

/// The table pages of one host. They are the system's: no thread's allowance is spent on them.
#[derive(Debug)]
struct Pages(NonNull<Page>);

impl Pages {
    const LAYOUT: Layout = Layout::new::<[Page; PAGES]>();
}

impl Default for Pages {
    fn default() -> Self {
        // SAFETY: the layout is not empty.
        let pages = unsafe { System.alloc(Self::LAYOUT) };
        Pages(NonNull::new(pages.cast()).expect("memory"))
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout; the MMU that used them is gone.
        unsafe { System.dealloc(self.0.as_ptr().cast(), Self::LAYOUT) }
    }
}

// SAFETY: as for a page.
unsafe impl Send for Pages {}
// SAFETY: as for a page.
unsafe impl Sync for Pages {}

/// A host that allocates nothing. Tests run side by side, so each has pages of its own.
#[derive(Debug, Default)]
struct Frugal {
    pages: Pages,
    /// One bit for each page that is out.
    out: AtomicU64,
    /// Pages that will be refused after so many more, if that has been said.
    left: Mutex<Option<u64>>,
    refused: AtomicBool,
}

impl Frugal {
    /// Whether one more page may be given.
    fn spend(&self) -> bool {
        let mut left = self.left.lock().unwrap();
        match left.as_mut() {
            None => true,
            Some(0) => {
                self.refused.store(true, Ordering::SeqCst);
                false
            }
            Some(n) => {
                *n -= 1;
                true
            }
        }
    }
}

const FIRST: u64 = 0x10;

// SAFETY: pages of the system's, exposed, each given to one at a time.
unsafe impl TablePages for Frugal {
    fn window(&self) -> u64 {
        let address = self.pages.0.expose_provenance().get() as u64;
        address.wrapping_sub(FIRST << 12)
    }

    fn take(&self, _: Placement) -> Option<TablePage> {
        if !self.spend() {
            return None;
        }
        let free = |out: u64| (out != u64::MAX).then(|| out | 1 << out.trailing_ones());
        let out = self.out.fetch_update(Ordering::SeqCst, Ordering::SeqCst, free).ok()?;
        let pfn = Pfn(FIRST + u64::from(out.trailing_ones()));
        Some(TablePage { pfn, contents: Contents::Unknown })
    }

    fn release(&self, page: Pfn) {
        self.out.fetch_and(!(1 << (page.0 - FIRST)), Ordering::SeqCst);
    }
}

impl Cpus for Frugal {
    fn kick(&self, _: VcpuId) {}
}

impl Observer for Frugal {}

/// Every page is in the frame of its number.
struct Identity;

// SAFETY: what is named is memory of the test.
unsafe impl Backing for Identity {
    fn find(&self, query: &FrameQuery) -> Resolution {
        let (access, memory) = (Access::all(), MemoryType::WriteBack);
        Resolution::Frame(HostFrame { pfn: Pfn(query.page), level: Level::Size2M, access, memory })
    }
}

// SAFETY: aligned pages of the test, which live as long as it.
unsafe impl GuestMemory for Identity {
    fn bytes(&self, _: Pfn) -> Option<NonNull<GuestPage>> {
        Some(NonNull::from(&RAM.0).cast())
    }
}

/// The same, for reading and fetching only.
struct ForReading;

// SAFETY: what is named is memory of the test.
unsafe impl Backing for ForReading {
    fn find(&self, query: &FrameQuery) -> Resolution {
        let (access, memory) = (Access::READ | Access::EXEC, MemoryType::WriteBack);
        Resolution::Frame(HostFrame { pfn: Pfn(query.page), level: Level::Size2M, access, memory })
    }
}

/// The same page by page.
struct PageByPage;

// SAFETY: what is named is memory of the test.
unsafe impl Backing for PageByPage {
    fn find(&self, query: &FrameQuery) -> Resolution {
        let (access, memory) = (Access::all(), MemoryType::WriteBack);
        Resolution::Frame(HostFrame { pfn: Pfn(query.page), level: Level::Size4K, access, memory })
    }
}

/// What every page of the guest's memory shows.
static RAM: Page = Page(UnsafeCell::new([0; 512]));

/// Where nobody reads.
struct Nowhere;

impl std::fmt::Write for Nowhere {
    fn write_str(&mut self, _: &str) -> std::fmt::Result {
        Ok(())
    }
}

/// A life: what can fail for want of memory says so, and what cannot fail does not.
fn live(host: Frugal) -> (Frugal, bool) {
    let mut vm = match Mmu::new(host, &Config::new(npt(), 2)) {
        Ok(vm) => vm,
        Err(refused) => return (refused.host, false),
    };
    let mut whole = true;
    {
        let (vcpu, worker) = (vm.vcpu(VcpuId(0)), vm.worker());
        let (Ok(mut vcpu), Ok(mut worker)) = (vcpu, worker) else {
            return (vm.teardown(), false);
        };
        for n in 0..8 {
            let spec = backed(n, range(u64::from(n) * 0x400, 0x400));
            whole &= worker.create_slot(&spec).is_ok();
        }
        whole &= worker.create_slot(&linear(20, range(0x10_0000, 4), 0x5000)).is_ok();
        whole &= worker.reserve(12).is_ok();
        whole &= vcpu.load_root().is_ok();
        whole &= vcpu.before_enter(Processor(0)).map(drop).is_ok();
        for gfn in [3, 0x405, 0x1000, 0x10_0001, 0x20_0000] {
            let outcome = vcpu.handle_fault(&Identity, fault_at(gfn, Access::WRITE));
            whole &= !matches!(outcome, Outcome::OutOfMemory | Outcome::Busy(_));
        }
        whole &= worker.dump(&mut Nowhere).is_ok();
        drop(vm.invalidate_range(HostRange { backing: 7, first: 0, pages: 0x500 }));
        worker.zap(AddressSpace::Normal, range(0, 0x1000));
        for n in 0..8 {
            let _gone = worker.limit_slot(SlotId(n), Level::Size4K);
            let _moved = worker.move_slot(SlotId(n), Gfn(0x40_0000 + u64::from(n) * 0x400));
            let (slot, deleted) = (worker.slot(SlotId(n)), worker.delete_slot(SlotId(n)));
            assert_eq!(slot.is_ok(), deleted.is_ok(), "deleting allocates nothing");
        }
        worker.zap_all();
    }
    whole &= vm.check(|_, _| Witness::Unknown).is_ok_and(|checked| checked.is_clean());
    assert_eq!(vm.broken(), None);
    (vm.teardown(), whole)
}

#[test]
fn the_nth_allocation_may_fail_for_every_n() {
    let mut n = 0;
    loop {
        let ((host, whole), enough) = with_allocations(n, || live(Frugal::default()));
        assert_eq!(host.out.into_inner(), 0, "table pages lost after {n} allocations");
        if enough {
            assert!(whole, "nothing failed but memory");
            break;
        }
        n += 1;
    }
    assert!(n > 5, "the library does allocate");
}

/// A VM with a vCPU, a worker, and what the operations are tried on.
struct World<'vm> {
    vm: &'vm Mmu<Frugal>,
    vcpu: VcpuMmu<&'vm Mmu<Frugal>>,
    worker: Worker<&'vm Mmu<Frugal>>,
}

/// Slots: pages of a backing in blocks; pinned ones; the same in the other address space.
const BACKED: u64 = 0;
const LINEAR: u64 = 0x800;
const MMIO: u64 = 0x4000;
/// A page that is mapped before the operation, and one of a block that is.
const MAPPED: u64 = 0x200;
const SMALL: u64 = 0x900;
/// One of a block that may only be read.
const READ_ONLY: u64 = 0x600;

/// One operation. `act` says whether it was done; it can be done again after a failure.
struct Operation {
    name: &'static str,
    /// Whether it asks for memory.
    asks: bool,
    /// Whether it may fail for want of it.
    may_fail: bool,
    act: fn(&mut World<'_>) -> bool,
}

const fn can_fail(name: &'static str, act: fn(&mut World<'_>) -> bool) -> Operation {
    Operation { name, asks: true, may_fail: true, act }
}

/// Asks, and is done whatever the answer.
const fn can_do_without(name: &'static str, act: fn(&mut World<'_>) -> bool) -> Operation {
    Operation { name, asks: true, may_fail: false, act }
}

const fn never_fails(name: &'static str, act: fn(&mut World<'_>) -> bool) -> Operation {
    Operation { name, asks: false, may_fail: false, act }
}

/// Whether a fault got its page.
fn faulted(world: &mut World<'_>, backing: &dyn Backing, gfn: u64, access: Access) -> bool {
    match world.vcpu.handle_fault(backing, fault_at(gfn, access)) {
        Outcome::Fixed(_) | Outcome::Emulate => true,
        Outcome::OutOfMemory => false,
        other => panic!("gfn {gfn:#x}: {other:?}"),
    }
}

/// Both halves of a fault in a row, the second by the worker.
fn two_steps(world: &mut World<'_>, gfn: u64) -> bool {
    loop {
        match world.vcpu.begin_fault(fault_at(gfn, Access::READ)) {
            FaultStep::MissingPages(MissingPages(n)) if world.vcpu.reserve(n).is_err() => {
                return false;
            }
            FaultStep::LoadRoot if world.vcpu.load_root().is_err() => return false,
            FaultStep::LoadRoot | FaultStep::MissingPages(_) => {}
            FaultStep::Done(Outcome::Fixed(_)) => return true,
            FaultStep::Done(other) => panic!("gfn {gfn:#x}: {other:?}"),
            FaultStep::Resolve(request) => {
                let Resolution::Frame(found) = Identity.find(&request.query()) else {
                    panic!("no frame")
                };
                let parked = request.park();
                let request = world.worker.unpark(parked).expect("its own");
                let mut frame = support::resolve(request, found);
                loop {
                    match world.worker.complete(frame) {
                        Ok(Outcome::Fixed(_)) => return true,
                        Ok(other) => panic!("gfn {gfn:#x}: {other:?}"),
                        Err(short) if world.worker.reserve(short.missing.0).is_err() => {
                            return false;
                        }
                        Err(short) => frame = short.resolved,
                    }
                }
            }
        }
    }
}

const SPACE: AddressSpace = AddressSpace::Normal;
const SOME: HostRange = HostRange { backing: 7, first: MAPPED, pages: 1 };

/// Every operation of the interface on a living VM.
const OPERATIONS: &[Operation] = &[
    can_fail("worker", |world| world.vm.worker().is_ok()),
    can_fail("vcpu", |world| world.vm.vcpu(VcpuId(1)).is_ok()),
    can_fail("reserve", |world| world.worker.reserve(20).is_ok()),
    can_fail("load_root", |world| {
        // With another role, so that a root is missing.
        world.vcpu.set_role(Role { flavour: 1, ..Role::PLAIN });
        let loaded = world.vcpu.load_root().is_ok();
        let entered = world.vcpu.before_enter(Processor(0)).is_ok();
        world.vcpu.set_role(Role::PLAIN);
        assert_eq!(loaded, entered);
        entered
    }),
    can_fail("create_slot, backed", |world| {
        world.worker.create_slot(&backed(9, range(0x9000, 0x10))).is_ok()
    }),
    can_fail("create_slot, linear", |world| {
        world.worker.create_slot(&linear(9, range(0x9000, 0x10), 0x7000)).is_ok()
    }),
    can_fail("create_slot, other address space", |world| {
        let spec = SlotSpec { space: AddressSpace::Smm, ..backed(9, range(0, 0x10)) };
        world.worker.create_slot(&spec).is_ok()
    }),
    never_fails("delete_slot", |world| world.worker.delete_slot(SlotId(0)).is_ok()),
    never_fails("delete_some", |world| {
        let mut deletion = world.worker.begin_delete(SlotId(1)).expect("it is there");
        while world.worker.delete_some(&mut deletion, 1) == Progress::More {}
        true
    }),
    never_fails("move_slot", |world| world.worker.move_slot(SlotId(0), Gfn(0x9000)).is_ok()),
    never_fails("limit_slot", |world| world.worker.limit_slot(SlotId(0), Level::Size4K).is_ok()),
    never_fails("slot", |world| world.worker.slot(SlotId(0)).is_ok()),
    can_fail("handle_fault, linear", |world| {
        faulted(world, &Identity, LINEAR + 0x201, Access::READ)
    }),
    can_fail("handle_fault, backed, huge", |world| {
        faulted(world, &Identity, BACKED + 0x400, Access::WRITE)
    }),
    can_fail("handle_fault, backed, small", |world| {
        faulted(world, &PageByPage, BACKED + 0x401, Access::READ)
    }),
    can_fail("handle_fault, splitting", |world| {
        faulted(world, &PageByPage, READ_ONLY, Access::WRITE)
    }),
    can_do_without("handle_fault, MMIO", |world| faulted(world, &Identity, MMIO, Access::READ)),
    can_fail("fault and complete, backed", |world| two_steps(world, BACKED + 0x401)),
    can_fail("fault and complete, linear", |world| two_steps(world, LINEAR + 0x202)),
    never_fails("zap", |world| {
        world.worker.zap(SPACE, range(MAPPED, 1));
        true
    }),
    never_fails("zap_some", |world| {
        let mut zap = world.worker.begin_zap(SPACE, range(0, 0x1000));
        while world.worker.zap_some(&mut zap, 1) == Progress::More {}
        true
    }),
    never_fails("invalidate_range", |world| {
        drop(world.vm.invalidate_range(SOME));
        true
    }),
    never_fails("invalidate_begin and end", |world| {
        world.vm.invalidate_begin(SOME);
        world.vm.invalidate_end(SOME).is_ok()
    }),
    never_fails("invalidate_roots and drain", |world| {
        let mut drain = world.worker.invalidate_roots();
        while world.worker.drain(&mut drain, 1) == Progress::More {}
        true
    }),
    never_fails("zap_all", |world| {
        world.worker.zap_all();
        true
    }),
    never_fails("read", |world| {
        let read = world.worker.read(&Identity, SPACE, Gpa(MAPPED << 12 | 0xffc), &mut [0; 8]);
        read.is_ok()
    }),
    never_fails("write", |world| {
        world.worker.write(&Identity, SPACE, Gpa(0x7ff << 12), &[0; 8]).is_ok()
    }),
    never_fails("compare_exchange", |world| {
        let at = Gpa(MAPPED << 12);
        world.worker.compare_exchange(&Identity, SPACE, at, 0_u64, 0).is_ok()
    }),
    never_fails("translate", |world| {
        world.worker.translate(Role::PLAIN, Gfn(MAPPED).gpa()).is_some()
    }),
    can_fail("dump", |world| world.worker.dump(&mut Nowhere).is_ok()),
    never_fails("stats", |world| world.vm.stats().roots == 1),
];

/// What a failed operation must leave as it was.
#[derive(PartialEq, Debug)]
struct Snapshot {
    slots: Vec<Option<SlotInfo>>,
    translations: Vec<Option<Translation>>,
    /// Leaves now and ever, tables, roots, splits, zaps, invalidations, debts leaked.
    counts: ([u64; 3], [u64; 3], [u64; 6]),
    broken: Option<Broken>,
}

fn snapshot(world: &mut World<'_>) -> Snapshot {
    let stats = world.vm.stats();
    let places = [BACKED, MAPPED, 0x401, READ_ONLY, LINEAR, SMALL, LINEAR + 0x201, MMIO, 0x9000];
    Snapshot {
        slots: (0..12).map(|id| world.worker.slot(SlotId(id)).ok()).collect(),
        translations: places
            .iter()
            .map(|gfn| world.worker.translate(Role::PLAIN, Gfn(*gfn).gpa()))
            .collect(),
        counts: (
            stats.leaves,
            stats.mapped,
            [
                stats.tables,
                stats.roots,
                stats.splits,
                stats.zapped,
                stats.invalidations,
                stats.debts_leaked,
            ],
        ),
        broken: world.vm.broken(),
    }
}

/// Which memory runs out.
#[derive(Clone, Copy, Debug)]
enum Memory {
    Heap,
    TablePages,
}

/// Tries an operation with `n` allocations: whether any was refused.
fn starve(operation: &Operation, memory: Memory, n: u64) -> bool {
    let Operation { name, may_fail, act, .. } = operation;
    let vm = Mmu::new(Frugal::default(), &Config::new(npt(), 2)).expect("memory");
    prepare(&vm);
    let refused = {
        let mut world = World::new(&vm);
        let before = snapshot(&mut world);
        let (done, refused) = match memory {
            Memory::Heap => {
                let (done, enough) = with_allocations(n, || act(&mut world));
                (done, !enough)
            }
            Memory::TablePages => {
                *vm.host().left.lock().unwrap() = Some(n);
                let done = act(&mut world);
                *vm.host().left.lock().unwrap() = None;
                (done, vm.host().refused.load(Ordering::SeqCst))
            }
        };
        if !done {
            assert!(refused, "{name} failed with memory left");
            assert!(may_fail, "{name} failed for want of memory ({memory:?}, {n})");
            let after = snapshot(&mut world);
            assert_eq!(after, before, "{name} failed and changed something ({memory:?}, {n})");
            assert!(act(&mut world), "{name} fails for ever after ({memory:?}, {n})");
        }
        refused
    };
    let mut vm = vm;
    let checked = vm.check(|_, page| Witness::Frame(Pfn(page), Access::all())).expect("memory");
    assert!(checked.is_clean(), "{name} ({memory:?}, {n}): {:?}", checked.violations);
    let host = vm.teardown();
    assert_eq!(host.out.into_inner(), 0, "{name} lost table pages ({memory:?}, {n})");
    refused
}

impl<'vm> World<'vm> {
    /// With empty stocks, and the root loaded.
    fn new(vm: &'vm Mmu<Frugal>) -> Self {
        let mut world =
            World { vm, vcpu: vm.vcpu(VcpuId(0)).unwrap(), worker: vm.worker().unwrap() };
        world.vcpu.load_root().unwrap();
        drop(world.vcpu.before_enter(Processor(0)).unwrap());
        world
    }
}

/// As many slots as make the next one need memory, a root, a huge leaf, a huge one that may only be read, and a small one.
fn prepare(vm: &Mmu<Frugal>) {
    let mut world = World::new(vm);
    world.worker.create_slot(&backed(0, range(BACKED, 0x800))).unwrap();
    let small = SlotSpec { largest: Level::Size4K, ..linear(1, range(LINEAR, 0x800), 0x5000) };
    world.worker.create_slot(&small).unwrap();
    for id in 2..8 {
        let space = AddressSpace::ALL[usize::from(id >= 4)];
        let spec = backed(id, range(0x2000 + u64::from(id) * 0x10, 0x10));
        world.worker.create_slot(&SlotSpec { space, ..spec }).unwrap();
    }
    assert!(faulted(&mut world, &Identity, MAPPED, Access::WRITE));
    assert!(faulted(&mut world, &ForReading, READ_ONLY, Access::READ));
    assert!(faulted(&mut world, &Identity, SMALL, Access::READ));
}

#[test]
fn the_nth_allocation_of_every_operation_may_fail_for_every_n() {
    for operation in OPERATIONS {
        let mut refusals = 0;
        for memory in [Memory::Heap, Memory::TablePages] {
            let mut n = 0;
            while starve(operation, memory, n) {
                n += 1;
            }
            refusals += n;
        }
        let name = operation.name;
        assert_eq!(refusals > 0, operation.asks, "{name}: {refusals} allocations refused");
    }
}

#[test]
fn slots_move_and_go_without_memory_whatever_was_made_before() {
    // So many slots of each kind, made one kind after the other, fill the vectors of both copies
    // of the set to every relation of length and capacity.
    for counts in (0..125).map(|n| [n % 5, n / 5 % 5, n / 25].map(|n| n * 2 + 1)) {
        let vm = Mmu::new(Frugal::default(), &Config::new(npt(), 1)).unwrap();
        let mut worker = vm.worker().unwrap();
        let mut ids = Vec::new();
        for (kind, count) in counts.into_iter().enumerate() {
            for _ in 0..count {
                let id = ids.len() as u32;
                let place = range(u64::from(id) * 0x10, 0x10);
                let spec = match kind {
                    0 => linear(id, place, 0x1000 + u64::from(id) * 0x10),
                    1 => backed(id, place),
                    _ => SlotSpec { space: AddressSpace::Smm, ..backed(id, place) },
                };
                worker.create_slot(&spec).unwrap();
                ids.push(SlotId(id));
            }
        }
        for (n, id) in ids.iter().enumerate() {
            let to = Gfn(0x10_0000 + n as u64 * 0x10);
            let (moved, _) = with_allocations(0, || worker.move_slot(*id, to));
            assert_eq!(moved, Ok(()), "{counts:?}: slot {n} of {}", ids.len());
            let (deleted, _) = with_allocations(0, || worker.delete_slot(*id));
            assert_eq!(deleted, Ok(()), "{counts:?}: slot {n} of {}", ids.len());
        }
    }
}

#[test]
fn a_check_that_gets_no_memory_says_so_and_can_be_made_again() {
    let mut vm = Mmu::new(Frugal::default(), &Config::new(npt(), 2)).unwrap();
    prepare(&vm);
    let mut n = 0;
    loop {
        let stats = vm.stats();
        let (checked, enough) = with_allocations(n, || vm.check(|_, _| Witness::Unknown));
        assert_eq!(checked.is_ok(), enough, "{n} allocations");
        assert_eq!(vm.stats(), stats);
        if enough {
            assert!(checked.unwrap().is_clean());
            break;
        }
        n += 1;
    }
    assert!(n > 1, "the checker does allocate");
    assert_eq!(vm.teardown().out.into_inner(), 0);
}
