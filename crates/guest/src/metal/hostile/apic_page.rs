//! Garbage for the local APIC.

use super::Rules;
use crate::metal::console::say;
use crate::metal::paging::{PRESENT, Window};
use crate::metal::trap::{self, Fault, attempt};
use crate::metal::{Machine, apic, check, cpu, interrupt};
use guest::exit;
use x86_64::registers::model_specific::Msr;

/// Random values in all registers but the interrupt command, which could start or stop
/// processors. Interrupts are off meanwhile.
pub fn garbage(machine: &Machine) {
    interrupt::mask(0xff);
    // Identity, task priority, logical destination: what other processors' interrupts rely on.
    let keep = [0x20, 0x80, 0xd0, 0xe0].map(|register| (register, apic::read(register)));
    let mut random = fastrand::Rng::with_seed(machine.seed);
    for _ in 0..4 {
        for register in (0..0x1000).step_by(16) {
            let value = random.u32(..);
            if register != apic::COMMAND {
                apic::write(register, value);
                let _answer = apic::read(register);
            }
        }
    }
    // The timer off before its vector is believed again, and what is in service ended.
    apic::write(apic::TIMER, 0x1_0000);
    apic::write(apic::INITIAL, 0);
    for register in [0x330, 0x340, 0x360, 0x370] {
        apic::write(register, 0x1_0000);
    }
    for (register, value) in keep {
        apic::write(register, value);
    }
    for _ in 0..256 {
        apic::end();
    }
    apic::enable();
    say!("garbage written");
}

/// Interrupt commands of every kind to processors that do not exist.
pub fn absent() {
    // Fixed, lowest priority, system management, NMI, INIT, start-up.
    for kind in [0u32, 1, 2, 4, 5, 6] {
        // Physical and logical destinations.
        for mode in [0u32, 1 << 11] {
            apic::write(apic::COMMAND_HIGH, 0xee00_0000);
            apic::write(apic::COMMAND, 0x4000 | mode | kind << 8 | 0x55);
        }
    }
    // Reserved kinds, and a vector that must not be.
    apic::write(apic::COMMAND_HIGH, 0xee00_0000);
    apic::write(apic::COMMAND, 0x4300 | 0x55);
    apic::write(apic::COMMAND, 0x4700 | 0x55);
    apic::write(apic::COMMAND, 0x4005);
    say!("commands sent");
}

/// A non-maskable interrupt to itself.
pub fn nmi() {
    let before = trap::count(2);
    apic::write(apic::COMMAND, 0x4_4400);
    let came = cpu::wait(cpu::PATIENCE, || trap::count(2) > before);
    check!(came, exit::EXCEPTIONS, "an NMI to itself does not come");
    say!("{} came", trap::count(2) - before);
}

/// The APIC base register: bit 11 switches the local APIC off and on (AMD64 APM vol. 2, section 16.3.1).
pub fn off() {
    const BASE: u32 = 0x1b;
    const ON: u64 = 1 << 11;
    // SAFETY: the register exists, and reading it has no effect.
    let read = || unsafe { Msr::new(BASE).read() };
    // SAFETY: nothing needs the local APIC meanwhile.
    let write = |value| unsafe { Msr::new(BASE).write(value) };
    let shown = || core::arch::x86_64::__cpuid(1).edx >> 9 & 1 == 1;
    let mut rules = Rules::default();
    let base = read();
    rules.rule(base & ON != 0 && shown(), format_args!("on at first: {base:#x}, {}", shown()));
    let version = apic::read(0x30);
    write(base & !ON);
    rules.rule(read() == base & !ON, format_args!("off: the base register is {:#x}", read()));
    rules.rule(!shown(), format_args!("off: CPUID shows it"));
    rules.rule(apic::read(0x30) == !0, format_args!("off: it answers {:#x}", apic::read(0x30)));
    apic::write(apic::SPURIOUS, 0x155);
    // The interrupt line of the PC's own controller leads to the processor itself.
    let before = trap::count(trap::PIC);
    interrupt::timer_once(1193);
    trap::halt_until(trap::PIC, before);
    interrupt::quiet();
    write(base);
    rules.rule(read() == base && shown(), format_args!("on again: {:#x}, {}", read(), shown()));
    rules.rule(apic::read(0x30) == version, format_args!("on again: {:#x}", apic::read(0x30)));
    let spurious = apic::read(apic::SPURIOUS);
    rules.rule(spurious == 0xff, format_args!("on again: not as after a reset: {spurious:#x}"));
    rules.verdict();
}

