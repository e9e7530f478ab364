//! A bare-metal hypervisor in small, for AMD's SVM: one vCPU for each processor, entered with
//! interrupts off, and nothing of `std`.
//!
//! What touches the processor is behind the trait [`Hardware`], so that this compiles anywhere; a
//! hypervisor that boots is `crates/hypervisor`, whose `src/metal/vcpu.rs` has the same loop. The
//! chapter `docs/book/porting.md` explains the calls in their order.

#![deny(clippy::std_instead_of_core, clippy::std_instead_of_alloc)]
#![allow(dead_code, reason = "a skeleton: it is compiled, and nothing calls it")]

use core::ptr::NonNull;

use vmmu::addr::{Gfn, GfnRange, Gpa, HostRange, Level, Pfn};
use vmmu::entry::{Access, MemoryType, npt};
use vmmu::host::{
    Backing, Contents, Cpus, FrameQuery, GuestMemory, GuestPage, HostFrame, Observer, Placement,
    Resolution, TablePage, TablePages, VcpuId, Wait,
};
use vmmu::slot::{AddressSpace, LinearFrames, Mutability, SlotId, SlotSpec, Source};
use vmmu::{
    AccessError, Broken, Cause, Config, EnterError, Flush, HandleError, LoadError, Mmu, NewReason,
    Outcome, PageFault, Processor, VcpuMmu,
};

/// A hypervisor has an entry point of its own instead.
fn main() {}

/// The hypervisor's backing: the guest's memory, page by page.
const RAM: u64 = 0;
/// The guest frame and the host frame of the local APIC.
const LOCAL_APIC: u64 = 0xfee00;

/// What touches the processor and its memory.
pub trait Hardware: Sync {
    /// The processor that this runs on.
    fn here(&self) -> u32;
    /// Holds back interrupts, NMIs included: CLGI.
    fn close_gate(&self);
    /// Lets them through again: STGI.
    fn open_gate(&self);
    /// Writes nCR3 and TLB_CONTROL into the processor's control block, and runs the guest until its
    /// next exit: VMLOAD, VMRUN, VMSAVE. VMRUN opens the gate for the guest, so an NMI that waits
    /// ends the guest's run at once, and #VMEXIT closes it again.
    fn run(&self, ncr3: u64, flush: bool) -> Exit;
    /// Sends an NMI to a processor. It may be this one.
    fn send_nmi(&self, processor: u32);
    /// A free frame of identity-mapped memory that no Rust allocation lies in.
    fn take_frame(&self) -> Option<u64>;
    /// Takes such a frame back.
    fn put_frame(&self, frame: u64);
    /// The frame behind a page of the guest's memory. `None`: there is none.
    fn guest_frame(&self, page: u64) -> Option<u64>;
    /// Puts a page of the guest's memory into another frame.
    fn move_guest_page(&self, page: u64);
    /// Carries out the instruction that touched a device.
    fn emulate(&self, gpa: u64);
}

/// Why the guest's run ended.
pub enum Exit {
    /// The guest needs something from its devices, or is gone.
    Stop,
    /// An NMI of the hypervisor's.
    Kicked,
    /// A nested page fault: EXITINFO1 and EXITINFO2.
    NestedFault {
        /// The error code.
        info: u64,
        /// The guest-physical address.
        gpa: u64,
    },
}

/// Why a vCPU cannot go on.
#[derive(Debug)]
pub enum Stopped {
    /// The MMU could not be made.
    New(NewReason),
    /// A handle could not be made.
    Handle(HandleError),
    /// No page for a table.
    OutOfMemory,
    /// The guest reaches for memory that it cannot have.
    Fault(PageFault),
    /// The MMU is dead.
    Dead(Broken),
}

/// What the library needs of this hypervisor at all times.
pub struct Host<W>(W);

// SAFETY: frames come from an allocator that gives each to one owner; they are identity-mapped for
// good, and no Rust allocation lies in them.
unsafe impl<W: Hardware> TablePages for Host<W> {
    fn window(&self) -> u64 {
        0
    }

    fn take(&self, placement: Placement) -> Option<TablePage> {
        let frame = self.0.take_frame()?;
        if placement.below.is_some_and(|below| (frame + 1) << 12 > below) {
            self.0.put_frame(frame);
            return None;
        }
        Some(TablePage { pfn: Pfn(frame), contents: Contents::Unknown })
    }

