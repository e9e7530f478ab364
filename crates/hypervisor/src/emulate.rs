//! Carrying out one instruction whose memory operand lies where the guest has no plain memory.
//!
//! Known are: moves of general registers with all their extensions, of SSE registers (MOVAPS, MOVUPS,
//! MOVDQA, MOVQ, MOVD and their kin, MOVNTI); ADD, ADC, SUB, SBB, AND, OR, XOR, CMP, TEST, NEG, NOT, INC,
//! DEC, XCHG, XADD, CMPXCHG, IMUL with two or three operands; BT, BTS, BTR and BTC with a constant; PUSH
//! and POP; SETcc and CMOVcc; all string instructions with their prefixes, INS and OUTS among them; and
//! what stores system registers: SMSW, STR, SLDT, SGDT, SIDT, STMXCSR, FNSTCW, FNSTSW. Everything else
//! ends the guest, and the report names it.
//!
//! The decoding is iced-x86's; here the operands are read and written through a [`Bus`]. An
//! instruction that faults or is not carried out leaves the registers as they were, except that a
//! repeated string instruction keeps what its finished elements did, as on a processor.

use crate::alu::{self, Operation, sign_extend, truncate};
use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};

/// Elements of a repeated string instruction done in one go; more need another exit.
const ELEMENTS: u64 = 4096;

/// System registers that instructions can store.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct System {
    /// CR0.
    pub cr0: u64,
    /// Selector of the task register.
    pub tr: u16,
    /// Selector of the local descriptor table.
    pub ldtr: u16,
    /// Limit and base of the global descriptor table.
    pub gdtr: (u16, u64),
    /// Limit and base of the interrupt descriptor table.
    pub idtr: (u16, u64),
}

/// The registers an instruction may use.
pub struct Cpu<'a> {
    /// General registers by their number in encodings: RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8…
    pub general: [u64; 16],
    /// Instruction pointer.
    pub rip: u64,
    /// Flags.
    pub rflags: u64,
    /// Size of code: 16, 32 or 64.
    pub bits: u32,
    /// Bits of a canonical address, 48 or 57; only looked at in 64-bit code.
    pub linear_bits: u32,
    /// Segment bases: ES, CS, SS, DS, FS, GS.
    pub bases: [u64; 6],
    /// x87 and SSE registers as FXSAVE64 stores them.
    pub sse: &'a mut [u8; 512],
    /// What can only be stored.
    pub system: System,
}

/// Why an instruction was not finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// It takes this exception.
    Fault {
        /// Vector.
        vector: u8,
        /// Error code, for those that have one.
        error: Option<u32>,
        /// For page faults, the address.
        cr2: Option<u64>,
    },
    /// Not carried out here.
    Unsupported,
}

const STACK: Stop = Stop::Fault { vector: 12, error: Some(0), cr2: None };
const GENERAL_PROTECTION: Stop = Stop::Fault { vector: 13, error: Some(0), cr2: None };

/// What the instruction sees of the world.
pub trait Bus {
    /// Reads memory at a linear address.
    ///
    /// # Errors
    /// The fault of the access.
    fn read(&mut self, linear: u64, bytes: &mut [u8]) -> Result<(), Stop>;
    /// Writes memory at a linear address.
    ///
    /// # Errors
    /// The fault of the access.
    fn write(&mut self, linear: u64, bytes: &[u8]) -> Result<(), Stop>;
    /// Reads a port, 1, 2 or 4 bytes.
    ///
    /// # Errors
    /// If the port cannot be read here.
    fn port_in(&mut self, port: u16, bytes: u8) -> Result<u32, Stop>;
    /// Writes a port, 1, 2 or 4 bytes.
    ///
    /// # Errors
    /// If the port cannot be written here.
    fn port_out(&mut self, port: u16, value: u32, bytes: u8) -> Result<(), Stop>;
}

/// Decodes the instruction at the start of `code`.
pub fn decode(cpu: &Cpu<'_>, code: &[u8]) -> Option<Instruction> {
    let mut decoder = Decoder::with_ip(cpu.bits, code, cpu.rip, DecoderOptions::NONE);
    let instruction = decoder.decode();
    (!instruction.is_invalid()).then_some(instruction)
}

