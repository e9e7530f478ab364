//! One instruction of a guest: any bytes, any registers, and memory that answers as it likes.

use hypervisor::emulate::{Bus, Cpu, Stop, System, decode, step};

use super::Input;

/// Answers from the input, faults where the input says so, and looks at what it is asked.
struct World<'a> {
    input: Input<'a>,
    /// Accesses until one faults.
    patience: u8,
    bits: u32,
    linear_bits: u32,
}

const FAULT: Stop = Stop::Fault { vector: 14, error: Some(0), cr2: Some(0) };

impl World<'_> {
    fn access(&mut self, linear: u64, bytes: usize) -> Result<(), Stop> {
        assert!((1..=16).contains(&bytes), "an access of {bytes} bytes");
        match self.bits {
            64 => {
                let shift = 64 - self.linear_bits;
                let canonical = ((linear << shift) as i64 >> shift) as u64;
                assert_eq!(canonical, linear, "an address that is not canonical");
            }
            _ => assert_eq!(linear >> 32, 0, "an address beyond 4 GiB in {}-bit code", self.bits),
        }
        self.patience = self.patience.checked_sub(1).ok_or(FAULT)?;
        Ok(())
    }

    fn port(&mut self, bytes: u8) -> Result<(), Stop> {
        assert!([1, 2, 4].contains(&bytes), "a port access of {bytes} bytes");
        self.patience = self.patience.checked_sub(1).ok_or(Stop::Unsupported)?;
        Ok(())
    }
}

impl Bus for World<'_> {
    fn read(&mut self, linear: u64, bytes: &mut [u8]) -> Result<(), Stop> {
        self.access(linear, bytes.len())?;
        bytes.fill_with(|| self.input.byte());
        Ok(())
    }

    fn write(&mut self, linear: u64, bytes: &[u8]) -> Result<(), Stop> {
        self.access(linear, bytes.len())
    }

    fn port_in(&mut self, _: u16, bytes: u8) -> Result<u32, Stop> {
        self.port(bytes)?;
        Ok(self.input.word() as u32)
    }

    fn port_out(&mut self, _: u16, _: u32, bytes: u8) -> Result<(), Stop> {
        self.port(bytes)
    }
}

/// Layout: size of code, width of addresses, patience, length of the code and the code, flags, RIP,
/// register values, segment bases, and what memory answers.
pub fn emulate(data: &[u8]) {
    let mut input = Input(data);
    let bits = input.pick(&[16, 32, 64]);
    let linear_bits = input.pick(&[48, 57]);
    let patience = input.byte();
    let length = usize::from(input.byte() % 16);
    let code: Vec<u8> = (0..length).map(|_| input.byte()).collect();
    let rflags = input.word();
    let rip = input.word();
    let general = std::array::from_fn(|_| input.word());
    let bases = std::array::from_fn(|_| input.word());
    let mut sse = [0x5a; 512];
    let system = System { cr0: general[0], ..System::default() };
    let mut cpu = Cpu { general, rip, rflags, bits, linear_bits, bases, sse: &mut sse, system };
    let instruction = decode(&cpu, &code);
    let mut world = World { input, patience, bits, linear_bits };
    let result = step(&mut cpu, &code, &mut world);
    let Some(instruction) = instruction else {
        assert_eq!(result, Err(Stop::Unsupported));
        return;
    };
    match result {
        Ok(()) => {
            let next = instruction.next_ip();
            let next = if bits == 64 { next } else { next & 0xffff_ffff };
            let repeats = instruction.has_rep_prefix() || instruction.has_repne_prefix();
            assert!(cpu.rip == next || repeats && cpu.rip == rip, "{instruction:?}");
        }
        Err(_) => {
            assert_eq!(cpu.rip, rip, "{instruction:?}");
            if !instruction.is_string_instruction() {
                assert_eq!((cpu.general, cpu.rflags), (general, rflags), "{instruction:?}");
                assert!(sse.iter().all(|byte| *byte == 0x5a), "{instruction:?}");
            }
        }
    }
}