    fn release(&self, page: Pfn) {
        self.0.put_frame(page.0);
    }
}

impl<W: Hardware> Cpus for Host<W> {
    // No PREEMPTION: nothing on a processor of this hypervisor is ever preempted by anything that
    // calls the library. A kernel with threads gives its own two functions here.

    fn kick(&self, vcpu: VcpuId) {
        // vCPU n runs on processor n. Its gate is closed from before it says "in the guest" until
        // VMRUN, so an NMI that comes in between ends the guest's run at its first instruction.
        self.0.send_nmi(vcpu.0);
    }

    fn wait(&self, _: Wait) {
        // Every processor has one vCPU and runs by itself: whoever is waited for needs no help.
        core::hint::spin_loop();
    }

    fn here(&self) -> Option<u32> {
        Some(self.0.here())
    }
}

impl<W: Hardware> Observer for Host<W> {}

// SAFETY: the frames are the guest's alone, and one changes only in `take_back`, inside an
// invalidation of its page.
unsafe impl<W: Hardware> Backing for Host<W> {
    fn find(&self, query: &FrameQuery) -> Resolution {
        let Some(frame) = self.0.guest_frame(query.page) else { return Resolution::Hole };
        Resolution::Frame(HostFrame {
            pfn: Pfn(frame),
            level: Level::Size4K,
            access: Access::all(),
            memory: MemoryType::WriteBack,
        })
    }
}

// SAFETY: identity-mapped for good; nobody makes references to a guest's memory.
unsafe impl<W: Hardware> GuestMemory for Host<W> {
    fn bytes(&self, pfn: Pfn) -> Option<NonNull<GuestPage>> {
        NonNull::new(core::ptr::with_exposed_provenance_mut(pfn.hpa().0 as usize))
    }
}

/// An MMU for a guest of that many pages, with its slots. The hypervisor keeps it in a place that
/// outlives all processors' loops; each of them borrows it.
pub fn set_up<W: Hardware>(
    hardware: W,
    image: (Pfn, Pfn),
    pages: u64,
    vcpus: u32,
) -> Result<Mmu<Host<W>>, Stopped> {
    let format = npt::format(npt::NptOptions::default()).map_err(|_| Stopped::OutOfMemory)?;
    // No slot, and no answer of the backing, may name a frame of this program.
    let reserved = [image];
    let config = Config { reserved: &reserved, ..Config::new(format, vcpus) };
    let mmu = Mmu::new(Host(hardware), &config).map_err(|error| Stopped::New(error.why))?;
    let mut worker = mmu.worker().map_err(Stopped::Handle)?;
    let ram = SlotSpec {
        id: SlotId(0),
        space: AddressSpace::Normal,
        range: GfnRange::sized(Gfn(0), pages).unwrap_or(GfnRange::EMPTY),
        source: Source::Backed { backing: RAM, first: 0 },
        mutability: Mutability::ReadWrite,
        largest: Level::Size2M,
    };
    let local_apic = SlotSpec {
        id: SlotId(1),
        range: GfnRange::sized(Gfn(LOCAL_APIC), 1).unwrap_or(GfnRange::EMPTY),
        // SAFETY: the page of the local APIC is what the guest may read there.
        source: Source::Linear(unsafe { LinearFrames::new(Pfn(LOCAL_APIC), MemoryType::Uncached) }),
        mutability: Mutability::ReadOnly,
        largest: Level::Size4K,
        ..ram
    };
    for slot in [ram, local_apic] {
        worker.create_slot(&slot).map_err(|_| Stopped::OutOfMemory)?;
    }
    drop(worker);
    Ok(mmu)
}

/// A processor's loop: runs one vCPU until the guest stops.
pub fn run_vcpu<W: Hardware>(mmu: &Mmu<Host<W>>, number: u32) -> Result<(), Stopped> {
    let mut vcpu = mmu.vcpu(VcpuId(number)).map_err(Stopped::Handle)?;
    loop {
        match enter(mmu, &mut vcpu)? {
            None | Some(Exit::Kicked) => {}
            Some(Exit::Stop) => return Ok(()),
            Some(Exit::NestedFault { info, gpa }) => nested_fault(mmu, &mut vcpu, info, gpa)?,
        }
    }
}

