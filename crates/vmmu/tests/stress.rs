//! Threads that fault, and threads that take back, at the same time: afterwards the tables are
//! what they must be, and no table page was used after its release.
//!
//! This is no judge of translations: only the software machine and the models are. It finds
//! what breaks the structure.

mod support;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use support::{Frames, TestHost, backed, ept, fault_at, npt, range};
use vmmu::Outcome;
use vmmu::addr::{Gfn, Level, Pfn};
use vmmu::check::Witness;
use vmmu::entry::{Access, Format};
use vmmu::host::VcpuId;
use vmmu::slot::{AddressSpace, SlotId};
use vmmu::{Config, HostRange, Mmu, Processor, Progress};

/// Small and repeatable.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % n
    }
}

const STEPS: u64 = 400;

fn stress(format: Format) {
    let mut vm =
        Mmu::new(TestHost::default(), &Config { workers: 4, ..Config::new(format, 3) }).unwrap();
    let frames = Frames::new(Level::Size2M);
    let stop = AtomicBool::new(false);
    let fixed = AtomicU64::new(0);
    vm.worker().unwrap().create_slot(&backed(1, range(0, 0x2000))).unwrap();
    std::thread::scope(|scope| {
        for n in 0..3 {
            let (vm, frames, stop, fixed) = (&vm, &frames, &stop, &fixed);
            scope.spawn(move || {
                let mut random = Random(0x9e37_79b9 + u64::from(n));
                let mut vcpu = vm.vcpu(VcpuId(n)).unwrap();
                while !stop.load(Ordering::Relaxed) || fixed.load(Ordering::Relaxed) == 0 {
                    // In the guest for a while, so that flushes have somebody to wait for.
                    vcpu.load_root().unwrap();
                    let entry = match vcpu.before_enter(Processor(n)) {
                        Ok(entry) => entry,
                        Err(vmmu::EnterError::LoadRoot) => continue,
                        Err(why) => panic!("{why}"),
                    };
                    std::hint::black_box(entry.root());
                    entry.after_exit();
                    let access =
                        [Access::READ, Access::WRITE, Access::EXEC][random.below(3) as usize];
                    match vcpu.handle_fault(frames, fault_at(random.below(0x3000), access)) {
                        Outcome::Fixed(_) => {
                            fixed.fetch_add(1, Ordering::Relaxed);
                        }
                        Outcome::Spurious | Outcome::Emulate | Outcome::Busy(_) => {}
                        other => panic!("{other:?}"),
                    }
                }
            });
        }
        let taking = [
            scope.spawn(|| {
                let mut random = Random(77);
                let mut worker = vm.worker().unwrap();
                for _ in 0..STEPS {
                    let first = random.below(0x3000);
                    let range = HostRange { backing: 7, first, pages: 1 + random.below(600) };
                    drop(worker.invalidate_range(range));
                }
            }),
            scope.spawn(|| {
                let mut random = Random(78);
                let mut worker = vm.worker().unwrap();
                for _ in 0..STEPS / 4 {
                    worker.zap(AddressSpace::Normal, range(random.below(0x2000), 1));
                    worker.create_slot(&backed(2, range(0x2000, 0x700))).unwrap();
                    worker.limit_slot(SlotId(2), Level::Size4K).unwrap();
                    worker.move_slot(SlotId(2), Gfn(0x2800)).unwrap();
                    worker.delete_slot(SlotId(2)).unwrap();
                }
            }),
            scope.spawn(|| {
                let mut random = Random(79);
                let mut worker = vm.worker().unwrap();
                for _ in 0..STEPS / 20 {
                    let mut drain = worker.invalidate_roots();
                    while worker.drain(&mut drain, 1 + random.below(8)) == Progress::More {}
                    let mut text = String::new();
                    worker.dump(&mut text).unwrap();
                }
            }),
        ];
        for thread in taking {
            thread.join().unwrap();
        }
        stop.store(true, Ordering::Relaxed);
    });
    let host = |_, page| Witness::Frame(Pfn(page + Frames::OFFSET), Access::all());
    let checked = vm.check(host).unwrap();
    assert!(checked.is_clean(), "{:#?}", checked.violations);
    let stats = vm.stats();
    assert_eq!((stats.debts_leaked, vm.broken()), (0, None));
    assert_eq!(vm.teardown().in_use(), 0);
}

#[test]
fn nothing_is_lost_or_used_after_its_release_with_npt() {
    stress(npt());
}

#[test]
fn nothing_is_lost_or_used_after_its_release_with_ept() {
    stress(ept());
}
