//! A hosted hypervisor in small: threads of an operating system, a guest that is a loop, a memory
//! manager that moves the guest's pages under it.
//!
//! Two threads share one processor and give it up in two places only: the guest when a timer
//! interrupts it, and the library's waits through [`Cpus::wait`]. So the vCPU that a notifier waits
//! for can run only because the library asks the host to pass the time. The chapter
//! `docs/book/porting.md` explains the calls in their order.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::cell::Cell;
use std::error::Error;
use std::ptr::{NonNull, copy_nonoverlapping, with_exposed_provenance_mut};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use vmmu::addr::{Gfn, GfnRange, Gpa, Level, Pfn};
use vmmu::check::Witness;
use vmmu::entry::{Access, MemoryType, npt};
use vmmu::host::{
    Backing, Contents, Cpus, FrameQuery, GuestMemory, GuestPage, HostFrame, Observer, Placement,
    Resolution, TablePage, TablePages, VcpuId, Wait, WaitFor,
};
use vmmu::slot::{AddressSpace, Mutability, SlotId, SlotSpec, Source};
use vmmu::{
    Cause, Config, EnterError, Flush, HostRange, Mmu, Outcome, PageFault, Processor, VcpuMmu,
    Worker,
};

/// Pages of guest memory.
const PAGES: u64 = 8;
/// How often the guest adds one to the first word of each of its pages.
const ROUNDS: u64 = 200;
/// The host's name for the one piece of memory that it backs a slot with.
const RAM: u64 = 1;
const PAGE: Layout = match Layout::from_size_align(4096, 4096) {
    Ok(layout) => layout,
    Err(_) => panic!("a page has a layout"),
};

fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    println!("{:?}", run()?);
    Ok(())
}

/// What happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Report {
    /// Pages that were moved under the guest.
    pub moved: u64,
    /// Times the library gave the processor away while it waited for the vCPU.
    pub waits: u64,
    /// Entries that had to drop translations.
    pub flushes: u64,
}

/// Makes a guest, runs it while its pages are moved, checks its tables and takes it down.
pub fn run() -> Result<Report, Box<dyn Error + Send + Sync>> {
    let ram = Arc::new(Ram::new());
    let format = npt::format(npt::NptOptions::default())?;
    let mmu = Arc::new(Mmu::new(Host::default(), &Config::new(format, 1))?);

    // A worker changes slots. It is dropped as soon as there is no more to change.
    Worker::new(Arc::clone(&mmu))?.create_slot(&SlotSpec {
        id: SlotId(0),
        space: AddressSpace::Normal,
        range: GfnRange::sized(Gfn(0), PAGES).ok_or("too long")?,
        source: Source::Backed { backing: RAM, first: 0 },
        mutability: Mutability::ReadWrite,
        largest: Level::Size2M,
    })?;

    // The vCPU owns a share of the MMU, so it can move to a thread that outlives this function.
    let vcpu = VcpuMmu::new(Arc::clone(&mmu), VcpuId(0))?;
    let vcpu_thread = {
        let (mmu, ram) = (Arc::clone(&mmu), Arc::clone(&ram));
        thread::spawn(move || {
            mmu.host().processor.share(Thread::Vcpu, || run_vcpu(&mmu, vcpu, &ram))
        })
    };
    // The memory manager owns neither a vCPU nor a worker: the MMU has participants of its own.
    let manager_thread = {
        let (mmu, ram) = (Arc::clone(&mmu), Arc::clone(&ram));
        thread::spawn(move || {
            mmu.host().processor.share(Thread::Manager, || move_pages(&mmu, &ram))
        })
    };
    let moved = manager_thread.join().map_err(|_| "the memory manager panicked")??;
    let flushes = vcpu_thread.join().map_err(|_| "the vCPU's thread panicked")??;

    // Every handle is gone, so this is the last share, and nothing else runs.
    let mut mmu = Arc::try_unwrap(mmu).map_err(|_| "somebody still holds the MMU")?;
    let checked = mmu.check(|_, page| Witness::Frame(ram.frame(page), Access::all()))?;
    if !checked.is_clean() {
        return Err(format!("the checker found {:?}", checked.violations).into());
    }
    let host = mmu.teardown();
    let left = host.tables.load(Ordering::SeqCst);
    if left != 0 {
        return Err(format!("{left} table pages did not come back").into());
    }
    for page in 0..PAGES {
        let sum = ram.word(page);
        if sum != ROUNDS {
            return Err(format!("page {page}: {sum} additions arrived, not {ROUNDS}").into());
        }
    }
    Ok(Report { moved, waits: host.waits.load(Ordering::SeqCst), flushes })
}

