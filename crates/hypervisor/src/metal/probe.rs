//! Runs the cases of a probe on this processor.

use super::machine::Map;
use super::svm::{self, Fpu, General};
use super::vmcb::{Segment, Vmcb};
use super::{control, memory};
use alloc::{boxed::Box, format, string::String, vec::Vec};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use hypervisor::pool::{FRAME, Size};
use hypervisor::probe::{
    Arena, BLOCK, BLOCKS, Case, FRAMES, Outcome, PER_FRAME, Probe, Registers, TOGETHER,
};
use hypervisor::wire::Event;

const EFER: u32 = 0xc000_0080;
/// EFER.NXE.
const NXE: u64 = 1 << 11;
/// The SVM instructions, MONITOR, MWAIT, XSETBV, RDPRU.
const MISC2: u32 = 0x7f | 1 << 10 | 1 << 11 | 1 << 12 | 1 << 13 | 1 << 14;

/// Runs every case and sends the outcomes.
///
/// # Errors
/// The reason, for people.
pub fn run(probe: &Probe<'_>) -> Result<(), String> {
    let phys_bits = raw_cpuid::CpuId::new()
        .get_processor_capacity_feature_info()
        .map_or(36, |info| info.physical_address_bits());
    control::send(&Event::Probing { phys_bits });
    take(probe.arena)?;
    let block = |number: usize| {
        let start = (probe.arena + number as u64 * BLOCK) as *const AtomicU64;
        // SAFETY: the block was just taken for good, is identity-mapped and zeroed; this program
        // and the processor's walker only ever access it in whole aligned words.
        unsafe { core::slice::from_raw_parts(start, BLOCK as usize / 8) }
    };
    let blocks: [&[AtomicU64]; BLOCKS] = core::array::from_fn(block);
    let mut arena =
        Arena::new(blocks.map(|block| &block[..FRAMES * PER_FRAME]), probe.image.clone());
    let mut stage = Stage::new().ok_or("no memory for the state of the probe")?;
    let mut outcomes = Vec::new();
    let mut rest = probe.cases;
    for number in 0..probe.count {
        let (case, behind) = postcard::take_from_bytes::<Case>(rest)
            .map_err(|error| format!("case {number} cannot be read: {error}"))?;
        rest = behind;
        arena.set(&case);
        let mut outcome = stage.play(&case.registers);
        outcome.changed = arena.changed();
        outcomes.push(outcome);
        if outcomes.len() == TOGETHER {
            control::send(&Event::Probed { outcomes: core::mem::take(&mut outcomes) });
        }
    }
    control::send(&Event::Probed { outcomes });
    arena.clear();
    for (number, block) in blocks.iter().enumerate() {
        if let Some(word) = block.iter().position(|word| word.load(Relaxed) != 0) {
            return Err(format!("word {word:#x} of block {number} was written without leave"));
        }
    }
    Ok(())
}

/// Takes the blocks of an arena out of the pool, and zeroes them.
fn take(arena: u64) -> Result<(), String> {
    let mut wanted: Vec<u64> = (0..BLOCKS as u64).map(|n| (arena + n * BLOCK) / FRAME).collect();
    let mut others = Vec::new();
    while !wanted.is_empty() {
        // The pool gives the lowest first.
        let frame = memory::take(Size::M2)
            .filter(|frame| *frame <= wanted[0])
            .ok_or_else(|| format!("no free memory at {arena:#x} for the arena"))?;
        if frame == wanted[0] {
            wanted.remove(0);
            // SAFETY: the block was just taken.
            unsafe { memory::zero(frame, Size::M2) };
        } else {
            others.push(frame);
        }
    }
    for frame in others {
        memory::put(frame, Size::M2);
    }
    Ok(())
}

/// What a guest of a few instructions needs.
struct Stage {
    vmcb: Box<Vmcb>,
    fpu: Box<Fpu>,
    ports: Box<Map<{ 3 * 4096 }>>,
    registers: Box<Map<{ 2 * 4096 }>>,
    host: u64,
}