/// Carries out the instruction whose bytes begin `code`.
///
/// # Errors
/// What kept it from being finished.
pub fn step(cpu: &mut Cpu<'_>, code: &[u8], bus: &mut impl Bus) -> Result<(), Stop> {
    let instruction = decode(cpu, code).ok_or(Stop::Unsupported)?;
    let (general, rflags) = (cpu.general, cpu.rflags);
    let done = if instruction.is_string_instruction() {
        string(cpu, &instruction, bus)
    } else {
        single(cpu, &instruction, bus).map(|()| Finished::Yes).inspect_err(|_| {
            cpu.general = general;
            cpu.rflags = rflags;
        })
    };
    match done? {
        Finished::Yes => {
            let next = instruction.next_ip();
            cpu.rip = if cpu.bits == 64 { next } else { next & 0xffff_ffff };
            // A finished instruction ends the "resume" flag.
            cpu.rflags &= !(1 << 16);
        }
        Finished::No => {}
    }
    Ok(())
}

/// The value of an operand, which is a register, memory or a constant.
///
/// # Errors
/// What kept it from being read.
pub fn operand(
    cpu: &Cpu<'_>,
    instruction: &Instruction,
    operand: u32,
    bus: &mut impl Bus,
) -> Result<u64, Stop> {
    read(cpu, instruction, operand, bus)
}

enum Finished {
    Yes,
    No,
}

impl Cpu<'_> {
    fn address(&self, instruction: &Instruction, operand: u32, bytes: usize) -> Result<u64, Stop> {
        let value = |register: Register, _, _| {
            if register.is_segment_register() {
                return Some(self.bases[register.number()]);
            }
            Some(self.get(register))
        };
        let linear = instruction.virtual_address(operand, 0, value).ok_or(Stop::Unsupported)?;
        if self.bits != 64 {
            return Ok(linear & 0xffff_ffff);
        }
        if self.is_canonical(linear, bytes) { Ok(linear) } else { Err(GENERAL_PROTECTION) }
    }

    /// The linear address of `bytes` of the stack at `pointer`.
    fn stack(&self, pointer: u64, bytes: usize) -> Result<u64, Stop> {
        if self.bits != 64 {
            return Ok(self.bases[2].wrapping_add(pointer) & 0xffff_ffff);
        }
        let linear = self.bases[2].wrapping_add(pointer);
        if self.is_canonical(linear, bytes) { Ok(linear) } else { Err(STACK) }
    }

    /// Whether all of `bytes` from `linear` have a canonical address.
    fn is_canonical(&self, linear: u64, bytes: usize) -> bool {
        let shift = 64 - self.linear_bits;
        let canonical = |address: u64| ((address << shift) as i64 >> shift) as u64 == address;
        canonical(linear) && canonical(linear.wrapping_add(bytes as u64 - 1))
    }

    fn get(&self, register: Register) -> u64 {
        let full = self.general[register.full_register().number()];
        match register {
            Register::AH | Register::CH | Register::DH | Register::BH => full >> 8 & 0xff,
            _ => truncate(full, register.size()),
        }
    }

    fn set(&mut self, register: Register, value: u64) {
        let full = &mut self.general[register.full_register().number()];
        *full = match (register, register.size()) {
            (Register::AH | Register::CH | Register::DH | Register::BH, _) => {
                *full & !0xff00 | (value & 0xff) << 8
            }
            (_, 1) => *full & !0xff | value & 0xff,
            (_, 2) => *full & !0xffff | value & 0xffff,
            (_, 4) => value & 0xffff_ffff,
            _ => value,
        };
    }

    fn xmm(&mut self, register: Register) -> Option<&mut [u8]> {
        let start = 160 + 16 * register.number();
        if register.is_xmm() { self.sse.get_mut(start..start + 16) } else { None }
    }
}

fn is_memory(kind: OpKind) -> bool {
    matches!(
        kind,
        OpKind::Memory
            | OpKind::MemorySegSI
            | OpKind::MemorySegESI
            | OpKind::MemorySegRSI
            | OpKind::MemoryESDI
            | OpKind::MemoryESEDI
            | OpKind::MemoryESRDI
    )
}

/// Bytes of an operand.
fn size(instruction: &Instruction, operand: u32) -> usize {
    match instruction.op_kind(operand) {
        OpKind::Register => instruction.op_register(operand).size(),
        kind if is_memory(kind) => instruction.memory_size().size(),
        _ => 8,
    }
}

