//! Faults while an event is delivered.

use super::cold;
use crate::metal::console::say;
use crate::metal::cpu::{self, GDT_WORDS, IST_INTERRUPT};
use crate::metal::paging::{PRESENT, WRITABLE, Window};
use crate::metal::trap::{self, Fault, attempt};
use crate::metal::{Machine, apic, check, interrupt};
use core::arch::{asm, global_asm};
use core::cell::UnsafeCell;
use guest::delivery::{Delivery, Event, Place, Table};
use guest::descriptor::interrupt_gate;
use guest::exit;
use guest::memory_map::Ram;
use spin::Once;
use x86_64::VirtAddr;
use x86_64::structures::tss::TaskStateSegment;

/// Index of the stack the event's gate names; the usual tables do not use it.
const IST_EVENT: u8 = 4;

/// Page of the window on which the bad structure is.
const BAD: usize = 8;

#[repr(C, align(4096))]
struct Stage(UnsafeCell<[u64; 512]>);

// SAFETY: only the first processor uses it.
unsafe impl Sync for Stage {}

/// The table that is moved, and the tables that stay.
static MOVED: Stage = Stage(UnsafeCell::new([0; 512]));
static IDT: Stage = Stage(UnsafeCell::new([0; 512]));
static TASK: Stage = Stage(UnsafeCell::new([0; 512]));
static HANDLER_STACK: Stage2 = Stage2(UnsafeCell::new([0; 1024]));

#[repr(C, align(4096))]
struct Stage2(UnsafeCell<[u64; 1024]>);

// SAFETY: only the processor takes its stack from here.
unsafe impl Sync for Stage2 {}

global_asm!(
    r#"
    .section .text.stackless, "ax"
    .balign 16
    .globl stackless_handler
stackless_handler:
    xorl %eax, %eax
    movw $0xf4, %dx
    outl %eax, %dx
1:  cli
    hlt
    jmp 1b
    "#,
    options(att_syntax)
);

unsafe extern "C" {
    static stackless_handler: u8;
}

const fn vector(event: Event) -> u8 {
    match event {
        Event::Int3 => 3,
        Event::Int80 => trap::SOFTWARE,
        Event::Pit => trap::PIC,
    }
}

