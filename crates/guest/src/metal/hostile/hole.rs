//! Memory where nothing is.

use super::{holes, unknown};
use crate::metal::console::say;
use crate::metal::paging::{PRESENT, WRITABLE, Window};
use crate::metal::trap::{Fault, attempt};
use crate::metal::{Machine, apic};
use core::arch::asm;

/// Page of the window that is moved over the holes, and the one that stays unmapped behind it.
const MOVING: usize = 16;

/// Pages looked at in each hole, beside the first and the last.
const SAMPLES: u64 = 24;

/// Guest-physical pages of all holes: first, last, and random ones between.
fn pages(machine: &Machine) -> impl Iterator<Item = u64> + '_ {
    let mut random = fastrand::Rng::with_seed(machine.seed);
    holes(machine).flat_map(move |hole| {
        let count = hole.bytes() / 4096;
        let mut picks = [0; SAMPLES as usize];
        for pick in &mut picks {
            *pick = hole.start + random.u64(..count) * 4096;
        }
        [hole.start, hole.end - 4096].into_iter().chain(picks)
    })
}

/// Reads 1, 2, 4 and 8 bytes at the first, the last and a middle place of pages of all holes.
pub fn read(machine: &Machine) {
    let window = Window::of(0);
    let (mut count, mut ones) = (0u64, 0u64);
    for page in pages(machine) {
        window.set(MOVING, page | PRESENT | WRITABLE);
        for offset in [0, 0x7f8, 0xff8] {
            let address = window.address(MOVING) + offset;
            let (byte, word, long, quad): (u8, u16, u32, u64);
            // SAFETY: reads; what answers there does not touch the guest's memory.
            unsafe {
                asm!("mov {}, [{}]", out(reg_byte) byte, in(reg) address);
                asm!("mov {:x}, [{}]", out(reg) word, in(reg) address + 2);
                asm!("mov {:e}, [{}]", out(reg) long, in(reg) address + 4);
                asm!("mov {}, [{}]", out(reg) quad, in(reg) address);
            }
            count += 4;
            ones += u64::from(byte == !0)
                + u64::from(word == !0)
                + u64::from(long == !0)
                + u64::from(quad == !0);
        }
    }
    window.set(MOVING, 0);
    say!("{count} reads, {ones} of them all ones");
}

/// Writes 1, 2, 4 and 8 bytes into pages of all holes. The local APIC has tests of its own.
pub fn write(machine: &Machine) {
    let window = Window::of(0);
    let mut random = fastrand::Rng::with_seed(machine.seed);
    let mut count = 0u64;
    for page in pages(machine).filter(|&page| page != apic::BASE) {
        window.set(MOVING, page | PRESENT | WRITABLE);
        for offset in [0, 0x7f8, 0xff8] {
            let address = window.address(MOVING) + offset;
            let value = random.u64(..);
            // SAFETY: no RAM is there by the memory map.
            unsafe {
                asm!("mov [{}], {}", in(reg) address, in(reg_byte) value as u8);
                asm!("mov [{}], {:x}", in(reg) address + 2, in(reg) value as u16);
                asm!("mov [{}], {:e}", in(reg) address + 4, in(reg) value as u32);
                asm!("mov [{}], {}", in(reg) address, in(reg) value);
            }
            count += 4;
        }
    }
    window.set(MOVING, 0);
    say!("{count} writes");
}

/// Jumps into a few holes. If zeros are read there they are executed as additions to a byte
/// that is free for it, up to the unmapped page behind.
pub fn execute(machine: &Machine) {
    let window = Window::of(0);
    let scratch = 0u64;
    window.set(MOVING + 1, 0);
    let far = holes(machine).last().map(|hole| hole.end - 4096);
    for page in [machine.hole(), machine.hole() + 0x10_3000].into_iter().chain(far) {
        window.set(MOVING, page | PRESENT);
        for offset in [0, 0xff0, 0xfff] {
            let address = window.address(MOVING) + offset;
            // SAFETY: whatever is fetched there, `rax` is the only register it knows a place
            // to write at, and the page behind is not mapped.
            let result: Result<(), Fault> = unsafe {
                attempt!("call {address}"; address = in(reg) address,
                    in("rax") &raw const scratch,
                    out("rcx") _, out("rdx") _, out("rsi") _, out("rdi") _)
            };
            say!("at {:#x}: {result:x?}", page + offset);
        }
    }
    window.set(MOVING, 0);
}

/// Accesses at and across the borders of all RAM below 4 GiB, at their own addresses.
pub fn edges(machine: &Machine) {
    let spans = machine.ram.spans().iter().filter(|span| span.end < 4 << 30);
    for border in spans.flat_map(|span| [span.start, span.end]) {
        for before in [16u64, 8, 7, 4, 2, 1] {
            let Some(address) = border.checked_sub(before) else { continue };
            let mut value = 0u64;
            // SAFETY: reads.
            let read: Result<(), Fault> = unsafe {
                attempt!("mov {value}, [{address}]", "movzx {scratch:e}, word ptr [{address}]";
                    value = inout(reg) value, scratch = out(reg) _, address = in(reg) address)
            };
            // Writing back what was read changes nothing, except across into a hole, where it
            // goes nowhere.
            // SAFETY: the same bytes; what is a border of RAM is not in use as anything else.
            let write: Result<(), Fault> = unsafe {
                attempt!("mov [{address}], {value}"; value = in(reg) value,
                    address = in(reg) address)
            };
            say!("{address:#x}: {value:#018x} {read:x?} {write:x?}");
        }
    }
}

