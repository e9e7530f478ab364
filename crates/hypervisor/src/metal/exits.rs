//! What is done about each exit.

use super::mmio::{self, Fetched};
use super::nested::Answer;
use super::vcpu::Vcpu;
use super::{alarm, io, msr};
use alloc::boxed::Box;
use alloc::format;
use hypervisor::exit::{self, code};
use hypervisor::registers::check_xcr;
use hypervisor::wire::End;
use iced_x86::{Mnemonic, OpKind, Register};
use vmmu::entry::Access;

const UNDEFINED: u8 = 6;
const PROTECTION: u8 = 13;

/// Bits of EXITINFO1 of a nested fault (APM vol. 2, section 15.25.6).
const WRITE: u64 = 1 << 1;
const FETCH: u64 = 1 << 4;
const TABLE_WALK: u64 = 1 << 33;

/// Acts on the exit that has just happened.
pub fn handle(vcpu: &mut Vcpu<'_>, exit: u64) {
    if exit != code::NMI {
        vcpu.woken(exit);
    }
    if exit != code::NESTED_FAULT {
        vcpu.repetition.broken();
    }
    match exit {
        code::NESTED_FAULT => nested_fault(vcpu),
        code::NMI => vcpu.signalled(),
        code::IOIO => io::handle(vcpu),
        code::MSR => msr::handle(vcpu),
        code::CPUID => cpuid(vcpu),
        code::HLT => vcpu.halt(),
        code::CR0_WRITE | code::CR3_WRITE | code::CR4_WRITE => control_register(vcpu),
        code::XSETBV => xsetbv(vcpu),
        code::IRET => vcpu.end_nmi(),
        code::ALIGNMENT_CHECK => vcpu.inject(17, Some(0)),
        code::INVD => {
            // Dropping dirty cache lines would drop the hypervisor's too.
            if let Some(next) = next(vcpu) {
                // SAFETY: writes back and empties caches.
                unsafe { core::arch::asm!("wbinvd", options(nostack)) };
                vcpu.advance_to(next);
            }
        }
        code::RDPMC => vcpu.inject(PROTECTION, Some(0)),
        code::VMRUN..=code::SKINIT
        | code::RSM
        | code::INVLPGA
        | code::MONITOR
        | code::MWAIT
        | code::MWAIT_ARMED
        | code::RDPRU => vcpu.inject(UNDEFINED, None),
        code::INTERRUPT | code::INIT => {}
        code::SHUTDOWN => {
            let state = Box::new(mmio::state(vcpu));
            let (number, rip) = (vcpu.number as u32, vcpu.vmcb.rip);
            vcpu.machine.finish(End::TripleFault { vcpu: number, rip, state });
        }
        // Some processors leave the high half of "invalid" clear; the saved state is lost then.
        _ if exit as u32 == u32::MAX => {
            vcpu.machine.refuse(vcpu.number, "guest state that VMRUN does not accept");
        }
        _ => {
            let what = format!("exit {exit:#x} ({}) that nobody asked for", exit::name(exit));
            vcpu.machine.finish(End::Broken { what });
        }
    }
}

/// Address after the instruction at RIP; `None` (with the consequence drawn) if it cannot be read.
fn next(vcpu: &mut Vcpu<'_>) -> Option<u64> {
    let Fetched { instruction, .. } = mmio::fetch(vcpu)?;
    Some(mmio::wrap(vcpu, instruction.next_ip()))
}

