//! Instructions: where they may not go, which there must not be, and such as change.

use super::Rules;
use crate::metal::Machine;
use crate::metal::console::say;
use crate::metal::cpu;
use crate::metal::paging::{PRESENT, WRITABLE, Window};
use crate::metal::trap::{self, Fault, attempt};
use core::arch::asm;
use core::arch::x86_64::__cpuid_count;
use guest::memory_map::Span;

/// Addresses that are not canonical with 48 bits.
const ADDRESSES: [u64; 4] =
    [0x8000_0000_1000, 0x8000_0000_0000_0000, 0xffff_7fff_ffff_fff0, 0x0001_0000_0000_0000];

/// Jumps, calls, returns, accesses and stacks at non-canonical addresses.
pub fn noncanonical() {
    let mut rules = Rules::default();
    for address in ADDRESSES {
        macro_rules! faults {
            ($vectors:pat, $($code:literal),+) => {{
                // SAFETY: the fault is the answer; the stack pointer comes back with it.
                let result: Result<(), Fault> = unsafe {
                    attempt!($($code),+; inout("rax") address => _, out("rcx") _)
                };
                rules.rule(
                    matches!(result, Err(Fault { vector: $vectors, error: 0, .. })),
                    format_args!("{} at {address:#x}: {result:x?}", concat!($($code, "; "),+)),
                );
            }};
        }
        faults!(13, "jmp rax");
        faults!(13, "call rax");
        faults!(13, "push rax", "ret");
        faults!(13, "push rax", "ret 8");
        faults!(
            13,
            "mov rcx, rsp",
            "push 0x10",
            "push rcx",
            "push 2",
            "push 8",
            "push rax",
            "iretq"
        );
        faults!(13, "push 8", "push rax", "retfq");
        faults!(13, "mov rcx, [rax]");
        faults!(13, "mov [rax], rcx");
        faults!(13, "mov cl, [rax + 3]");
        faults!(13, "lock inc qword ptr [rax]");
        // A stack fault; QEMU makes it a protection fault.
        faults!(12 | 13, "mov rsp, rax", "push rcx");
        faults!(12 | 13, "mov rsp, rax", "pop rcx");
        faults!(12 | 13, "mov rsp, rax", "mov rcx, [rsp + 8]");

        // Harmless by the manual.
        // SAFETY: drops a translation that cannot be.
        let result: Result<(), Fault> = unsafe { attempt!("invlpg [rax]"; in("rax") address) };
        rules.rule(result.is_ok(), format_args!("invlpg at {address:#x}: {result:x?}"));

        // Bases that must be canonical; some machines take them. The usual tables come back.
        for msr in [0xc000_0100u32, 0xc000_0101, 0xc000_0102, 0xc000_0082, 0xc000_0083] {
            // SAFETY: the guest uses none of these bases.
            let result: Result<(), Fault> = unsafe {
                attempt!("wrmsr", "xor eax, eax", "xor edx, edx", "wrmsr"; in("ecx") msr,
                    inout("eax") address as u32 => _, inout("edx") (address >> 32) as u32 => _)
            };
            let _either = result;
        }
        let pointer = cpu::Pointer { limit: 4095, base: address };
        for table in 0..2 {
            // SAFETY: no fault or interrupt comes before the usual tables are back, except the
            // one that refuses the address.
            let _either: Result<(), Fault> = unsafe {
                if table == 0 {
                    attempt!("lgdt [{pointer}]"; pointer = in(reg) &raw const pointer)
                } else {
                    attempt!("lidt [{pointer}]"; pointer = in(reg) &raw const pointer)
                }
            };
            cpu::start(0);
        }
    }
    rules.verdict();
}

