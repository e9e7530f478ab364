//! Instructions the hypervisor carries out: fetching them, and what they see of the world.

use super::machine::Machine;
use super::nested::Handle;
use super::svm::{Fpu, General};
use super::vcpu::Vcpu;
use super::vmcb::Segment;
use super::{apic, io};
use alloc::format;
use core::sync::atomic::Ordering;
use hypervisor::apic::Write;
use hypervisor::closed::Place;
use hypervisor::emulate::{self, Bus, Cpu, Stop, System};
use hypervisor::guest_walk::{self, Access, Fault, Paging, Tables};
use hypervisor::policy;
use hypervisor::pool::FRAME;
use hypervisor::registers::cr4;
use hypervisor::wire::CpuState;
use iced_x86::{Decoder, DecoderOptions, Instruction};
use vmmu::AccessError;

/// An instruction and the bytes it was decoded from.
pub struct Fetched {
    /// Decoded.
    pub instruction: Instruction,
    code: [u8; 15],
    length: usize,
}

/// Guest memory, by way of the library.
struct Memory<'v, 'm> {
    machine: &'m Machine<'m>,
    handle: &'v mut Handle<'m>,
    has_apic: bool,
}

impl Memory<'_, '_> {
    /// The library would read and write this page like memory.
    fn is_local_apic(&self, gpa: u64) -> bool {
        self.has_apic && gpa & !(FRAME - 1) == policy::LOCAL_APIC
    }

    fn read(&mut self, gpa: u64, bytes: &mut [u8]) -> Result<(), AccessError> {
        self.machine.nested.read(self.handle, gpa, bytes)
    }

    fn write(&mut self, gpa: u64, bytes: &[u8]) -> Result<(), AccessError> {
        self.machine.nested.write(self.handle, gpa, bytes)
    }
}

impl Tables for Memory<'_, '_> {
    fn entry(&mut self, gpa: u64, bytes: u8) -> Option<u64> {
        if self.is_local_apic(gpa) {
            return None;
        }
        let mut entry = [0; 8];
        self.read(gpa, entry.get_mut(..usize::from(bytes))?).ok()?;
        Some(u64::from_le_bytes(entry))
    }

    fn set(&mut self, gpa: u64, bits: u32) {
        self.machine.nested.set_bits(self.handle, gpa, bits);
    }
}

/// An instruction pointer within the limits of the code's size.
pub fn wrap(vcpu: &Vcpu<'_>, rip: u64) -> u64 {
    if vcpu.bits() == 64 { rip } else { rip & 0xffff_ffff }
}

/// The registers, and the bytes at RIP as far as they can be read.
pub fn state(vcpu: &mut Vcpu<'_>) -> CpuState {
    let (code, length) = bytes(vcpu);
    let vmcb = &vcpu.vmcb;
    CpuState {
        general: registers(vcpu),
        rflags: vmcb.rflags,
        control: [vmcb.cr0, vmcb.cr2, vmcb.cr3, vmcb.cr4],
        efer: vcpu.control().efer,
        cs: vmcb.cs.selector,
        bits: vcpu.bits(),
        event: vmcb.exit_int_info,
        code: code[..length].to_vec(),
    }
}

/// The byte at RIP, if it can be read.
pub fn first_byte(vcpu: &mut Vcpu<'_>) -> Option<u8> {
    let (code, length) = bytes(vcpu);
    code[..length].first().copied()
}

/// The bytes at RIP, and how many can be read.
fn bytes(vcpu: &mut Vcpu<'_>) -> ([u8; 15], usize) {
    let base = if vcpu.bits() == 64 { 0 } else { vcpu.vmcb.cs.base };
    let start = base.wrapping_add(vcpu.vmcb.rip);
    let mut code = [0; 15];
    let mut length = 0;
    let paging = vcpu.paging();
    let mut memory =
        Memory { machine: vcpu.machine, handle: &mut vcpu.nested, has_apic: vcpu.has_apic };
    while length < code.len() {
        let linear = start.wrapping_add(length as u64);
        let here = (code.len() - length).min((FRAME - linear % FRAME) as usize);
        let Ok(gpa) = guest_walk::translate(&paging, linear, Access::Fetch, &mut memory) else {
            break;
        };
        if memory.is_local_apic(gpa) || memory.read(gpa, &mut code[length..length + here]).is_err()
        {
            break;
        }
        length += here;
    }
    (code, length)
}

