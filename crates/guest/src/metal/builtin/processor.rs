//! Exceptions, timers, interrupts between processors, floating-point state, ports.

use crate::metal::console::say;
use crate::metal::trap::{self, Fault, attempt};
use crate::metal::{Machine, apic, check, cpu, interrupt};
use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};
use guest::exit;
use x86_64::instructions::port::Port;

/// Breakpoint, software interrupt, undefined instruction, general protection.
pub fn exceptions() {
    for (vector, name) in [(3, "INT3"), (trap::SOFTWARE, "INT 0x80")] {
        let before = trap::count(vector);
        let behind: u64;
        // SAFETY: the handlers count and return.
        unsafe {
            if vector == 3 {
                asm!("int3", "66:", "lea {}, [rip + 66b]", out(reg) behind);
            } else {
                asm!("int 0x80", "66:", "lea {}, [rip + 66b]", out(reg) behind);
            }
        }
        check!(trap::count(vector) == before + 1, exit::EXCEPTIONS, "{name} was not delivered");
        check!(
            trap::last_return() == behind,
            exit::EXCEPTIONS,
            "{name} returned to {:#x} instead of {behind:#x}",
            trap::last_return()
        );
    }
    let here: u64;
    // SAFETY: the fault is the answer.
    let result: Result<(), Fault> =
        unsafe { attempt!("lea {here}, [rip + 66f]", "66:", "ud2"; here = out(reg) here) };
    let right = matches!(result, Err(fault) if fault.vector == 6 && fault.rip == here);
    check!(right, exit::EXCEPTIONS, "ud2 at {here:#x}: {result:x?}");

    // SAFETY: the fault is the answer: the address is not canonical.
    let result: Result<(), Fault> = unsafe {
        attempt!("mov {scratch}, [{address}]"; scratch = out(reg) _,
            address = in(reg) 0x8000_0000_0000_0000u64)
    };
    let right = matches!(result, Err(fault) if fault.vector == 13 && fault.error == 0);
    check!(right, exit::EXCEPTIONS, "read of a non-canonical address: {result:x?}");
    say!("exceptions ok");
}

/// The PC's timer: seen while running and while halted.
pub fn pit() {
    let before = trap::count(trap::PIC);
    interrupt::timer_once(1193);
    let came = cpu::wait(cpu::PATIENCE, || {
        // SAFETY: an interrupt taken here runs on its own stack and returns.
        unsafe { asm!("sti", "nop", "nop", "cli") };
        trap::count(trap::PIC) > before
    });
    check!(came, exit::TIMER, "the PIT does not interrupt a running processor");
    for _ in 0..5 {
        let before = trap::count(trap::PIC);
        interrupt::timer_once(1193);
        trap::halt_until(trap::PIC, before);
    }
    interrupt::quiet();
    say!("pit ok");
}

/// Interrupts whose delivery needs a page that is not mapped yet, and whose handlers take long: each is
/// delivered once.
pub fn late_delivery(machine: &Machine) {
    const BLOCK: u64 = 2 << 20;
    // Longer than QEMU lets one processor run before it looks at the others.
    const LONG: u64 = 400_000_000;
    let blocks = machine.free.spans().iter().flat_map(|span| {
        let first = span.start.next_multiple_of(BLOCK);
        (first..span.end.min(4 << 30).saturating_sub(BLOCK - 1)).step_by(BLOCK as usize)
    });
    for block in blocks.take(2) {
        let before = trap::count(trap::APIC_TIMER);
        // SAFETY: free RAM that nothing uses, and no interrupt is in service.
        unsafe { cpu::set_stack(cpu::IST_INTERRUPT, block + 8192) };
        trap::linger(LONG);
        apic::timer_once(1_000);
        trap::halt_until(trap::APIC_TIMER, before);
        trap::linger(0);
        let came = trap::count(trap::APIC_TIMER) - before;
        check!(came == 1, exit::TIMER, "one interrupt came {came} times");
    }
    cpu::start(cpu::index());
    say!("late delivery ok");
}

