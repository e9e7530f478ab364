//! Garbage in registers: control registers, MSRs, XCR0, debug registers, segment registers.
//!
//! What must be refused follows AMD64 Architecture Programmer's Manual, volume 2, section 3.1
//! (control registers, EFER) and volume 4, section 1 (XCR0). Where implementations differ, either
//! answer is taken and only the end of the machine counts.

use super::{Rules, physical_end};
use crate::metal::Machine;
use crate::metal::console::say;
use crate::metal::cpu;
use crate::metal::trap::{Fault, attempt};
use core::arch::x86_64::{__cpuid, __cpuid_count};
use core::arch::{asm, global_asm};

/// A protection fault with error code 0.
fn refused(result: Result<(), Fault>) -> bool {
    matches!(result, Err(Fault { vector: 13, error: 0, .. }))
}

macro_rules! control_register {
    ($read:ident, $try_write:ident, $name:literal) => {
        fn $read() -> u64 {
            let value: u64;
            // SAFETY: reads a register.
            unsafe { asm!(concat!("mov {}, ", $name), out(reg) value, options(nomem, nostack)) };
            value
        }

        /// Writes, reads what it became and puts the old value back, in one piece of assembly
        /// that needs neither memory nor floating point.
        fn $try_write(value: u64) -> Result<u64, Fault> {
            let mut seen = 0u64;
            // SAFETY: callers give values that leave the code mapped where it is, if they are
            // taken at all; or they are alone on a machine that may end.
            let result: Result<(), Fault> = unsafe {
                attempt!(concat!("mov {old}, ", $name), concat!("mov ", $name, ", {new}"),
                    concat!("mov {seen}, ", $name), concat!("mov ", $name, ", {old}");
                    old = out(reg) _, new = in(reg) value, seen = inout(reg) seen)
            };
            result.map(|()| seen)
        }
    };
}

control_register!(read_cr0, try_cr0, "cr0");
control_register!(read_cr3, try_cr3, "cr3");
control_register!(read_cr4, try_cr4, "cr4");

const CR0_PE: u64 = 1;
const CR0_NW: u64 = 1 << 29;
const CR0_CD: u64 = 1 << 30;

/// CR0.
pub fn cr0() {
    let mut rules = Rules::default();
    let now = read_cr0();
    for bit in 32..64 {
        let result = try_cr0(now | 1 << bit);
        rules.rule(refused(result.map(drop)), format_args!("CR0 bit {bit}: {result:x?}"));
    }
    let result = try_cr0(now & !CR0_PE);
    rules.rule(
        refused(result.map(drop)),
        format_args!("CR0 paging without protection: {result:x?}"),
    );
    let result = try_cr0(now | CR0_NW);
    rules.rule(refused(result.map(drop)), format_args!("CR0.NW without CD: {result:x?}"));
    // MP, EM, TS, WP, AM, CD, NW with CD: legal.
    for bits in [1 << 1, 1 << 2, 1 << 3, 1 << 16, 1 << 18, CR0_CD, CR0_CD | CR0_NW] {
        let wanted = now ^ bits;
        let result = try_cr0(wanted);
        rules.rule(result == Ok(wanted), format_args!("CR0 ^ {bits:#x}: {result:x?}"));
    }
    // Reserved below bit 32: ignored by some, refused by others.
    for bit in (6..16).chain([17]).chain(19..29) {
        let _either = try_cr0(now | 1 << bit);
    }
    rules.rule(read_cr0() == now, format_args!("CR0 is {:#x}, was {now:#x}", read_cr0()));
    rules.verdict();
}

/// Paging off without leaving 64-bit mode first.
pub fn paging_off() {
    let result = try_cr0(read_cr0() & !(1 << 31));
    say!("CR0.PG off: {result:x?}");
}

global_asm!(
    r#"
    .section .text.long_mode, "ax"
    .balign 16
    .globl leave_long_mode
leave_long_mode:
    pushq %rbx
    pushq %rbp
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, leave_stack(%rip)
    pushq $0x18
    leaq 2f(%rip), %rax
    pushq %rax
    lretq
    .code32
2:  movl %cr0, %eax
    andl $0x7fffffff, %eax
    movl %eax, %cr0
    movl %cr4, %esi
    movl %esi, %eax
    andl $~0x20, %eax
    movl %eax, %cr4
    xorl %eax, %eax
    cpuid
    movl $0xc0000080, %ecx
    rdmsr
    movl %eax, %edi
    movl %esi, %cr4
    movl %cr0, %eax
    orl $0x80000000, %eax
    movl %eax, %cr0
    pushl $0x08
    pushl $3f
    lret
    .code64
3:  movq leave_stack(%rip), %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbp
    popq %rbx
    movl %edi, %eax
    ret
    .section .bss.long_mode, "aw", @nobits
    .balign 8
leave_stack: .skip 8
    .text
    "#,
    options(att_syntax)
);

