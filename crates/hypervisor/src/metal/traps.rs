//! Interrupts and exceptions of the hypervisor itself.
//!
//! The hypervisor runs with interrupts off. What can come: non-maskable interrupts (the signal
//! from other processors and from the timer: only "look around", so the handler does nothing but
//! end an idle wait), and its own faults, which end the run. Every vector has a stack of its own
//! through the IST, because `core` was built with a red zone.

use super::{apic, control};
use alloc::{boxed::Box, format};
use core::arch::{asm, global_asm};
use core::mem::size_of;

#[repr(C)]
#[derive(Clone, Copy)]
struct Gate([u64; 2]);

#[repr(C, packed)]
struct TaskState {
    reserved: u32,
    stacks: [u64; 3],
    reserved2: u64,
    interrupt_stacks: [u64; 7],
    reserved3: u64,
    reserved4: u16,
    io_map: u16,
}

#[repr(C, packed)]
struct Pointer {
    limit: u16,
    base: u64,
}

/// Registers at a fault, as the stub below pushes them.
#[repr(C)]
#[derive(Debug)]
pub struct Frame {
    rax: u64,
    rbx: u64,
    rcx: u64,
    rdx: u64,
    rsi: u64,
    rdi: u64,
    rbp: u64,
    r8: u64,
    r9: u64,
    r10: u64,
    r11: u64,
    r12: u64,
    r13: u64,
    r14: u64,
    r15: u64,
    vector: u64,
    error: u64,
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

const STACK: usize = 32 << 10;
/// IST numbers: one for faults, one for NMIs, which may come during a fault.
const FAULT_STACK: u64 = 1;
const NMI_STACK: u64 = 2;

unsafe extern "C" {
    static trap_stubs: u8;
    static trap_nmi: u8;
    static trap_forget: u8;
}

/// Installs descriptor tables for this processor. Once on each.
pub fn install() {
    let mut task = Box::new(TaskState {
        reserved: 0,
        stacks: [0; 3],
        reserved2: 0,
        interrupt_stacks: [0; 7],
        reserved3: 0,
        reserved4: 0,
        io_map: size_of::<TaskState>() as u16,
    });
    let mut stacks = [0; 7];
    for number in [FAULT_STACK, NMI_STACK] {
        let stack: &'static mut [u8] = alloc::vec![0_u8; STACK].leak();
        stacks[number as usize - 1] = (stack.as_ptr() as u64 + STACK as u64) & !15;
    }
    task.interrupt_stacks = stacks;
    let task = Box::leak(task) as *const TaskState as u64;

    let limit = size_of::<TaskState>() as u64 - 1;
    let descriptor_low = limit | (task & 0xff_ffff) << 16 | 0x89 << 40 | (task >> 24 & 0xff) << 56;
    let segments: &'static [u64; 6] = Box::leak(Box::new([
        0,
        0x00cf_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0x00af_9b00_0000_ffff,
        descriptor_low,
        task >> 32,
    ]));
    let gates: &'static [Gate; 256] = Box::leak(Box::new(core::array::from_fn(gate)));
    let gdt = Pointer { limit: 6 * 8 - 1, base: segments.as_ptr() as u64 };
    let idt = Pointer { limit: 256 * 16 - 1, base: gates.as_ptr() as u64 };
    // SAFETY: both tables live forever and keep the selectors in use (0x10 data, 0x18 code);
    // selector 0x20 is the task state built above.
    unsafe {
        asm!("lgdt [{}]", in(reg) &raw const gdt, options(nostack, preserves_flags));
        asm!("lidt [{}]", in(reg) &raw const idt, options(nostack, preserves_flags));
        asm!("ltr {0:x}", in(reg) 0x20_u16, options(nostack, preserves_flags));
    }
}