/// The local APIC's timer, on every processor: seen while running and while halted.
pub fn apic_timer(machine: &Machine) {
    cpu::on_all(machine, |_| {
        // Longer than anything takes this processor away, so that the count is not over when it
        // looks.
        apic::timer_once(u32::MAX);
        let start = apic::read(apic::CURRENT);
        let counts = cpu::wait(cpu::PATIENCE, || apic::read(apic::CURRENT) != start);
        check!(
            start != 0 && counts,
            exit::TIMER,
            "the local APIC's timer does not count: it stands at {start:#x}"
        );
        let before = trap::count(trap::APIC_TIMER);
        apic::timer_once(1_000_000);
        let came = cpu::wait(cpu::PATIENCE, || {
            // SAFETY: an interrupt taken here runs on its own stack and returns.
            unsafe { asm!("sti", "nop", "nop", "cli") };
            trap::count(trap::APIC_TIMER) > before
        });
        check!(came, exit::TIMER, "the local APIC's timer does not interrupt");
        for _ in 0..3 {
            let before = trap::count(trap::APIC_TIMER);
            apic::timer_once(100_000);
            trap::halt_until(trap::APIC_TIMER, before);
        }
    });
    say!("apic timer ok");
}

static WAITING: AtomicU64 = AtomicU64::new(0);
static OTHERS: AtomicU64 = AtomicU64::new(0);

/// One processor taps all others, which are halted or about to be.
pub fn shoulders(machine: &Machine) {
    const ROUNDS: u64 = 3;
    OTHERS.store(machine.cpus as u64 - 1, Ordering::Release);
    cpu::on_all(machine, |index| {
        for round in 1..=ROUNDS {
            if index == 0 {
                let others = OTHERS.load(Ordering::Acquire);
                let all = || WAITING.load(Ordering::Acquire) == round * others;
                check!(cpu::wait(cpu::PATIENCE, all), exit::TIMER, "an interrupt was lost");
                cpu::wait(1_000_000, || false);
                apic::send(apic::FIXED_OTHERS | u32::from(trap::SHOULDER));
            } else {
                let before = trap::count(trap::SHOULDER);
                WAITING.fetch_add(1, Ordering::AcqRel);
                trap::halt_until(trap::SHOULDER, before);
            }
        }
    });
    say!("ipi ok");
}

#[repr(C, align(16))]
#[derive(Clone, Copy, PartialEq, Eq)]
struct Vectors([u64; 32]);

