//! What is shared without being atomic: slot sets, table pages while they are filled and after
//! they are freed, guest memory while the host moves it. Threads that use it and threads that
//! change it, ordered by the library alone, for a checker of data races and one of memory errors
//! to look at. The host adds no order of its own: its pages come from the allocator and go back
//! there at once, and it has no lock.
//!
//! Fences order stores before loads, which a checker of races does not model; but what is not
//! atomic here is ordered by releases and acquires alone, so nothing it reports is false. One
//! thing of the test harness's is: `races.suppressions` names it.
//!
//! Without a checker these tests find little. The ignored ones put a defect back and must be
//! reported; `cargo vmmu test --only tsan` runs both.

#![allow(missing_docs, reason = "a test")]

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::cell::UnsafeCell;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use vmmu::addr::{Gfn, GfnRange, Gpa, Level, Pfn};
use vmmu::entry::{Access, MemoryType, npt};
use vmmu::host::{
    Backing, Contents, Cpus, FrameQuery, GuestMemory, GuestPage, HostFrame, Observer, Placement,
    Resolution, TablePage, TablePages, VcpuId, Wait,
};
use vmmu::slot::{AddressSpace, Mutability, SlotId, SlotSpec, Source};
use vmmu::{AccessFailure, Busy, Config, HostRange, Mmu, Processor, Progress};
use vmmu::{Cause, Outcome, PageFault};

const ROUNDS: u64 = 60;
const PAGE: Layout = Layout::new::<[u64; 512]>();
const SPACE: AddressSpace = AddressSpace::Normal;

fn page_layout() -> Layout {
    PAGE.align_to(4096).unwrap()
}

/// Table pages from the allocator, and back to it at once.
#[derive(Default)]
struct Freeing {
    in_use: AtomicU64,
}

// SAFETY: whole pages of the allocator, exposed, used by nobody else until released.
unsafe impl TablePages for Freeing {
    fn window(&self) -> u64 {
        0
    }

    fn take(&self, _: Placement) -> Option<TablePage> {
        // SAFETY: the layout is not empty.
        let page = unsafe { alloc_zeroed(page_layout()) };
        assert!(!page.is_null());
        self.in_use.fetch_add(1, Ordering::Relaxed);
        let pfn = Pfn(page.expose_provenance() as u64 >> 12);
        Some(TablePage { pfn, contents: Contents::Zeroed })
    }

    fn release(&self, page: Pfn) {
        self.in_use.fetch_sub(1, Ordering::Relaxed);
        let page = std::ptr::with_exposed_provenance_mut((page.0 << 12) as usize);
        // SAFETY: it was taken, and the library says that nothing reaches it any more.
        unsafe { dealloc(page, page_layout()) };
    }
}

impl Cpus for Freeing {
    fn kick(&self, _: VcpuId) {}

    fn wait(&self, _: Wait) {
        std::thread::yield_now();
    }
}

impl Observer for Freeing {}

/// Frames that follow from the page.
struct Computed;

// SAFETY: what is named is memory of the test.
unsafe impl Backing for Computed {
    fn find(&self, query: &FrameQuery) -> Resolution {
        Resolution::Frame(frame(0x40_0000 + query.page))
    }
}

fn frame(pfn: u64) -> HostFrame {
    let memory = MemoryType::WriteBack;
    HostFrame { pfn: Pfn(pfn), level: Level::Size4K, access: Access::all(), memory }
}

fn vm() -> Mmu<Freeing> {
    let format = npt::format(npt::NptOptions::default()).unwrap();
    Mmu::new(Freeing::default(), &Config { workers: 3, ..Config::new(format, 2) }).ok().unwrap()
}

fn slot(id: u32, start: u64, pages: u64) -> SlotSpec {
    SlotSpec {
        id: SlotId(id),
        space: SPACE,
        range: GfnRange::sized(Gfn(start), pages).unwrap(),
        source: Source::Backed { backing: 7, first: start },
        mutability: Mutability::ReadWrite,
        largest: Level::Size2M,
    }
}

fn end(vm: Mmu<Freeing>) {
    assert_eq!((vm.stats().debts_leaked, vm.broken()), (0, None));
    assert_eq!(vm.teardown().in_use.into_inner(), 0);
}