/// The instruction at RIP. If it cannot be had, the consequence is drawn: an exception for the
/// guest, or its end.
pub fn fetch(vcpu: &mut Vcpu<'_>) -> Option<Fetched> {
    let (code, length) = bytes(vcpu);
    let mut decoder =
        Decoder::with_ip(vcpu.bits(), &code[..length], vcpu.vmcb.rip, DecoderOptions::NONE);
    let instruction = decoder.decode();
    if instruction.is_invalid() {
        let what = format!(
            "instruction at {:#x} cannot be read or decoded: {:x?}",
            vcpu.vmcb.rip,
            &code[..length]
        );
        vcpu.machine.refuse(vcpu.number, what);
        return None;
    }
    Some(Fetched { instruction, code, length })
}

/// The value of a register or memory operand, for instructions that write control registers.
/// `None` with the consequence drawn.
pub fn operand(vcpu: &mut Vcpu<'_>, instruction: &Instruction, operand: u32) -> Option<u64> {
    let mut fpu = Fpu(vcpu.fpu.0);
    let cpu = cpu(vcpu, &mut fpu);
    let result = emulate::operand(&cpu, instruction, operand, &mut world(vcpu));
    result.map_err(|stop| stopped(vcpu, stop, instruction)).ok()
}

/// General registers in the order of their encodings.
fn registers(vcpu: &Vcpu<'_>) -> [u64; 16] {
    let General { rbx, rcx, rdx, rsi, rdi, rbp, r8, r9, r10, r11, r12, r13, r14, r15 } =
        vcpu.general;
    let (rax, rsp) = (vcpu.vmcb.rax, vcpu.vmcb.rsp);
    [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15]
}

/// Carries out the instruction at RIP.
pub fn carry_out(vcpu: &mut Vcpu<'_>) {
    let Some(Fetched { code, length, instruction }) = fetch(vcpu) else { return };
    let mut fpu = Fpu(vcpu.fpu.0);
    let mut cpu = cpu(vcpu, &mut fpu);
    let result = emulate::step(&mut cpu, &code[..length], &mut world(vcpu));
    let [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15] =
        cpu.general;
    let (rip, rflags) = (cpu.rip, cpu.rflags);
    vcpu.general = General { rbx, rcx, rdx, rsi, rdi, rbp, r8, r9, r10, r11, r12, r13, r14, r15 };
    vcpu.vmcb.rax = rax;
    vcpu.vmcb.rsp = rsp;
    vcpu.vmcb.rflags = rflags;
    vcpu.fpu.0 = fpu.0;
    match result {
        Ok(()) if rip != vcpu.vmcb.rip => vcpu.advance_to(rip),
        Ok(()) => {}
        Err(stop) => stopped(vcpu, stop, &instruction),
    }
}

/// Draws the consequence of an instruction that was not finished.
fn stopped(vcpu: &mut Vcpu<'_>, stop: Stop, instruction: &Instruction) {
    match stop {
        Stop::Fault { vector, error, cr2 } => {
            if let Some(address) = cr2 {
                vcpu.vmcb.cr2 = address;
            }
            vcpu.inject(vector, error);
        }
        Stop::Unsupported => {
            let what = format!(
                "{:?} at {:#x} on an address without RAM",
                instruction.mnemonic(),
                vcpu.vmcb.rip
            );
            vcpu.machine.refuse(vcpu.number, what);
        }
    }
}

/// The registers as an instruction sees them.
fn cpu<'f>(vcpu: &Vcpu<'_>, fpu: &'f mut Fpu) -> Cpu<'f> {
    let vmcb = &vcpu.vmcb;
    let long = vcpu.bits() == 64;
    let flat = |base| if long { 0 } else { base };
    let table = |segment: &Segment| (segment.limit as u16, segment.base);
    Cpu {
        general: registers(vcpu),
        rip: vmcb.rip,
        rflags: vmcb.rflags,
        bits: vcpu.bits(),
        linear_bits: if vmcb.cr4 & cr4::LA57 != 0 { 57 } else { 48 },
        bases: [
            flat(vmcb.es.base),
            flat(vmcb.cs.base),
            flat(vmcb.ss.base),
            flat(vmcb.ds.base),
            vmcb.fs.base,
            vmcb.gs.base,
        ],
        sse: &mut fpu.0,
        system: System {
            cr0: vmcb.cr0,
            tr: vmcb.tr.selector,
            ldtr: vmcb.ldtr.selector,
            gdtr: table(&vmcb.gdtr),
            idtr: table(&vmcb.idtr),
        },
    }
}