/// The vCPU's thread: enters, runs the guest until it exits, handles the exit.
fn run_vcpu(
    mmu: &Mmu<Host>,
    mut vcpu: VcpuMmu<Arc<Mmu<Host>>>,
    ram: &Ram,
) -> Result<u64, Box<dyn Error + Send + Sync>> {
    let host = mmu.host();
    let mut guest = Guest::default();
    let mut flushes = 0;
    loop {
        // May sleep, lock and allocate. Nothing is done if the root is still valid.
        vcpu.load_root()?;
        // A kick that comes from here on stays pending until the guest runs, and ends it at once.
        // The library kicks only who has said "in the guest", which `before_enter` does.
        host.kicked.store(false, Ordering::SeqCst);
        let entered = match vcpu.before_enter(Processor(0)) {
            Ok(inside) => inside.keep(),
            Err(EnterError::LoadRoot) => continue,
            Err(error) => return Err(error.into()),
        };
        if entered.flush() == Flush::Needed {
            // A processor would be told here to drop its translations.
            flushes += 1;
        }
        let exit = guest.run(&mut vcpu, host);
        // From here on nobody waits for this vCPU any more.
        vcpu.leave(entered);
        match exit {
            Exit::Done => return Ok(flushes),
            Exit::Kicked => {}
            Exit::NestedFault { gpa, access } => nested_fault(&mut vcpu, host, ram, gpa, access)?,
        }
    }
}

/// Handles a nested page fault. `Ok`: the guest repeats its access.
fn nested_fault(
    vcpu: &mut VcpuMmu<Arc<Mmu<Host>>>,
    host: &Host,
    ram: &Ram,
    gpa: Gpa,
    access: Access,
) -> Result<(), Box<dyn Error + Send + Sync>> {
    match vcpu.handle_fault(ram, PageFault { gpa, access, cause: Cause::Guest }) {
        Outcome::Fixed(_) | Outcome::Spurious => Ok(()),
        // The page is being taken back, say. The guest faults again; until then whoever has to end
        // that has to run.
        Outcome::Busy(_) | Outcome::Retry => {
            host.processor.pass_on(Thread::Vcpu);
            Ok(())
        }
        Outcome::Emulate | Outcome::WriteProtected => Err("this guest has no devices".into()),
        Outcome::Fault(why) => Err(format!("{gpa}: {why}").into()),
        Outcome::OutOfMemory => Err("no page for a table".into()),
        Outcome::Dead(why) => Err(why.into()),
    }
}

/// The memory manager's thread: moves the guest's pages to other frames, as a host does that
/// compacts its memory.
fn move_pages(mmu: &Mmu<Host>, ram: &Ram) -> Result<u64, Box<dyn Error + Send + Sync>> {
    let mut moved = 0;
    while !mmu.host().guest_is_done.load(Ordering::SeqCst) {
        let page = moved % PAGES;
        let range = HostRange { backing: RAM, first: page, pages: 1 };
        // When this returns, no vCPU reaches the page, and none gets it back before the end. A
        // vCPU that is in the guest is kicked and waited for, through `Cpus::wait`.
        mmu.invalidate_begin(range);
        ram.move_page(page);
        mmu.invalidate_end(range)?;
        moved += 1;
        mmu.host().processor.pass_on(Thread::Manager);
    }
    Ok(moved)
}

