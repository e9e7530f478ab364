//! Model-specific registers the guest reaches through the hypervisor.

use super::mmio::{self, Fetched};
use super::timer;
use super::vcpu::Vcpu;
use hypervisor::policy::{self, Msr, MsrRule};
use hypervisor::registers::{Refused, check_pat};

/// Bit of the APIC base register: the APIC is on.
const APIC_ON: u64 = 1 << 11;
/// Bit of the APIC base register: this is the boot processor.
const BOOT_PROCESSOR: u64 = 1 << 8;

/// A register exit.
pub fn handle(vcpu: &mut Vcpu<'_>) {
    let register = vcpu.general.rcx as u32;
    let result = if vcpu.vmcb.exit_info1 & 1 == 0 {
        read(vcpu, register).map(|value| {
            vcpu.vmcb.rax = value & 0xffff_ffff;
            vcpu.general.rdx = value >> 32;
        })
    } else {
        let value = vcpu.general.rdx << 32 | vcpu.vmcb.rax & 0xffff_ffff;
        write(vcpu, register, value)
    };
    if result.is_err() {
        vcpu.inject(13, Some(0));
        return;
    }
    let Some(Fetched { instruction, .. }) = mmio::fetch(vcpu) else { return };
    let next = mmio::wrap(vcpu, instruction.next_ip());
    vcpu.advance_to(next);
}

fn apic_base(vcpu: &Vcpu<'_>) -> u64 {
    let on = if vcpu.has_apic { APIC_ON } else { 0 };
    let boot = if vcpu.number == 0 { BOOT_PROCESSOR } else { 0 };
    policy::LOCAL_APIC | on | boot
}

fn read(vcpu: &Vcpu<'_>, register: u32) -> Result<u64, Refused> {
    let Msr::Trapped(rule) = policy::msr(register) else { return Err(Refused) };
    match rule {
        MsrRule::Tsc => Ok(vcpu.tsc()),
        MsrRule::Efer => Ok(vcpu.control().efer),
        MsrRule::Pat => Ok(vcpu.vmcb.g_pat),
        MsrRule::ApicBase => Ok(apic_base(vcpu)),
        MsrRule::Mtrr => vcpu.mtrr.read(register).ok_or(Refused),
        MsrRule::Constant(value) => Ok(value),
        MsrRule::Zero => Ok(0),
    }
}

fn write(vcpu: &mut Vcpu<'_>, register: u32, value: u64) -> Result<(), Refused> {
    let Msr::Trapped(rule) = policy::msr(register) else { return Err(Refused) };
    match rule {
        MsrRule::Tsc => {
            vcpu.vmcb.tsc_offset = value.wrapping_sub(timer::now());
            Ok(())
        }
        MsrRule::Efer => {
            let mut control = vcpu.control();
            control.set_efer(value, &vcpu.features)?;
            vcpu.set_control(control);
            Ok(())
        }
        MsrRule::Pat => {
            check_pat(value)?;
            vcpu.vmcb.g_pat = value;
            Ok(())
        }
        // Moving it is not carried out, and x2APIC mode is not offered.
        MsrRule::ApicBase if value & !0xfff == policy::LOCAL_APIC && value & 0x6ff == 0 => {
            vcpu.switch_apic(value & APIC_ON != 0);
            Ok(())
        }
        MsrRule::ApicBase => Err(Refused),
        MsrRule::Mtrr => vcpu.mtrr.write(register, value),
        MsrRule::Constant(_) => Ok(()),
        MsrRule::Zero if value == 0 => Ok(()),
        MsrRule::Zero => Err(Refused),
    }
}