unsafe extern "C" {
    /// Leaves long mode, clears PAE, makes the hypervisor act, and comes back. Gives EFER as it was
    /// read outside.
    fn leave_long_mode() -> u32;
}

/// Out of long mode and back.
pub fn long_mode() {
    let before = read_cr4();
    // SAFETY: code and stack lie in the image, below 4 GiB and mapped where they are; interrupts are
    // off; everything the ABI wants kept is.
    let efer = unsafe { leave_long_mode() };
    let mut rules = Rules::default();
    rules.rule(efer >> 8 & 1 == 1, format_args!("LME outside of long mode: {efer:#x}"));
    rules.rule(efer >> 10 & 1 == 0, format_args!("LMA outside of long mode: {efer:#x}"));
    rules.rule(read_cr4() == before, format_args!("CR4 {:#x} is {:#x} now", before, read_cr4()));
    rules.verdict();
}

/// CR3 with reserved bits.
pub fn cr3() {
    let mut rules = Rules::default();
    let now = read_cr3();
    for bit in physical_end().trailing_zeros()..64 {
        let result = try_cr3(now | 1 << bit);
        rules.rule(refused(result.map(drop)), format_args!("CR3 bit {bit}: {result:x?}"));
    }
    for bits in [1 << 3, 1 << 4, 3 << 3] {
        let result = try_cr3(now | bits);
        rules.rule(result == Ok(now | bits), format_args!("CR3 | {bits:#x}: {result:x?}"));
    }
    rules.verdict();
}

/// Another top table; the next instruction has no mapping.
pub fn load_cr3(table: u64) {
    say!("top table at {table:#x}");
    // SAFETY: the machine ends.
    unsafe { asm!("mov cr3, {}", in(reg) table) };
}

/// CR4: supported bits must be taken; all others refused, and in long mode changes of LA57 (12)
/// and PAE (5) as well.
pub fn cr4() {
    let mut rules = Rules::default();
    let now = read_cr4();
    let basic = __cpuid(1);
    let extended = __cpuid_count(7, 0);
    let supported = |bit: u32| match bit {
        // TSD, DE, PSE, MCE, PGE, PCE, OSFXSR, OSXMMEXCPT: on every AMD64.
        2..=4 | 6..=10 => true,
        11 => extended.ecx >> 2 & 1 != 0,
        16 => extended.ebx & 1 != 0,
        17 => basic.ecx >> 17 & 1 != 0,
        18 => basic.ecx >> 26 & 1 != 0,
        20 => extended.ebx >> 7 & 1 != 0,
        21 => extended.ebx >> 20 & 1 != 0,
        22 => extended.ecx >> 3 & 1 != 0,
        23 => extended.ecx >> 7 & 1 != 0 || extended.edx >> 20 & 1 != 0,
        _ => false,
    };
    // CET (23) also wants CR0.WP; whether it is taken is its own matter.
    for bit in (0..64).filter(|&bit| supported(bit) && bit != 23) {
        let result = try_cr4(now ^ 1 << bit);
        rules.rule(result == Ok(now ^ 1 << bit), format_args!("CR4 bit {bit}: {result:x?}"));
    }
    say!("the supported bits are taken");
    // VME and PVI have no use in long mode, and some machines take them unsupported.
    let unsupported = |&bit: &u32| !supported(bit) && bit != 5 && bit != 12;
    for bit in (2..64).filter(unsupported).chain([12, 5]) {
        let result = try_cr4(now ^ 1 << bit);
        rules.rule(refused(result.map(drop)), format_args!("CR4 bit {bit}: {result:x?}"));
    }
    rules.verdict();
}

fn try_rdmsr(msr: u32) -> Result<u64, Fault> {
    let (mut low, mut high) = (0u32, 0u32);
    // SAFETY: reads; a fault is an answer.
    let result: Result<(), Fault> =
        unsafe { attempt!("rdmsr"; in("ecx") msr, inout("eax") low, inout("edx") high) };
    result.map(|()| u64::from(high) << 32 | u64::from(low))
}

fn try_wrmsr(msr: u32, value: u64) -> Result<(), Fault> {
    // SAFETY: callers leave out what would end the guest by right; everything else must not
    // touch its memory.
    unsafe {
        attempt!("wrmsr"; in("ecx") msr, in("eax") value as u32, in("edx") (value >> 32) as u32)
    }
}