/// Threads that end: what they did is ordered before what follows [`all`](Self::all), by a word
/// that the checker sees, which the scope's own end is not.
struct Ended(AtomicU64);

/// Ends one thread, also by a panic.
struct Ends<'a>(&'a Ended);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_add(1, Ordering::Release);
    }
}

impl Ended {
    fn all(&self, threads: u64) {
        while self.0.load(Ordering::Acquire) < threads {
            std::thread::yield_now();
        }
    }
}

/// Two vCPUs that enter, leave and fault over `pages` frames; once they do, `change` runs beside
/// them.
fn beside_faults(vm: &Mmu<Freeing>, pages: u64, change: impl FnOnce() + Send) {
    let (stop, ended) = (AtomicBool::new(false), Ended(AtomicU64::new(0)));
    let going = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for n in 0..2 {
            let (stop, ended, going) = (&stop, &ended, &going);
            scope.spawn(move || {
                let _ends = Ends(ended);
                let mut vcpu = vm.vcpu(VcpuId(n)).unwrap();
                let mut gfn = u64::from(n) * 77;
                while !stop.load(Ordering::Relaxed) {
                    vcpu.load_root().unwrap();
                    if let Ok(entry) = vcpu.before_enter(Processor(n)) {
                        entry.after_exit();
                    }
                    gfn = (gfn + 97) % pages;
                    let fault = PageFault {
                        gpa: Gpa(gfn << 12),
                        access: Access::WRITE,
                        cause: Cause::Guest,
                    };
                    let outcome = vcpu.handle_fault(&Computed, fault);
                    assert!(!matches!(outcome, Outcome::Dead(_)), "{outcome:?}");
                    going.fetch_or(1 << n, Ordering::Relaxed);
                }
            });
        }
        while going.load(Ordering::Relaxed) != 0b11 && ended.0.load(Ordering::Relaxed) == 0 {
            std::thread::yield_now();
        }
        change();
        stop.store(true, Ordering::Relaxed);
        ended.all(2);
    });
}

#[test]
fn slots_change_beside_faults() {
    let vm = vm();
    beside_faults(&vm, 0x4000, || {
        let mut worker = vm.worker().unwrap();
        worker.create_slot(&slot(1, 0, 0x1000)).unwrap();
        for n in 0..ROUNDS {
            worker.create_slot(&slot(2, 0x1000 + n, 0x800)).unwrap();
            worker.create_slot(&slot(3, 0x2000, 0x10)).unwrap();
            worker.move_slot(SlotId(2), Gfn(0x3000)).unwrap();
            worker.delete_slot(SlotId(3)).unwrap();
            worker.delete_slot(SlotId(2)).unwrap();
        }
    });
    end(vm);
}

/// Who walks all roots meets those that are being taken apart.
#[test]
fn tables_are_freed_beside_faults_and_walks() {
    let vm = vm();
    vm.worker().unwrap().create_slot(&slot(1, 0, 0x4000)).unwrap();
    let (stop, ended) = (AtomicBool::new(false), Ended(AtomicU64::new(0)));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let _ends = Ends(&ended);
            let mut worker = vm.worker().unwrap();
            let mut first = 0;
            while !stop.load(Ordering::Relaxed) {
                first = (first + 0x333) % 0x4000;
                worker.zap(SPACE, GfnRange::sized(Gfn(first), 0x400).unwrap());
            }
        });
        beside_faults(&vm, 0x5000, || {
            let mut worker = vm.worker().unwrap();
            for n in 0..ROUNDS / 3 {
                let mut drain = worker.invalidate_roots();
                while worker.drain(&mut drain, 1 + n % 7) == Progress::More {}
            }
        });
        stop.store(true, Ordering::Relaxed);
        ended.all(1);
    });
    end(vm);
}

const PAGES: usize = 4;

/// Guest memory in one frame more than it has pages.
struct Moving {
    frames: [AtomicU64; PAGES],
    memory: Box<[UnsafeCell<[u64; 512]>]>,
}

// SAFETY: who may use a frame is what the library decides.
unsafe impl Sync for Moving {}

impl Moving {
    fn new() -> Self {
        let frames = std::array::from_fn(|page| AtomicU64::new(page as u64));
        let memory = (0..=PAGES).map(|_| UnsafeCell::new([0; 512])).collect();
        Moving { frames, memory }
    }