/// Sets the tables up, spoils one of them and lets the event come.
pub fn run(machine: &Machine, delivery: Delivery) {
    let Delivery { event, table, place } = delivery;
    let window = Window::of(0);
    let bad = window.address(BAD);
    let moved = MOVED.0.get();
    let spoilt = match place {
        Place::Unmapped | Place::Cold => 0,
        Place::Hole => machine.hole() | PRESENT | WRITABLE,
    };
    window.set(BAD, moved as u64 | PRESENT | WRITABLE);

    // Where each structure is.
    let cold = place == Place::Cold;
    let all = table == Table::All;
    let idt = match table {
        Table::Idt | Table::All if cold => cold::idt(),
        Table::Idt => bad,
        _ => IDT.0.get() as u64,
    };
    let task = match table {
        Table::Tss | Table::All if cold => cold::tss(),
        Table::Tss => bad,
        _ => TASK.0.get() as u64,
    };
    let handler_stack = match table {
        Table::Ist if cold => cold::stack(),
        Table::Ist => bad + 4096,
        _ => HANDLER_STACK.0.get() as u64 + 8192,
    };
    let stack = match table {
        Table::Stack if cold => cold::stack(),
        Table::Stack => bad + 4096,
        _ => 0,
    };

    let mut gates = trap::gates();
    let ist = if matches!(table, Table::Tss | Table::Ist) { IST_EVENT } else { 0 };
    let slot = &mut gates[usize::from(vector(event))];
    let stackless = place == Place::Hole && matches!(table, Table::Ist | Table::Stack);
    *slot = if stackless {
        interrupt_gate(&raw const stackless_handler as u64, cpu::CODE, ist)
    } else {
        trap::gate(vector(event), ist)
    };
    // SAFETY: the stages belong to this test; the tables written are complete before they are
    // loaded, and those in the image are complete from the start.
    unsafe {
        write(if table == Table::Idt && !cold { moved } else { IDT.0.get() }, &gates);
        let mut segment = TaskStateSegment::new();
        let usual = cpu::stack(IST_INTERRUPT);
        for place in 0..7 {
            segment.interrupt_stack_table[place] = VirtAddr::new(usual);
        }
        segment.interrupt_stack_table[0] = VirtAddr::new(cpu::stack(1));
        segment.interrupt_stack_table[3] = VirtAddr::new(handler_stack);
        write(if table == Table::Tss && !cold { moved } else { TASK.0.get() }, &segment);
        cpu::load_task(0, task);
        match table {
            Table::Gdt | Table::All if cold => cpu::load_gdt(cold::gdt(), 31),
            Table::Gdt => {
                write(moved, &*cpu::gdt());
                cpu::load_gdt(bad, (GDT_WORDS * 8 - 1) as u16);
            }
            _ => {}
        }
        trap::load_idt(idt, 4095);
    }
    say!("{event:?}, {table:?}, {place:?}");
    if !cold {
        window.set(BAD, spoilt);
    }
    let before = trap::count(vector(event));
    let (result, behind) = fire(event, stack);
    let came = trap::count(vector(event)) - before;
    let back = trap::last_return();

    // Everything as usual again, before anything else can fault.
    interrupt::quiet();
    cpu::start(0);
    judge(delivery, bad, result, came);
    if result.is_ok() && place == Place::Cold {
        check!(
            event == Event::Pit || back == behind,
            exit::EXCEPTIONS,
            "returned to {back:#x} instead of {behind:#x} (all: {all})"
        );
    }
}

/// Copies `value` to a stage.
///
/// # Safety
/// The stage is not in use.
unsafe fn write<T>(stage: *mut [u64; 512], value: &T) {
    const { assert!(size_of::<T>() <= 4096) };
    // SAFETY: a stage is a page; by the caller nothing else uses it.
    unsafe { core::ptr::copy_nonoverlapping(value, stage.cast(), 1) };
}

/// Lets the event come on `stack` (0: the current one). Gives its end and the address behind it.
fn fire(event: Event, stack: u64) -> (Result<(), Fault>, u64) {
    let behind: u64;
    macro_rules! fire {
        ($($code:literal),+) => {
            // SAFETY: the tables in use lead to the stubs or nowhere; the stack pointer comes
            // back, here or in the handler.
            unsafe {
                attempt!(
                    "mov {save}, rsp", "test {stack}, {stack}", "cmovz {stack}, rsp",
                    "lea {behind}, [rip + 66f]", "mov rsp, {stack}",
                    $($code,)+ "66:", "cli", "mov rsp, {save}";
                    save = out(reg) _, stack = inout(reg) stack => _, behind = out(reg) behind)
            }
        };
    }
    let result: Result<(), Fault> = match event {
        Event::Int3 => fire!("int3"),
        Event::Int80 => fire!("int 0x80"),
        Event::Pit => {
            interrupt::timer_once(1193);
            fire!("sti", "hlt")
        }
    };
    (result, behind)
}

fn judge(delivery: Delivery, bad: u64, result: Result<(), Fault>, came: u64) {
    let Delivery { table, place, .. } = delivery;
    let right = match (table, place, result) {
        // An edge from before the timer was programmed may still have been waiting.
        (_, Place::Cold, Ok(())) if delivery.event == Event::Pit => came >= 1,
        (_, Place::Cold, Ok(())) => came == 1,
        (Table::Tss, Place::Unmapped, Err(fault)) => {
            // The entry of stack 4: three stacks of 8 bytes behind offset 36.
            fault.vector == 14 && fault.error == 0 && fault.address == bad + 36 + 24
        }
        (Table::Ist, Place::Unmapped, Err(fault)) => {
            fault.vector == 14 && fault.error == 2 && (bad..bad + 4096).contains(&fault.address)
        }
        (Table::Stack, Place::Unmapped, Err(fault)) => fault.vector == 8 && fault.error == 0,
        // Whatever reads as a table there is garbage: any end the guest can still report is one.
        (_, Place::Hole, _) => true,
        _ => false,
    };
    check!(right, exit::EXCEPTIONS, "ended in {result:x?}, delivered {came} times");
    say!("ended in {result:x?}");
}

