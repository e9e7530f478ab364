//! What the command line and the hypervisor say to each other.
//!
//! * The **job** travels once, before anything runs: the command line encodes a [`Job`] with
//!   `postcard` and hands it to QEMU as the only boot module. Everything the hypervisor has to
//!   know is in it, so an exact run needs no input while it runs.
//! * **Frames** travel on COM2: `postcard` with COBS framing and a CRC-32, [`Event`]s from the
//!   hypervisor, [`Order`]s to it (never in exact runs).
//!
//! Both sides use these types, so there is no second description that could drift.

use crate::probe::{Outcome, Probe};
use alloc::{boxed::Box, string::String, vec::Vec};
use serde::{Deserialize, Serialize};

/// Raised whenever a type below changes its meaning; both sides are built from one tree, so a
/// difference means a stale binary.
pub const VERSION: u32 = 3;

/// Everything one run needs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Job<'a> {
    /// [`VERSION`] of the side that wrote this.
    pub version: u32,
    /// How guest-physical memory is mapped.
    pub paging: Paging,
    /// The largest page a mapping may use.
    pub pages: PageLimit,
    /// Physical address width shown to the guest, if not the processor's own.
    pub phys_bits: Option<u8>,
    /// Features taken out of the guest's CPUID.
    pub hide: Vec<CpuidBit>,
    /// Instruction-exact run: no clock, no input, statistics only at the end.
    pub exact: bool,
    /// A fault put in on purpose.
    pub inject: Option<Inject>,
    /// Memory is taken back from under the running guest after every so many exits.
    pub churn: Option<u64>,
    /// Guests booted one after another in the same hypervisor; each gets a VM of its own.
    #[serde(borrow)]
    pub guests: Vec<Guest<'a>>,
    /// Cases for the processor's page walker, before any guest.
    #[serde(borrow)]
    pub probe: Option<Probe<'a>>,
}

/// One guest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Guest<'a> {
    /// For people.
    pub name: String,
    /// vCPUs, 1 to 8. Each runs on a processor of its own.
    pub cpus: u32,
    /// RAM, each range page-aligned; becomes one slot each.
    pub ram: Vec<Range>,
    /// State of the boot processor at its first instruction.
    pub start: Start,
    /// Bytes put into RAM before the start.
    #[serde(borrow)]
    pub segments: Vec<Segment<'a>>,
}

/// Guest-physical range, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    /// First byte.
    pub gpa: u64,
    /// Length in bytes.
    pub bytes: u64,
}

/// Bytes and where they go.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Segment<'a> {
    /// Guest-physical address of the first byte.
    pub gpa: u64,
    /// The bytes.
    pub data: &'a [u8],
}

/// First state of the boot processor. Interrupts are off in both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Start {
    /// 64-bit mode with flat segments; the page tables at `cr3` and the GDT are among the
    /// segments of the guest (Linux's 64-bit boot protocol: `rsi` points at the boot parameters).
    Long {
        /// First instruction.
        rip: u64,
        /// Stack.
        rsp: u64,
        /// Argument.
        rsi: u64,
        /// Guest-physical address of the guest's top page table.
        cr3: u64,
        /// GDT base; selectors 0x10 (code) and 0x18 (data) are loaded.
        gdt: u64,
        /// GDT limit in bytes, minus one.
        gdt_limit: u16,
    },
    /// 32-bit protected mode, paging off, flat segments (multiboot 1).
    Protected {
        /// First instruction.
        eip: u32,
        /// Multiboot's magic number.
        eax: u32,
        /// Guest-physical address of the multiboot information.
        ebx: u32,
    },
}

/// How guest-physical memory is mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Paging {
    /// Two-dimensional, AMD's nested page tables.
    Npt,
}

/// The largest page a mapping may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PageLimit {
    /// 4 KiB only.
    K4,
    /// Up to 2 MiB.
    M2,
    /// Up to 1 GiB.
    G1,
    /// Whatever backing and slot allow.
    Auto,
}

/// One feature bit of CPUID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuidBit {
    /// EAX on input.
    pub leaf: u32,
    /// ECX on input.
    pub subleaf: u32,
    /// 0 EAX, 1 EBX, 2 ECX, 3 EDX on output.
    pub register: u8,
    /// Bit number.
    pub bit: u8,
}

/// A fault put in on purpose, to see an alarm ring. `after` counts nested faults of the VM that
/// mapped something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Inject {
    /// Flip one byte of a mapped guest page.
    Flip {
        /// Faults before it happens.
        after: u64,
    },
    /// Corrupt one table entry.
    Entry {
        /// Faults before it happens.
        after: u64,
    },
}