/// Lets the interrupts come that wait at this processor's APIC, and forgets them.
///
/// A guest may have asked for vectors below 32, where the hypervisor's own exceptions are; so for
/// that moment every vector means an interrupt.
pub fn drain() {
    let gates: [Gate; 256] = core::array::from_fn(|vector| match vector {
        2 => nmi_gate(),
        _ => make_gate(&raw const trap_forget as u64, FAULT_STACK),
    });
    let forgetful = Pointer { limit: 256 * 16 - 1, base: gates.as_ptr() as u64 };
    let mut own = Pointer { limit: 0, base: 0 };
    // SAFETY: the table lives until the processor has its own again, and nothing in between can
    // raise an exception.
    unsafe {
        asm!("sidt [{}]", in(reg) &raw mut own, options(nostack, preserves_flags));
        asm!("lidt [{}]", in(reg) &raw const forgetful, options(nostack, preserves_flags));
        for _ in 0..256 {
            asm!("sti", "nop", "nop", "cli", options(nostack));
        }
        asm!("lidt [{}]", in(reg) &raw const own, options(nostack, preserves_flags));
    }
}

fn nmi_gate() -> Gate {
    make_gate(&raw const trap_nmi as u64, NMI_STACK)
}

fn gate(vector: usize) -> Gate {
    match vector {
        2 => nmi_gate(),
        0..32 => make_gate(&raw const trap_stubs as u64 + vector as u64 * 16, FAULT_STACK),
        _ => make_gate(&raw const trap_forget as u64, FAULT_STACK),
    }
}

fn make_gate(address: u64, stack: u64) -> Gate {
    let low =
        (address & 0xffff) | 0x18 << 16 | stack << 32 | 0x8e << 40 | (address >> 16 & 0xffff) << 48;
    Gate([low, address >> 32])
}

/// Waits until `*word` is not `value`, asleep. Whoever changes the word sends this processor an
/// NMI afterwards. May return early.
pub fn sleep_while(word: &core::sync::atomic::AtomicU32, value: u32) {
    // SAFETY: reads the word and halts. An NMI between the comparison and `hlt` moves the
    // instruction pointer to the end (trap_nmi), so it cannot be lost.
    unsafe {
        asm!(
            "call {sleep}",
            sleep = sym trap_sleep,
            in("rdi") word.as_ptr(),
            in("esi") value,
        );
    }
}

unsafe extern "C" {
    fn trap_sleep();
}

extern "C" fn fault(frame: &Frame) -> ! {
    let (cr2, cr3): (u64, u64);
    // SAFETY: reading these registers has no effect.
    unsafe {
        asm!("mov {}, cr2", out(reg) cr2, options(nomem, nostack));
        asm!("mov {}, cr3", out(reg) cr3, options(nomem, nostack));
    }
    control::fail(&format!(
        "exception {} on processor {}: cr2 {cr2:#x} cr3 {cr3:#x} {frame:x?}",
        frame.vector,
        apic::id(),
    ))
}

global_asm!(
    r#"
    .text
    // One stub of 16 bytes for each of the 32 exceptions; vectors without an error code push 0.
    .balign 16
    .global trap_stubs
trap_stubs:
    .set vector, 0
    .rept 32
    .balign 16
    .if (vector == 8) || (vector >= 10 && vector <= 14) || (vector == 17) || (vector == 21) || (vector == 29) || (vector == 30)
    .else
    push 0
    .endif
    push vector
    jmp trap_common
    .set vector, vector + 1
    .endr
    .balign 16
trap_common:
    push r15
    push r14
    push r13
    push r12
    push r11
    push r10
    push r9
    push r8
    push rbp
    push rdi
    push rsi
    push rdx
    push rcx
    push rbx
    push rax
    cld
    mov rdi, rsp
    and rsp, -16
    call {fault}
    ud2

    .global trap_nmi
trap_nmi:
    push rax
    lea rax, [rip + trap_sleep]
    cmp [rsp + 8], rax
    jb 2f
    lea rax, [rip + trap_sleep_end]
    cmp [rsp + 8], rax
    jae 2f
    mov [rsp + 8], rax
2:  pop rax
    iretq

    .global trap_sleep
trap_sleep:
    cmp [rdi], esi
    jne trap_sleep_end
    hlt
trap_sleep_end:
    ret

    // Interrupts a guest left behind.
    .global trap_forget
trap_forget:
    push rax
    mov rax, {eoi}
    mov dword ptr [rax], 0
    pop rax
    iretq
"#,
    fault = sym fault,
    eoi = const apic::BASE + apic::EOI as u64,
);
