//! How many cache lines a fault writes that another processor may touch.
//!
//! A fault whose table exists writes two: its marker's line and the entry's. So any number of
//! vCPUs fault on memory of their own without a line that moves between their processors. What is
//! counted is every write of the real path; the host's hooks are not part of it.

mod support;

use std::cell::RefCell;

use support::{Frames, TestHost, backed, ept, fault_at, linear, npt, range};
use vmmu::addr::Level;
use vmmu::entry::{Access, Format, MemoryType};
use vmmu::host::{Backing, FrameQuery, Resolution, VcpuId};
use vmmu::slot::{Mutability, SlotSpec};
use vmmu::testing::record::written;
use vmmu::{Busy, FaultStep, MemoryFault, Outcome, Request, ResolvedFault};
use vmmu::{Config, Flush, HostRange, Mmu, Processor, VcpuMmu, Worker};

/// What a write to a table page is called.
const ENTRY: &str = "entry";
/// The marker of the first vCPU, which is the first participant.
const MARKER: &str = "participant 0: marker";
const COUNTERS: &str = "participant 0: counters";
const WORDS: &str = "vCPU 0: words";

/// A table of the cases is printed; only what is listed here is more than two.
fn expect(what: &str, format: &Format, lines: &[String], expected: &[&str]) {
    let mut expected: Vec<&str> = expected.to_vec();
    expected.sort_unstable();
    let ept = format.has_memory(MemoryType::WriteCombining);
    let kind = if ept { "EPT" } else { "NPT" };
    println!("{kind} {what}: {} ({})", lines.len(), lines.join(", "));
    assert_eq!(lines, expected, "{kind} {what}");
}

/// Runs `work` and gives the names of the lines it wrote, sorted.
///
/// The stock of table pages is full in all cases: a fault that finds it used up fills pages that
/// no other processor can reach.
fn lines<R>(vm: &Mmu<TestHost>, work: impl FnOnce() -> R) -> (R, Vec<String>) {
    let (result, written) = written(work);
    let name = |line: &usize| match vm.name_of_line(*line) {
        Some(name) => name,
        None if vm.host().is_table(*line) => ENTRY.to_owned(),
        None => "of nothing known".to_owned(),
    };
    let mut names: Vec<String> = written.0.iter().map(name).collect();
    names.sort();
    (result, names)
}

/// For both formats: a VM with one vCPU and one slot of 4 GiB from frame 0.
fn with(slot: &SlotSpec, case: impl Fn(&Mmu<TestHost>, &mut VcpuMmu<&Mmu<TestHost>>)) {
    for format in [ept(), npt()] {
        let vm = Mmu::new(TestHost::default(), &Config::new(format, 1)).unwrap();
        let mut vcpu = vm.vcpu(VcpuId(0)).unwrap();
        vm.worker().unwrap().create_slot(slot).unwrap();
        case(&vm, &mut vcpu);
        drop(vcpu);
        assert_eq!(vm.broken(), None);
        assert_eq!(vm.teardown().in_use(), 0);
    }
}

const PAGES: u64 = 0x10_0000;

fn backed_slot() -> SlotSpec {
    backed(1, range(0, PAGES))
}

fn linear_slot(largest: Level) -> SlotSpec {
    SlotSpec { largest, ..linear(1, range(0, PAGES), PAGES) }
}

/// Leaves, where to fault first so that the table is there, and where next.
const SIZES: [(Level, u64, u64); 3] = [
    (Level::Size4K, 0x1, 0x42),
    (Level::Size2M, 0x201, 0x2042),
    (Level::Size1G, 0x4_0001, 0x8_0042),
];