/// Hypervisor to command line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Event {
    /// First frame of all.
    Hello {
        /// [`VERSION`] of the hypervisor.
        version: u32,
        /// Processors that answered.
        cpus: u32,
    },
    /// Guest number `guest` of the job executes its first instruction.
    Started {
        /// Index into [`Job::guests`].
        guest: u32,
    },
    /// A snapshot while it runs, a few a second; never in exact runs.
    Live {
        /// Counters.
        stats: Stats,
        /// Where each vCPU is.
        vcpus: Vec<VcpuState>,
    },
    /// A guest has ended; its tables have been checked.
    Ended {
        /// Index into [`Job::guests`].
        guest: u32,
        /// How.
        end: End,
        /// Final counters.
        stats: Stats,
        /// Where each vCPU stopped.
        vcpus: Vec<VcpuState>,
        /// What the checker found in the final tables.
        verdict: Verdict,
        /// Time from first instruction to end, in TSC ticks and the ticks of one millisecond.
        ticks: u64,
        /// TSC ticks a millisecond.
        ticks_per_ms: u64,
    },
    /// The hypervisor itself failed. The last frame.
    Failed {
        /// What happened, for people.
        what: String,
    },
    /// The first case of a probe comes next.
    Probing {
        /// Physical address width of the processor.
        phys_bits: u8,
    },
    /// What came of the next cases of a probe, in their order.
    Probed {
        /// One for each.
        outcomes: Vec<Outcome>,
    },
    /// Something worth a line on the way (an injection done, a feature refused).
    Note {
        /// For people.
        text: String,
    },
}

/// Command line to hypervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Order {
    /// End the guest now and report, as for a time-out.
    Stop,
    /// Send a [`Event::Live`] now.
    Report,
}

/// How a guest ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum End {
    /// It asked for power-off (ACPI S5).
    PowerOff,
    /// It asked for a reset (keyboard controller, port 0xcf9, ACPI reset).
    Reset,
    /// It wrote this code to port 0xf4.
    Exit {
        /// The value written.
        code: u32,
    },
    /// A vCPU shut down (triple fault).
    TripleFault {
        /// vCPU.
        vcpu: u32,
        /// Its instruction pointer.
        rip: u64,
        /// Everything else that may say why.
        state: Box<CpuState>,
    },
    /// Every vCPU halted with interrupts off.
    Halted,
    /// The guest did what the hypervisor does not carry out; its own fault.
    Refused {
        /// vCPU.
        vcpu: u32,
        /// What, for people.
        what: String,
    },
    /// [`Order::Stop`].
    Stopped,
    /// The library or the hypervisor contradicted itself.
    Broken {
        /// What, for people.
        what: String,
    },
}

/// Registers of a vCPU that has shut down.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuState {
    /// General registers by their number in encodings: RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8…
    pub general: [u64; 16],
    /// Flags.
    pub rflags: u64,
    /// CR0, CR2, CR3, CR4.
    pub control: [u64; 4],
    /// EFER.
    pub efer: u64,
    /// Selector of the code segment.
    pub cs: u16,
    /// Bits of code: 16, 32 or 64.
    pub bits: u32,
    /// The event that could not be delivered, as EXITINTINFO has it: vector in bits 7:0, error code in
    /// bits 63:32 if bit 11 is set; nothing is known if bit 31 is clear.
    pub event: u64,
    /// Bytes at the instruction pointer, as far as they can be read.
    pub code: Vec<u8>,
}

/// One vCPU, for people who look for a hang.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuState {
    /// Instruction pointer at the last exit.
    pub rip: u64,
    /// Running, halted, waiting for SIPI, ended.
    pub mode: String,
    /// Exits so far.
    pub exits: u64,
    /// The last exits, newest last, by name.
    pub last: Vec<String>,
}

/// Counters of one VM, from its start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Nested faults by outcome, named as the library names them ("fixed", "spurious", "retry",
    /// "emulate", "read-only", ...). Names with a zero count are left in.
    pub faults: Vec<(String, u64)>,
    /// Leaves mapped now: 4K, 2M, 1G.
    pub leaves: [u64; 3],
    /// Table pages in use now.
    pub table_pages: u64,
    /// Flushes for which a vCPU in the guest was interrupted.
    pub flushes_sent: u64,
    /// Flushes that needed no interrupt, because the vCPU was outside the guest.
    pub flushes_elided: u64,
    /// Exits by cause, most frequent first.
    pub exits: Vec<(String, u64)>,
    /// Every other counter of the library, by name.
    pub other: Vec<(String, u64)>,
}

/// What the checker found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Entries looked at.
    pub entries: u64,
    /// Table pages looked at.
    pub tables: u64,
    /// Invariants verified, each with the number of entries it was verified on.
    pub verified: Vec<(String, u64)>,
    /// Violations: invariant and where. Empty is a pass.
    pub violations: Vec<(String, String)>,
}