/// NMIs that are sent while the handler of another runs.
pub fn nmi_chain(machine: &Machine) {
    const LINKS: u64 = 200;
    let wanted = trap::count(2) + LINKS + 1;
    trap::chain(LINKS);
    apic::write(apic::COMMAND, 0x4_4400);
    // Nothing here makes a hypervisor act, and no processor's turn ends by itself.
    let start = cpu::ticks();
    while trap::count(2) < wanted && cpu::ticks().wrapping_sub(start) < cpu::PATIENCE {}
    let came = trap::count(2) + LINKS + 1 - wanted;
    check!(came == LINKS + 1, exit::EXCEPTIONS, "{came} of {} NMIs came", LINKS + 1);
    // Those of others merge; none comes within another.
    cpu::on_all(machine, |index| {
        for _ in 0..LINKS {
            if index != 0 {
                apic::write(apic::COMMAND_HIGH, 0);
                apic::write(apic::COMMAND, 0x4400);
            }
        }
    });
    say!("{came} NMIs one after the other, {} in all", trap::count(2));
}

/// INIT to itself: the processor starts over at the reset vector, where there is no firmware.
pub fn init() {
    say!("INIT to itself");
    apic::write(apic::COMMAND_HIGH, apic::read(0x20));
    apic::write(apic::COMMAND, 0x4500);
    cpu::wait(cpu::PATIENCE / 3, || false);
}

/// Sizes other than four bytes, addresses that are not a register's.
pub fn access() {
    macro_rules! one {
        ($offset:expr, $code:literal) => {{
            // SAFETY: the local APIC's page; registers without effect on memory.
            let result: Result<(), Fault> = unsafe {
                attempt!($code; in("rsi") apic::BASE + $offset, inout("rax") 0u64 => _,
                    out("xmm0") _)
            };
            say!("{} at {:#x}: {result:x?}", $code, $offset);
        }};
    }
    one!(0x30, "mov al, [rsi]");
    one!(0x31, "mov ax, [rsi]");
    one!(0x32, "mov eax, [rsi]");
    one!(0x30, "mov rax, [rsi]");
    one!(0x2e, "mov rax, [rsi]");
    one!(0x30, "movups xmm0, [rsi]");
    one!(0x38, "mov eax, [rsi]");
    one!(0x80, "mov [rsi], al");
    one!(0x80, "mov [rsi], rax");
    one!(0x84, "mov [rsi], eax");
    one!(0x80, "and dword ptr [rsi], 0");
    one!(0x80, "xchg [rsi], eax");
    one!(0x80, "lock or [rsi], eax");
    one!(0xffc, "mov eax, [rsi]");
    one!(0xffd, "mov eax, [rsi]");
}

/// Jumps into the page; the page behind it is not mapped.
pub fn execute() {
    let window = Window::of(0);
    let scratch = 0u64;
    window.set(0, apic::BASE | PRESENT);
    window.set(1, 0);
    // SAFETY: what is fetched there can only use `rax` as an address.
    let result: Result<(), Fault> = unsafe {
        attempt!("call {address}"; address = in(reg) window.address(0) + 0x400,
            in("rax") &raw const scratch,
            out("rcx") _, out("rdx") _, out("rsi") _, out("rdi") _)
    };
    window.set(0, 0);
    say!("{result:x?}");
}