/// Vector registers, their control word and the x87 stack survive interrupts, halts and
/// instructions the hypervisor carries out.
pub fn floating_point() {
    let wanted = Vectors(core::array::from_fn(|word| guest::pattern::word(word as u64, 3)));
    let mut found = Vectors([0; 32]);
    let (control, mut control_found, mut x87) = (0x5f80u32, 0u32, 0f64);
    let before = trap::count(trap::PIC);
    interrupt::mask(0xfe);
    // SAFETY: programs the timer, whose interrupts run on a stack of their own and return; touches the named registers and the memory it is given; rbx is put back.
    unsafe {
        asm!(
            "ldmxcsr [{control}]",
            "fldpi",
            "mov r8d, 0",
            "2:",
            "movdqa xmm0, [{wanted}]",
            "movdqa xmm1, [{wanted} + 16]",
            "movdqa xmm2, [{wanted} + 32]",
            "movdqa xmm3, [{wanted} + 48]",
            "movdqa xmm4, [{wanted} + 64]",
            "movdqa xmm5, [{wanted} + 80]",
            "movdqa xmm6, [{wanted} + 96]",
            "movdqa xmm7, [{wanted} + 112]",
            "movdqa xmm8, [{wanted} + 128]",
            "movdqa xmm9, [{wanted} + 144]",
            "movdqa xmm10, [{wanted} + 160]",
            "movdqa xmm11, [{wanted} + 176]",
            "movdqa xmm12, [{wanted} + 192]",
            "movdqa xmm13, [{wanted} + 208]",
            "movdqa xmm14, [{wanted} + 224]",
            "movdqa xmm15, [{wanted} + 240]",
            "3:",
            // As `interrupt::timer_once`, for 1193 ticks.
            "mov al, 0x30",
            "out 0x43, al",
            "mov al, 0xa9",
            "out 0x40, al",
            "mov al, 0x04",
            "out 0x40, al",
            "sti",
            "hlt",
            "cli",
            "push rbx",
            "xor eax, eax",
            "cpuid",
            "pop rbx",
            "mov dx, 0x5a5c",
            "in al, dx",
            "inc r8d",
            "cmp r8d, 10",
            "jb 3b",
            "movdqa [{found}], xmm0",
            "movdqa [{found} + 16], xmm1",
            "movdqa [{found} + 32], xmm2",
            "movdqa [{found} + 48], xmm3",
            "movdqa [{found} + 64], xmm4",
            "movdqa [{found} + 80], xmm5",
            "movdqa [{found} + 96], xmm6",
            "movdqa [{found} + 112], xmm7",
            "movdqa [{found} + 128], xmm8",
            "movdqa [{found} + 144], xmm9",
            "movdqa [{found} + 160], xmm10",
            "movdqa [{found} + 176], xmm11",
            "movdqa [{found} + 192], xmm12",
            "movdqa [{found} + 208], xmm13",
            "movdqa [{found} + 224], xmm14",
            "movdqa [{found} + 240], xmm15",
            "stmxcsr [{control_found}]",
            "fstp qword ptr [{x87}]",
            "ldmxcsr [{default}]",
            wanted = in(reg) &raw const wanted,
            found = in(reg) &raw mut found,
            control = in(reg) &raw const control,
            control_found = in(reg) &raw mut control_found,
            default = in(reg) &raw const DEFAULT_CONTROL,
            x87 = in(reg) &raw mut x87,
            out("rax") _, out("rcx") _, out("rdx") _, out("r8") _,
            out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _,
            out("xmm4") _, out("xmm5") _, out("xmm6") _, out("xmm7") _,
            out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
            out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
            out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _,
            out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _,
        );
    }
    interrupt::quiet();
    check!(trap::count(trap::PIC) > before, exit::TIMER, "no interrupt came meanwhile");
    check!(found == wanted, exit::FPU, "vector registers changed");
    check!(control_found == control, exit::FPU, "control word {control_found:#x}");
    check!(x87 == core::f64::consts::PI, exit::FPU, "x87 register changed: {x87}");
    say!("fpu ok");
}

static DEFAULT_CONTROL: u32 = 0x1f80;

/// A port nothing answers at. Aligned: QEMU reads zero at unaligned ports without a device.
const NOWHERE: u16 = 0x5a5c;

/// The debug port takes strings, and a port without a device reads as all ones.
pub fn ports() {
    let text = b"guest: debug port\n";
    let (mut from, mut left) = (text.as_ptr(), text.len());
    // SAFETY: reads the text only; the port is a debug console or nothing.
    unsafe {
        asm!("rep outsb", inout("rsi") from, inout("rcx") left, in("dx") 0xe9u16);
    }
    let sent = from as usize - text.as_ptr() as usize;
    check!(left == 0 && sent == text.len(), exit::PORTS, "rep outsb stopped after {sent} bytes");
    // SAFETY: no device answers there.
    let (byte, word, long) = unsafe {
        (
            Port::<u8>::new(NOWHERE).read(),
            Port::<u16>::new(NOWHERE).read(),
            Port::<u32>::new(NOWHERE).read(),
        )
    };
    check!(
        byte == !0 && word == !0 && long == !0,
        exit::PORTS,
        "port {NOWHERE:#x} reads {byte:#x}, {word:#x}, {long:#x}"
    );
    let mut bytes = [0u8; 16];
    let (mut to, mut left) = (bytes.as_mut_ptr(), bytes.len());
    // SAFETY: writes the array only.
    unsafe {
        asm!("rep insb", inout("rdi") to, inout("rcx") left, in("dx") NOWHERE);
    }
    let read = to as usize - bytes.as_ptr() as usize;
    check!(
        left == 0 && read == bytes.len() && bytes == [!0; 16],
        exit::PORTS,
        "rep insb read {read} bytes: {bytes:x?}"
    );
    say!("ports ok");
}