fn read(
    cpu: &Cpu<'_>,
    instruction: &Instruction,
    operand: u32,
    bus: &mut impl Bus,
) -> Result<u64, Stop> {
    match instruction.op_kind(operand) {
        OpKind::Register => {
            let register = instruction.op_register(operand);
            if register.is_gpr() { Ok(cpu.get(register)) } else { Err(Stop::Unsupported) }
        }
        kind if is_memory(kind) => {
            let bytes = instruction.memory_size().size();
            let mut value = [0; 8];
            let part = value.get_mut(..bytes).filter(|_| bytes > 0).ok_or(Stop::Unsupported)?;
            bus.read(cpu.address(instruction, operand, bytes)?, part)?;
            Ok(u64::from_le_bytes(value))
        }
        _ => instruction.try_immediate(operand).map_err(|_| Stop::Unsupported),
    }
}

fn write(
    cpu: &mut Cpu<'_>,
    instruction: &Instruction,
    operand: u32,
    value: u64,
    bus: &mut impl Bus,
) -> Result<(), Stop> {
    match instruction.op_kind(operand) {
        OpKind::Register => {
            let register = instruction.op_register(operand);
            if !register.is_gpr() {
                return Err(Stop::Unsupported);
            }
            cpu.set(register, value);
            Ok(())
        }
        kind if is_memory(kind) => {
            let bytes = instruction.memory_size().size();
            let address = cpu.address(instruction, operand, bytes)?;
            bus.write(address, value.to_le_bytes().get(..bytes).ok_or(Stop::Unsupported)?)
        }
        _ => Err(Stop::Unsupported),
    }
}