#[test]
fn a_fault_in_a_linear_slot_writes_its_marker_and_the_entry() {
    for (level, first, next) in SIZES {
        with(&linear_slot(level), |vm, vcpu| {
            let (nothing, fixed) = (Frames::new(Level::Size4K), Outcome::Fixed(level));
            assert_eq!(vcpu.handle_fault(&nothing, fault_at(first, Access::WRITE)), fixed);
            vcpu.reserve(0).unwrap();
            let (outcome, lines) =
                lines(vm, || vcpu.handle_fault(&nothing, fault_at(next, Access::WRITE)));
            assert_eq!(outcome, fixed);
            expect(&format!("linear {level}"), vm.format(), &lines, &[MARKER, ENTRY]);
        });
    }
}

#[test]
fn a_fault_in_a_backed_slot_writes_its_marker_and_the_entry() {
    for (level, first, next) in SIZES {
        with(&backed_slot(), |vm, vcpu| {
            let (frames, fixed) = (Frames::new(level), Outcome::Fixed(level));
            assert_eq!(vcpu.handle_fault(&frames, fault_at(first, Access::READ)), fixed);
            vcpu.reserve(0).unwrap();
            let (outcome, lines) =
                lines(vm, || vcpu.handle_fault(&frames, fault_at(next, Access::READ)));
            assert_eq!(outcome, fixed);
            expect(&format!("backed {level}"), vm.format(), &lines, &[MARKER, ENTRY]);
        });
    }
}

fn answer<'vm>(request: Request<'vm>, frames: &Frames) -> ResolvedFault<'vm> {
    let Resolution::Frame(found) = frames.find(&request.query()) else { panic!("a frame") };
    support::resolve(request, found)
}

#[test]
fn the_two_halves_of_a_fault_write_no_more_than_both_together() {
    with(&backed_slot(), |vm, vcpu| {
        let frames = Frames::new(Level::Size4K);
        assert_eq!(
            vcpu.handle_fault(&frames, fault_at(1, Access::READ)),
            Outcome::Fixed(Level::Size4K)
        );
        vcpu.reserve(0).unwrap();
        let (step, first) = lines(vm, || vcpu.begin_fault(fault_at(0x42, Access::READ)));
        expect("first half", vm.format(), &first, &[MARKER]);
        let FaultStep::Resolve(request) = step else { panic!("{step:?}") };
        let frame = answer(request, &frames);
        let (done, second) = lines(vm, || vcpu.complete(frame).map_err(|short| short.missing));
        assert_eq!(done, Ok(Outcome::Fixed(Level::Size4K)));
        expect("second half", vm.format(), &second, &[MARKER, ENTRY]);
    });
}

/// Who completes for somebody else has a marker too, and closes the other one's watch.
#[test]
fn a_fault_completed_by_a_worker_writes_both_markers_and_the_entry() {
    with(&backed_slot(), |vm, vcpu| {
        let frames = Frames::new(Level::Size4K);
        let mut worker = vm.worker().unwrap();
        worker.reserve(0).unwrap();
        assert_eq!(
            vcpu.handle_fault(&frames, fault_at(1, Access::READ)),
            Outcome::Fixed(Level::Size4K)
        );
        vcpu.reserve(0).unwrap();
        let FaultStep::Resolve(request) = vcpu.begin_fault(fault_at(0x42, Access::READ)) else {
            panic!()
        };
        let frame = answer(request, &frames);
        let (done, lines) = lines(vm, || worker.complete(frame).map_err(|short| short.missing));
        assert_eq!(done, Ok(Outcome::Fixed(Level::Size4K)));
        let expected = [MARKER, "participant 1: marker", ENTRY];
        expect("second half by a worker", vm.format(), &lines, &expected);
    });
}

/// While its own watch is out with a request, a participant takes a spare one.
#[test]
fn a_fault_beside_an_unfinished_one_writes_a_spare_watch_too() {
    with(&backed_slot(), |vm, vcpu| {
        let frames = Frames::new(Level::Size4K);
        assert_eq!(
            vcpu.handle_fault(&frames, fault_at(1, Access::READ)),
            Outcome::Fixed(Level::Size4K)
        );
        vcpu.reserve(0).unwrap();
        let FaultStep::Resolve(out) = vcpu.begin_fault(fault_at(7, Access::READ)) else { panic!() };
        let (outcome, lines) =
            lines(vm, || vcpu.handle_fault(&frames, fault_at(0x42, Access::READ)));
        assert_eq!(outcome, Outcome::Fixed(Level::Size4K));
        let expected = [MARKER, "spare watches", ENTRY];
        expect("beside an unfinished one", vm.format(), &lines, &expected);
        drop(out);
    });
}

