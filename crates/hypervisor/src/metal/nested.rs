//! The guest's nested tables: what this hypervisor gives the library, and what it asks of it.
//!
//! The only place in the hypervisor that touches an entry of a nested table is the alarm in
//! `alarm.rs`, which breaks one on purpose.

use super::guest_ram::GuestRam;
use super::{apic, boot, memory, report};
use alloc::{format, string::String, vec::Vec};
use core::ptr::NonNull;
use hypervisor::policy;
use hypervisor::pool::{FRAME, Size};
use hypervisor::wire::{End, Guest, Job, PageLimit, Range, Stats, Verdict};
use vmmu::addr::{Gfn, GfnRange, Gpa, Level, Pfn};
use vmmu::check::{Violation, Witness};
use vmmu::entry::{Access, Format, MemoryType, npt};
use vmmu::host::{
    Backing, Contents, Cpus, FrameQuery, GuestMemory, GuestPage, HostFrame, Observer, Placement,
    Resolution, TablePage, TablePages, VcpuId,
};
use vmmu::slot::{AddressSpace, LinearFrames, Mutability, SlotId, SlotSpec, Source};
use vmmu::{AccessError, AccessFailure, Config, Mmu, Processor, Role, Worker};
use vmmu::{Cause, MemoryFault, Outcome, PageFault};

/// The one backing there is: the guest's RAM, by guest frame number.
pub const GUEST_RAM: u64 = 0;

/// The role of a vCPU whose local APIC is on: it is in the address space.
pub const WITH_APIC: Role = Role::PLAIN;
/// That of one whose local APIC is off.
pub const WITHOUT_APIC: Role = Role { space: AddressSpace::Smm, ..Role::PLAIN };

/// What the library needs of this hypervisor at all times.
#[derive(Debug)]
pub struct Host;

// SAFETY: pages come from the pool, which gives every frame to one owner; all of them are
// identity-mapped for good, below 1 TiB, and no Rust allocation lies in them.
unsafe impl TablePages for Host {
    fn window(&self) -> u64 {
        0
    }

    fn take(&self, placement: Placement) -> Option<TablePage> {
        let frame = memory::take(Size::K4)?;
        if placement.below.is_some_and(|below| (frame + 1) * FRAME > below) {
            // The lowest free frame is too high, so all are.
            memory::put(frame, Size::K4);
            return None;
        }
        Some(TablePage { pfn: Pfn(frame), contents: Contents::Unknown })
    }

    fn release(&self, page: Pfn) {
        memory::put(page.0, Size::K4);
    }
}

impl Cpus for Host {
    fn kick(&self, vcpu: VcpuId) {
        // vCPU n runs on processor n. Its gate is closed until the entry itself, so an NMI that
        // comes before ends the guest's run at its first instruction.
        apic::send_nmi(vcpu.0);
    }
}

impl Observer for Host {}

// SAFETY: the pool's frames are neither this program's image nor table pages; a guest's frame is its
// own until `relocate`, which is called inside an invalidation of its pages.
unsafe impl Backing for GuestRam<'_> {
    fn find(&self, query: &FrameQuery) -> Resolution {
        let largest = match query.largest {
            Level::Size4K => Size::K4,
            Level::Size2M => Size::M2,
            _ => Size::G1,
        };
        // No place for a page of a RAM slot: the pool is empty.
        let Some(place) = self.provide(query.gfn.0, largest) else { return Resolution::Hole };
        let level = match place.size {
            Size::K4 => Level::Size4K,
            Size::M2 => Level::Size2M,
            Size::G1 => Level::Size1G,
        };
        Resolution::Frame(HostFrame {
            pfn: Pfn(place.frame),
            level,
            access: Access::all(),
            memory: MemoryType::WriteBack,
        })
    }
}

// SAFETY: memory is mapped at its own addresses, for good; nobody makes references to a guest's.
unsafe impl GuestMemory for GuestRam<'_> {
    fn bytes(&self, pfn: Pfn) -> Option<NonNull<GuestPage>> {
        NonNull::new((pfn.0 * FRAME) as *mut GuestPage)
    }
}

/// A vCPU as the library knows it.
pub type Handle<'m> = vmmu::VcpuMmu<&'m vmmu::Mmu<Host>>;

/// What became of a nested fault.
pub enum Answer {
    /// Mapped now: the guest tries again.
    Mapped,
    /// The guest tries again.
    Again,
    /// No plain memory: the instruction has to be carried out.
    Device,
    /// The guest cannot go on.
    End(End),
}

