//! Two flushes at once, of which the second is held up.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, MutexGuard};

use vmmu::addr::{Level, Pfn};
use vmmu::entry::Access;
use vmmu::host::{Cpus, Observer, Placement, TablePage, TablePages, VcpuId, Wait, WaitFor};
use vmmu::internals::Defect;
use vmmu::slot::AddressSpace;
use vmmu::{Config, Mmu, Processor as Number, VcpuMmu};

use crate::catch::{Verdict, catches, ensure};
use crate::support::{Frames, TestHost, backed, fault_at, npt, range};

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

/// The ends of two channels: to tell a thread to go on, and to hear that it has.
#[derive(Debug)]
struct Puppet {
    cue: Sender<()>,
    done: Receiver<()>,
}

impl Puppet {
    /// Lets the thread do what comes next, and waits until it has.
    fn step(&self) {
        self.cue.send(()).unwrap();
        self.done.recv().unwrap();
    }
}

/// The other ends.
#[derive(Debug)]
struct Strings {
    cued: Receiver<()>,
    doing: Sender<()>,
}

fn puppet() -> (Puppet, Strings) {
    let ((cue, cued), (doing, done)) = (channel(), channel());
    (Puppet { cue, done }, Strings { cued, doing })
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

/// A host that arranges what happens between the first flush's request and its wait.
#[derive(Debug, Default)]
struct Stage {
    pages: TestHost,
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
    }
}

impl Cpus for Stage {
    fn kick(&self, vcpu: VcpuId) {
        match (ACTOR.get(), vcpu) {
            (Actor::FirstFlush, VcpuId(1)) => {
                let cast = self.cast();
                let cast = cast.as_ref().unwrap();
                // vCPU 0 enters: it finds that a flush is wanted, and does it.
                cast.entering.step();
                // Another flush is asked for, and comes no further.
                cast.second.step();
                cast.inside.step();
            }
            (Actor::SecondFlush, VcpuId(0)) => {
                let held_up = self.held_up.lock().unwrap();
                let Strings { cued, doing } = held_up.as_ref().unwrap();
                doing.send(()).unwrap();
                cued.recv().unwrap();
            }
            _ => {}
        }
    }

    fn wait(&self, wait: Wait) {
        if ACTOR.get() == Actor::FirstFlush && wait.on == WaitFor::Vcpu(VcpuId(0)) {
            // Held up for ever, were it not for the host.
            if !self.waited.swap(true, Ordering::SeqCst) {
                self.cast().as_ref().unwrap().entering.step();
            }
        }
        std::thread::yield_now();
    }
}

impl Observer for Stage {}

/// Enters when told, and leaves when told again.
fn guest(mut vcpu: VcpuMmu<&Mmu<Stage>>, enters: bool, strings: &Strings) {
    if enters {
        strings.cued.recv().unwrap();
    }
    let inside = vcpu.before_enter(Number(0)).unwrap();
    strings.doing.send(()).unwrap();
    let _leave = strings.cued.recv();
    inside.after_exit();
    strings.doing.send(()).ok();
}

/// A flush is asked for while vCPU 0 is outside its guest and vCPU 1 in it. vCPU 0 enters, and does what
/// is wanted. Before the first flush comes to look whether it has, a second one is asked for.
fn a_flush_waits_for_what_it_asked_for() -> Verdict {
    // Small leaves, so that the pages of the two flushes are none of each other's business.
    let config = Config { largest: Level::Size4K, ..Config::new(npt(), 2) };
    let vm = Mmu::new(Stage::default(), &config).unwrap();
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
        let vm = &vm;
        scope.spawn(move || guest(zero, true, &zeroth));
        scope.spawn(move || guest(one, false, &oneth));
        inside.done.recv().unwrap();
        let (go, gone) = channel();
        let Strings { cued, doing } = held_up;
        *vm.host().held_up.lock().unwrap() = Some(Strings { cued: gone, doing });
        scope.spawn(move || {
            ACTOR.set(Actor::SecondFlush);
            cued.recv().unwrap();
            vm.worker().unwrap().zap(AddressSpace::Normal, range(4, 1));
        });
        *vm.host().cast() = Some(Cast { entering, inside, second });
        ACTOR.set(Actor::FirstFlush);
        first.zap(AddressSpace::Normal, range(3, 1));
        ACTOR.set(Actor::Other);
        // Everybody goes home.
        let waited = vm.host().waited.load(Ordering::SeqCst);
        let cast = vm.host().cast().take().unwrap();
        if !waited {
            cast.entering.step();
        }
        go.send(()).unwrap();
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