    fn page(&self, pfn: u64) -> *mut [u64; 512] {
        self.memory[pfn as usize].get()
    }
}

// SAFETY: what is named is memory of the test.
unsafe impl Backing for Moving {
    fn find(&self, query: &FrameQuery) -> Resolution {
        Resolution::Frame(frame(self.frames[query.page as usize].load(Ordering::Acquire)))
    }
}

// SAFETY: aligned pages of the test, which live as long as it.
unsafe impl GuestMemory for Moving {
    fn bytes(&self, pfn: Pfn) -> Option<NonNull<GuestPage>> {
        NonNull::new(self.page(pfn.0).cast())
    }
}

fn bytes_of(value: u64) -> [u8; 4096] {
    let bytes = value.to_le_bytes();
    std::array::from_fn(|n| bytes[n % 8])
}

#[test]
fn memory_moves_beside_the_library_s_copies() {
    let vm = vm();
    let moving = Moving::new();
    let copies = AtomicU64::new(0);
    vm.worker().unwrap().create_slot(&slot(1, 0, PAGES as u64)).unwrap();
    let (stop, ended) = (AtomicBool::new(false), Ended(AtomicU64::new(0)));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let _ends = Ends(&ended);
            let mut worker = vm.worker().unwrap();
            // What was written last to each page, by this thread alone.
            let mut expected = [0u64; PAGES];
            let mut value = 0u64;
            while !stop.load(Ordering::Relaxed) {
                value += 1;
                copies.fetch_add(1, Ordering::Relaxed);
                for (page, expected) in expected.iter_mut().enumerate() {
                    let gpa = Gpa((page as u64) << 12);
                    let mut read = [0; 4096];
                    match worker.read(&moving, SPACE, gpa, &mut read) {
                        Ok(()) => assert_eq!(read, bytes_of(*expected)),
                        Err(error) => {
                            assert_eq!(error.why, AccessFailure::Busy(Busy::Invalidation))
                        }
                    }
                    match worker.write(&moving, SPACE, gpa, &bytes_of(value)) {
                        Ok(()) => *expected = value,
                        Err(error) => assert_eq!(
                            (error.why, error.done),
                            (AccessFailure::Busy(Busy::Invalidation), 0)
                        ),
                    }
                }
            }
        });
        let mut worker = vm.worker().unwrap();
        let mut spare = PAGES as u64;
        let mut n = 0;
        while copies.load(Ordering::Relaxed) < ROUNDS * 4 && ended.0.load(Ordering::Relaxed) == 0 {
            n += 1;
            let moved = n % PAGES as u64;
            let taking = worker.invalidate_range(HostRange { backing: 7, first: moved, pages: 1 });
            let old = moving.frames[moved as usize].load(Ordering::Relaxed);
            // SAFETY: two different pages, and while the invalidation lasts nobody else uses
            // either: that is what is tested.
            unsafe {
                moving.page(spare).copy_from_nonoverlapping(moving.page(old), 1);
                moving.page(old).write_bytes(0xfe, 1);
            }
            moving.frames[moved as usize].store(spare, Ordering::Release);
            spare = old;
            drop(taking);
        }
        stop.store(true, Ordering::Relaxed);
        ended.all(1);
    });
    end(vm);
}

/// To be run alone, under a checker that must report it and end the process there.
#[cfg(feature = "defects")]
mod defects {
    use vmmu::internals::{Defect, switch};

    /// Whether two threads meet is a matter of chance, so they get many.
    fn until_reported(defect: Defect, scenario: fn()) {
        switch(Some(defect));
        for _ in 0..50 {
            // What the defect does to the test itself is not asked.
            let _ = std::panic::catch_unwind(scenario);
        }
    }

    #[test]
    #[ignore = "must be reported"]
    fn a_slot_set_changed_without_waiting() {
        until_reported(Defect::EditsCopyInUse, super::slots_change_beside_faults);
    }

    #[test]
    #[ignore = "must be reported"]
    fn memory_taken_without_waiting() {
        let scenario = super::memory_moves_beside_the_library_s_copies;
        until_reported(Defect::WalkWithoutGracePeriod, scenario);
    }
}
