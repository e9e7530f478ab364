//! Exceptions and interrupts: 256 stubs, one handler, and a way to try an instruction and to go
//! on behind it when it faults.

use super::cpu::{self, CODE, IST_DOUBLE_FAULT, IST_INTERRUPT, IST_NMI, Pointer};
use super::entry::MAX_CPUS;
use super::{apic, fail, interrupt};
use core::arch::{asm, global_asm};
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU64, Ordering};
use guest::descriptor::interrupt_gate;
use guest::exit;

/// First vector of the PC's interrupt controller.
pub const PIC: u8 = 0x20;
/// Vector of the local APIC's timer.
pub const APIC_TIMER: u8 = 0x40;
/// Vector of interrupts between processors.
pub const SHOULDER: u8 = 0x41;
/// Software interrupt.
pub const SOFTWARE: u8 = 0x80;
/// Spurious interrupts of the local APIC.
pub const SPURIOUS: u8 = 0xff;

global_asm!(
    r#"
    .section .text.vectors, "ax"
    .balign 4096
    .globl vector_stubs
vector_stubs:
    .set vector, 0
    .rept 256
    .balign 16
    .if vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21 || vector == 29 || vector == 30
    .else
    pushq $0
    .endif
    .byte 0x68
    .long vector
    jmp trap_entry
    .set vector, vector + 1
    .endr

trap_entry:
    pushq %rax
    pushq %rbx
    pushq %rcx
    pushq %rdx
    pushq %rsi
    pushq %rdi
    pushq %rbp
    pushq %r8
    pushq %r9
    pushq %r10
    pushq %r11
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    cld
    movq %rsp, %rdi
    movq %rsp, %rbp
    subq $512, %rsp
    andq $-16, %rsp
    fxsave64 (%rsp)
    call trap_handler
    fxrstor64 (%rsp)
    movq %rbp, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %r11
    popq %r10
    popq %r9
    popq %r8
    popq %rbp
    popq %rdi
    popq %rsi
    popq %rdx
    popq %rcx
    popq %rbx
    popq %rax
    addq $16, %rsp
    iretq
    .globl trap_end
trap_end:
    "#,
    options(att_syntax)
);

unsafe extern "C" {
    static vector_stubs: [[u8; 16]; 256];
    static trap_end: u8;
}

/// What the stubs push.
#[repr(C)]
pub struct Frame {
    registers: [u64; 15],
    vector: u64,
    error: u64,
    rip: u64,
    cs: u64,
    flags: u64,
    rsp: u64,
    ss: u64,
}

/// An exception that was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// Vector.
    pub vector: u8,
    /// Error code, 0 for vectors without one.
    pub error: u64,
    /// CR2 at the time.
    pub address: u64,
    /// Where it happened.
    pub rip: u64,
    /// The flags on the handler's stack.
    pub flags: u64,
}

/// What a processor is trying. The first two words are written by [`attempt`].
#[repr(C)]
pub struct Slot {
    resume: u64,
    stack: u64,
    taken: Option<Fault>,
}

#[repr(C, align(64))]
struct Local {
    slot: UnsafeCell<Slot>,
    counts: [AtomicU64; 256],
    last: AtomicU64,
    flags: AtomicU64,
    linger: AtomicU64,
    chain: AtomicU64,
    /// Where the last link of a chain came; 0: there was none.
    chained: AtomicU64,
    in_nmi: AtomicU64,
}

// SAFETY: each processor uses only its own slot.
unsafe impl Sync for Local {}

static LOCAL: [Local; MAX_CPUS] = [const {
    Local {
        slot: UnsafeCell::new(Slot { resume: 0, stack: 0, taken: None }),
        counts: [const { AtomicU64::new(0) }; 256],
        last: AtomicU64::new(0),
        flags: AtomicU64::new(0),
        linger: AtomicU64::new(0),
        chain: AtomicU64::new(0),
        chained: AtomicU64::new(0),
        in_nmi: AtomicU64::new(0),
    }
}; MAX_CPUS];