fn single(cpu: &mut Cpu<'_>, ins: &Instruction, bus: &mut impl Bus) -> Result<(), Stop> {
    let bytes = size(ins, 0);
    let combine = |operation| Some(operation);
    let operation = match ins.mnemonic() {
        Mnemonic::Add | Mnemonic::Xadd => combine(Operation::Add),
        Mnemonic::Adc => combine(Operation::Adc),
        Mnemonic::Sub | Mnemonic::Cmp | Mnemonic::Neg => combine(Operation::Sub),
        Mnemonic::Sbb => combine(Operation::Sbb),
        Mnemonic::And | Mnemonic::Test => combine(Operation::And),
        Mnemonic::Or => combine(Operation::Or),
        Mnemonic::Xor => combine(Operation::Xor),
        _ => None,
    };
    match ins.mnemonic() {
        Mnemonic::Mov | Mnemonic::Movnti => {
            let value = read(cpu, ins, 1, bus)?;
            write(cpu, ins, 0, value, bus)
        }
        Mnemonic::Movzx => {
            let value = read(cpu, ins, 1, bus)?;
            write(cpu, ins, 0, value, bus)
        }
        Mnemonic::Movsx | Mnemonic::Movsxd => {
            let value = sign_extend(read(cpu, ins, 1, bus)?, size(ins, 1));
            write(cpu, ins, 0, value, bus)
        }
        Mnemonic::Cmp | Mnemonic::Test => {
            let (a, b) = (read(cpu, ins, 0, bus)?, read(cpu, ins, 1, bus)?);
            let operation = operation.ok_or(Stop::Unsupported)?;
            cpu.rflags = alu::combine(operation, a, b, bytes, cpu.rflags).1;
            Ok(())
        }
        Mnemonic::Neg => {
            let a = read(cpu, ins, 0, bus)?;
            let (result, flags) = alu::combine(Operation::Sub, 0, a, bytes, cpu.rflags);
            write(cpu, ins, 0, result, bus)?;
            cpu.rflags = flags;
            Ok(())
        }
        Mnemonic::Not => {
            let a = read(cpu, ins, 0, bus)?;
            write(cpu, ins, 0, !a, bus)
        }
        Mnemonic::Inc | Mnemonic::Dec => {
            let inc = ins.mnemonic() == Mnemonic::Inc;
            let operation = if inc { Operation::Add } else { Operation::Sub };
            let a = read(cpu, ins, 0, bus)?;
            let (result, flags) = alu::count(operation, a, bytes, cpu.rflags);
            write(cpu, ins, 0, result, bus)?;
            cpu.rflags = flags;
            Ok(())
        }
        Mnemonic::Xchg => {
            let (a, b) = (read(cpu, ins, 0, bus)?, read(cpu, ins, 1, bus)?);
            write(cpu, ins, 0, b, bus)?;
            write(cpu, ins, 1, a, bus)
        }
        Mnemonic::Xadd => {
            let (a, b) = (read(cpu, ins, 0, bus)?, read(cpu, ins, 1, bus)?);
            let (result, flags) = alu::combine(Operation::Add, a, b, bytes, cpu.rflags);
            write(cpu, ins, 1, a, bus)?;
            write(cpu, ins, 0, result, bus)?;
            cpu.rflags = flags;
            Ok(())
        }
        Mnemonic::Cmpxchg => {
            let (a, b) = (read(cpu, ins, 0, bus)?, read(cpu, ins, 1, bus)?);
            let accumulator = match bytes {
                1 => Register::AL,
                2 => Register::AX,
                4 => Register::EAX,
                _ => Register::RAX,
            };
            let expected = cpu.get(accumulator);
            let (_, flags) = alu::combine(Operation::Sub, expected, a, bytes, cpu.rflags);
            if flags & alu::ZF != 0 {
                write(cpu, ins, 0, b, bus)?;
            } else {
                // The write of the old value happens all the same (APM vol. 3, CMPXCHG).
                write(cpu, ins, 0, a, bus)?;
                cpu.set(accumulator, a);
            }
            cpu.rflags = flags;
            Ok(())
        }
        Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc
            if ins.op_kind(1) != OpKind::Register =>
        {
            let a = read(cpu, ins, 0, bus)?;
            let bit = 1_u64 << (read(cpu, ins, 1, bus)? % (bytes as u64 * 8));
            match ins.mnemonic() {
                Mnemonic::Bts => write(cpu, ins, 0, a | bit, bus)?,
                Mnemonic::Btr => write(cpu, ins, 0, a & !bit, bus)?,
                Mnemonic::Btc => write(cpu, ins, 0, a ^ bit, bus)?,
                _ => {}
            }
            cpu.rflags = cpu.rflags & !alu::CF | u64::from(a & bit != 0);
            Ok(())
        }
        Mnemonic::Push if is_memory(ins.op_kind(0)) => {
            let value = read(cpu, ins, 0, bus)?;
            let top = cpu.general[4].wrapping_sub(bytes as u64);
            let top = if cpu.bits == 64 { top } else { truncate(top, 4) };
            let linear = cpu.stack(top, bytes)?;
            bus.write(linear, value.to_le_bytes().get(..bytes).ok_or(Stop::Unsupported)?)?;
            cpu.general[4] = top;
            Ok(())
        }
        Mnemonic::Pop if is_memory(ins.op_kind(0)) => {
            let mut value = [0; 8];
            let linear = cpu.stack(cpu.general[4], bytes)?;
            bus.read(linear, value.get_mut(..bytes).ok_or(Stop::Unsupported)?)?;
            let top = cpu.general[4].wrapping_add(bytes as u64);
            cpu.general[4] = if cpu.bits == 64 { top } else { truncate(top, 4) };
            write(cpu, ins, 0, u64::from_le_bytes(value), bus)
        }
        Mnemonic::Imul if ins.op_count() >= 2 => {
            let (first, second) = if ins.op_count() == 2 { (0, 1) } else { (1, 2) };
            let wide = |value| i128::from(sign_extend(value, bytes) as i64);
            let product = wide(read(cpu, ins, first, bus)?) * wide(read(cpu, ins, second, bus)?);
            let result = truncate(product as u64, bytes);
            write(cpu, ins, 0, result, bus)?;
            let overflow = if wide(result) == product { 0 } else { alu::CF | alu::OF };
            cpu.rflags = cpu.rflags & !(alu::CF | alu::OF) | overflow;
            Ok(())
        }
        Mnemonic::Smsw if is_memory(ins.op_kind(0)) => {
            let word = cpu.system.cr0;
            write(cpu, ins, 0, word & 0xffff, bus)
        }
        Mnemonic::Str if is_memory(ins.op_kind(0)) => {
            let selector = u64::from(cpu.system.tr);
            write(cpu, ins, 0, selector, bus)
        }
        Mnemonic::Sldt if is_memory(ins.op_kind(0)) => {
            let selector = u64::from(cpu.system.ldtr);
            write(cpu, ins, 0, selector, bus)
        }
        Mnemonic::Sgdt | Mnemonic::Sidt => {
            let is_global = ins.mnemonic() == Mnemonic::Sgdt;
            let (limit, base) = if is_global { cpu.system.gdtr } else { cpu.system.idtr };
            let mut pointer = [0; 10];
            pointer[..2].copy_from_slice(&limit.to_le_bytes());
            pointer[2..].copy_from_slice(&base.to_le_bytes());
            let bytes = if cpu.bits == 64 { 10 } else { 6 };
            bus.write(cpu.address(ins, 0, bytes)?, &pointer[..bytes])
        }
        Mnemonic::Stmxcsr => {
            let word = [24, 25, 26, 27].map(|n| cpu.sse[n]);
            bus.write(cpu.address(ins, 0, 4)?, &word)
        }
        Mnemonic::Fnstcw | Mnemonic::Fnstsw if is_memory(ins.op_kind(0)) => {
            let at = if ins.mnemonic() == Mnemonic::Fnstcw { 0 } else { 2 };
            let word = [cpu.sse[at], cpu.sse[at + 1]];
            bus.write(cpu.address(ins, 0, 2)?, &word)
        }
        _ if operation.is_some() => {
            let (a, b) = (read(cpu, ins, 0, bus)?, read(cpu, ins, 1, bus)?);
            let operation = operation.ok_or(Stop::Unsupported)?;
            let (result, flags) = alu::combine(operation, a, b, bytes, cpu.rflags);
            write(cpu, ins, 0, result, bus)?;
            cpu.rflags = flags;
            Ok(())
        }
        _ if ins.condition_code() as u8 != 0 && ins.op_count() > 0 => conditional(cpu, ins, bus),
        _ => vector(cpu, ins, bus),
    }
}

