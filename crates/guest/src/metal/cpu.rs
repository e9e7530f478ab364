//! Processors: their descriptor tables and stacks, how the others are started, and how all of
//! them run one piece of work.

use super::console::say;
use super::entry::{self, MAX_CPUS, TRAMPOLINE};
use super::{Machine, apic, check, trap};
use core::arch::asm;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use guest::descriptor::task_state_descriptor;
use guest::exit;
use x86_64::VirtAddr;
use x86_64::structures::tss::TaskStateSegment;

/// Selector of the code segment.
pub const CODE: u16 = 0x08;
/// Selector of the first processor's task-state segment; the others follow every 16 bytes.
pub const FIRST_TASK: u16 = 0x20;
/// Stack of double faults.
pub const IST_DOUBLE_FAULT: u8 = 1;
/// Stack of interrupts. They have one of their own because compiled code may keep data below
/// its stack pointer (the 128 bytes of the System V ABI).
pub const IST_INTERRUPT: u8 = 2;
/// Stack of non-maskable interrupts.
pub const IST_NMI: u8 = 3;

const IST_BYTES: usize = 16 * 1024;

/// Words of the descriptor table.
pub const GDT_WORDS: usize = 4 + 2 * MAX_CPUS;

#[repr(C, align(4096))]
struct Tables(UnsafeCell<[u64; GDT_WORDS]>);

// SAFETY: each processor writes only its own words, before it loads the table.
unsafe impl Sync for Tables {}

static GDT: Tables = Tables(UnsafeCell::new({
    let mut words = [0; GDT_WORDS];
    words[1] = 0x00af_9b00_0000_ffff;
    words[2] = 0x00cf_9300_0000_ffff;
    words[3] = 0x00cf_9b00_0000_ffff;
    words
}));

#[repr(C, align(4096))]
struct Local {
    task: UnsafeCell<TaskStateSegment>,
    stacks: UnsafeCell<[[u8; IST_BYTES]; 3]>,
}

// SAFETY: each processor uses only its own.
unsafe impl Sync for Local {}

static LOCAL: [Local; MAX_CPUS] = [const {
    Local {
        task: UnsafeCell::new(TaskStateSegment::new()),
        stacks: UnsafeCell::new([[0; IST_BYTES]; 3]),
    }
}; MAX_CPUS];

/// Index of this processor. It is read from the task register, which no test destroys.
pub fn index() -> usize {
    let selector: u16;
    // SAFETY: reads a register.
    unsafe { asm!("str {:x}", out(reg) selector, options(nomem, nostack, preserves_flags)) };
    usize::from(selector.saturating_sub(FIRST_TASK) >> 4)
}

/// Base and limit of a table, as `lgdt` and `lidt` read it.
#[repr(C, packed(2))]
pub struct Pointer {
    /// Bytes minus one.
    pub limit: u16,
    /// Linear address.
    pub base: u64,
}

/// The descriptor table's words and where they are.
pub fn gdt() -> *const [u64; GDT_WORDS] {
    GDT.0.get()
}

/// Loads a global descriptor table.
///
/// # Safety
/// It has the same code, data and task-state selectors, or the processor never needs it again.
pub unsafe fn load_gdt(base: u64, limit: u16) {
    let pointer = Pointer { limit, base };
    // SAFETY: by the caller.
    unsafe { asm!("lgdt [{}]", in(reg) &raw const pointer, options(nostack, preserves_flags)) };
}

/// Top of stack `ist` of this processor, as it is after [`start`].
pub fn stack(ist: u8) -> u64 {
    LOCAL[index()].stacks.get() as u64 + u64::from(ist) * IST_BYTES as u64
}

/// Moves stack `ist` of this processor, until the next [`start`].
///
/// # Safety
/// `top` is the end of enough memory, and the stack is not in use.
pub unsafe fn set_stack(ist: u8, top: u64) {
    let task = LOCAL[index()].task.get();
    let place = usize::from(ist) - 1;
    // SAFETY: only this processor uses its segment; the processor reads it at the next event.
    unsafe {
        (&raw mut (*task).interrupt_stack_table[place]).write_volatile(VirtAddr::new_truncate(top));
    }
}

