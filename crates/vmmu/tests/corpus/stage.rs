//! A host that lets a guest run at the moments that matter: when it is kicked, and when a table
//! page comes back. The guest has a thread of its own and moves only when it is told to, so every
//! run is the same.

use std::sync::Mutex;

use vmmu::host::VcpuId;
use vmmu::{Flush, Mmu, Processor as Number, VcpuMmu};

use crate::processor::{Met, Processor};
use crate::support::hooked::{Hooked, Hooks};
use crate::support::puppet::{Puppet, Strings, puppet};

/// What the guest is told.
#[derive(Clone, Copy, Debug)]
enum Cue {
    /// Access the next page.
    Access,
    /// Leave the guest.
    Leave,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Stage {
    guest: Mutex<Option<Puppet<Cue, Met>>>,
    /// What the guest met when a table page had come back.
    seen: Mutex<Vec<Met>>,
}

/// The guest's thread.
pub struct Actor(Strings<Cue, Met>);

impl Stage {
    /// Puts a guest on the stage: its thread then [`plays`](Actor::play).
    pub fn cast(&self) -> Actor {
        let (guest, strings) = puppet();
        *self.guest.lock().unwrap() = Some(guest);
        Actor(strings)
    }

    /// Waits until the guest is in.
    pub fn raise(&self) {
        let guest = self.guest.lock().unwrap();
        let _in = guest.as_ref().unwrap().done();
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
        let met = guest.as_ref()?.try_step(cue)?;
        if matches!(cue, Cue::Leave) {
            *guest = None;
        }
        Some(met)
    }
}

impl Actor {
    /// Enters the guest and does as it is told until it is to leave. It accesses one page after
    /// the other: each by the upper entry that is cached since the first, none by a translation.
    pub fn play(self, vcpu: &mut VcpuMmu<&Mmu<Hooked<Stage>>>, cpu: &mut Processor, gfn: u64) {
        vcpu.load_root().unwrap();
        let inside = vcpu.before_enter(Number(0)).expect("an entry");
        if inside.flush() == Flush::Needed {
            cpu.flush();
        }
        let root = inside.root();
        self.0.done(cpu.reach(root, gfn, false));
        let mut next = gfn;
        while let Some(Cue::Access) = self.0.cue() {
            next += 1;
            self.0.done(cpu.reach(root, next, false));
        }
        inside.after_exit();
        self.0.done(Met::Nothing);
    }
}

impl Hooks for Stage {
    fn released(&self) {
        self.seen.lock().unwrap().extend(self.tell(Cue::Access));
    }

    fn kick(&self, _: VcpuId) {
        self.tell(Cue::Leave);
    }
}
