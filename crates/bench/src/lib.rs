//! What the instruction counts are counted on: a host without any cost of its own, and virtual
//! machines prepared up to the operation that is measured.
//!
//! Table pages come zeroed from a list, frames are computed, kicks are ignored. So what is counted
//! is the library, and nothing of it is libc's `memcpy` or `memset`, whose instructions depend on
//! the processor.

use std::alloc::{Layout, alloc_zeroed};
use std::cell::UnsafeCell;

use vmmu::addr::{Gfn, GfnRange, Gpa, Level, Pfn};
use vmmu::entry::{Access, Format, MemoryType, ept, npt};
use vmmu::host::{
    Backing, Contents, Cpus, FrameQuery, HostFrame, Observer, Placement, Resolution, TablePage,
    TablePages, VcpuId,
};
use vmmu::slot::{AddressSpace, LinearFrames, Mutability, SlotId, SlotSpec, Source};
use vmmu::{Cause, Outcome, PageFault};
use vmmu::{Config, Mmu, VcpuMmu, Worker};

/// Table pages a host has.
const STOCK: usize = 512;
/// The backing of the backed slots.
pub const BACKING: u64 = 7;
/// Frame of page 0 of the backing, and of the linear slots: aligned to 1 GiB.
const FRAMES: u64 = 0x100_0000;

/// A host whose table pages were zeroed before anything is measured.
#[derive(Debug)]
pub struct ListHost {
    pages: UnsafeCell<Vec<Pfn>>,
}

// SAFETY: benchmarks have one thread.
unsafe impl Sync for ListHost {}

impl ListHost {
    fn new() -> Self {
        let layout = Layout::from_size_align(4096 * STOCK, 4096).expect("a layout");
        // SAFETY: the layout is not empty.
        let first = unsafe { alloc_zeroed(layout) };
        assert!(!first.is_null(), "no memory");
        let first = first.expose_provenance() as u64 >> 12;
        let pages = (0..STOCK as u64).rev().map(|n| Pfn(first + n)).collect();
        ListHost { pages: UnsafeCell::new(pages) }
    }
}

// SAFETY: zeroed pages of the allocator, at their own addresses, used by nobody else; a page that
// comes back is not given out again.
unsafe impl TablePages for ListHost {
    fn window(&self) -> u64 {
        0
    }

    fn take(&self, _: Placement) -> Option<TablePage> {
        // SAFETY: one thread, and no reference outlives this line.
        let pfn = unsafe { (*self.pages.get()).pop() }?;
        Some(TablePage { pfn, contents: Contents::Zeroed })
    }

    fn release(&self, _: Pfn) {}
}

impl Cpus for ListHost {
    fn kick(&self, _: VcpuId) {}
}

impl Observer for ListHost {}

/// A backing in which the frame follows from the page.
#[derive(Debug)]
pub struct Computed(Level);

// SAFETY: no guest runs; the frames are numbers.
unsafe impl Backing for Computed {
    fn find(&self, query: &FrameQuery) -> Resolution {
        Resolution::Frame(HostFrame {
            pfn: Pfn(FRAMES + query.page),
            level: self.0,
            access: Access::all(),
            memory: MemoryType::WriteBack,
        })
    }
}

/// A VM with one vCPU, for as long as the process lives.
#[derive(Debug)]
pub struct Rig {
    /// The vCPU, which is a worker too.
    pub vcpu: VcpuMmu<&'static Mmu<ListHost>>,
    /// For what no vCPU does.
    pub worker: Worker<&'static Mmu<ListHost>>,
    /// For faults in backed slots.
    pub backing: Computed,
    /// Frames to look up, in the order in which that is done.
    pub frames: Vec<Gfn>,
    vm: &'static Mmu<ListHost>,
}

/// Where a slot's memory comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Memory {
    /// Pinned.
    Linear,
    /// Looked up, and taken back now and then.
    Backed,
}

/// AMD's format.
pub fn amd() -> Format {
    npt::format(npt::NptOptions::default()).expect("a format")
}

