//! The table of tests: what each does and what it must end in.
//!
//! A case is run by `test=NAME` on the guest's command line. Under a hypervisor its end must be
//! one of [`Case::may`]; under plain QEMU (`-machine q35 -cpu EPYC,-svm`, which is not a perfect
//! processor either) it is [`Case::bare`].

use crate::exit;

/// How a guest may end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// By its exit code.
    Exit(u32),
    /// A processor shut down.
    TripleFault,
    /// All processors halted with interrupts off.
    Halted,
    /// It asked for power-off.
    PowerOff,
    /// It asked for a reset.
    Reset,
    /// The hypervisor does not carry out what the guest did, and said so.
    Refused,
}

/// What plain QEMU 7.2 makes of it, started with `-no-reboot` and `isa-debug-exit`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bare {
    /// The guest ends by this exit code.
    Exit(u32),
    /// QEMU ends by itself, status 0: shutdown, power-off or reset.
    Ends,
    /// It does not end.
    Hangs,
    /// QEMU stops with a failed assertion.
    Aborts,
}

/// One test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Case {
    /// Value of `test=`.
    pub name: &'static str,
    /// What the guest does.
    pub what: &'static str,
    /// Ends that are right under a hypervisor; each for a reason given in `what`.
    pub may: &'static [Outcome],
    /// End under plain QEMU.
    pub bare: Bare,
}

impl Bare {
    /// Exit status of QEMU's process, as a shell gives it (a signal is 128 and its number);
    /// nothing if it has to be stopped.
    pub const fn status(self) -> Option<u32> {
        match self {
            Self::Exit(code) => Some(code << 1 | 1),
            Self::Ends => Some(0),
            Self::Aborts => Some(128 + 6),
            Self::Hangs => None,
        }
    }
}

/// What plain QEMU wants on the guest's command line: most of its holes read as zero, this one,
/// configuration space of absent devices, as all ones.
pub const BARE_ARGUMENTS: &str = "hole=0xb8000000";

impl Case {
    /// Whether this end is right.
    pub fn allows(&self, end: Outcome) -> bool {
        self.may.contains(&end)
    }
}

/// The case with this name.
pub fn find(name: &str) -> Option<&'static Case> {
    CASES.iter().find(|case| case.name == name)
}

const SURVIVES: &[Outcome] = &[Outcome::Exit(exit::OK)];
const SHUTS_DOWN: &[Outcome] = &[Outcome::TripleFault];
/// Either carried out (then the guest survives) or refused.
const OR_REFUSED: &[Outcome] = &[Outcome::Exit(exit::OK), Outcome::Refused];
/// Where nothing is, a read may give all ones, which is no table: a shutdown is as right as a
/// refusal.
const NO_TABLE: &[Outcome] = &[Outcome::Refused, Outcome::TripleFault];
const NO_TABLE_OR_CAUGHT: &[Outcome] =
    &[Outcome::Refused, Outcome::TripleFault, Outcome::Exit(exit::OK)];

const RESTARTS: &[Outcome] =
    &[Outcome::Refused, Outcome::TripleFault, Outcome::Reset, Outcome::Exit(exit::OK)];

const OK: Bare = Bare::Exit(exit::OK);
/// QEMU is laxer than the manual, and the guest says so.
const LAX: Bare = Bare::Exit(exit::FAILED);

macro_rules! cases {
    ($($name:literal, $may:expr, $bare:expr, $what:literal;)+) => {
        &[$(Case { name: $name, what: $what, may: $may, bare: $bare }),+]
    };
}

/// Three rows, one for each event.
macro_rules! deliveries {
    ($($table:literal, $place:literal, $may:expr, $bare:expr, $what:literal;)+) => {
        &[$(
            Case {
                name: concat!("hostile-delivery-int3-", $table, "-", $place),
                what: concat!("INT3 with ", $what),
                may: $may,
                bare: $bare,
            },
            Case {
                name: concat!("hostile-delivery-int80-", $table, "-", $place),
                what: concat!("INT 0x80 with ", $what),
                may: $may,
                bare: $bare,
            },
            Case {
                name: concat!("hostile-delivery-pit-", $table, "-", $place),
                what: concat!("a timer interrupt with ", $what),
                may: $may,
                bare: $bare,
            },
        )+]
    };
}