/// Runs the guest until its next exit. `None`: the root has gone, or every place for one is taken
/// by a drain; ask again.
fn enter<W: Hardware>(
    mmu: &Mmu<Host<W>>,
    vcpu: &mut VcpuMmu<&Mmu<Host<W>>>,
) -> Result<Option<Exit>, Stopped> {
    let hardware = &mmu.host().0;
    // 1. With interrupts on: may wait, lock and allocate.
    match vcpu.load_root() {
        Ok(()) => {}
        Err(LoadError::RootsBusy) => return Ok(None),
        Err(LoadError::OutOfMemory) => return Err(Stopped::OutOfMemory),
        Err(LoadError::Dead(why)) => return Err(Stopped::Dead(why)),
    }
    // 2. From here on a kick stays pending until the guest runs.
    hardware.close_gate();
    // 3. Says "in the guest", and only then looks at flushes and at the root.
    let inside = match vcpu.before_enter(Processor(hardware.here())) {
        Ok(inside) => inside,
        Err(error) => {
            hardware.open_gate();
            return match error {
                EnterError::LoadRoot => Ok(None),
                EnterError::Dead(why) => Err(Stopped::Dead(why)),
            };
        }
    };
    // 4. VMRUN. TLB_CONTROL 1 drops everything, 3 only what has this ASID.
    let exit = hardware.run(inside.root().0, inside.flush() == Flush::Needed);
    // 5. Says "outside", and that the flush has been done. Before the gate opens, because what an
    // interrupt handler does may wait for this vCPU.
    inside.after_exit();
    // 6. The NMI that ended the run is taken here. Its handler has nothing to do.
    hardware.open_gate();
    Ok(Some(exit))
}

/// Handles a nested page fault. `Ok`: the guest goes on.
fn nested_fault<W: Hardware>(
    mmu: &Mmu<Host<W>>,
    vcpu: &mut VcpuMmu<&Mmu<Host<W>>>,
    info: u64,
    gpa: u64,
) -> Result<(), Stopped> {
    // EXITINFO1: bit 1 is a write, bit 4 a fetch. An access by a walk of the guest's own tables
    // says so in bit 33; it is what bit 1 says.
    let mut access = Access::READ;
    access.set(Access::WRITE, info >> 1 & 1 == 1);
    access.set(Access::EXEC, info >> 4 & 1 == 1);
    let fault = PageFault { gpa: Gpa(gpa), access, cause: Cause::Guest };
    match vcpu.handle_fault(mmu.host(), fault) {
        // The guest repeats the access; if it faults again, this is asked again.
        Outcome::Fixed(_) | Outcome::Spurious | Outcome::Retry | Outcome::Busy(_) => Ok(()),
        Outcome::Emulate | Outcome::WriteProtected => {
            mmu.host().0.emulate(gpa);
            Ok(())
        }
        Outcome::Fault(_) => Err(Stopped::Fault(fault)),
        Outcome::OutOfMemory => Err(Stopped::OutOfMemory),
        Outcome::Dead(why) => Err(Stopped::Dead(why)),
    }
}

/// Moves pages of the guest's memory elsewhere. On a processor that has no vCPU in the guest, with
/// interrupts on.
pub fn take_back<W: Hardware>(mmu: &Mmu<Host<W>>, first: u64, pages: u64) {
    let invalidation = mmu.invalidate_range(HostRange { backing: RAM, first, pages });
    for page in first..first + pages {
        mmu.host().0.move_guest_page(page);
    }
    // Faults on the pages are answered again.
    drop(invalidation);
}

/// Reads guest memory, as an instruction emulator does.
pub fn fetch<W: Hardware>(
    mmu: &Mmu<Host<W>>,
    vcpu: &mut VcpuMmu<&Mmu<Host<W>>>,
    gpa: Gpa,
    bytes: &mut [u8],
) -> Result<(), AccessError> {
    vcpu.read(mmu.host(), gpa, bytes)
}

/// The end: no vCPU and no worker is left.
pub fn take_down<W: Hardware>(mmu: Mmu<Host<W>>) -> W {
    let Host(hardware) = mmu.teardown();
    hardware
}