/// SETcc and CMOVcc.
fn conditional(cpu: &mut Cpu<'_>, ins: &Instruction, bus: &mut impl Bus) -> Result<(), Stop> {
    // iced counts the conditions from 1 in the order of their opcodes.
    let holds = alu::condition(ins.condition_code() as u8 - 1, cpu.rflags);
    if ins.op_count() == 1 && size(ins, 0) == 1 {
        return write(cpu, ins, 0, u64::from(holds), bus);
    }
    if ins.op_count() == 2 {
        // The operand is read, and a 32-bit destination extended, either way.
        let (old, new) = (read(cpu, ins, 0, bus)?, read(cpu, ins, 1, bus)?);
        return write(cpu, ins, 0, if holds { new } else { old }, bus);
    }
    Err(Stop::Unsupported)
}

/// Loads and stores of SSE registers.
fn vector(cpu: &mut Cpu<'_>, ins: &Instruction, bus: &mut impl Bus) -> Result<(), Stop> {
    let bytes = match ins.mnemonic() {
        Mnemonic::Movaps | Mnemonic::Movapd | Mnemonic::Movups | Mnemonic::Movupd => 16,
        Mnemonic::Movdqa | Mnemonic::Movdqu | Mnemonic::Movntps | Mnemonic::Movntdq => 16,
        Mnemonic::Movq | Mnemonic::Movsd => 8,
        Mnemonic::Movd | Mnemonic::Movss => 4,
        _ => return Err(Stop::Unsupported),
    };
    let mut value = [0; 16];
    if is_memory(ins.op_kind(1)) {
        let address = cpu.address(ins, 1, bytes)?;
        bus.read(address, &mut value[..bytes])?;
        // A load from memory clears the rest of the register.
        cpu.xmm(ins.op_register(0)).ok_or(Stop::Unsupported)?.copy_from_slice(&value);
        Ok(())
    } else if is_memory(ins.op_kind(0)) {
        value.copy_from_slice(cpu.xmm(ins.op_register(1)).ok_or(Stop::Unsupported)?);
        bus.write(cpu.address(ins, 0, bytes)?, &value[..bytes])
    } else {
        Err(Stop::Unsupported)
    }
}