const EFER: u32 = 0xc000_0080;
const APIC_BASE: u32 = 0x1b;

/// EFER.
pub fn efer() {
    let mut rules = Rules::default();
    let Ok(now) = try_rdmsr(EFER) else {
        rules.rule(false, format_args!("EFER cannot be read"));
        return rules.verdict();
    };
    let extended = __cpuid(0x8000_0001);
    let mut refuse = |bits: u64, what: &str| {
        let result = try_wrmsr(EFER, now ^ bits);
        let seen = try_rdmsr(EFER);
        rules.rule(refused(result), format_args!("EFER {what}: {result:x?}, then {seen:x?}"));
        let _put_back = try_wrmsr(EFER, now);
    };
    refuse(1 << 9, "bit 9");
    refuse(1 << 12, "SVME, which CPUID does not show");
    for bit in 22..64 {
        refuse(1 << bit, "reserved bit");
    }
    // Last, because a processor that takes it is not in long mode any more.
    refuse(1 << 8, "LME off with paging on");
    for bit in [0, 11] {
        let result = try_wrmsr(EFER, now ^ 1 << bit);
        let seen = try_rdmsr(EFER);
        rules.rule(
            seen == Ok(now ^ 1 << bit),
            format_args!("EFER bit {bit}: {result:x?} {seen:x?}"),
        );
        let _put_back = try_wrmsr(EFER, now);
    }
    // LMA and those that depend on the processor: either answer.
    for bit in (1..8).chain([10]).chain(13..22) {
        let _either = try_wrmsr(EFER, now ^ 1 << bit);
        let _put_back = try_wrmsr(EFER, now);
    }
    rules.rule(try_rdmsr(EFER) == Ok(now), format_args!("EFER is {:x?}", try_rdmsr(EFER)));
    say!("SVM in CPUID: {}", extended.ecx >> 2 & 1);
    rules.verdict();
}

/// XCR0.
pub fn xcr0() {
    let mut rules = Rules::default();
    let set = |register: u32, value: u64| -> Result<(), Fault> {
        // SAFETY: the guest keeps no state that XCR0 governs beyond x87 and SSE.
        unsafe {
            attempt!("xsetbv"; in("ecx") register, in("eax") value as u32,
                in("edx") (value >> 32) as u32)
        }
    };
    let undefined = |result| matches!(result, Err(Fault { vector: 6, .. }));
    let result = set(0, 3);
    rules.rule(undefined(result), format_args!("xsetbv without OSXSAVE: {result:x?}"));
    if __cpuid(1).ecx >> 26 & 1 == 0 {
        return rules.verdict();
    }
    // SAFETY: the processor has XSAVE.
    unsafe { asm!("mov cr4, {}", in(reg) read_cr4() | 1 << 18) };
    let state = __cpuid_count(0xd, 0);
    let supported = u64::from(state.edx) << 32 | u64::from(state.eax);
    for bit in (0..64).filter(|bit| supported >> bit & 1 == 0) {
        let result = set(0, 3 | 1 << bit);
        rules.rule(refused(result), format_args!("XCR0 bit {bit}: {result:x?}"));
    }
    for value in [0, 2, 4, 5, 6] {
        let result = set(0, value);
        rules.rule(refused(result), format_args!("XCR0 = {value}: {result:x?}"));
    }
    for register in [1, 2, 0xffff_ffff] {
        let result = set(register, 3);
        // XCR1 exists on some processors, read-only.
        rules.rule(refused(result), format_args!("XCR {register:#x}: {result:x?}"));
    }
    for value in [1, 3, 7] {
        let result = set(0, value);
        let right = if value & !supported == 0 { result.is_ok() } else { refused(result) };
        rules.rule(right, format_args!("XCR0 = {value}: {result:x?}"));
    }
    let _small = set(0, 3);
    // SAFETY: as it was.
    unsafe { asm!("mov cr4, {}", in(reg) read_cr4() & !(1 << 18)) };
    rules.verdict();
}

/// Ranges of MSR numbers that processors use, first and number.
const RANGES: [(u32, u32); 5] = [
    (0, 0x2000),
    (0x4000_0000, 0x200),
    (0x4b56_4d00, 0x40),
    (0xc000_0000, 0x2000),
    (0xc001_0000, 0x2000),
];

/// All of the ranges and random ones.
fn msrs(seed: u64) -> impl Iterator<Item = u32> {
    let mut random = fastrand::Rng::with_seed(seed);
    RANGES
        .into_iter()
        .flat_map(|(first, count)| first..first + count)
        .chain((0..2048).map(move |_| random.u32(..)))
}