#[repr(C, align(4096))]
struct Idt(UnsafeCell<[[u64; 2]; 256]>);

// SAFETY: written by the first processor before any other runs.
unsafe impl Sync for Idt {}

static IDT: Idt = Idt(UnsafeCell::new([[0; 2]; 256]));

/// The gate of a vector, with its handler on stack `ist`.
pub fn gate(vector: u8, ist: u8) -> [u64; 2] {
    // SAFETY: only the address is taken.
    let stub = unsafe { &raw const vector_stubs[usize::from(vector)] } as u64;
    interrupt_gate(stub, CODE, ist)
}

/// The stack a vector's handler normally runs on.
const fn stack_of(vector: u8) -> u8 {
    match vector {
        2 => IST_NMI,
        // The fault of a bad stack, too, needs a better one.
        8 | 12 | 13 => IST_DOUBLE_FAULT,
        SOFTWARE | 0..32 => 0,
        _ => IST_INTERRUPT,
    }
}

/// All gates.
pub fn gates() -> [[u64; 2]; 256] {
    core::array::from_fn(|vector| gate(vector as u8, stack_of(vector as u8)))
}

/// Loads the table; the first processor writes it first.
pub fn load() {
    if cpu::index() == 0 {
        // SAFETY: no other processor runs yet, and interrupts are off.
        unsafe { *IDT.0.get() = gates() };
    }
    // SAFETY: the table is complete and never changes.
    unsafe { load_idt(IDT.0.get() as u64, 4095) };
}

/// Loads an interrupt descriptor table.
///
/// # Safety
/// Its gates lead to the stubs, or the processor is not meant to survive.
pub unsafe fn load_idt(base: u64, limit: u16) {
    let pointer = Pointer { limit, base };
    // SAFETY: by the caller.
    unsafe { asm!("lidt [{}]", in(reg) &raw const pointer, options(nostack, preserves_flags)) };
}

/// How often this processor has taken a vector.
pub fn count(vector: u8) -> u64 {
    LOCAL[cpu::index()].counts[usize::from(vector)].load(Ordering::Acquire)
}

/// Where the last event of this processor returned to.
pub fn last_return() -> u64 {
    LOCAL[cpu::index()].last.load(Ordering::Acquire)
}

/// The flags that the last event of this processor found.
pub fn last_flags() -> u64 {
    LOCAL[cpu::index()].flags.load(Ordering::Acquire)
}

/// This processor's slot, for [`attempt`].
pub fn slot() -> *mut Slot {
    LOCAL[cpu::index()].slot.get()
}

/// The fault the last attempt of this processor ended in.
pub fn taken() -> Option<Fault> {
    // SAFETY: only this processor uses the slot, and no attempt is running.
    unsafe { (*slot()).taken.take() }
}

/// Runs assembly; an exception in it continues behind it, with all registers as they were at
/// the fault and the stack pointer as before. Gives `Result<(), Fault>`.
///
/// Must be used in `unsafe`: the assembly does whatever it does.
macro_rules! attempt {
    ($($code:expr),+ ; $($operands:tt)*) => {{
        let slot = $crate::metal::trap::slot();
        core::arch::asm!(
            "lea {attempt_scratch}, [rip + 77f]",
            "mov [{attempt_slot}], {attempt_scratch}",
            "mov [{attempt_slot} + 8], rsp",
            $($code,)+
            "77:",
            "mov qword ptr [{attempt_slot}], 0",
            attempt_scratch = out(reg) _,
            attempt_slot = in(reg) slot,
            $($operands)*
        );
        match $crate::metal::trap::taken() {
            Some(fault) => Err(fault),
            None => Ok(()),
        }
    }};
}
pub(crate) use attempt;