/// The guest: adds one to a word of each of its pages, round after round.
#[derive(Default)]
struct Guest {
    steps: u64,
}

/// Why the guest's run ended.
enum Exit {
    Done,
    Kicked,
    NestedFault { gpa: Gpa, access: Access },
}

impl Guest {
    /// Runs until the next exit. The library's walk of its own tables stands for the processor's.
    fn run(&mut self, vcpu: &mut VcpuMmu<Arc<Mmu<Host>>>, host: &Host) -> Exit {
        loop {
            if host.kicked.load(Ordering::SeqCst) {
                return Exit::Kicked;
            }
            if self.steps == ROUNDS * PAGES {
                host.guest_is_done.store(true, Ordering::SeqCst);
                return Exit::Done;
            }
            let gpa = Gpa((self.steps % PAGES) << 12);
            let reached = vcpu.translate(gpa).filter(|found| found.access.contains(Access::WRITE));
            let Some(reached) = reached else {
                return Exit::NestedFault { gpa, access: Access::READ | Access::WRITE };
            };
            let word = with_exposed_provenance_mut::<u64>(reached.hpa.0 as usize);
            // SAFETY: the tables name a frame of `Ram`, which is not moved while this vCPU counts
            // as being in the guest; all accesses to it are atomic or by the one who moves it.
            unsafe { AtomicU64::from_ptr(word) }.fetch_add(1, Ordering::SeqCst);
            self.steps += 1;
            // A timer interrupts the guest now and then, in the guest. The host runs another
            // thread; the vCPU still counts as being in the guest, and would be waited for.
            if self.steps.is_multiple_of(3) {
                host.processor.pass_on(Thread::Vcpu);
            }
        }
    }
}

/// What the library needs of this program at all times.
#[derive(Default, Debug)]
struct Host {
    processor: OneProcessor,
    kicked: AtomicBool,
    guest_is_done: AtomicBool,
    tables: AtomicU64,
    waits: AtomicU64,
}

// SAFETY: whole pages of the allocator at their own addresses, exposed, used by nobody else.
unsafe impl TablePages for Host {
    fn window(&self) -> u64 {
        0
    }

    fn take(&self, _: Placement) -> Option<TablePage> {
        let pfn = take_frame()?;
        self.tables.fetch_add(1, Ordering::SeqCst);
        Some(TablePage { pfn, contents: Contents::Zeroed })
    }

    fn release(&self, page: Pfn) {
        self.tables.fetch_sub(1, Ordering::SeqCst);
        // SAFETY: from `take`, and nobody reaches it any more.
        unsafe { put_frame(page) }
    }
}

impl Cpus for Host {
    fn kick(&self, _: VcpuId) {
        // A real host sends an interrupt or a signal here.
        self.kicked.store(true, Ordering::SeqCst);
    }

    fn wait(&self, wait: Wait) {
        if matches!(wait.on, WaitFor::Vcpu(_)) {
            self.waits.fetch_add(1, Ordering::SeqCst);
        }
        // A host with more processors would spin while `wait.asked` is small. Here whoever is
        // waited for cannot run before this thread sleeps.
        self.processor.pass_on(THREAD.get());
    }

    fn here(&self) -> Option<u32> {
        Some(THREAD.get() as u32)
    }
}

impl Observer for Host {}

/// Guest memory: which frame is behind each page.
struct Ram(Mutex<Vec<Pfn>>);

// SAFETY: the frames belong to the guest alone, and one changes only in `move_page`, which is
// called inside an invalidation of its page.
unsafe impl Backing for Ram {
    fn find(&self, query: &FrameQuery) -> Resolution {
        match self.frames().get(query.page as usize) {
            Some(pfn) => Resolution::Frame(HostFrame {
                pfn: *pfn,
                level: Level::Size4K,
                access: Access::all(),
                memory: MemoryType::WriteBack,
            }),
            None => Resolution::Hole,
        }
    }
}

// SAFETY: the allocator's pages, aligned, and freed only after an invalidation of the page.
unsafe impl GuestMemory for Ram {
    fn bytes(&self, pfn: Pfn) -> Option<NonNull<GuestPage>> {
        NonNull::new(with_exposed_provenance_mut(pfn.hpa().0 as usize))
    }
}