#[test]
fn a_fault_that_changes_nothing_writes_its_marker() {
    with(&backed_slot(), |vm, vcpu| {
        let frames = Frames::new(Level::Size4K);
        assert_eq!(
            vcpu.handle_fault(&frames, fault_at(1, Access::WRITE)),
            Outcome::Fixed(Level::Size4K)
        );
        vcpu.reserve(0).unwrap();
        let (outcome, spurious) =
            lines(vm, || vcpu.handle_fault(&frames, fault_at(1, Access::READ)));
        assert_eq!(outcome, Outcome::Spurious);
        expect("spurious", vm.format(), &spurious, &[MARKER]);

        let mut worker = vm.worker().unwrap();
        let page = HostRange { backing: 7, first: 0x42, pages: 1 };
        let taking = worker.invalidate_range(page);
        let (outcome, refused) =
            lines(vm, || vcpu.handle_fault(&frames, fault_at(0x42, Access::READ)));
        assert_eq!(outcome, Outcome::Busy(Busy::Invalidation));
        expect("under invalidation", vm.format(), &refused, &[MARKER, COUNTERS]);
        drop(taking);

        let FaultStep::Resolve(request) = vcpu.begin_fault(fault_at(0x42, Access::READ)) else {
            panic!()
        };
        let frame = answer(request, &frames);
        drop(worker.invalidate_range(page));
        let (done, hit) = lines(vm, || vcpu.complete(frame).map_err(|short| short.missing));
        assert_eq!(done, Ok(Outcome::Retry));
        expect("hit meanwhile", vm.format(), &hit, &[MARKER]);
    });
}

#[test]
fn mmio_writes_its_entry_once_and_then_the_marker_alone() {
    with(&backed_slot(), |vm, vcpu| {
        let frames = Frames::new(Level::Size4K);
        let mut emulate = |gfn, access| {
            vcpu.reserve(0).unwrap();
            let (outcome, lines) = lines(vm, || vcpu.handle_fault(&frames, fault_at(gfn, access)));
            assert_eq!(outcome, Outcome::Emulate);
            lines
        };
        emulate(PAGES, Access::READ);
        let first = emulate(PAGES + 0x42, Access::WRITE);
        expect("MMIO, first access", vm.format(), &first, &[MARKER, ENTRY]);
        let again = emulate(PAGES + 0x42, Access::WRITE);
        expect("MMIO, later", vm.format(), &again, &[MARKER]);
    });
}

#[test]
fn a_permission_that_grows_in_place_writes_the_marker_and_the_entry() {
    with(&backed_slot(), |vm, vcpu| {
        let frames = Frames::new(Level::Size4K);
        *frames.access.lock().unwrap() = Access::READ | Access::WRITE;
        assert_eq!(
            vcpu.handle_fault(&frames, fault_at(1, Access::READ)),
            Outcome::Fixed(Level::Size4K)
        );
        vcpu.reserve(0).unwrap();
        *frames.access.lock().unwrap() = Access::all();
        let (outcome, lines) = lines(vm, || vcpu.handle_fault(&frames, fault_at(1, Access::EXEC)));
        assert_eq!(outcome, Outcome::Fixed(Level::Size4K));
        expect("X given", vm.format(), &lines, &[MARKER, ENTRY]);
    });
}