/// Loads the task register of processor `index` with a segment at `base`.
///
/// # Safety
/// The segment is one, and stays, or the processor is not meant to survive.
pub unsafe fn load_task(index: usize, base: u64) {
    let descriptor = task_state_descriptor(base, size_of::<TaskStateSegment>() as u32 - 1);
    let selector = FIRST_TASK + 16 * index as u16;
    // SAFETY: the two words belong to this processor; the rest is by the caller.
    unsafe {
        let words = GDT.0.get().cast::<u64>();
        words.add(usize::from(selector) / 8).write_volatile(descriptor[0]);
        words.add(usize::from(selector) / 8 + 1).write_volatile(descriptor[1]);
        load_gdt(words as u64, (GDT_WORDS * 8 - 1) as u16);
        asm!("ltr {:x}", in(reg) selector, options(nostack, preserves_flags));
    }
}

/// Gives processor `index` its tables: the first thing each does.
pub fn start(index: usize) {
    let local = &LOCAL[index];
    let task = local.task.get();
    let stacks = local.stacks.get() as u64;
    // SAFETY: only this processor uses its `Local`; the selectors in use stay what they are.
    unsafe {
        for ist in 0..3 {
            let top = stacks + (ist as u64 + 1) * IST_BYTES as u64;
            (*task).interrupt_stack_table[ist] = VirtAddr::new(top);
        }
        load_task(index, task as u64);
    }
    trap::load();
}

/// The time-stamp counter.
pub fn ticks() -> u64 {
    // SAFETY: every processor with long mode has the counter.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Waits until `done` or until the counter has moved by `limit` ticks; returns what `done` said
/// last.
pub fn wait(limit: u64, mut done: impl FnMut() -> bool) -> bool {
    let start = ticks();
    while !done() {
        if ticks().wrapping_sub(start) > limit {
            return done();
        }
        core::hint::spin_loop();
    }
    true
}

/// A time no test needs on a machine that works, however busy: about a hundred seconds. Whoever waits
/// in vain says what for.
pub const PATIENCE: u64 = 300_000_000_000;

static PRESENT: AtomicU32 = AtomicU32::new(0);
static ROUND: AtomicU32 = AtomicU32::new(0);
static WORK: AtomicUsize = AtomicUsize::new(0);
static DONE: AtomicU32 = AtomicU32::new(0);

/// Starts all other processors at once and waits until they have answered. The broadcast is sent
/// even if this processor is the only one.
pub fn start_others(machine: &Machine) {
    let start = &raw const entry::trampoline_start;
    let length = &raw const entry::trampoline_end as usize - start as usize;
    // SAFETY: the page is RAM below 1 MiB that nothing uses any more: what the boot loader left
    // there has been copied.
    unsafe { core::ptr::copy_nonoverlapping(start, TRAMPOLINE as *mut u8, length) };
    apic::enable();
    apic::send(apic::INIT_OTHERS);
    wait(20_000_000, || false);
    for _ in 0..2 {
        apic::send(apic::START_OTHERS | (TRAMPOLINE as u32 >> 12));
        wait(2_000_000, || false);
    }
    let others = machine.cpus as u32 - 1;
    let all = wait(PATIENCE, || PRESENT.load(Ordering::Acquire) >= others);
    // SAFETY: an atomic the trampoline counts in.
    let started = unsafe { &entry::cpus_started }.load(Ordering::Acquire);
    check!(
        all && started == others,
        exit::CPUS,
        "{} of {others} other processors answered, {started} started",
        PRESENT.load(Ordering::Acquire)
    );
    say!("cpus ok ({})", machine.cpus);
}

/// First Rust code of the other processors.
#[unsafe(no_mangle)]
extern "C" fn processor_main(index: u32) -> ! {
    let index = index as usize;
    start(index);
    apic::enable();
    PRESENT.fetch_add(1, Ordering::AcqRel);
    let mut round = 0;
    loop {
        while ROUND.load(Ordering::Acquire) == round {
            core::hint::spin_loop();
        }
        round += 1;
        let work = WORK.load(Ordering::Acquire);
        // SAFETY: `on_all` stored a function of this type before it began the round.
        let work: fn(usize) = unsafe { core::mem::transmute(work) };
        work(index);
        DONE.fetch_add(1, Ordering::AcqRel);
    }
}

/// Runs `work` on every processor, with its index, and waits for all of them.
pub fn on_all(machine: &Machine, work: fn(usize)) {
    DONE.store(0, Ordering::Release);
    WORK.store(work as usize, Ordering::Release);
    ROUND.fetch_add(1, Ordering::AcqRel);
    work(0);
    let others = machine.cpus as u32 - 1;
    check!(
        wait(4 * PATIENCE, || DONE.load(Ordering::Acquire) == others),
        exit::CPUS,
        "{} of {others} other processors finished",
        DONE.load(Ordering::Acquire)
    );
}
