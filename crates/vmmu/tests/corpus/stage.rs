//! A host that lets a guest run at the moments that matter: when it is kicked, and when a table
//! page comes back. The guest has a thread of its own and moves only when it is told to, so every
//! run is the same.

use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};

use vmmu::addr::Pfn;
use vmmu::host::{Cpus, Observer, Placement, TablePage, TablePages, VcpuId, Wait};
use vmmu::{Flush, Mmu, Processor as Number, VcpuMmu};

use crate::processor::{Met, Processor};
use crate::support::TestHost;

/// What the guest is told.
#[derive(Clone, Copy, Debug)]
enum Cue {
    /// Access the next page.
    Access,
    /// Leave the guest.
    Leave,
}

/// Both ends of the guest's thread, as the host has them.
#[derive(Debug)]
struct Participants {
    cues: Sender<Cue>,
    answers: Receiver<Met>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Stage {
    pub pages: TestHost,
    guest: Mutex<Option<Participants>>,
    /// What the guest met when a table page had come back.
    seen: Mutex<Vec<Met>>,
}

/// The guest's thread.
pub struct Actor {
    cues: Receiver<Cue>,
    answers: Sender<Met>,
}

impl Stage {
    /// Puts a guest on the stage: its thread then [`plays`](Actor::play).
    pub fn cast(&self) -> Actor {
        let (cues, cued) = channel();
        let (answering, answers) = channel();
        *self.guest.lock().unwrap() = Some(Participants { cues, answers });
        Actor { cues: cued, answers: answering }
    }

    /// Waits until the guest is in.
    pub fn raise(&self) {
        let guest = self.guest.lock().unwrap();
        let _in = guest.as_ref().unwrap().answers.recv().unwrap();
    }

    /// What the guest met whenever a table page had come back.
    pub fn seen(&self) -> Vec<Met> {
        self.seen.lock().unwrap().clone()
    }

    /// The guest leaves, if it has not already.
    pub fn drop_curtain(&self) {
        self.tell(Cue::Leave);
    }

    fn tell(&self, cue: Cue) -> Option<Met> {
        let mut guest = self.guest.lock().unwrap();
        let lines = guest.as_ref()?;
        lines.cues.send(cue).ok()?;
        let met = lines.answers.recv().ok();
        if matches!(cue, Cue::Leave) {
            *guest = None;
        }
        met
    }
}

impl Actor {
    /// Enters the guest and does as it is told until it is to leave. It accesses one page after
    /// the other: each by the upper entry that is cached since the first, none by a translation.
    pub fn play(self, vcpu: &mut VcpuMmu<&Mmu<Stage>>, cpu: &mut Processor, gfn: u64) {
        vcpu.load_root().unwrap();
        let inside = vcpu.before_enter(Number(0)).expect("an entry");
        if inside.flush() == Flush::Needed {
            cpu.flush();
        }
        let root = inside.root();
        self.answers.send(cpu.reach(root, gfn, false)).unwrap();
        let mut next = gfn;
        while let Ok(Cue::Access) = self.cues.recv() {
            next += 1;
            self.answers.send(cpu.reach(root, next, false)).unwrap();
        }
        inside.after_exit();
        self.answers.send(Met::Nothing).ok();
    }
}

// SAFETY: as for the host within.
unsafe impl TablePages for Stage {
    fn window(&self) -> u64 {
        self.pages.window()
    }

    fn take(&self, placement: Placement) -> Option<TablePage> {
        self.pages.take(placement)
    }

    fn release(&self, page: Pfn) {
        self.pages.release(page);
        self.seen.lock().unwrap().extend(self.tell(Cue::Access));
    }
}

impl Cpus for Stage {
    fn kick(&self, _: VcpuId) {
        self.tell(Cue::Leave);
    }

    fn wait(&self, _: Wait) {
        std::thread::yield_now();
    }
}

impl Observer for Stage {}