/// The nested tables of one guest.
pub struct Nested<'m> {
    vm: Mmu<Host>,
    ram: &'m GuestRam<'m>,
}

fn format() -> Result<Format, String> {
    let cpuid = raw_cpuid::CpuId::new();
    let capacity = cpuid.get_processor_capacity_feature_info();
    let phys_bits = capacity.map_or(36, |info| u32::from(info.physical_address_bits()));
    let giant = cpuid
        .get_extended_processor_and_feature_identifiers()
        .is_some_and(|features| features.has_1gib_pages());
    let largest = if giant { Level::Size1G } else { Level::Size2M };
    let options = npt::NptOptions { top: Level::L4, largest, phys_bits };
    npt::format(options).map_err(|error| format!("nested tables: {error}"))
}

impl<'m> Nested<'m> {
    /// Tables for a guest: one slot for each RAM range, and one for the local APIC. In the second
    /// address space, which is for vCPUs that have switched their local APIC off, it is missing.
    pub fn new(job: &Job<'_>, guest: &Guest<'_>, ram: &'m GuestRam<'m>) -> Result<Self, String> {
        let largest = match job.pages {
            PageLimit::K4 => Level::Size4K,
            PageLimit::M2 => Level::Size2M,
            PageLimit::G1 | PageLimit::Auto => Level::Size1G,
        };
        // No slot and, as the checker sees to, no leaf may reach this program.
        let (image, end) = boot::image();
        let reserved = [(Pfn(image / FRAME), Pfn(end.div_ceil(FRAME)))];
        let config = Config {
            // One for the slots and the clock, one for each vCPU that plays the host (churn).
            workers: guest.cpus + 4,
            largest,
            reserved: &reserved,
            ..Config::new(format()?, guest.cpus)
        };
        let vm = Mmu::new(Host, &config).map_err(|error| format!("nested tables: {error}"))?;
        let nested = Self { vm, ram };
        let in_space = |space| {
            move |range: &Range| SlotSpec {
                id: SlotId(0),
                space,
                range: GfnRange::sized(Gfn(range.gpa / FRAME), range.bytes / FRAME)
                    .unwrap_or(GfnRange::EMPTY),
                source: Source::Backed { backing: GUEST_RAM, first: range.gpa / FRAME },
                mutability: Mutability::ReadWrite,
                largest,
            }
        };
        let slots = guest.ram.iter().map(in_space(AddressSpace::Normal));
        let without_apic = guest.ram.iter().map(in_space(WITHOUT_APIC.space));
        let page = policy::LOCAL_APIC / FRAME;
        let local_apic = SlotSpec {
            id: SlotId(0),
            space: AddressSpace::Normal,
            range: GfnRange::sized(Gfn(page), 1).unwrap_or(GfnRange::EMPTY),
            // SAFETY: the local APIC's page is what the guest is to read there.
            source: Source::Linear(unsafe { LinearFrames::new(Pfn(page), MemoryType::Uncached) }),
            // Writes are looked at; see `mmio.rs`.
            mutability: Mutability::ReadOnly,
            largest: Level::Size4K,
        };
        {
            let mut worker = nested.worker()?;
            for (id, slot) in (0..).zip(slots.chain([local_apic]).chain(without_apic)) {
                let slot = SlotSpec { id: SlotId(id), ..slot };
                worker.create_slot(&slot).map_err(|error| format!("slot {id}: {error}"))?;
            }
        }
        Ok(nested)
    }

