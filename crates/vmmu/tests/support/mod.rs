//! A host on ordinary memory: counts and poisons table pages, counts kicks, fails allocations on
//! demand; and a backing whose frames can be moved, taken away and broken.
#![allow(dead_code, reason = "every test binary uses a part of it")]

pub mod hooked;
pub mod puppet;

use std::alloc::{Layout, alloc, dealloc};
use std::collections::{BTreeMap, BTreeSet};
use std::ptr::NonNull;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use vmmu::addr::{Gfn, GfnRange, Gpa, Level, Pfn};
use vmmu::check::Witness;
use vmmu::entry::{Access, Format, MemoryType, Record, ept, npt};
use vmmu::host::{
    Backing, Contents, Cpus, FrameQuery, GuestMemory, GuestPage, HostFrame, Observer, Placement,
    Resolution, TablePage, TablePages, VcpuId, Wait,
};
use vmmu::slot::{AddressSpace, LinearFrames, Mutability, SlotId, SlotSpec, Source};
use vmmu::{Cause, FaultStep, PageFault, Request, ResolvedFault};
use vmmu::{Hold, HostRange, InGuest, Mmu, Processor, VcpuMmu};

/// Virtual addresses are this much above the "physical" ones the library sees.
const WINDOW: u64 = 0x1_0000;
const PAGE: Layout = match Layout::from_size_align(4096, 4096) {
    Ok(layout) => layout,
    Err(_) => panic!("a page has a layout"),
};
/// What released pages are filled with. They stay allocated until the host is dropped, which
/// looks whether anybody has written to them since.
const POISON: u64 = 0xfefe_fefe_fefe_fefe;

/// See the module.
#[derive(Debug, Default)]
pub struct TestHost {
    in_use: Mutex<BTreeSet<u64>>,
    released: Mutex<BTreeSet<u64>>,
    /// Allocations that still succeed; `u64::MAX - taken` means all.
    pub budget: Budget,
    /// Kicks by vCPU.
    pub kicks: [AtomicU64; 8],
}

/// Allocations that still succeed.
#[derive(Debug)]
pub struct Budget(AtomicU64);

impl Default for Budget {
    fn default() -> Self {
        Budget(AtomicU64::new(u64::MAX))
    }
}

impl Budget {
    /// The next `n` succeed, then none.
    pub fn set(&self, n: u64) {
        self.0.store(n, Ordering::SeqCst);
    }

    fn spend(&self) -> bool {
        let spend = |n: u64| if n == u64::MAX { Some(n) } else { n.checked_sub(1) };
        self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, spend).is_ok()
    }
}

impl TestHost {
    /// Table pages that have been taken and not released.
    pub fn in_use(&self) -> usize {
        self.in_use.lock().unwrap().len()
    }

    /// Whether an address lies in a table page that is in use.
    pub fn is_table(&self, address: usize) -> bool {
        self.in_use.lock().unwrap().contains(&((address as u64).wrapping_sub(WINDOW) >> 12))
    }

    /// Kicks that vCPU has got.
    pub fn kicks(&self, vcpu: u32) -> u64 {
        self.kicks[vcpu as usize].load(Ordering::SeqCst)
    }

    fn words(pfn: u64) -> *mut u64 {
        std::ptr::with_exposed_provenance_mut((pfn << 12).wrapping_add(WINDOW) as usize)
    }

    /// A word of a table page, for tests that corrupt one.
    ///
    /// # Safety
    ///
    /// `pfn` is a table page in use, and nothing else runs.
    pub unsafe fn word(pfn: Pfn, index: usize) -> *mut u64 {
        // SAFETY: within the page.
        unsafe { Self::words(pfn.0).add(index) }
    }
}

// SAFETY: whole pages of the allocator, exposed, used by nobody else until released.
unsafe impl TablePages for TestHost {
    fn window(&self) -> u64 {
        WINDOW
    }

    fn take(&self, _: Placement) -> Option<TablePage> {
        if !self.budget.spend() {
            return None;
        }
        // SAFETY: the layout is not empty.
        let page = unsafe { alloc(PAGE) };
        assert!(!page.is_null());
        let pfn = (page.expose_provenance() as u64).wrapping_sub(WINDOW) >> 12;
        assert!(self.in_use.lock().unwrap().insert(pfn));
        Some(TablePage { pfn: Pfn(pfn), contents: Contents::Unknown })
    }