impl Stage {
    fn new() -> Option<Self> {
        let host = memory::take(Size::K4)?;
        // SAFETY: the frame was just taken for this processor.
        unsafe {
            memory::zero(host, Size::K4);
            svm::save_host(host * FRAME);
        }
        Some(Self {
            vmcb: Box::new(Vmcb::zeroed()),
            fpu: Box::new(Fpu::reset()),
            ports: Box::new(Map([0xff; 3 * 4096])),
            registers: Box::new(Map([0xff; 2 * 4096])),
            host,
        })
    }

    /// Runs the guest until it exits, which everything but a load or a store makes it do.
    fn play(&mut self, registers: &Registers) -> Outcome {
        let vmcb = &mut *self.vmcb;
        *vmcb = Vmcb::zeroed();
        vmcb.intercept_cr = !0;
        vmcb.intercept_dr = !0;
        vmcb.intercept_exceptions = !0;
        vmcb.intercept_misc1 = !0;
        vmcb.intercept_misc2 = MISC2;
        vmcb.iopm_base = &raw const *self.ports as u64;
        vmcb.msrpm_base = &raw const *self.registers as u64;
        vmcb.asid = 1;
        // Everything the processor remembers is of the case before.
        vmcb.tlb_control = 1;
        vmcb.np_enable = 1;
        vmcb.n_cr3 = registers.n_cr3;
        let level = u16::from(registers.cpl) << 5;
        let flat = |selector: u16, attributes| Segment {
            selector: selector | u16::from(registers.cpl),
            attributes: attributes | level,
            limit: !0,
            base: 0,
        };
        vmcb.cs = flat(0x10, if registers.long { 0xa9b } else { 0xc9b });
        for segment in [&mut vmcb.es, &mut vmcb.ss, &mut vmcb.ds, &mut vmcb.fs, &mut vmcb.gs] {
            *segment = flat(0x18, 0xc93);
        }
        vmcb.tr = Segment { attributes: 0x8b, limit: 0xffff, ..Segment::default() };
        vmcb.ldtr = Segment { attributes: 0x82, ..vmcb.tr };
        vmcb.cpl = registers.cpl;
        vmcb.efer = registers.efer | svm::SVME;
        vmcb.cr0 = registers.cr0;
        vmcb.cr3 = registers.cr3;
        vmcb.cr4 = registers.cr4;
        vmcb.dr6 = 0xffff_0ff0;
        vmcb.dr7 = 0x400;
        vmcb.rflags = registers.rflags;
        vmcb.rip = registers.rip;
        vmcb.rax = registers.rax;
        vmcb.g_pat = 0x0007_0406_0007_0406;
        let mut general = General { rsi: registers.rsi, rdi: registers.rdi, ..General::default() };
        svm::close_gate();
        // SAFETY: the register exists; no table of this program has the no-execute bit, so
        // whether it means something makes no difference here. The control block is the stage's
        // own; it lets the guest do nothing but access what its tables lead to, and who draws the
        // cases answers for those: they lead into the arena, or to where nothing is.
        unsafe {
            let efer = svm::rdmsr(EFER);
            let nx = if registers.host_nx { NXE } else { 0 };
            svm::wrmsr(EFER, efer & !NXE | nx);
            svm::enter(
                &raw mut general,
                &raw mut *self.fpu,
                &raw mut *vmcb as u64,
                self.host * FRAME,
            );
            svm::wrmsr(EFER, efer);
        }
        svm::open_gate();
        Outcome {
            exit: vmcb.exit_code,
            info1: vmcb.exit_info1,
            info2: vmcb.exit_info2,
            rip: vmcb.rip,
            rbx: general.rbx,
            changed: Vec::new(),
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        memory::put(self.host, Size::K4);
    }
}