    /// The vCPU of that number. `None` without memory.
    pub fn vcpu(&self, number: usize) -> Option<Handle<'_>> {
        self.vm.vcpu(VcpuId(number as u32)).ok()
    }

    /// The memory of the guest, as the library manages it.
    pub fn mmu(&self) -> &Mmu<Host> {
        &self.vm
    }

    /// Answers a nested fault of `vcpu`.
    pub fn fault(&self, vcpu: &mut Handle<'_>, gpa: u64, access: Access) -> Answer {
        let fault = PageFault { gpa: Gpa(gpa), access, cause: Cause::Guest };
        let broken = |what| Answer::End(End::Broken { what });
        match vcpu.handle_fault(self.ram, fault) {
            Outcome::Fixed(_) => Answer::Mapped,
            Outcome::Spurious | Outcome::Retry | Outcome::Busy(_) => Answer::Again,
            Outcome::Emulate | Outcome::WriteProtected => Answer::Device,
            // Every page of a RAM slot has a frame as long as the pool has one.
            Outcome::Fault(MemoryFault::Hole) => {
                let total = memory::frames().1;
                broken(format!("none of the host's {total} frames is left for {gpa:#x}"))
            }
            Outcome::Fault(fault) => {
                let (free, total) = memory::frames();
                broken(format!("page at {gpa:#x}: {fault}; {free} of {total} frames are free"))
            }
            Outcome::OutOfMemory => broken(String::from("no memory for table pages")),
            Outcome::Dead(why) => broken(format!("the library gave the guest up: {why}")),
        }
    }

    /// The library's counters.
    pub fn stats(&self) -> Stats {
        report::library(&self.vm.stats())
    }

    /// What the library's checker finds in the tables. No vCPU is left.
    pub fn check(&mut self) -> Verdict {
        let ram = self.ram;
        let witness = |_, page| match ram.find(page) {
            Some(place) => Witness::Frame(Pfn(place.frame), Access::all()),
            None => Witness::Nothing,
        };
        let checked = match self.vm.check(witness) {
            Ok(checked) => checked,
            Err(error) => {
                let violation = (String::from("unchecked"), format!("{error}"));
                return Verdict { violations: alloc::vec![violation], ..Verdict::default() };
            }
        };
        let verified = checked.by_name().map(|(name, count)| (String::from(name), count)).collect();
        let violation = |v: &Violation| (String::from(v.invariant.name()), format!("{v}"));
        let mut violations: Vec<_> = checked.violations.iter().map(violation).collect();
        let kept = violations.len() as u64;
        if checked.found > kept {
            let rest = format!("{} more violations", checked.found - kept);
            violations.push((String::from("and"), rest));
        }
        Verdict { entries: checked.entries, tables: checked.tables, verified, violations }
    }

    /// A worker of the library's, for what happens outside of vCPUs.
    pub fn worker(&self) -> Result<Worker<&Mmu<Host>>, String> {
        self.vm.worker().map_err(|error| format!("a worker: {error}"))
    }

    /// Fills guest memory before a vCPU runs. Errors: there is no memory, from some byte on.
    pub fn fill(
        &self,
        worker: &mut Worker<&Mmu<Host>>,
        gpa: u64,
        bytes: &[u8],
    ) -> Result<(), AccessError> {
        worker.write(self.ram, AddressSpace::Normal, Gpa(gpa), bytes)
    }

    /// Copies guest memory out. Errors: there is no memory, from some byte on.
    pub fn read(
        &self,
        vcpu: &mut Handle<'_>,
        gpa: u64,
        bytes: &mut [u8],
    ) -> Result<(), AccessError> {
        self.until_free(|| vcpu.read(self.ram, Gpa(gpa), bytes))
    }

    /// Copies bytes into guest memory. Errors: there is no memory, from some byte on, or none
    /// that can be written.
    pub fn write(&self, vcpu: &mut Handle<'_>, gpa: u64, bytes: &[u8]) -> Result<(), AccessError> {
        self.until_free(|| vcpu.write(self.ram, Gpa(gpa), bytes))
    }

    /// Sets bits of the word at `gpa`, atomically. Nothing where there is no RAM.
    pub fn set_bits(&self, vcpu: &mut Handle<'_>, gpa: u64, bits: u32) {
        let (gpa, mut seen) = (Gpa(gpa & !3), 0);
        loop {
            match vcpu.compare_exchange(self.ram, gpa, seen, seen | bits) {
                Ok(Ok(_)) => return,
                Ok(Err(now)) => seen = now,
                Err(AccessError { why: AccessFailure::Busy(_), .. }) => core::hint::spin_loop(),
                Err(_) => return,
            }
        }
    }

    /// Tries again while the page is being moved by another processor.
    fn until_free<R>(
        &self,
        mut copy: impl FnMut() -> Result<R, AccessError>,
    ) -> Result<R, AccessError> {
        loop {
            match copy() {
                Err(AccessError { why: AccessFailure::Busy(_), .. }) => core::hint::spin_loop(),
                result => return result,
            }
        }
    }

    /// Takes the tables down and gives their pages back.
    pub fn teardown(self) {
        let Host = self.vm.teardown();
    }
}

/// The processor vCPU `number` runs on, as the library names it.
pub fn processor(number: usize) -> Processor {
    Processor(number as u32)
}