    fn release(&self, page: Pfn) {
        assert!(self.in_use.lock().unwrap().remove(&page.0), "released twice: {page}");
        for n in 0..512 {
            // SAFETY: the page is still allocated.
            unsafe { Self::words(page.0).add(n).write_volatile(POISON) };
        }
        self.released.lock().unwrap().insert(page.0);
    }
}

impl Cpus for TestHost {
    fn kick(&self, vcpu: VcpuId) {
        self.kicks[vcpu.0 as usize].fetch_add(1, Ordering::SeqCst);
    }

    fn wait(&self, _: Wait) {
        std::thread::yield_now();
    }
}

impl Observer for TestHost {}

impl Drop for TestHost {
    fn drop(&mut self) {
        let released = std::mem::take(&mut *self.released.lock().unwrap());
        for page in released {
            for n in 0..512 {
                // SAFETY: the page is still allocated.
                let word = unsafe { Self::words(page).add(n).read_volatile() };
                if word != POISON && !std::thread::panicking() {
                    panic!("released table page {page:#x} was written to");
                }
            }
            // SAFETY: allocated with this layout, released by the library.
            unsafe { dealloc(Self::words(page).cast(), PAGE) };
        }
        // Tests that leave a VM in disorder drop it as it is. Whoever wants to know that every page
        // came back asks `in_use`.
        for page in std::mem::take(&mut *self.in_use.lock().unwrap()) {
            // SAFETY: allocated with this layout; the VM is gone.
            unsafe { dealloc(Self::words(page).cast(), PAGE) };
        }
    }
}

/// A page of a guest.
#[derive(Debug)]
#[repr(align(4096))]
struct Page([u8; 4096]);

/// A backing: page to frame, by default frame = page + [`Frames::OFFSET`], in blocks of `level`.
#[derive(Debug)]
pub struct Frames {
    /// Largest block.
    pub level: Mutex<Level>,
    /// What the host allows.
    pub access: Mutex<Access>,
    exceptions: Mutex<BTreeMap<u64, Resolution>>,
    /// How often it was asked.
    pub asked: AtomicU64,
    memory: Mutex<BTreeMap<u64, Box<Page>>>,
}

impl Frames {
    /// Difference between a page of the backing and its frame.
    pub const OFFSET: u64 = 0x40_0000;

    /// With blocks of a size.
    pub fn new(level: Level) -> Self {
        Frames {
            level: Mutex::new(level),
            access: Mutex::new(Access::all()),
            exceptions: Mutex::default(),
            asked: AtomicU64::new(0),
            memory: Mutex::default(),
        }
    }

    /// Answers something else for one page.
    pub fn answer(&self, page: u64, found: Resolution) {
        self.exceptions.lock().unwrap().insert(page, found);
    }

    /// Moves one page to another frame.
    pub fn move_page(&self, page: u64, pfn: u64) {
        let access = *self.access.lock().unwrap();
        let memory = MemoryType::WriteBack;
        let frame = HostFrame { pfn: Pfn(pfn), level: Level::Size4K, access, memory };
        self.answer(page, Resolution::Frame(frame));
    }
}

// SAFETY: what is named is memory of the test.
unsafe impl Backing for Frames {
    fn find(&self, query: &FrameQuery) -> Resolution {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let exceptions = self.exceptions.lock().unwrap();
        if let Some(found) = exceptions.get(&query.page) {
            return *found;
        }
        // A block with an exception in it is no block.
        let mut level = *self.level.lock().unwrap();
        while level > Level::Size4K {
            let first = query.page & !(level.pages() - 1);
            if exceptions.range(first..first + level.pages()).next().is_none() {
                break;
            }
            level = level.below().unwrap();
        }
        Resolution::Frame(HostFrame {
            pfn: Pfn(query.page + Self::OFFSET),
            level,
            access: *self.access.lock().unwrap(),
            memory: MemoryType::WriteBack,
        })
    }
}

// SAFETY: boxes of the test that live as long as it, aligned as pages are; nobody else borrows them.
unsafe impl GuestMemory for Frames {
    fn bytes(&self, pfn: Pfn) -> Option<NonNull<GuestPage>> {
        let mut memory = self.memory.lock().unwrap();
        let page = memory.entry(pfn.0).or_insert_with(|| Box::new(Page([0; 4096])));
        Some(NonNull::from(&mut **page).cast())
    }
}

/// EPT with hardware A and D.
pub fn ept() -> Format {
    ept::format(ept::EptOptions { phys_bits: 48, ..Default::default() }).unwrap()
}

