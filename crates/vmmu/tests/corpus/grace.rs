//! Changes of the slots that do not wait for those who still see the slots as they were.

use std::sync::Mutex;

use vmmu::addr::{Gfn, Level};
use vmmu::entry::Access;
use vmmu::host::{Event, VcpuId, Wait, WaitFor};
use vmmu::internals::{Defect, Participant};
use vmmu::slot::SlotId;
use vmmu::{Config, Mmu, Outcome, Progress, Role};

use crate::catch::{Verdict, catches, ensure};
use crate::support::hooked::{Hooked, Hooks};
use crate::support::puppet::{Puppet, Strings, puppet};
use crate::support::{Frames, backed, fault_at, npt, range};

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

/// The reader's thread, as the host has it, and what the reader has seen in the section that it has
/// open.
#[derive(Debug)]
struct Reader {
    thread: Puppet<Cue, bool>,
    open: Option<bool>,
}

/// A reader beside a host: whenever a grace period has ended the reader opens a section, which stays
/// open until somebody waits for it. So every run is the same.
#[derive(Debug, Default)]
struct Library {
    reader: Mutex<Option<Reader>>,
}

type Host = Hooked<Library>;

impl Library {
    /// Closes the section that is open, and opens another one.
    fn open(&self) {
        self.close();
        if let Some(reader) = &mut *self.reader.lock().unwrap() {
            reader.open = Some(reader.thread.step(Cue::Open));
        }
    }

    fn close(&self) {
        if let Some(reader) = &mut *self.reader.lock().unwrap()
            && reader.open.take().is_some()
        {
            let _closed = reader.thread.step(Cue::Close);
        }
    }

    /// What the reader sees in the section that it still has open: whether a slot is there.
    fn still_sees(&self) -> Option<bool> {
        self.reader.lock().unwrap().as_ref().and_then(|reader| reader.open)
    }
}

/// The reader's thread.
fn read(vm: &Mmu<Host>, strings: &Strings<Cue, bool>) {
    let mut participant: Participant<'_, Host> = vm.participant().unwrap();
    while let Some(cue) = strings.cue() {
        let Cue::Open = cue else { continue };
        let section = participant.section();
        let root = section.root(Role::PLAIN).unwrap();
        let nothing = section.permit_mmio(root, fault_at(HERE, Access::READ)).is_ok();
        strings.done(!nothing);
        let _close = strings.cue();
        drop(section);
        strings.done(false);
    }
}

impl Hooks for Library {
    fn wait(&self, wait: Wait) {
        assert_eq!(wait.on, WaitFor::GracePeriod);
        self.close();
    }

    fn event(&self, event: Event) {
        if event == Event::GracePeriod {
            self.open();
        }
    }
}

/// Changes the slots beside the reader. When the change is over, no section is open that sees, at
/// [`HERE`], the contrary of what the change has made of it.
fn beside_a_reader(change: fn(&mut vmmu::Worker<&Mmu<Host>>), is_memory_then: bool) -> Verdict {
    let vm = Mmu::new(Host::default(), &Config::new(npt(), 1)).unwrap();
    let frames = Frames::new(Level::Size4K);
    let (mut worker, mut vcpu) = (vm.worker().unwrap(), vm.vcpu(VcpuId(0)).unwrap());
    // A slot beside it, where the watch of a fault reaches.
    worker.create_slot(&backed(2, range(0x8000, 1))).unwrap();
    let place = if is_memory_then { 0x2000 } else { HERE };
    worker.create_slot(&backed(1, range(place, 1))).unwrap();
    let outcome = vcpu.handle_fault(&frames, fault_at(0x8000, Access::READ));
    assert_eq!(outcome, Outcome::Fixed(Level::Size4K));
    std::thread::scope(|scope| {
        let (thread, strings) = puppet();
        let (vm, library) = (&vm, &vm.host().hooks);
        scope.spawn(move || read(vm, &strings));
        *library.reader.lock().unwrap() = Some(Reader { thread, open: None });
        library.open();
        change(&mut worker);
        let sees = library.still_sees();
        let outcome = vcpu.handle_fault(&frames, fault_at(HERE, Access::READ));
        library.close();
        *library.reader.lock().unwrap() = None;
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
    let in_steps = |worker: &mut vmmu::Worker<&Mmu<Host>>| {
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