/// A string instruction, with or without a repeat prefix.
fn string(cpu: &mut Cpu<'_>, ins: &Instruction, bus: &mut impl Bus) -> Result<Finished, Stop> {
    let kinds = [ins.op_kind(0), ins.op_kind(1)];
    let width = if kinds.iter().any(|k| matches!(k, OpKind::MemorySegRSI | OpKind::MemoryESRDI)) {
        8
    } else if kinds.iter().any(|k| matches!(k, OpKind::MemorySegESI | OpKind::MemoryESEDI)) {
        4
    } else {
        2
    };
    let repeated = ins.has_rep_prefix() || ins.has_repne_prefix();
    let bytes = ins.memory_size().size();
    let step = if cpu.rflags >> 10 & 1 == 1 { (bytes as u64).wrapping_neg() } else { bytes as u64 };
    for _ in 0..ELEMENTS {
        if repeated && truncate(cpu.general[1], width) == 0 {
            return Ok(Finished::Yes);
        }
        let compares = element(cpu, ins, bytes, bus)?;
        for (kind, register) in kinds.into_iter().filter_map(moved) {
            let _ = kind;
            advance(cpu, register, step, width);
        }
        if !repeated {
            return Ok(Finished::Yes);
        }
        advance(cpu, 1, 1_u64.wrapping_neg(), width);
        if compares {
            let equal = cpu.rflags & alu::ZF != 0;
            if equal != ins.has_repe_prefix() {
                return Ok(Finished::Yes);
            }
        }
    }
    if truncate(cpu.general[1], width) == 0 { Ok(Finished::Yes) } else { Ok(Finished::No) }
}

/// The register that moves along with a string operand.
fn moved(kind: OpKind) -> Option<(OpKind, usize)> {
    match kind {
        OpKind::MemorySegSI | OpKind::MemorySegESI | OpKind::MemorySegRSI => Some((kind, 6)),
        OpKind::MemoryESDI | OpKind::MemoryESEDI | OpKind::MemoryESRDI => Some((kind, 7)),
        _ => None,
    }
}

fn advance(cpu: &mut Cpu<'_>, register: usize, by: u64, width: usize) {
    let full = cpu.general[register];
    let sum = truncate(full.wrapping_add(by), width);
    cpu.general[register] = if width == 2 { full & !0xffff | sum } else { sum };
}

/// One element. True if it compared, so that a repeat prefix looks at the zero flag.
fn element(
    cpu: &mut Cpu<'_>,
    ins: &Instruction,
    bytes: usize,
    bus: &mut impl Bus,
) -> Result<bool, Stop> {
    match ins.mnemonic() {
        Mnemonic::Movsb
        | Mnemonic::Movsw
        | Mnemonic::Movsd
        | Mnemonic::Movsq
        | Mnemonic::Stosb
        | Mnemonic::Stosw
        | Mnemonic::Stosd
        | Mnemonic::Stosq
        | Mnemonic::Lodsb
        | Mnemonic::Lodsw
        | Mnemonic::Lodsd
        | Mnemonic::Lodsq => {
            let value = read(cpu, ins, 1, bus)?;
            write(cpu, ins, 0, value, bus)?;
            Ok(false)
        }
        Mnemonic::Scasb
        | Mnemonic::Scasw
        | Mnemonic::Scasd
        | Mnemonic::Scasq
        | Mnemonic::Cmpsb
        | Mnemonic::Cmpsw
        | Mnemonic::Cmpsd
        | Mnemonic::Cmpsq => {
            let (a, b) = (read(cpu, ins, 0, bus)?, read(cpu, ins, 1, bus)?);
            cpu.rflags = alu::combine(Operation::Sub, a, b, bytes, cpu.rflags).1;
            Ok(true)
        }
        Mnemonic::Insb | Mnemonic::Insw | Mnemonic::Insd => {
            let value = bus.port_in(cpu.general[2] as u16, bytes as u8)?;
            write(cpu, ins, 0, u64::from(value), bus)?;
            Ok(false)
        }
        Mnemonic::Outsb | Mnemonic::Outsw | Mnemonic::Outsd => {
            let value = read(cpu, ins, 1, bus)? as u32;
            bus.port_out(cpu.general[2] as u16, value, bytes as u8)?;
            Ok(false)
        }
        _ => Err(Stop::Unsupported),
    }
}

#[cfg(test)]
mod tests;