/// NPT.
pub fn npt() -> Format {
    npt::format(npt::NptOptions::default()).unwrap()
}

/// Every format there is: both kinds, with four levels and with five, and EPT without A and D.
pub fn formats() -> [(&'static str, Format); 5] {
    let ept = ept::EptOptions { phys_bits: 48, ..Default::default() };
    let npt = npt::NptOptions::default();
    [
        ("npt", npt::format(npt).unwrap()),
        ("ept", ept::format(ept).unwrap()),
        ("npt5", npt::format(npt::NptOptions { top: Level::L5, ..npt }).unwrap()),
        ("ept5", ept::format(ept::EptOptions { top: Level::L5, ..ept }).unwrap()),
        (
            "ept without A and D",
            ept::format(ept::EptOptions { record: Record::Software, ..ept }).unwrap(),
        ),
    ]
}

/// Frames `start..start + pages`.
pub fn range(start: u64, pages: u64) -> GfnRange {
    GfnRange::sized(Gfn(start), pages).unwrap()
}

/// A slot of backing 7, whose pages have the numbers of the guest frames.
pub fn backed(id: u32, frames: GfnRange) -> SlotSpec {
    SlotSpec {
        id: SlotId(id),
        space: AddressSpace::Normal,
        range: frames,
        source: Source::Backed { backing: 7, first: frames.start().0 },
        mutability: Mutability::ReadWrite,
        largest: Level::Size1G,
    }
}

/// A slot of pinned frames from `pfn`.
pub fn linear(id: u32, frames: GfnRange, pfn: u64) -> SlotSpec {
    let memory = MemoryType::WriteBack;
    // SAFETY: no guest runs; the frames are numbers.
    let source = Source::Linear(unsafe { LinearFrames::new(Pfn(pfn), memory) });
    SlotSpec { source, ..backed(id, frames) }
}

/// A guest's access to a frame.
pub fn fault_at(gfn: u64, access: Access) -> PageFault {
    PageFault { gpa: Gpa(gfn << 12), access, cause: Cause::Guest }
}

/// A VM at its end: nothing is wrong, and every table page goes back.
pub fn finish(mut vm: Mmu<TestHost>) {
    let checked = vm.check(|_, _| Witness::Unknown).unwrap();
    assert!(checked.is_clean(), "{:#?}", checked.violations);
    assert_eq!(vm.teardown().in_use(), 0, "every table page goes back");
}

/// Pages of the backing of [`backed`] slots.
pub fn pages(first: u64, pages: u64) -> HostRange {
    HostRange { backing: 7, first, pages }
}

/// The answer to a request.
pub fn resolve(request: Request<'_>, found: HostFrame) -> ResolvedFault<'_> {
    let answer = request.query().answer(found);
    request.resolve(answer).unwrap()
}

/// A vCPU with a root and table pages in stock, that has been in the guest.
pub fn ready(vm: &Mmu<TestHost>, id: u32) -> VcpuMmu<&Mmu<TestHost>> {
    let mut vcpu = vm.vcpu(VcpuId(id)).unwrap();
    vcpu.reserve(8).unwrap();
    enter(&mut vcpu).after_exit();
    vcpu
}

/// A request for a page that is mapped by nobody yet, with the frame the host has for it now.
pub fn half<'vm>(
    vcpu: &mut VcpuMmu<&'vm Mmu<TestHost>>,
    frames: &Frames,
    gfn: u64,
) -> (Request<'vm>, HostFrame) {
    vcpu.load_root().unwrap();
    half_of(vcpu, frames, fault_at(gfn, Access::WRITE))
}

/// The same for any fault, on whatever root the vCPU has.
pub fn half_of<'vm>(
    vcpu: &mut VcpuMmu<&'vm Mmu<TestHost>>,
    frames: &Frames,
    fault: PageFault,
) -> (Request<'vm>, HostFrame) {
    let FaultStep::Resolve(request) = vcpu.begin_fault(fault) else { panic!("no request") };
    let Resolution::Frame(found) = frames.find(&request.query()) else { panic!("no frame") };
    (request, found)
}

/// Enters the guest, with a root loaded first if need be.
pub fn enter<M: Hold>(vcpu: &mut VcpuMmu<M>) -> InGuest<'_, M> {
    vcpu.load_root().unwrap();
    vcpu.before_enter(Processor(0)).unwrap()
}