/// Instructions of virtualisation and system management: undefined, or forbidden.
pub fn forbidden() {
    let mut rules = Rules::default();
    macro_rules! refused {
        ($name:literal, $($bytes:literal),+) => {{
            // SAFETY: the fault is the answer.
            let result: Result<(), Fault> = unsafe {
                attempt!(concat!(".byte ", $($bytes),+); inout("rax") 0x9000u64 => _,
                    inout("rcx") 0u64 => _, inout("rdx") 0u64 => _, inout("rsi") 0x9000u64 => _,
                    inout("rdi") 0x9000u64 => _)
            };
            let right = matches!(result, Err(fault)
                if fault.vector == 6 || fault.vector == 13 && fault.error == 0);
            rules.rule(right, format_args!("{}: {result:x?}", $name));
        }};
    }
    refused!("vmrun", "0x0f, 0x01, 0xd8");
    refused!("vmmcall", "0x0f, 0x01, 0xd9");
    refused!("vmload", "0x0f, 0x01, 0xda");
    refused!("vmsave", "0x0f, 0x01, 0xdb");
    refused!("stgi", "0x0f, 0x01, 0xdc");
    refused!("clgi", "0x0f, 0x01, 0xdd");
    refused!("skinit", "0x0f, 0x01, 0xde");
    refused!("invlpga", "0x0f, 0x01, 0xdf");
    refused!("vmcall", "0x0f, 0x01, 0xc1");
    refused!("vmlaunch", "0x0f, 0x01, 0xc2");
    refused!("vmresume", "0x0f, 0x01, 0xc3");
    refused!("vmxoff", "0x0f, 0x01, 0xc4");
    refused!("vmptrld", "0x0f, 0xc7, 0x36");
    refused!("vmxon", "0xf3, 0x0f, 0xc7, 0x36");
    refused!("vmread", "0x0f, 0x78, 0xc1");
    refused!("invept", "0x66, 0x0f, 0x38, 0x80, 0x0e");
    refused!("rsm", "0x0f, 0xaa");
    refused!("getsec", "0x0f, 0x37");
    refused!("xsetbv without OSXSAVE", "0x0f, 0x01, 0xd1");
    refused!("encls", "0x0f, 0x01, 0xcf");
    refused!("ud0", "0x0f, 0xff, 0xc0");
    refused!("ud1", "0x0f, 0xb9, 0xc0");
    refused!("mov to cr1", "0x0f, 0x22, 0xc8");
    refused!("mov to cr7", "0x0f, 0x22, 0xf8");
    refused!("mov to cr15", "0x44, 0x0f, 0x22, 0xf8");
    refused!("lock nop", "0xf0, 0x90");
    refused!("push cs", "0x0e");
    macro_rules! either {
        ($name:literal, $code:literal) => {{
            // SAFETY: allowed or not, these do not touch memory.
            let result: Result<(), Fault> = unsafe {
                attempt!($code; inout("rax") 0x9000u64 => _, inout("rcx") 0u64 => _,
                    inout("rdx") 0u64 => _)
            };
            say!("{}: {result:x?}", $name);
        }};
    }
    either!("monitor", "monitor");
    either!("rdpmc", "rdpmc");
    either!("rdtscp", "rdtscp");
    either!("invd", "invd");
    either!("wbinvd", "wbinvd");
    either!("clts", "clts");
    either!("pause", "pause");
    either!("swapgs", "swapgs\n swapgs");
    either!("mov from cr8", "mov rax, cr8\n mov cr8, rax");
    rules.verdict();
}

/// All leaves near the known ranges and random ones; virtualisation must not show.
pub fn cpuid(machine: &Machine) {
    let mut rules = Rules::default();
    let mut random = fastrand::Rng::with_seed(machine.seed);
    let mut answers = 0u64;
    let known = [0u32, 0x4000_0000, 0x8000_0000, 0x8fff_ffc0, 0xc000_0000];
    for leaf in known.into_iter().flat_map(|first| first..first + 0x40) {
        for subleaf in [0, 1, 2, 3, 0x40, !0] {
            let answer = __cpuid_count(leaf, subleaf);
            answers += u64::from(answer.eax | answer.ebx | answer.ecx | answer.edx != 0);
        }
    }
    for _ in 0..2000 {
        let _answer = __cpuid_count(random.u32(..), random.u32(..));
    }
    let extended = __cpuid_count(0x8000_0001, 0);
    rules.rule(extended.ecx >> 2 & 1 == 0, format_args!("SVM shows in leaf 8000_0001h"));
    let basic = __cpuid_count(1, 0);
    rules.rule(basic.ecx >> 5 & 1 == 0, format_args!("VMX shows in leaf 1"));
    say!("{answers} leaves answer");
    rules.verdict();
}