/// Rounds of a storm.
const ROUNDS: u64 = 300;

/// Pages one round of one processor takes: two for the interrupts' stack, the others to touch.
const PAGES: usize = 10;

/// RAM the storm is over, and the number of processors.
static STORM: Once<(Ram, u64)> = Once::new();

/// Interrupts of both timers and of the other processors, on stacks that move to untouched pages
/// all the time, while the interrupted code touches untouched pages. On all processors. Each timer
/// interrupts once a round: see [`interrupt::timer_once`].
pub fn storm(machine: &Machine) {
    STORM.call_once(|| (machine.free.clone(), machine.cpus as u64));
    let ticks = trap::count(trap::PIC);
    apic::enable();
    cpu::on_all(machine, storm_here);
    interrupt::quiet();
    say!("{} interrupts of the PIT", trap::count(trap::PIC) - ticks);
}

/// The storm on processor `index`.
fn storm_here(index: usize) {
    let Some((ram, cpus)) = STORM.get() else { return };
    let window = Window::of(index);
    let mut pages = ram
        .spans()
        .iter()
        .flat_map(|span| (span.start..span.end).step_by(4096))
        .filter(|&page| page < 4 << 30)
        .skip(index)
        .step_by(*cpus as usize);
    let before = trap::count(trap::APIC_TIMER);
    let mut random = fastrand::Rng::with_seed(index as u64);
    for round in 0..ROUNDS {
        let taken: [u64; PAGES] = core::array::from_fn(|_| pages.next().unwrap_or(0));
        if taken[PAGES - 1] == 0 {
            // All RAM is touched.
            break;
        }
        let (stack, touched) = taken.split_at(2);
        window.set(BAD, stack[0] | PRESENT | WRITABLE);
        window.set(BAD + 1, stack[1] | PRESENT | WRITABLE);
        if round % 4 == 0 {
            apic::send(apic::FIXED_OTHERS | u32::from(trap::SHOULDER));
        }
        if index == 0 {
            interrupt::timer_once(random.u16(100..1200));
        }
        let last = trap::count(trap::APIC_TIMER);
        apic::timer_once(random.u32(1_000..40_000));
        // SAFETY: the interrupts' stack is two pages of free RAM, and the pages touched are free
        // RAM; both are this processor's.
        unsafe {
            cpu::set_stack(IST_INTERRUPT, window.address(BAD + 2));
            asm!(
                "sti",
                "2:",
                "mov {page}, [{touched} + {left} * 8 - 8]",
                "mov [{page} + 8], {page}",
                "dec {left}",
                "jnz 2b",
                "cli",
                page = out(reg) _,
                touched = in(reg) touched.as_ptr(),
                left = inout(reg) touched.len() => _,
            );
        }
        trap::halt_until(trap::APIC_TIMER, last);
        for &page in touched {
            // SAFETY: free RAM, just written.
            let found = unsafe { ((page + 8) as *const u64).read_volatile() };
            check!(found == page, exit::RAM, "{found:#x} at {page:#x}");
        }
    }
    apic::write(apic::TIMER, 0x1_0000);
    let came = trap::count(trap::APIC_TIMER) - before;
    cpu::start(index);
    check!(came > 0, exit::TIMER, "no interrupt of the local APIC's timer came");
    say!("processor {index}: {came} interrupts of its timer");
}
