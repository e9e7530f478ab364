//! The library's own look at guest memory: translation, and copies of linear pages.

use std::cell::Cell;
use std::ptr::NonNull;

use vmmu::addr::{Gfn, Gpa, Level, Pfn};
use vmmu::entry::Access;
use vmmu::host::{Backing, FrameQuery, GuestMemory, GuestPage, Resolution, VcpuId};
use vmmu::internals::Defect;
use vmmu::slot::{AddressSpace, SlotId};
use vmmu::{AccessError, AccessFailure, Config, Mmu, Outcome, Role, Worker};

use crate::catch::{Verdict, catches, ensure};
use crate::support::{Frames, TestHost, backed, fault_at, formats, linear, npt, range};

const SPACE: AddressSpace = AddressSpace::Normal;

/// An address is asked for whose frame number has one bit more than the tables look at.
fn no_address_beyond_the_tables_is_a_low_one() -> Verdict {
    for (name, format) in formats() {
        let vm = Mmu::new(TestHost::default(), &Config::new(format, 1)).unwrap();
        let frames = Frames::new(Level::Size4K);
        let (mut worker, mut vcpu) = (vm.worker().unwrap(), vm.vcpu(VcpuId(0)).unwrap());
        worker.create_slot(&backed(1, range(0, 0x10))).unwrap();
        let outcome = vcpu.handle_fault(&frames, fault_at(5, Access::READ));
        ensure(matches!(outcome, Outcome::Fixed(_)), || format!("{name}: {outcome:?}"))?;
        for bit in format.frames().trailing_zeros()..52 {
            let high = Gfn(5 | 1 << bit);
            let found = worker.translate(Role::PLAIN, high.gpa());
            ensure(found.is_none(), || format!("{name}: frame {high} is at {found:?}"))?;
        }
    }
    Ok(())
}

/// A page walker looks at so many bits of an address and no others, so a library that walks like one
/// answers for another page than it was asked about.
///
/// F-M8.
#[test]
fn translates_beyond_tables() {
    catches(Defect::TranslatesBeyondTables, no_address_beyond_the_tables_is_a_low_one);
}

/// What happens to the slot between the look-up and the copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    Deleted,
    DeletedInSteps,
    Moved,
    Replaced,
}

/// Where the slot's frames are, and where those of its successor are.
const OLD: u64 = 0x5000;
const NEW: u64 = 0x6000;

/// Guest memory whose slot changes at the moment when the host is asked for the bytes of a page.
struct Fickle<'vm> {
    frames: Frames,
    worker: Cell<Option<Worker<&'vm Mmu<TestHost>>>>,
    fate: Fate,
}

// SAFETY: as the frames within.
unsafe impl Backing for Fickle<'_> {
    fn find(&self, query: &FrameQuery) -> Resolution {
        self.frames.find(query)
    }
}

// SAFETY: as the frames within.
unsafe impl GuestMemory for Fickle<'_> {
    fn bytes(&self, pfn: Pfn) -> Option<NonNull<GuestPage>> {
        let bytes = self.frames.bytes(pfn);
        if let Some(mut worker) = self.worker.take() {
            match self.fate {
                Fate::Deleted => worker.delete_slot(SlotId(1)).unwrap(),
                Fate::DeletedInSteps => {
                    let mut deletion = worker.begin_delete(SlotId(1)).unwrap();
                    while worker.delete_some(&mut deletion, 1) == vmmu::Progress::More {}
                }
                Fate::Moved => worker.move_slot(SlotId(1), Gfn(0x1000)).unwrap(),
                Fate::Replaced => {
                    worker.delete_slot(SlotId(1)).unwrap();
                    worker.create_slot(&linear(1, range(0, 0x10), NEW)).unwrap();
                }
            }
        }
        bytes
    }
}

type Copy = fn(&mut Worker<&Mmu<TestHost>>, &Fickle<'_>) -> Result<(), AccessError>;

/// A page of a linear slot is looked up; the slot goes, or others take its place; then the page
/// would be copied.
fn a_linear_page_is_looked_at_again_before_the_copy() -> Verdict {
    let read: Copy = |worker, memory| worker.read(memory, SPACE, Gpa(0x3008), &mut [0; 8]);
    let write: Copy = |worker, memory| worker.write(memory, SPACE, Gpa(0x3008), &[7; 8]);
    let exchange: Copy = |worker, memory| {
        worker.compare_exchange(memory, SPACE, Gpa(0x3008), 0, u64::MAX).map(|_| ())
    };
    for (name, copy) in [("read", read), ("write", write), ("exchange", exchange)] {
        for fate in [Fate::Deleted, Fate::DeletedInSteps, Fate::Moved, Fate::Replaced] {
            let vm = Mmu::new(TestHost::default(), &Config::new(npt(), 1)).unwrap();
            let (mut worker, other) = (vm.worker().unwrap(), vm.worker().unwrap());
            worker.create_slot(&linear(1, range(0, 0x10), OLD)).unwrap();
            let frames = Frames::new(Level::Size4K);
            let memory = Fickle { frames, worker: Cell::new(Some(other)), fate };
            let done = copy(&mut worker, &memory).map_err(|error| error.why);
            let expected =
                if fate == Fate::Replaced { Ok(()) } else { Err(AccessFailure::NoMemory) };
            ensure(done == expected, || format!("{name}, {fate:?} meanwhile: {done:?}"))?;
            let old = word(&memory.frames, OLD + 3);
            ensure(old == 0, || format!("{name}, {fate:?} meanwhile: the old page has {old:#x}"))?;
            let new = word(&memory.frames, NEW + 3);
            let is_written = name != "read" && fate == Fate::Replaced;
            ensure((new != 0) == is_written, || format!("{name}, {fate:?}: {new:#x} in the new"))?;
        }
    }
    Ok(())
}

/// The word that the copies above are about.
fn word(frames: &Frames, pfn: u64) -> u64 {
    let page = frames.bytes(Pfn(pfn)).unwrap().cast::<u64>();
    // SAFETY: within a page that lives as long as the frames.
    unsafe { page.add(1).read_volatile() }
}

/// The library copies to frames that are no longer the guest's.
///
/// F-b.
#[test]
fn copies_without_look() {
    catches(Defect::CopiesWithoutLook, a_linear_page_is_looked_at_again_before_the_copy);
}