/// Single steps over instructions that a hypervisor carries out: none may be left out.
pub fn single_step(machine: &Machine) {
    let mut rules = Rules::default();
    macro_rules! steps {
        ($count:literal, $($code:literal),+) => {{
            let before = trap::count(1);
            // SAFETY: the handler of the debug exception counts; rbx is put back.
            unsafe {
                asm!(
                    "mov r8, rbx", "pushfq", "pushfq", "or qword ptr [rsp], 0x100", "popfq",
                    $($code,)+
                    "popfq", "mov rbx, r8",
                    inout("rax") 0u64 => _, inout("rcx") 0u64 => _,
                    inout("rdx") 0x5a5cu64 => _, in("rsi") machine.hole() + 0x100, out("r8") _
                );
            }
            let came = trap::count(1) - before;
            // One for each instruction, and one for the end of stepping itself.
            rules.rule(
                came == $count + 1,
                format_args!("{}: {came} steps", concat!($($code, "; "),+)),
            );
        }};
    }
    steps!(3, "nop", "nop", "nop");
    steps!(1, "cpuid");
    steps!(2, "in al, dx", "nop");
    steps!(2, "out dx, al", "nop");
    steps!(2, "mov eax, [rsi]", "nop");
    steps!(2, "mov [rsi], eax", "nop");
    steps!(3, "mov ecx, 0x10", "rdmsr", "nop");
    steps!(3, "mov rax, cr0", "mov cr0, rax", "nop");
    rules.verdict();
}

/// Code that is changed and run at once, under its own address and under a second one.
pub fn self_modifying() {
    let mut rules = Rules::default();
    let window = Window::of(0);
    let page = super::cold::page();
    window.set(0, page | PRESENT | WRITABLE);
    window.set(1, (page + 4096) | PRESENT | WRITABLE);
    let run = |address: u64| -> u32 {
        let value: u32;
        // SAFETY: a `mov eax` and a `ret` stand there.
        unsafe { asm!("call {}", in(reg) address, out("eax") value) };
        value
    };
    // Inside a page, and across the border of two.
    for offset in [0x100, 0xffb, 0xffd, 0xfff] {
        for round in 0..300u32 {
            // mov eax, imm32; ret
            let code = 0xb8 | u64::from(round) << 8 | 0xc3 << 40;
            let (writer, runner) = match round % 3 {
                0 => (page + offset, window.address(0) + offset),
                1 => (window.address(0) + offset, page + offset),
                _ => (page + offset, page + offset),
            };
            // SAFETY: the pages are free, under both addresses.
            unsafe { (writer as *mut u64).write_unaligned(code) };
            // A serialising instruction, as other addresses require one.
            let _serial = __cpuid_count(0, 0);
            let value = run(runner);
            rules.rule(value == round, format_args!("{value} instead of {round} at {offset:#x}"));
        }
    }
    // Code that changes the instruction it jumps to. Without the jump QEMU 7.2 runs the old one
    // under nested paging, if the store misses the TLB.
    let changed: u32;
    // SAFETY: the image can be written; the byte changed is the operand of the second move.
    unsafe {
        asm!(
            "lea {place}, [rip + 66f + 1]",
            "mov byte ptr [{place}], 77",
            "jmp 66f",
            "66: mov eax, 1",
            place = out(reg) _,
            out("eax") changed,
        );
    }
    rules.rule(changed == 77, format_args!("{changed} instead of 77 behind the store"));
    let image = Span { start: page, end: page + 8192 };
    say!("changed code in {image:x?}");
    rules.verdict();
}

/// Faults that come from the processor or from a hypervisor: the resume flag tells a debugger's
/// breakpoint on the instruction that it has been met already (AMD64 Architecture Programmer's Manual,
/// volume 2, section 3.1.6).
pub fn resume_flag() {
    let mut rules = Rules::default();
    let mut rule = |name: &str, vector: u8, result: Result<(), Fault>| {
        let kept =
            matches!(result, Err(fault) if fault.vector == vector && fault.flags >> 16 & 1 == 1);
        rules.rule(kept, format_args!("{name}: {result:x?}"));
    };
    macro_rules! one {
        ($vector:literal, $code:literal) => {{
            // SAFETY: each instruction faults; the registers are free.
            let result: Result<(), Fault> = unsafe {
                attempt!($code; inout("rax") 0u64 => _, inout("rcx") 0x1234_5678u64 => _,
                    inout("rdx") 0u64 => _)
            };
            rule($code, $vector, result);
        }};
    }
    one!(13, "rdmsr");
    one!(13, "wrmsr");
    one!(13, "rdpmc");
    // VMRUN, VMLOAD, RSM.
    one!(6, ".byte 0x0f, 0x01, 0xd8");
    one!(6, ".byte 0x0f, 0x01, 0xda");
    one!(6, ".byte 0x0f, 0xaa");
    // A trap has its instruction behind it.
    // SAFETY: the handler counts and returns.
    unsafe { asm!("int3") };
    rules.rule(trap::last_flags() >> 16 & 1 == 0, format_args!("INT3: {:#x}", trap::last_flags()));
    rules.verdict();
}