/// Intel's format.
pub fn intel() -> Format {
    ept::format(ept::EptOptions { phys_bits: 48, ..Default::default() }).expect("a format")
}

/// Frames `start..start + pages`.
pub fn range(start: u64, pages: u64) -> GfnRange {
    GfnRange::sized(Gfn(start), pages).expect("a range")
}

/// A guest's write to a frame.
pub fn write(gfn: u64) -> PageFault {
    PageFault { gpa: Gpa(gfn << 12), access: Access::WRITE, cause: Cause::Guest }
}

impl Rig {
    /// One slot of 1 GiB from frame 0, mapped by leaves up to `level`; nothing is mapped yet, but
    /// the root is loaded and the stock of table pages is full.
    pub fn new(format: Format, memory: Memory, level: Level) -> &'static mut Rig {
        let rig = Self::without_slots(format, level, 1);
        let pages = Level::Size1G.pages();
        let source = match memory {
            Memory::Linear => {
                // SAFETY: no guest runs; the frames are numbers.
                Source::Linear(unsafe { LinearFrames::new(Pfn(FRAMES), MemoryType::WriteBack) })
            }
            Memory::Backed => Source::Backed { backing: BACKING, first: 0 },
        };
        rig.create(0, range(0, pages), source);
        rig
    }

    fn without_slots(format: Format, level: Level, slots: u32) -> &'static mut Rig {
        let config = Config { slots, largest: level, ..Config::new(format, 1) };
        let vm: &'static _ = Box::leak(Box::new(Mmu::new(ListHost::new(), &config).expect("a VM")));
        let mut vcpu = vm.vcpu(VcpuId(0)).expect("a vCPU");
        vcpu.load_root().expect("a root");
        vcpu.reserve(0).expect("table pages");
        let worker = vm.worker().expect("a worker");
        let backing = Computed(level);
        Box::leak(Box::new(Rig { vcpu, worker, backing, frames: Vec::new(), vm }))
    }

    fn create(&mut self, n: u32, range: GfnRange, source: Source) {
        let spec = SlotSpec {
            id: SlotId(n),
            space: AddressSpace::Normal,
            range,
            source,
            mutability: Mutability::ReadWrite,
            largest: Level::Size1G,
        };
        self.worker.create_slot(&spec).expect("a slot");
    }

    /// Slots of one page with one page between them; 256 frames of them to look up, all the same
    /// or in disorder.
    pub fn with_slots(slots: u32, order: Order) -> &'static mut Rig {
        let rig = Self::without_slots(amd(), Level::Size4K, slots);
        for n in 0..slots {
            let gfn = 2 * u64::from(n);
            // SAFETY: no guest runs; the frames are numbers.
            let source = Source::Linear(unsafe {
                LinearFrames::new(Pfn(FRAMES + gfn), MemoryType::WriteBack)
            });
            rig.create(n, range(gfn, 1), source);
        }
        // Multiplying by an odd number visits all slots, far from one another.
        let pick = |n: u64| match order {
            Order::Same => u64::from(slots) / 2,
            Order::Random => n.wrapping_mul(0x9e37_79b1) % u64::from(slots),
        };
        rig.frames = (0..256).map(|n| Gfn(2 * pick(n))).collect();
        rig
    }

    /// The same with these frames mapped by faults.
    pub fn mapped(&'static mut self, frames: impl IntoIterator<Item = u64>) -> &'static mut Rig {
        for gfn in frames {
            let outcome = self.vcpu.handle_fault(&self.backing, write(gfn));
            assert!(matches!(outcome, Outcome::Fixed(_) | Outcome::Emulate), "{outcome:?}");
        }
        self.vcpu.reserve(0).expect("table pages");
        self
    }

    /// Leaves mapped now.
    pub fn leaves(&self) -> u64 {
        self.vm.stats().leaves.iter().sum()
    }

    /// The VM's counters.
    pub fn stats(&self) -> vmmu::Stats {
        self.vm.stats()
    }
}

/// In which order slots are looked up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Order {
    /// The same one each time, so that the hint is right.
    Same,
    /// Another one each time.
    Random,
}
