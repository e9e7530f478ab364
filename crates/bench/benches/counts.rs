//! Instructions of the library's operations, counted by valgrind's callgrind.
//!
//! The name of each case ends in `_x` and how many operations it does. After each, outside of what
//! is counted, the VM's counters say that the operations were done.

#![expect(missing_docs, reason = "the macros make public items")]

use std::hint::black_box;

use bench::{BACKING, Memory, Order, Rig, amd, intel, range, write};
use gungraun::{library_benchmark, library_benchmark_group, main};
use vmmu::addr::{Gpa, Level};
use vmmu::slot::AddressSpace;
use vmmu::{HostRange, Processor};

/// Entries of a table.
const TABLE: u64 = 512;

fn fresh(memory: Memory, format: vmmu::entry::Format, level: Level) -> &'static mut Rig {
    // The first leaf makes the tables.
    Rig::new(format, memory, level).mapped([0])
}

fn full(memory: Memory) -> &'static mut Rig {
    Rig::new(amd(), memory, Level::Size4K).mapped(0..TABLE)
}

fn mapped_more(rig: &'static mut Rig) {
    assert!(rig.leaves() > 1, "{:?}", rig.stats());
}

#[library_benchmark(teardown = mapped_more)]
#[bench::linear_x511(fresh(Memory::Linear, amd(), Level::Size4K), 1)]
#[bench::backed_x511(fresh(Memory::Backed, amd(), Level::Size4K), 1)]
#[bench::linear_ept_x511(fresh(Memory::Linear, intel(), Level::Size4K), 1)]
#[bench::backed_ept_x511(fresh(Memory::Backed, intel(), Level::Size4K), 1)]
#[bench::linear_2m_x511(fresh(Memory::Linear, amd(), Level::Size2M), 512)]
#[bench::backed_2m_x511(fresh(Memory::Backed, amd(), Level::Size2M), 512)]
fn fault(rig: &'static mut Rig, step: u64) -> &'static mut Rig {
    for n in 1..TABLE {
        let _ = black_box(rig.vcpu.handle_fault(&rig.backing, write(n * step)));
    }
    rig
}

#[library_benchmark(teardown = mapped_more)]
#[bench::linear_x64(fresh(Memory::Linear, amd(), Level::Size4K))]
#[bench::backed_x64(fresh(Memory::Backed, amd(), Level::Size4K))]
fn fault_without_table(rig: &'static mut Rig) -> &'static mut Rig {
    for n in 1..=64 {
        let _ = black_box(rig.vcpu.handle_fault(&rig.backing, write(n * TABLE)));
    }
    rig
}

fn spurious(rig: &'static mut Rig) {
    assert_eq!(rig.stats().spurious, TABLE);
}

#[library_benchmark(teardown = spurious)]
#[bench::x512(full(Memory::Backed))]
fn fault_spurious(rig: &'static mut Rig) -> &'static mut Rig {
    for n in 0..TABLE {
        let _ = black_box(rig.vcpu.handle_fault(&rig.backing, write(n)));
    }
    rig
}

const BEYOND: u64 = 0x4_0000;

fn emulated(rig: &'static mut Rig) {
    assert_eq!(rig.stats().emulated_fast, TABLE);
}

#[library_benchmark(teardown = emulated)]
#[bench::x512(Rig::new(amd(), Memory::Linear, Level::Size4K).mapped([BEYOND]))]
fn fault_mmio(rig: &'static mut Rig) -> &'static mut Rig {
    for _ in 0..TABLE {
        let _ = black_box(rig.vcpu.handle_fault(&rig.backing, write(BEYOND)));
    }
    rig
}

#[library_benchmark]
#[bench::x512(full(Memory::Linear))]
fn translate(rig: &'static mut Rig) -> u64 {
    let mut found = 0;
    for n in 0..TABLE {
        found += u64::from(rig.vcpu.translate(Gpa(n << 12)).is_some());
    }
    found
}

fn zapped(rig: &'static mut Rig) {
    assert!(rig.stats().zapped > 0, "{:?}", rig.stats());
}

#[library_benchmark(teardown = zapped)]
#[bench::page_x1(full(Memory::Backed), 1)]
#[bench::table_x512(full(Memory::Backed), TABLE)]
fn zap(rig: &'static mut Rig, pages: u64) -> &'static mut Rig {
    rig.worker.zap(AddressSpace::Normal, range(0, pages));
    rig
}

#[library_benchmark(teardown = zapped)]
#[bench::page_x1(full(Memory::Backed), 1)]
#[bench::table_x512(full(Memory::Backed), TABLE)]
fn invalidate(rig: &'static mut Rig, pages: u64) -> &'static mut Rig {
    drop(rig.worker.invalidate_range(HostRange { backing: BACKING, first: 0, pages }));
    rig
}

#[library_benchmark]
#[bench::of_1_same_x256(Rig::with_slots(1, Order::Same))]
#[bench::of_64_same_x256(Rig::with_slots(64, Order::Same))]
#[bench::of_64_random_x256(Rig::with_slots(64, Order::Random))]
#[bench::of_4096_same_x256(Rig::with_slots(4096, Order::Same))]
#[bench::of_4096_random_x256(Rig::with_slots(4096, Order::Random))]
fn slot(rig: &'static mut Rig) -> u64 {
    rig.worker.look_up(&rig.frames)
}

#[library_benchmark]
#[bench::x256(full(Memory::Backed))]
fn enter_and_exit(rig: &'static mut Rig) -> u64 {
    let mut entered = 0;
    for _ in 0..256 {
        rig.vcpu.load_root().unwrap();
        if let Ok(guest) = rig.vcpu.before_enter(Processor(0)) {
            guest.after_exit();
            entered += 1;
        }
    }
    entered
}

library_benchmark_group!(
    name = mmu,
    benchmarks = [
        fault,
        fault_without_table,
        fault_spurious,
        fault_mmio,
        translate,
        zap,
        invalidate,
        slot,
        enter_and_exit
    ]
);
main!(library_benchmark_groups = mmu);
