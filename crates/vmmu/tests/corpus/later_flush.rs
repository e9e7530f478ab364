//! Two flushes at once, of which the second is held up.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};

use vmmu::addr::Level;
use vmmu::entry::Access;
use vmmu::host::{VcpuId, Wait, WaitFor};
use vmmu::internals::Defect;
use vmmu::slot::AddressSpace;
use vmmu::{Config, Mmu, Processor as Number, VcpuMmu};

use crate::catch::{Verdict, catches, ensure};
use crate::support::hooked::{Hooked, Hooks};
use crate::support::puppet::{Puppet, Strings, puppet};
use crate::support::{Frames, backed, fault_at, npt, range};

/// Which of the threads this one is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Actor {
    FirstFlush,
    SecondFlush,
    Other,
}

thread_local! {
    static ACTOR: Cell<Actor> = const { Cell::new(Actor::Other) };
}

/// Everybody that the first flush moves.
#[derive(Debug)]
struct Cast {
    /// Enters when told, then leaves when told.
    entering: Puppet,
    /// Is in the guest, and leaves when told.
    inside: Puppet,
    /// Flushes when told, and is held up when it comes to interrupt somebody.
    second: Puppet,
}

/// Arranges what happens between the first flush's request and its wait.
#[derive(Debug, Default)]
struct Stage {
    cast: Mutex<Option<Cast>>,
    /// How the second flush says that it is held up, and hears that it may go on.
    held_up: Mutex<Option<Strings>>,
    /// The first flush has waited for a vCPU that had done what was asked.
    waited: AtomicBool,
}

impl Stage {
    fn cast(&self) -> MutexGuard<'_, Option<Cast>> {
        self.cast.lock().unwrap()
    }
}

impl Hooks for Stage {
    fn kick(&self, vcpu: VcpuId) {
        match (ACTOR.get(), vcpu) {
            (Actor::FirstFlush, VcpuId(1)) => {
                let cast = self.cast();
                let cast = cast.as_ref().unwrap();
                // vCPU 0 enters: it finds that a flush is wanted, and does it.
                cast.entering.step(());
                // Another flush is asked for, and comes no further.
                cast.second.step(());
                cast.inside.step(());
            }
            (Actor::SecondFlush, VcpuId(0)) => {
                let held_up = self.held_up.lock().unwrap();
                let strings = held_up.as_ref().unwrap();
                strings.done(());
                strings.cue().unwrap();
            }
            _ => {}
        }
    }

    fn wait(&self, wait: Wait) {
        if ACTOR.get() == Actor::FirstFlush && wait.on == WaitFor::Vcpu(VcpuId(0)) {
            // Held up for ever, were it not for the host.
            if !self.waited.swap(true, Ordering::SeqCst) {
                self.cast().as_ref().unwrap().entering.step(());
            }
        }
        std::thread::yield_now();
    }
}

/// Enters when told, and leaves when told again.
fn guest(mut vcpu: VcpuMmu<&Mmu<Hooked<Stage>>>, enters: bool, strings: &Strings) {
    if enters {
        strings.cue().unwrap();
    }
    let inside = vcpu.before_enter(Number(0)).unwrap();
    strings.done(());
    let _leave = strings.cue();
    inside.after_exit();
    strings.done(());
}

/// A flush is asked for while vCPU 0 is outside its guest and vCPU 1 in it. vCPU 0 enters, and does what
/// is wanted. Before the first flush comes to look whether it has, a second one is asked for.
fn a_flush_waits_for_what_it_asked_for() -> Verdict {
    // Small leaves, so that the pages of the two flushes are none of each other's business.
    let config = Config { largest: Level::Size4K, ..Config::new(npt(), 2) };
    let vm = Mmu::new(Hooked::<Stage>::default(), &config).unwrap();
    let frames = Frames::new(Level::Size4K);
    let mut first = vm.worker().unwrap();
    first.create_slot(&backed(1, range(0, 0x400))).unwrap();
    let mut vcpus = [0, 1].map(|id| vm.vcpu(VcpuId(id)).unwrap());
    for vcpu in &mut vcpus {
        vcpu.load_root().unwrap();
        for gfn in [3, 4] {
            let _mapped = vcpu.handle_fault(&frames, fault_at(gfn, Access::READ));
        }
    }
    let [zero, one] = vcpus;
    let (entering, zeroth) = puppet();
    let (inside, oneth) = puppet();
    let (second, held_up) = puppet();
    std::thread::scope(|scope| {
        let (vm, stage) = (&vm, &vm.host().hooks);
        scope.spawn(move || guest(zero, true, &zeroth));
        scope.spawn(move || guest(one, false, &oneth));
        inside.done();
        scope.spawn(move || {
            ACTOR.set(Actor::SecondFlush);
            held_up.cue().unwrap();
            *stage.held_up.lock().unwrap() = Some(held_up);
            vm.worker().unwrap().zap(AddressSpace::Normal, range(4, 1));
        });
        *stage.cast() = Some(Cast { entering, inside, second });
        ACTOR.set(Actor::FirstFlush);
        first.zap(AddressSpace::Normal, range(3, 1));
        ACTOR.set(Actor::Other);
        // Everybody goes home.
        let waited = stage.waited.load(Ordering::SeqCst);
        let cast = stage.cast().take().unwrap();
        if !waited {
            cast.entering.step(());
        }
        cast.second.tell(());
        ensure(!waited, || "a flush waits for one that was asked for after it".to_owned())
    })
}

/// A flush looks anew at how much is wanted of each vCPU, and waits for somebody else who has not
/// interrupted it yet.
///
/// F-M14b.
#[test]
fn waits_for_later_flushes() {
    catches(Defect::WaitsForLaterFlushes, a_flush_waits_for_what_it_asked_for);
}