/// Halts until vector `vector` has come, since it had come `before` times.
pub fn halt_until(vector: u8, before: u64) {
    while count(vector) == before {
        // SAFETY: an interrupt taken here runs on its own stack and returns.
        unsafe { asm!("sti", "hlt", "cli") };
    }
}

/// How long each interrupt is in service before its handler ends it, in ticks of the counter.
pub fn linger(ticks: u64) {
    LOCAL[cpu::index()].linger.store(ticks, Ordering::Release);
}

/// So many more non-maskable interrupts this processor sends to itself, each in the handler of the last.
pub fn chain(links: u64) {
    LOCAL[cpu::index()].chain.store(links, Ordering::Release);
}

/// A non-maskable interrupt does not come in the handler of another, and one that was sent there comes
/// right behind its end.
fn non_maskable(local: &Local, frame: &Frame) {
    let stubs = &raw const vector_stubs as u64..&raw const trap_end as u64;
    if local.in_nmi.swap(1, Ordering::AcqRel) != 0 || stubs.contains(&frame.rip) {
        fail(
            exit::EXCEPTIONS,
            format_args!("an NMI came at {:#x}, in the handler of another", frame.rip),
        );
    }
    let links = local.chain.load(Ordering::Acquire);
    if links != 0 {
        let last = local.chained.swap(frame.rip, Ordering::AcqRel);
        if last != 0 && last != frame.rip {
            let rip = frame.rip;
            fail(exit::EXCEPTIONS, format_args!("an NMI came at {rip:#x}, and not at {last:#x}"));
        }
        local.chain.store(links - 1, Ordering::Release);
        // To itself.
        apic::write(apic::COMMAND, 0x4_4400);
    } else {
        local.chained.store(0, Ordering::Release);
    }
    local.in_nmi.store(0, Ordering::Release);
}

/// An interrupt comes only while interrupts are on: not, for instance, within a handler of another.
fn serve(local: &Local, frame: &Frame) {
    if frame.flags & 0x200 == 0 {
        let Frame { vector, rip, flags, .. } = frame;
        fail(
            exit::TIMER,
            format_args!("vector {vector:#x} came at {rip:#x}, with interrupts off ({flags:#x})"),
        );
    }
    let ticks = local.linger.load(Ordering::Acquire);
    let start = cpu::ticks();
    // No PAUSE: it may end a processor's turn, or the guest's run, and with it what is to be seen.
    while cpu::ticks().wrapping_sub(start) < ticks {}
}

#[unsafe(no_mangle)]
extern "C" fn trap_handler(frame: &mut Frame) {
    let local = &LOCAL[cpu::index()];
    let vector = frame.vector as u8;
    local.counts[usize::from(vector)].fetch_add(1, Ordering::AcqRel);
    local.last.store(frame.rip, Ordering::Release);
    local.flags.store(frame.flags, Ordering::Release);
    if vector >= PIC && vector != SOFTWARE {
        serve(local, frame);
    }
    if vector == 2 {
        non_maskable(local, frame);
    }
    match vector {
        PIC..=0x2f => interrupt::end(vector),
        1 | 2 | 3 | SOFTWARE | SPURIOUS => {}
        0..32 => exception(frame, vector),
        _ => apic::end(),
    }
}

fn exception(frame: &mut Frame, vector: u8) {
    let address: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, cr2", out(reg) address, options(nomem, nostack, preserves_flags)) };
    let Frame { error, rip, flags, .. } = *frame;
    let fault = Fault { vector, error, address, rip, flags };
    // SAFETY: this processor's slot; its attempt is interrupted.
    let slot = unsafe { &mut *slot() };
    if slot.resume == 0 {
        fail(exit::unexpected(vector), format_args!("nobody expected {fault:x?}"));
    }
    frame.rip = slot.resume;
    frame.rsp = slot.stack;
    frame.cs = u64::from(CODE);
    frame.ss = 0x10;
    // Interrupts stay off until the test has looked at the fault.
    frame.flags &= !0x200;
    slot.resume = 0;
    slot.taken = Some(fault);
}