const DELIVERIES: &[Case] = deliveries! {
    "idt", "unmapped", SHUTS_DOWN, Bare::Ends,
        "the IDT unmapped: no handler can be found";
    "gdt", "unmapped", SHUTS_DOWN, Bare::Ends,
        "the GDT unmapped: no handler's segment can be loaded";
    "tss", "unmapped", SURVIVES, OK,
        "the TSS unmapped and a gate that wants a stack from it: a page fault is caught";
    "ist", "unmapped", SURVIVES, OK,
        "the gate's stack unmapped: a page fault is caught";
    "stack", "unmapped", SURVIVES, OK,
        "the stack in use unmapped: the double fault is caught on a stack of its own";
    "idt", "hole", NO_TABLE, Bare::Ends,
        "the IDT where nothing is";
    "gdt", "hole", NO_TABLE, Bare::Ends,
        "the GDT where nothing is";
    "tss", "hole", NO_TABLE_OR_CAUGHT, OK,
        "the TSS where nothing is: the stack it names is not usable either";
    "ist", "hole", OR_REFUSED, OK,
        "the gate's stack where nothing is; the handler uses no stack";
    "stack", "hole", OR_REFUSED, OK,
        "the stack in use where nothing is; the handler uses no stack";
    "idt", "cold", SURVIVES, OK,
        "the IDT in RAM never touched before";
    "gdt", "cold", SURVIVES, OK,
        "the GDT in RAM never touched before; loading from it also writes to it";
    "tss", "cold", SURVIVES, OK,
        "the TSS in RAM never touched before";
    "ist", "cold", SURVIVES, OK,
        "the gate's stack in RAM never touched before";
    "stack", "cold", SURVIVES, OK,
        "the stack in use in RAM never touched before";
    "all", "cold", SURVIVES, OK,
        "IDT, GDT, TSS and the gate's stack in RAM never touched before";
};