fn nested_fault(vcpu: &mut Vcpu<'_>) {
    let (info, gpa) = (vcpu.vmcb.exit_info1, vcpu.vmcb.exit_info2);
    // A present entry with a reserved bit may be one of the library's for addresses without
    // memory, so the bit of the error code decides nothing.
    let access = match (info & FETCH != 0, info & WRITE != 0) {
        (true, _) => Access::EXEC,
        (false, true) => Access::WRITE,
        (false, false) => Access::READ,
    };
    match vcpu.machine.nested.fault(&mut vcpu.nested, gpa, access) {
        Answer::Mapped => {
            vcpu.repetition.broken();
            alarm::mapped(vcpu, gpa);
        }
        Answer::Again => {
            if vcpu.repetition.again(gpa) {
                let what = format!("nested fault at {gpa:#x} ({info:#x}) repeats for ever");
                vcpu.machine.finish(End::Broken { what });
            }
        }
        Answer::Device => {
            vcpu.repetition.broken();
            device(vcpu, gpa, info);
        }
        Answer::End(end) => vcpu.machine.finish(end),
    }
}

/// An access of what is not plain memory.
fn device(vcpu: &mut Vcpu<'_>, gpa: u64, info: u64) {
    if vcpu.delivering() {
        let event = vcpu.vmcb.exit_int_info & 0xff;
        let what = format!("event {event:#x} delivered by way of {gpa:#x}, where no RAM is");
        vcpu.machine.refuse(vcpu.number, what);
    } else if info & TABLE_WALK != 0 {
        let what = format!("page table at {gpa:#x}, where no RAM is");
        vcpu.machine.refuse(vcpu.number, what);
    } else if info & FETCH != 0 {
        // All ones is no instruction.
        vcpu.inject(UNDEFINED, None);
    } else {
        mmio::carry_out(vcpu);
    }
}

fn cpuid(vcpu: &mut Vcpu<'_>) {
    let Some(next) = next(vcpu) else { return };
    let answer = vcpu.cpuid(vcpu.vmcb.rax as u32, vcpu.general.rcx as u32);
    vcpu.vmcb.rax = u64::from(answer.eax);
    vcpu.general.rbx = u64::from(answer.ebx);
    vcpu.general.rcx = u64::from(answer.ecx);
    vcpu.general.rdx = u64::from(answer.edx);
    vcpu.advance_to(next);
}

fn control_register(vcpu: &mut Vcpu<'_>) {
    let Some(Fetched { instruction, .. }) = mmio::fetch(vcpu) else { return };
    let mut control = vcpu.control();
    let (target, value) = match instruction.mnemonic() {
        Mnemonic::Clts => (Register::CR0, control.cr0 & !(1 << 3)),
        Mnemonic::Lmsw => {
            let Some(word) = mmio::operand(vcpu, &instruction, 0) else { return };
            // The low four bits; PE can be set but not cleared.
            let word = word & 0xf | control.cr0 & 1;
            (Register::CR0, control.cr0 & !0xf | word)
        }
        Mnemonic::Mov if instruction.op0_kind() == OpKind::Register => {
            let Some(value) = mmio::operand(vcpu, &instruction, 1) else { return };
            (instruction.op0_register(), value)
        }
        _ => {
            let what = format!("{:?} writes a control register", instruction.mnemonic());
            vcpu.machine.refuse(vcpu.number, what);
            return;
        }
    };
    let result = match target {
        Register::CR0 => control.set_cr0(value, vcpu.code_segment()),
        Register::CR3 => control.set_cr3(value, &vcpu.features),
        _ => control.set_cr4(value, &vcpu.features),
    };
    if result.is_err() {
        vcpu.inject(PROTECTION, Some(0));
        return;
    }
    vcpu.set_control(control);
    let next = mmio::wrap(vcpu, instruction.next_ip());
    vcpu.advance_to(next);
}

fn xsetbv(vcpu: &mut Vcpu<'_>) {
    let value = vcpu.general.rdx << 32 | vcpu.vmcb.rax & 0xffff_ffff;
    let index = vcpu.general.rcx as u32;
    if vcpu.vmcb.cpl != 0 || check_xcr(index, value, &vcpu.features).is_err() {
        vcpu.inject(PROTECTION, Some(0));
        return;
    }
    let Some(next) = next(vcpu) else { return };
    vcpu.set_xcr0(value);
    vcpu.advance_to(next);
}