/// Reads them.
pub fn msr_read(machine: &Machine) {
    let (mut read, mut faults) = (0u32, 0u32);
    let mut rules = Rules::default();
    for msr in msrs(machine.seed) {
        let result = try_rdmsr(msr);
        match result {
            Ok(_) => read += 1,
            Err(_) => faults += 1,
        }
        let right = result.is_ok() || refused(result.map(drop));
        rules.rule(right, format_args!("MSR {msr:#x}: {result:x?}"));
    }
    say!("{read} can be read, {faults} cannot");
    rules.verdict();
}

/// Writes back what was read, and then random values.
pub fn msr_write(machine: &Machine) {
    let mut random = fastrand::Rng::with_seed(machine.seed);
    let (mut written, mut faults) = (0u32, 0u32);
    let mut rules = Rules::default();
    for msr in msrs(machine.seed).filter(|&msr| msr != EFER && msr != APIC_BASE) {
        let old = try_rdmsr(msr);
        if let Ok(value) = old {
            let _either = try_wrmsr(msr, value);
        }
        for value in [random.u64(..), random.u64(..) & 0xffff] {
            let result = try_wrmsr(msr, value);
            match result {
                Ok(()) => written += 1,
                Err(_) => faults += 1,
            }
            let right = result.is_ok() || refused(result);
            rules.rule(right, format_args!("MSR {msr:#x} = {value:#x}: {result:x?}"));
        }
        if let Ok(value) = old {
            let _put_back = try_wrmsr(msr, value);
        }
    }
    say!("{written} writes were taken, {faults} were not");
    rules.verdict();
}

/// Debug registers. DR7 arms nothing: its enable bits stay clear.
pub fn debug(machine: &Machine) {
    let mut random = fastrand::Rng::with_seed(machine.seed);
    macro_rules! write {
        ($name:literal, $value:expr) => {{
            let value: u64 = $value;
            // SAFETY: nothing is armed.
            unsafe {
                let result: Result<(), Fault> =
                    attempt!(concat!("mov ", $name, ", {value}"); value = in(reg) value);
                result
            }
        }};
    }
    let (mut taken, mut faults) = (0u32, 0u32);
    for _ in 0..200 {
        let bits = random.u64(..);
        for result in [
            write!("dr0", bits),
            write!("dr1", !bits),
            write!("dr2", bits),
            write!("dr3", bits),
            write!("dr6", bits),
            write!("dr6", bits & 0xffff_ffff),
            // Without the enable bits and without general detect.
            write!("dr7", bits & !0x20ff),
            write!("dr7", bits & 0xffff_df00),
        ] {
            match result {
                Ok(()) => taken += 1,
                Err(_) => faults += 1,
            }
        }
    }
    let _off = (write!("dr7", 0x400u64), write!("dr6", 0xffff_0ff0u64));
    say!("{taken} writes were taken, {faults} were not");
}

/// Segment registers, LDTR and TR.
pub fn selectors(machine: &Machine) {
    let mut random = fastrand::Rng::with_seed(machine.seed);
    let (mut taken, mut faults) = (0u32, 0u32);
    macro_rules! load {
        ($code:literal, $selector:expr) => {{
            // SAFETY: 64-bit code does not use what these registers select; the stack segment
            // is not among them.
            let result: Result<(), Fault> = unsafe { attempt!($code; in("eax") $selector) };
            match result {
                Ok(()) => taken += 1,
                Err(_) => faults += 1,
            }
        }};
    }
    for _ in 0..200 {
        let selector = random.u32(..0x1_0000);
        load!("mov ds, eax", selector);
        load!("mov es, eax", selector);
        load!("mov fs, eax", selector);
        load!("mov gs, eax", selector);
        load!("lldt ax", selector & !4);
        load!("lar eax, eax", selector);
        load!("verr ax", selector);
    }
    // A task-state segment that is in use already.
    let mut rules = Rules::default();
    // SAFETY: the fault is the answer.
    let result: Result<(), Fault> =
        unsafe { attempt!("ltr ax"; in("eax") u32::from(cpu::FIRST_TASK)) };
    let right = matches!(result, Err(fault)
        if fault.vector == 13 && fault.error == u64::from(cpu::FIRST_TASK));
    rules.rule(right, format_args!("ltr of a busy segment: {result:x?}"));
    // SAFETY: the usual segments again; no local descriptor table.
    unsafe {
        asm!("mov ds, {0:e}", "mov es, {0:e}", "mov fs, {1:e}", "mov gs, {1:e}", "lldt {1:x}",
            in(reg) 0x10, in(reg) 0);
    }
    say!("{taken} loads were taken, {faults} were not");
    rules.verdict();
}