/// Nothing is mapped, and what is counted lies in another line of the participant's own.
#[test]
fn a_fault_that_the_monitor_decides_writes_lines_of_the_participant_alone() {
    let rom = SlotSpec { mutability: Mutability::ReadOnly, ..backed_slot() };
    with(&rom, |vm, vcpu| {
        let frames = Frames::new(Level::Size4K);
        assert_eq!(
            vcpu.handle_fault(&frames, fault_at(1, Access::READ)),
            Outcome::Fixed(Level::Size4K)
        );
        vcpu.reserve(0).unwrap();
        frames.answer(2, Resolution::Hole);
        frames.answer(3, Resolution::Pending);
        let cases = [
            (1, Access::WRITE, Outcome::WriteProtected),
            (2, Access::READ, Outcome::Fault(MemoryFault::Hole)),
            (3, Access::READ, Outcome::Busy(Busy::Pending)),
        ];
        for (gfn, access, expected) in cases {
            let (outcome, lines) = lines(vm, || vcpu.handle_fault(&frames, fault_at(gfn, access)));
            assert_eq!(outcome, expected);
            expect(expected.name(), vm.format(), &lines, &[MARKER, COUNTERS]);
        }
    });
}

#[test]
fn entering_and_leaving_the_guest_write_the_vcpu_s_words() {
    with(&backed_slot(), |vm, vcpu| {
        let round = |vcpu: &mut VcpuMmu<&Mmu<TestHost>>| {
            vcpu.load_root().unwrap();
            let enter = || vcpu.before_enter(Processor(0)).map(|entry| entry.after_exit());
            let (entered, lines) = lines(vm, enter);
            entered.unwrap();
            lines
        };
        round(vcpu);
        expect("enter and exit", vm.format(), &round(vcpu), &[WORDS]);
        // A flush that was asked for meanwhile is seen in the same line.
        let frames = Frames::new(Level::Size4K);
        assert_eq!(
            vcpu.handle_fault(&frames, fault_at(1, Access::READ)),
            Outcome::Fixed(Level::Size4K)
        );
        let flushes = vm.stats().flushes;
        drop(vm.invalidate_range(HostRange { backing: 7, first: 1, pages: 1 }));
        assert_eq!(vm.stats().flushes, flushes + 1);
        vcpu.load_root().unwrap();
        let (entry, lines) = lines(vm, || vcpu.before_enter(Processor(0)).unwrap().flush());
        assert_eq!(entry, Flush::Needed);
        expect("enter with a flush", vm.format(), &lines, &[WORDS]);
    });
}

/// The alarm rings: a missing table is noticed, and so is a write to what all vCPUs share.
#[test]
fn lines_beyond_the_two_are_noticed() {
    /// Takes another page back while it looks for one.
    struct Meddling<'a>(Frames, RefCell<Worker<&'a Mmu<TestHost>>>);
    // SAFETY: what is named is memory of the test.
    unsafe impl Backing for Meddling<'_> {
        fn find(&self, query: &FrameQuery) -> Resolution {
            let other = HostRange { backing: 7, first: query.page + 0x8_0000, pages: 1 };
            drop(self.1.borrow_mut().invalidate_range(other));
            self.0.find(query)
        }
    }
    with(&backed_slot(), |vm, vcpu| {
        let frames = Frames::new(Level::Size4K);
        let (_, missing) = lines(vm, || vcpu.handle_fault(&frames, fault_at(1, Access::READ)));
        assert!(missing.iter().filter(|name| *name == ENTRY).count() > 1, "{missing:?}");
        assert!(missing.iter().any(|name| name == "the VM's own words"), "a root: {missing:?}");

        let meddling = Meddling(frames, RefCell::new(vm.worker().unwrap()));
        let (outcome, lines) =
            lines(vm, || vcpu.handle_fault(&meddling, fault_at(0x42, Access::READ)));
        assert_eq!(outcome, Outcome::Fixed(Level::Size4K));
        assert!(lines.iter().any(|name| name == "the VM's own words"), "{lines:?}");
        assert!(lines.iter().any(|name| name.starts_with("participant 1")), "{lines:?}");
    });
}
