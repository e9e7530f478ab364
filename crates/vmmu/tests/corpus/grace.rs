//! Changes of the slots that do not wait for those who still see the slots as they were.

use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};

use vmmu::addr::{Gfn, Level, Pfn};
use vmmu::entry::Access;
use vmmu::host::{Cpus, Event, Observer, Placement, TablePage, TablePages, VcpuId, Wait, WaitFor};
use vmmu::internals::{Defect, Participant};
use vmmu::slot::SlotId;
use vmmu::{Config, Mmu, Outcome, Progress, Role};

use crate::catch::{Verdict, catches, ensure};
use crate::support::{Frames, TestHost, backed, fault_at, npt, range};

/// What the reader is told.
#[derive(Clone, Copy, Debug)]
enum Cue {
    /// Open a section, and say whether a slot is there.
    Open,
    /// Close it.
    Close,
}

/// Where the slot comes.
const HERE: u64 = 0x1000;

/// The two ends of the reader's thread, as the host has them, and what the reader has seen in the
/// section that it has open.
#[derive(Debug)]
struct Reader {
    cues: Sender<Cue>,
    answers: Receiver<bool>,
    open: Option<bool>,
}

/// A host with a reader: whenever a grace period has ended the reader opens a section, which stays
/// open until somebody waits for it. So every run is the same.
#[derive(Debug, Default)]
struct Library {
    pages: TestHost,
    reader: Mutex<Option<Reader>>,
}

impl Library {
    /// Closes the section that is open, and opens another one.
    fn open(&self) {
        self.close();
        if let Some(reader) = &mut *self.reader.lock().unwrap() {
            reader.cues.send(Cue::Open).unwrap();
            reader.open = Some(reader.answers.recv().unwrap());
        }
    }

    fn close(&self) {
        if let Some(reader) = &mut *self.reader.lock().unwrap()
            && reader.open.take().is_some()
        {
            reader.cues.send(Cue::Close).unwrap();
            let _closed = reader.answers.recv().unwrap();
        }
    }

    /// What the reader sees in the section that it still has open: whether a slot is there.
    fn still_sees(&self) -> Option<bool> {
        self.reader.lock().unwrap().as_ref().and_then(|reader| reader.open)
    }
}

/// The reader's thread.
fn read(vm: &Mmu<Library>, cues: &Receiver<Cue>, answers: &Sender<bool>) {
    let mut participant: Participant<'_, Library> = vm.participant().unwrap();
    while let Ok(cue) = cues.recv() {
        let Cue::Open = cue else { continue };
        let section = participant.section();
        let root = section.root(Role::PLAIN).unwrap();
        let nothing = section.permit_mmio(root, fault_at(HERE, Access::READ)).is_ok();
        answers.send(!nothing).unwrap();
        let _close = cues.recv();
        drop(section);
        answers.send(false).ok();
    }
}

// SAFETY: as for the host within.
unsafe impl TablePages for Library {
    fn window(&self) -> u64 {
        self.pages.window()
    }

    fn take(&self, placement: Placement) -> Option<TablePage> {
        self.pages.take(placement)
    }

    fn release(&self, page: Pfn) {
        self.pages.release(page);
    }
}

impl Cpus for Library {
    fn kick(&self, _: VcpuId) {}

    fn wait(&self, wait: Wait) {
        assert_eq!(wait.on, WaitFor::GracePeriod);
        self.close();
    }
}

impl Observer for Library {
    fn event(&self, event: Event) {
        if event == Event::GracePeriod {
            self.open();
        }
    }
}

/// Changes the slots beside the reader. When the change is over, no section is open that sees, at
/// [`HERE`], the contrary of what the change has made of it.
fn beside_a_reader(change: fn(&mut vmmu::Worker<&Mmu<Library>>), is_memory_then: bool) -> Verdict {
    let vm = Mmu::new(Library::default(), &Config::new(npt(), 1)).unwrap();
    let frames = Frames::new(Level::Size4K);
    let (mut worker, mut vcpu) = (vm.worker().unwrap(), vm.vcpu(VcpuId(0)).unwrap());
    // A slot beside it, where the watch of a fault reaches.
    worker.create_slot(&backed(2, range(0x8000, 1))).unwrap();
    let place = if is_memory_then { 0x2000 } else { HERE };
    worker.create_slot(&backed(1, range(place, 1))).unwrap();
    let outcome = vcpu.handle_fault(&frames, fault_at(0x8000, Access::READ));
    assert_eq!(outcome, Outcome::Fixed(Level::Size4K));
    std::thread::scope(|scope| {
        let (cues, cued) = channel();
        let (answering, answers) = channel();
        let vm = &vm;
        scope.spawn(move || read(vm, &cued, &answering));
        *vm.host().reader.lock().unwrap() = Some(Reader { cues, answers, open: None });
        vm.host().open();
        change(&mut worker);
        let sees = vm.host().still_sees();
        let outcome = vcpu.handle_fault(&frames, fault_at(HERE, Access::READ));
        vm.host().close();
        *vm.host().reader.lock().unwrap() = None;
        let is_memory = matches!(outcome, Outcome::Fixed(_));
        ensure(is_memory == is_memory_then, || format!("after the change: {outcome:?}"))?;
        ensure(sees != Some(!is_memory), || {
            format!("a fault ends as {outcome:?}, and an older section is open that knows better")
        })
    })
}

/// Every change of the slots, beside a reader.
fn no_section_outlives_what_it_sees() -> Verdict {
    beside_a_reader(|worker| worker.create_slot(&backed(3, range(HERE, 1))).unwrap(), true)?;
    beside_a_reader(|worker| worker.move_slot(SlotId(1), Gfn(HERE)).unwrap(), true)?;
    beside_a_reader(|worker| worker.move_slot(SlotId(1), Gfn(0x3000)).unwrap(), false)?;
    beside_a_reader(|worker| worker.delete_slot(SlotId(1)).unwrap(), false)?;
    let in_steps = |worker: &mut vmmu::Worker<&Mmu<Library>>| {
        let mut deletion = worker.begin_delete(SlotId(1)).unwrap();
        while worker.delete_some(&mut deletion, 1) == Progress::More {}
    };
    beside_a_reader(in_steps, false)
}

/// A slot is taken away and put elsewhere; at the new place vCPUs map from it while sections are open
/// that still read the set in which it was nowhere, and which the next change overwrites.
///
/// F-d.
#[test]
fn moved_slot_live_at_once() {
    catches(Defect::MovedSlotLiveAtOnce, no_section_outlives_what_it_sees);
}

/// The copy of the slot set that was current before is changed while sections may read it.
///
/// The thread sanitizer sees the race itself.
#[test]
fn edits_copy_in_use() {
    catches(Defect::EditsCopyInUse, no_section_outlives_what_it_sees);
}