impl Ram {
    fn new() -> Self {
        Ram(Mutex::new((0..PAGES).filter_map(|_| take_frame()).collect()))
    }

    /// The list, never kept across a call of the library.
    fn frames(&self) -> MutexGuard<'_, Vec<Pfn>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn frame(&self, page: u64) -> Pfn {
        self.frames()[page as usize]
    }

    /// Puts a page into another frame, and frees the one that it was in. Inside an invalidation of
    /// the page.
    fn move_page(&self, page: u64) {
        let Some(new) = take_frame() else { return };
        let old = core::mem::replace(&mut self.frames()[page as usize], new);
        let [from, to] = [old, new].map(|pfn| with_exposed_provenance_mut::<u8>(address(pfn)));
        // SAFETY: the invalidation has ended every access to the old frame, and nobody knows the
        // new one yet. The old one is this program's again.
        unsafe {
            copy_nonoverlapping(from, to, PAGE.size());
            put_frame(old);
        }
    }

    /// The first word of a page, when nothing else runs.
    fn word(&self, page: u64) -> u64 {
        let word = with_exposed_provenance_mut::<u64>(address(self.frame(page)));
        // SAFETY: a frame of this list, aligned.
        unsafe { word.read() }
    }
}

impl Drop for Ram {
    fn drop(&mut self) {
        for pfn in self.frames().drain(..) {
            // SAFETY: from `take_frame`; the MMU that named it is gone or maps it no more.
            unsafe { put_frame(pfn) }
        }
    }
}

/// A page of the allocator, zeroed, at the frame of its own address.
fn take_frame() -> Option<Pfn> {
    // SAFETY: the layout is not empty.
    let page = NonNull::new(unsafe { alloc_zeroed(PAGE) })?;
    Some(Pfn(page.as_ptr().expose_provenance() as u64 >> 12))
}

/// # Safety
///
/// From [`take_frame`], and used by nobody any more.
unsafe fn put_frame(pfn: Pfn) {
    // SAFETY: allocated with this layout; the rest is the caller's promise.
    unsafe { dealloc(with_exposed_provenance_mut(address(pfn)), PAGE) }
}

fn address(pfn: Pfn) -> usize {
    pfn.hpa().0 as usize
}

/// The two threads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Thread {
    Vcpu,
    Manager,
}

thread_local! {
    static THREAD: Cell<Thread> = const { Cell::new(Thread::Vcpu) };
}

/// One processor for two threads: only the one that has it runs.
#[derive(Debug)]
struct OneProcessor {
    state: Mutex<(Thread, [bool; 2])>,
    changed: Condvar,
}

impl Default for OneProcessor {
    fn default() -> Self {
        OneProcessor { state: Mutex::new((Thread::Vcpu, [false; 2])), changed: Condvar::new() }
    }
}

impl OneProcessor {
    /// Does `work` as one of the two threads, whenever it has the processor.
    fn share<R>(&self, me: Thread, work: impl FnOnce() -> R) -> R {
        THREAD.set(me);
        self.take(me);
        let done = work();
        self.give(me, true);
        done
    }

    /// Lets the other thread run until it gives the processor back.
    fn pass_on(&self, me: Thread) {
        self.give(me, false);
        self.take(me);
    }

    fn give(&self, me: Thread, for_good: bool) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let other = if me == Thread::Vcpu { Thread::Manager } else { Thread::Vcpu };
        let (running, ended) = &mut *state;
        ended[me as usize] |= for_good;
        if !ended[other as usize] {
            *running = other;
        }
        self.changed.notify_all();
    }

    fn take(&self, me: Thread) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let patience = Duration::from_secs(60);
        let waited =
            self.changed.wait_timeout_while(state, patience, |(running, _)| *running != me);
        let (_state, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        assert!(!timeout.timed_out(), "{me:?} never ran again: somebody waits without the hook");
    }
}