/// What it sees of the world.
fn world<'v, 'm>(vcpu: &'v mut Vcpu<'m>) -> World<'v, 'm> {
    let paging = vcpu.paging();
    let memory =
        Memory { machine: vcpu.machine, handle: &mut vcpu.nested, has_apic: vcpu.has_apic };
    World { machine: vcpu.machine, number: vcpu.number, paging, memory }
}

/// Memory and ports as an instruction of the guest sees them.
struct World<'v, 'm> {
    machine: &'m Machine<'m>,
    number: usize,
    paging: Paging,
    memory: Memory<'v, 'm>,
}

impl World<'_, '_> {
    fn translate(&mut self, linear: u64, access: Access) -> Result<u64, Stop> {
        let walked = guest_walk::translate(&self.paging, linear, access, &mut self.memory);
        walked.map_err(|fault| match fault {
            Fault::Page(error) => Stop::Fault { vector: 14, error: Some(error), cr2: Some(linear) },
            Fault::Table { .. } => Stop::Unsupported,
        })
    }

    /// The physical pieces of a linear range, at most two pages.
    fn pieces(
        &mut self,
        linear: u64,
        length: usize,
        access: Access,
    ) -> Result<[(u64, usize); 2], Stop> {
        let first = length.min((FRAME - linear % FRAME) as usize);
        let mut pieces = [(self.translate(linear, access)?, first), (0, 0)];
        if first < length {
            let next = linear.wrapping_add(first as u64);
            pieces[1] = (self.translate(next, access)?, length - first);
        }
        Ok(pieces)
    }
}

impl Bus for World<'_, '_> {
    fn read(&mut self, linear: u64, bytes: &mut [u8]) -> Result<(), Stop> {
        let mut rest = bytes;
        for (gpa, length) in self.pieces(linear, rest.len(), Access::Read)? {
            let (part, after) = rest.split_at_mut(length);
            rest = after;
            if length == 0 || !self.memory.is_local_apic(gpa) && self.memory.read(gpa, part).is_ok()
            {
                continue;
            }
            part.fill(0xff);
            let offset = gpa.wrapping_sub(policy::LOCAL_APIC);
            if self.memory.has_apic && offset < FRAME && offset.is_multiple_of(16) && length == 4 {
                part.copy_from_slice(&apic::read(offset as u16).to_le_bytes());
            } else {
                self.machine.closed.add(Place::Address(gpa));
            }
        }
        Ok(())
    }

    fn write(&mut self, linear: u64, bytes: &[u8]) -> Result<(), Stop> {
        let mut rest = bytes;
        for (gpa, length) in self.pieces(linear, bytes.len(), Access::Write)? {
            let (part, after) = rest.split_at(length);
            rest = after;
            if length == 0
                || !self.memory.is_local_apic(gpa) && self.memory.write(gpa, part).is_ok()
            {
                continue;
            }
            let offset = gpa.wrapping_sub(policy::LOCAL_APIC);
            match <[u8; 4]>::try_from(part) {
                Ok(word) if self.memory.has_apic && offset < FRAME && offset.is_multiple_of(4) => {
                    write_apic(self.machine, self.number, offset as u16, u32::from_le_bytes(word));
                }
                _ => {
                    self.machine.closed.add(Place::Address(gpa));
                }
            }
        }
        Ok(())
    }

    fn port_in(&mut self, port: u16, bytes: u8) -> Result<u32, Stop> {
        Ok(io::read(self.machine, port, bytes))
    }

    fn port_out(&mut self, port: u16, value: u32, bytes: u8) -> Result<(), Stop> {
        io::write(self.machine, port, value, bytes);
        Ok(())
    }
}

fn write_apic(machine: &Machine<'_>, number: usize, offset: u16, value: u32) {
    let high = apic::read(apic::ICR_HIGH);
    match hypervisor::apic::write(offset, value, high) {
        Write::PassLogical(value) => {
            if let Some(post) = machine.posts.get(number) {
                post.logical.store(value, Ordering::Relaxed);
            }
            // SAFETY: a destination of interrupts, which the hypervisor does not use.
            unsafe { apic::write(offset, value) };
        }
        // SAFETY: `apic::write` of the library lets nothing pass that reaches beyond interrupts
        // of the guest.
        Write::Pass(value) => unsafe { apic::write(offset, value) },
        Write::Drop => {
            machine.closed.add(Place::Address(policy::LOCAL_APIC + u64::from(offset)));
        }
        Write::Signal(signal) => machine.signal(number, signal),
    }
}
