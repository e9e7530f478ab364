//! Ports the guest reaches through the hypervisor.

use super::machine::Machine;
use super::vcpu::Vcpu;
use super::{mmio, ports};
use core::sync::atomic::Ordering;
use hypervisor::closed::Place;
use hypervisor::policy::{self, Port, Trapped};
use hypervisor::wire::End;

/// ACPI: the processor's events are routed (SCI_EN).
const SCI_ENABLED: u32 = 1;
/// ACPI: go to sleep.
const SLEEP_ENABLE: u32 = 1 << 13;

/// A port exit (AMD64 APM vol. 2, section 15.10.2).
pub fn handle(vcpu: &mut Vcpu<'_>) {
    let info = vcpu.vmcb.exit_info1;
    if info & 1 << 2 != 0 {
        mmio::carry_out(vcpu);
        return;
    }
    let port = (info >> 16) as u16;
    let bytes = (info >> 4 & 7) as u8;
    let mask = u32::MAX >> (32 - 8 * u32::from(bytes.clamp(1, 4)));
    if info & 1 == 1 {
        let value = read(vcpu.machine, port, bytes);
        let rax = vcpu.vmcb.rax;
        // 32-bit results clear the upper half, shorter ones keep what is above them.
        let kept = if bytes == 4 { 0 } else { rax & !u64::from(mask) };
        vcpu.vmcb.rax = kept | u64::from(value & mask);
    } else {
        write(vcpu.machine, port, vcpu.vmcb.rax as u32 & mask, bytes);
    }
    let next = vcpu.vmcb.exit_info2;
    vcpu.advance_to(next);
}

/// Reads a port for the guest.
pub fn read(machine: &Machine<'_>, port: u16, bytes: u8) -> u32 {
    let pm_enable = || machine.pm_enable.load(Ordering::Relaxed);
    match policy::port(port) {
        Port::Through | Port::ReadOnly if whole(port, bytes) => {
            // SAFETY: the list opens only what the guest may read.
            unsafe { ports::read(port, bytes) }
        }
        Port::Trapped(Trapped::PmEvent) => match port {
            0x600 => pm_enable() << 16,
            0x602 => pm_enable(),
            _ => 0,
        },
        Port::Trapped(Trapped::PmControl) => SCI_ENABLED,
        // What the console of QEMU and Bochs answers: guests look for it.
        Port::Trapped(Trapped::Console) => 0xe9,
        Port::Trapped(Trapped::SystemControl | Trapped::ResetControl) => 0,
        _ => {
            machine.closed.add(Place::Port(port));
            u32::MAX
        }
    }
}

/// Writes a port for the guest.
pub fn write(machine: &Machine<'_>, port: u16, value: u32, bytes: u8) {
    match policy::port(port) {
        Port::Through if whole(port, bytes) => {
            for byte in 0..bytes {
                // SAFETY: the list opens only what the guest may write. These devices take bytes.
                unsafe { ports::out8(port + u16::from(byte), (value >> (8 * byte)) as u8) };
            }
        }
        Port::Trapped(Trapped::ExitCode) if port == 0xf4 => {
            machine.finish(End::Exit { code: value });
        }
        Port::Trapped(Trapped::PmControl) if port == 0x604 && bytes > 1 => {
            if value & SLEEP_ENABLE != 0 {
                machine.finish(End::PowerOff);
            }
        }
        Port::Trapped(Trapped::PmEvent) => match (port, bytes) {
            (0x600, 4) => machine.pm_enable.store(value >> 16, Ordering::Relaxed),
            (0x602, _) => machine.pm_enable.store(value, Ordering::Relaxed),
            _ => {}
        },
        Port::Trapped(Trapped::Console) => console(machine, value as u8),
        Port::Trapped(Trapped::Keyboard) if value & 0xff == 0xfe => machine.finish(End::Reset),
        Port::Trapped(Trapped::ResetControl) if value & 4 != 0 => machine.finish(End::Reset),
        Port::Trapped(Trapped::SystemControl) if value & 1 != 0 => machine.finish(End::Reset),
        _ => machine.closed.add(Place::Port(port)),
    }
}

/// Whether every byte of the access falls under the same rule.
fn whole(port: u16, bytes: u8) -> bool {
    let rule = policy::port(port);
    (0..u16::from(bytes)).all(|byte| policy::port(port.wrapping_add(byte)) == rule)
}

/// One byte of the debug console, to COM1.
fn console(machine: &Machine<'_>, byte: u8) {
    let _turn = machine.console.lock();
    // SAFETY: COM1 is the guest's. Its divisor latch is put out of the way for the one write, as
    // the guest may have left it open.
    unsafe {
        let line = ports::in8(0x3fb);
        if line & 0x80 != 0 {
            ports::out8(0x3fb, line & 0x7f);
        }
        for _ in 0..100_000 {
            if ports::in8(0x3fd) & 0x20 != 0 {
                break;
            }
        }
        ports::out8(0x3f8, byte);
        if line & 0x80 != 0 {
            ports::out8(0x3fb, line);
        }
    }
}