const OTHERS: &[Case] = cases! {
    "builtin", SURVIVES, OK,
        "checks the machine, part by part; plain QEMU needs hole=0xb8000000, because its other \
         holes read as zero";
    "multiboot", SURVIVES, OK,
        "checks and prints what the boot loader told";
    "sparse", SURVIVES, OK,
        "RAM of every range of the memory map holds what is written to it";

    "hostile-holes-read", SURVIVES, OK,
        "reads every hole of the memory map, up to the end of physical memory";
    "hostile-holes-write", SURVIVES, OK,
        "writes every hole of the memory map, except the local APIC";
    "hostile-holes-execute", OR_REFUSED, OK,
        "jumps into holes; all ones are no instruction, so an undefined-instruction exception is \
         as right as a refusal";
    "hostile-edges", OR_REFUSED, OK,
        "reads and writes at and across the borders of RAM";
    "hostile-ports-in", SURVIVES, Bare::Aborts,
        "reads every port, 1, 2 and 4 bytes; QEMU does not survive an access that begins in COM1 \
         and ends behind it";
    "hostile-ports-out", SURVIVES, Bare::Aborts,
        "writes random values to every port, 1, 2 and 4 bytes, except those that end the machine; \
         QEMU as above";
    "hostile-power-off", &[Outcome::PowerOff], Bare::Ends,
        "asks for power-off by the ACPI port";
    "hostile-reset-keyboard", &[Outcome::Reset], Bare::Ends,
        "asks for a reset by the keyboard controller";
    "hostile-reset-chipset", &[Outcome::Reset], Bare::Ends,
        "asks for a reset by port 0xcf9";
    "hostile-smi", SURVIVES, OK,
        "asks for system management interrupts; nothing must happen";
    "hostile-msr-read", SURVIVES, OK,
        "reads all MSRs of the known ranges and random ones";
    "hostile-msr-write", SURVIVES, OK,
        "writes random values to all MSRs of the known ranges and to random ones";
    "hostile-cr0", SURVIVES, LAX,
        "garbage in CR0: what the manual forbids must be refused with a protection fault";
    "hostile-cr0-paging-off", NO_TABLE_OR_CAUGHT, Bare::Hangs,
        "switches paging off in 64-bit mode";
    "hostile-cr3", SURVIVES, Bare::Hangs,
        "reserved bits in CR3 must be refused with a protection fault; plain QEMU spins";
    "hostile-cr3-hole", NO_TABLE, Bare::Ends,
        "page tables where nothing is";
    "hostile-cr3-garbage", SHUTS_DOWN, Bare::Ends,
        "an empty page of RAM as the top page table";
    "hostile-cr4", SURVIVES, Bare::Hangs,
        "reserved and unsupported bits in CR4 must be refused with a protection fault; plain QEMU \
         spins";
    "hostile-efer", SURVIVES, LAX,
        "garbage in EFER: reserved bits, SVME and leaving long mode must be refused";
    "hostile-long-mode", SURVIVES, OK,
        "leaves long mode with LME set, clears PAE, and comes back";
    "hostile-xcr0", SURVIVES, OK,
        "garbage in XCR0: impossible combinations must be refused";
    "hostile-debug-registers", SURVIVES, OK,
        "garbage in the debug registers, none of it armed";
    "hostile-selectors", SURVIVES, OK,
        "garbage in segment registers, LDTR and TR";
    "hostile-noncanonical", SURVIVES, OK,
        "jumps, calls, returns, reads, writes and stacks at non-canonical addresses";
    "hostile-instructions", SURVIVES, OK,
        "instructions of virtualisation and of system management: undefined or forbidden";
    "hostile-cpuid", SURVIVES, OK,
        "reads all leaves; virtualisation must not show";
    "hostile-table-hole", OR_REFUSED, OK,
        "a page table where nothing is, under a mapping of the guest's own";
    "hostile-table-random", SURVIVES, OK,
        "page-table entries made of random bits, read through";
    "hostile-string-outs", OR_REFUSED, OK,
        "rep outsb from RAM into a hole";
    "hostile-string-ins", OR_REFUSED, OK,
        "rep insb from RAM into a hole";
    "hostile-string-movs-from", OR_REFUSED, OK,
        "rep movsb that reads from RAM into a hole";
    "hostile-string-movs-to", OR_REFUSED, OK,
        "rep movsb that writes from RAM into a hole";
    "hostile-string-movs-hole", OR_REFUSED, OK,
        "rep movsq from hole to hole";
    "hostile-string-stos", OR_REFUSED, OK,
        "rep stosd from RAM into a hole";
    "hostile-string-cmps", OR_REFUSED, OK,
        "repe cmpsb from RAM into a hole";
    "hostile-string-outs-unmapped", SURVIVES, OK,
        "rep outsb into a page the guest has not mapped: a page fault after the bytes before it";
    "hostile-string-ins-unmapped", SURVIVES, OK,
        "rep insb into a page the guest has not mapped: a page fault after the bytes before it";
    "hostile-string-ins-read-only", SURVIVES, OK,
        "rep insb into a page the guest has mapped read-only: a page fault";
    "hostile-mmio-xchg", OR_REFUSED, OK, "xchg with a hole";
    "hostile-mmio-lock", OR_REFUSED, OK, "lock add and lock cmpxchg on a hole";
    "hostile-mmio-cmpxchg16b", OR_REFUSED, OK, "lock cmpxchg16b on a hole";
    "hostile-mmio-push", OR_REFUSED, OK, "push and pop with an operand in a hole";
    "hostile-mmio-call", OR_REFUSED, OK,
        "call through a pointer in a hole: all ones are no address with code";
    "hostile-mmio-vector", OR_REFUSED, OK, "movups, movaps, movdqu and movnti on a hole";
    "hostile-mmio-fxsave", OR_REFUSED, OK, "fxsave to a hole";
    "hostile-mmio-bits", OR_REFUSED, OK, "bt, bts, bsf, shl and rol on a hole";
    "hostile-mmio-divide", OR_REFUSED, OK, "mul and div with an operand in a hole";
    "hostile-mmio-descriptor", OR_REFUSED, OK, "sgdt and sidt to a hole";
    "hostile-mmio-store", SURVIVES, OK,
        "smsw, str, sldt, stmxcsr, fnstcw and fnstsw to a hole, lmsw from a hole and from RAM";
    "hostile-mmio-cross", OR_REFUSED, OK, "reads and writes across the border of RAM and a hole";
    "hostile-mmio-unaligned", OR_REFUSED, OK, "unaligned reads and writes inside a hole";
    "hostile-apic", SURVIVES, OK,
        "garbage in the local APIC's registers, no interrupt commands";
    "hostile-apic-absent", SURVIVES, OK,
        "interrupt commands of every kind to processors that do not exist";
    "hostile-apic-nmi", OR_REFUSED, OK,
        "a non-maskable interrupt to itself";
    "hostile-apic-off", SURVIVES, LAX,
        "switches the local APIC off by its MSR and on again; plain QEMU never switches it on again";
    "hostile-nmi-chain", SURVIVES, OK,
        "NMIs sent in the handler of the last: each comes right behind its end; and many from others";
    "hostile-apic-init", RESTARTS, Bare::Ends,
        "INIT to itself: there is no firmware at the reset vector, unless INIT is dropped";
    "hostile-apic-access", OR_REFUSED, OK,
        "odd sizes and odd addresses in the local APIC's page";
    "hostile-apic-execute", NO_TABLE_OR_CAUGHT, OK,
        "jumps into the local APIC's page";
    "hostile-halt", &[Outcome::Halted], Bare::Hangs,
        "halts with interrupts off";
    "hostile-triple-fault", SHUTS_DOWN, Bare::Ends,
        "a breakpoint with an IDT of limit 0";
    "hostile-gdt-limit", SHUTS_DOWN, Bare::Ends,
        "a breakpoint with a GDT of limit 0";
    "hostile-stack-zero", SHUTS_DOWN, Bare::Ends,
        "a stack at address 0, pushed to, and no stack for the double fault";
    "hostile-recursion", SHUTS_DOWN, Bare::Ends,
        "breakpoints inside the breakpoint's handler until a large untouched stack is used up";
    "hostile-single-step", SURVIVES, OK,
        "single steps over instructions that a hypervisor carries out: none may be left out";
    "hostile-resume-flag", SURVIVES, LAX,
        "faults that a hypervisor may make up: the flags on the handler's stack have RF set";
    "hostile-self-modifying", SURVIVES, OK,
        "code that changes itself, also through a second mapping";
    "hostile-storm", SURVIVES, OK,
        "interrupts of both timers and of other processors, on untouched stacks, while untouched \
         RAM is touched, on all processors";
};

/// All cases.
pub static CASES: &[Case] = &{
    let mut all = [OTHERS[0]; OTHERS.len() + DELIVERIES.len()];
    let mut place = 0;
    while place < all.len() {
        all[place] =
            if place < OTHERS.len() { OTHERS[place] } else { DELIVERIES[place - OTHERS.len()] };
        place += 1;
    }
    all
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_and_unique() {
        for case in CASES {
            assert!(core::ptr::eq(find(case.name).unwrap(), case), "{} twice", case.name);
        }
        assert_eq!(find("hostile-"), None);
    }

    #[test]
    fn every_case_has_an_end_and_no_name_needs_quoting() {
        for case in CASES {
            assert!(!case.may.is_empty() && !case.what.is_empty(), "{}", case.name);
            assert!(
                case.name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-'),
                "{}",
                case.name
            );
            assert!(case.may.iter().all(|&end| case.allows(end)));
        }
    }
}