/// Instructions with an operand in a hole that are more than a move.
pub fn instruction(machine: &Machine, form: &str) {
    let window = Window::of(0);
    let hole = machine.hole();
    window.set(MOVING - 1, super::cold::page() | PRESENT | WRITABLE);
    window.set(MOVING, hole | PRESENT | WRITABLE);
    window.set(MOVING + 1, super::cold::page() | PRESENT | WRITABLE);
    let at = window.address(MOVING) + 0x200;
    let edge = window.address(MOVING);

    /// One instruction with `rsi` at the hole; the registers in the list are free.
    macro_rules! one {
        ($address:expr, $($code:literal),+) => {{
            let address: u64 = $address;
            // SAFETY: memory is touched in the window only: a hole and two pages nobody uses.
            let result: Result<(), Fault> = unsafe {
                attempt!($($code),+; in("rsi") address,
                    inout("rax") 0x1234u64 => _, inout("rcx") 3u64 => _,
                    inout("rdx") 0u64 => _, out("r8") _, out("xmm0") _)
            };
            say!("{}: {result:x?}", concat!($($code, "; "),+));
        }};
    }
    match form {
        "xchg" => {
            one!(at, "xchg [rsi], eax");
            one!(at, "xchg [rsi], al");
            one!(at, "xchg [rsi], rax");
        }
        "lock" => {
            one!(at, "lock add dword ptr [rsi], 1");
            one!(at, "lock inc byte ptr [rsi]");
            one!(at, "lock xadd [rsi], rax");
            one!(at, "lock cmpxchg [rsi], ecx");
            one!(at, "add [rsi], eax");
            one!(at, "not word ptr [rsi]");
        }
        "cmpxchg16b" => {
            // `rbx` cannot be named as an operand, so it is put away.
            one!(at, "mov r8, rbx", "lock cmpxchg16b [rsi]", "mov rbx, r8");
            one!(at, "mov r8, rbx", "lock cmpxchg8b [rsi]", "mov rbx, r8");
        }
        "push" => {
            one!(at, "push qword ptr [rsi]", "pop rax");
            one!(at, "push rax", "pop qword ptr [rsi]");
        }
        "call" => {
            one!(at, "call qword ptr [rsi]");
            one!(at, "jmp qword ptr [rsi]");
        }
        "vector" => {
            one!(at, "movups xmm0, [rsi]");
            one!(at, "movaps [rsi], xmm0");
            one!(at, "movdqu [rsi + 1], xmm0");
            one!(at, "movnti [rsi], eax");
            one!(at, "movq xmm0, [rsi]");
            one!(at, "paddb xmm0, [rsi]");
        }
        "store" => {
            one!(at, "smsw word ptr [rsi]");
            one!(at, "str word ptr [rsi]");
            one!(at, "sldt word ptr [rsi]");
            one!(at, "stmxcsr dword ptr [rsi]");
            one!(at, "fnstcw word ptr [rsi]");
            one!(at, "fnstsw word ptr [rsi]");
            // All ones set TS and EM, which floating point does not survive.
            one!(at, "mov r8, cr0", "lmsw word ptr [rsi]", "mov cr0, r8");
            one!(edge - 16, "smsw word ptr [rsi]", "lmsw word ptr [rsi]");
        }
        "fxsave" => {
            one!(at, "fxsave64 [rsi]");
            one!(at, "fnstcw [rsi]");
        }
        "bits" => {
            one!(at, "bt dword ptr [rsi], 5");
            one!(at, "lock bts qword ptr [rsi], rcx");
            one!(at, "bsf rax, [rsi]");
            one!(at, "shl dword ptr [rsi], 3");
            one!(at, "rol byte ptr [rsi], cl");
        }
        "divide" => {
            one!(at, "mul dword ptr [rsi]");
            one!(at, "imul rax, [rsi], 7");
            one!(at, "xor edx, edx", "div qword ptr [rsi]");
            one!(at, "setz [rsi]");
            one!(at, "cmovz rax, [rsi]");
        }
        "descriptor" => {
            one!(at, "sgdt [rsi]");
            one!(at, "sidt [rsi]");
            one!(at, "str [rsi]");
            one!(at, "smsw [rsi]");
        }
        "cross" => {
            for offset in [1u64, 2, 3, 7] {
                one!(edge - offset, "mov rax, [rsi]");
                one!(edge - offset, "mov [rsi], rax");
                one!(edge + 4096 - offset, "mov rax, [rsi]");
                one!(edge + 4096 - offset, "mov [rsi], rax");
            }
            one!(edge - 3, "mov eax, [rsi]");
            one!(edge - 1, "movzx eax, word ptr [rsi]");
            one!(edge - 8, "movups xmm0, [rsi]");
        }
        "unaligned" => {
            for offset in [1u64, 3, 7] {
                one!(at + offset, "mov eax, [rsi]");
                one!(at + offset, "mov [rsi], rax");
                one!(at + offset, "add ax, [rsi]");
            }
        }
        _ => unknown(form),
    }
    window.set(MOVING - 1, 0);
    window.set(MOVING, 0);
    window.set(MOVING + 1, 0);
}
