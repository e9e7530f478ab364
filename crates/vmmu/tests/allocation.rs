//! Every allocation of the library may fail: the n-th for every n. A failure that was not asked
//! for fallibly would abort this process.

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::{Cell, UnsafeCell};
use std::sync::atomic::{AtomicU64, Ordering};

use support::{ask, backed, linear, npt, range};
use vmmu::addr::{Gfn, Level, Pfn};
use vmmu::check::Witness;
use vmmu::entry::{Access, MemoryType};
use vmmu::host::{
    Backing, Contents, Cpus, Found, FrameAsk, HostFrame, Observer, PageAsk, TablePage, TablePages,
    VcpuId,
};
use vmmu::slot::{AddressSpace, SlotId};
use vmmu::tdp::Outcome;
use vmmu::{Config, HostRange, Processor, Vm};

thread_local! {
    /// Allocations of this thread that still succeed.
    static LEFT: Cell<u64> = const { Cell::new(u64::MAX) };
}

/// The system's, until a thread has used up what it was allowed.
struct Failing;

// SAFETY: memory is the system's; to refuse is always allowed.
unsafe impl GlobalAlloc for Failing {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let is_left = LEFT.with(|left| match left.get() {
            0 => false,
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
    LEFT.set(n);
    let result = f();
    (result, LEFT.replace(u64::MAX) > 0)
}

const PAGES: usize = 64;

#[repr(C, align(4096))]
struct Page(UnsafeCell<[u64; 512]>);

// SAFETY: a page is only touched by the library, through atomics.
unsafe impl Sync for Page {}

static MEMORY: [Page; PAGES] = [const { Page(UnsafeCell::new([0; 512])) }; PAGES];

/// A host that allocates nothing.
#[derive(Default)]
struct Frugal {
    /// One bit for each page that is out.
    out: AtomicU64,
}

const FIRST: u64 = 0x10;

// SAFETY: pages of a static, exposed, each given to one at a time.
unsafe impl TablePages for Frugal {
    fn window(&self) -> u64 {
        let address = (&raw const MEMORY).expose_provenance() as u64;
        address.wrapping_sub(FIRST << 12)
    }

    fn take(&self, _: PageAsk) -> Option<TablePage> {
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

impl Backing for Identity {
    fn find(&self, ask: &FrameAsk) -> Found {
        let (access, memory) = (Access::all(), MemoryType::WriteBack);
        Found::Frame(HostFrame { pfn: Pfn(ask.page), level: Level::M2, access, memory })
    }
}

/// Where nobody reads.
struct Nowhere;

impl std::fmt::Write for Nowhere {
    fn write_str(&mut self, _: &str) -> std::fmt::Result {
        Ok(())
    }
}

/// A life: what can fail for want of memory says so, and what cannot fail does not.
fn live(host: Frugal) -> (Frugal, bool) {
    let mut vm = match Vm::new(host, &Config::new(npt(), 2)) {
        Ok(vm) => vm,
        Err(refused) => return (refused.host, false),
    };
    let mut whole = true;
    {
        let (vcpu, worker) = (vm.vcpu(VcpuId(0)), vm.worker());
        let (Some(mut vcpu), Some(mut worker)) = (vcpu, worker) else {
            return (vm.teardown(), false);
        };
        for n in 0..8 {
            let spec = backed(n, range(u64::from(n) * 0x400, 0x400));
            whole &= worker.create_slot(&spec).is_ok();
        }
        whole &= worker.create_slot(&linear(20, range(0x10_0000, 4), 0x5000)).is_ok();
        whole &= worker.reserve(12).is_ok();
        whole &= vcpu.before_enter(Processor(0)).map(drop).is_ok();
        for gfn in [3, 0x405, 0x1000, 0x10_0001, 0x20_0000] {
            let outcome = vcpu.fault_with(&Identity, ask(gfn, Access::WRITE));
            whole &= !matches!(outcome, Outcome::OutOfMemory | Outcome::Retry);
        }
        whole &= worker.dump(&mut Nowhere).is_ok();
        drop(worker.invalidate_range(HostRange { backing: 7, first: 0, pages: 0x500 }));
        worker.zap(AddressSpace(0), range(0, 0x1000));
        for n in 0..8 {
            let _gone = worker.limit_slot(SlotId(n), Level::K4);
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
