use super::*;
use alloc::{vec, vec::Vec};

/// Memory below `len` bytes is plain; everything above reads ones and forgets writes.
struct Flat {
    memory: Vec<u8>,
    ports: Vec<(u16, u32)>,
    forgotten: usize,
}

impl Bus for Flat {
    fn read(&mut self, linear: u64, bytes: &mut [u8]) -> Result<(), Stop> {
        for (n, byte) in bytes.iter_mut().enumerate() {
            *byte = self.memory.get((linear as usize).wrapping_add(n)).copied().unwrap_or(0xff);
        }
        Ok(())
    }
    fn write(&mut self, linear: u64, bytes: &[u8]) -> Result<(), Stop> {
        if linear >> 32 != 0 {
            return Err(Stop::Fault { vector: 14, error: Some(2), cr2: Some(linear) });
        }
        for (n, byte) in bytes.iter().enumerate() {
            match self.memory.get_mut((linear as usize).wrapping_add(n)) {
                Some(place) => *place = *byte,
                None => self.forgotten += 1,
            }
        }
        Ok(())
    }
    fn port_in(&mut self, port: u16, _: u8) -> Result<u32, Stop> {
        Ok(u32::from(port))
    }
    fn port_out(&mut self, port: u16, value: u32, _: u8) -> Result<(), Stop> {
        self.ports.push((port, value));
        Ok(())
    }
}

fn flat() -> Flat {
    Flat { memory: (0..0x1000).map(|n| n as u8).collect(), ports: vec![], forgotten: 0 }
}

const HOLE: u64 = 0xd000_0000;

fn run(bits: u32, code: &[u8], change: impl FnOnce(&mut Cpu<'_>), bus: &mut Flat) -> Ran {
    let mut sse = [0; 512];
    let mut cpu = Cpu {
        general: [0; 16],
        rip: 0x1_0000,
        rflags: 2,
        bits,
        linear_bits: 48,
        bases: [0; 6],
        sse: &mut sse,
        system: System {
            cr0: 0x8005_0033,
            tr: 0x28,
            ldtr: 0x30,
            gdtr: (0x7f, 0x1234_5678_9abc),
            idtr: (0xfff, 0xffff_8000_0000_1000),
        },
    };
    change(&mut cpu);
    let result = step(&mut cpu, code, bus);
    let (general, rip, rflags) = (cpu.general, cpu.rip, cpu.rflags);
    Ran { result, general, advance: rip - 0x1_0000, rflags, sse }
}

struct Ran {
    result: Result<(), Stop>,
    general: [u64; 16],
    advance: u64,
    rflags: u64,
    sse: [u8; 512],
}

#[test]
fn loads_of_every_size_read_ones() {
    for (code, expected) in [
        (&[0x8b, 0x07][..], 0xffff_ffff), // mov eax, [rdi]
        (&[0x48, 0x8b, 0x07], !0),        // mov rax, [rdi]
        (&[0x66, 0x8b, 0x07], 0xffff),    // mov ax, [rdi]
        (&[0x8a, 0x07], 0xff),            // mov al, [rdi]
        (&[0x8a, 0x27], 0xff00),          // mov ah, [rdi]
        (&[0x0f, 0xb6, 0x07], 0xff),      // movzx eax, byte [rdi]
        (&[0x48, 0x0f, 0xbf, 0x07], !0),  // movsx rax, word [rdi]
        (&[0x48, 0x63, 0x07], !0),        // movsxd rax, dword [rdi]
        (&[0x03, 0x07], 0xffff_ffff),     // add eax, [rdi]
        (&[0x0f, 0x44, 0x07], 0),         // cmovz eax, [rdi], not taken
    ] {
        let mut bus = flat();
        let ran = run(64, code, |cpu| cpu.general[7] = HOLE, &mut bus);
        assert_eq!(ran.result, Ok(()), "{code:x?}");
        assert_eq!(ran.general[0], expected, "{code:x?}");
        assert_eq!(ran.advance, code.len() as u64, "{code:x?}");
    }
}

#[test]
fn stores_are_dropped_and_passed_over() {
    for code in [
        &[0x89, 0x07][..],         // mov [rdi], eax
        &[0xc7, 0x07, 1, 2, 3, 4], // mov dword [rdi], imm
        &[0xc6, 0x07, 1],          // mov byte [rdi], imm
        &[0xf0, 0x01, 0x07],       // lock add [rdi], eax
        &[0xff, 0x07],             // inc dword [rdi]
        &[0xf7, 0x17],             // not dword [rdi]
        &[0x87, 0x07],             // xchg [rdi], eax
        &[0xf0, 0x0f, 0xb1, 0x0f], // lock cmpxchg [rdi], ecx
        &[0x0f, 0xba, 0x2f, 3],    // bts dword [rdi], 3
        &[0x0f, 0x94, 0x07],       // setz [rdi]
        &[0x0f, 0x11, 0x07],       // movups [rdi], xmm0
        &[0xab],                   // stosd
    ] {
        let mut bus = flat();
        let ran = run(64, code, |cpu| cpu.general[7] = HOLE, &mut bus);
        assert_eq!(ran.result, Ok(()), "{code:x?}");
        assert_eq!(ran.advance, code.len() as u64, "{code:x?}");
        assert!(bus.forgotten > 0, "{code:x?}");
        assert_eq!(bus.memory, flat().memory, "{code:x?}");
    }
}

#[test]
fn flags_and_results_of_arithmetic() {
    let mut bus = flat();
    let ran = run(64, &[0x83, 0x3f, 0xff], |cpu| cpu.general[7] = HOLE, &mut bus); // cmp [rdi], -1
    assert_ne!(ran.rflags & alu::ZF, 0);
    let ran = run(
        64,
        &[0x0f, 0xc1, 0x07],
        |cpu| {
            cpu.general[7] = 0x10;
            cpu.general[0] = 1;
        },
        &mut bus,
    ); // xadd [rdi], eax
    assert_eq!(ran.general[0], 0x1312_1110);
    assert_eq!(bus.memory[0x10..0x14], [0x11, 0x11, 0x12, 0x13]);
}

#[test]
fn repeated_moves_cross_from_memory_into_the_hole() {
    let mut bus = flat();
    let ran = run(
        64,
        &[0xf3, 0xa4],
        |cpu| {
            cpu.general[1] = 0x20;
            cpu.general[6] = 0xff0;
            cpu.general[7] = 0x100;
        },
        &mut bus,
    ); // rep movsb, source runs out of memory
    assert_eq!(ran.result, Ok(()));
    assert_eq!((ran.general[1], ran.general[6], ran.general[7]), (0, 0x1010, 0x120));
    assert_eq!(bus.memory[0x10f], 0xff);
    assert_eq!(bus.memory[0x100], 0xf0);
    assert!(bus.memory[0x110..0x120].iter().all(|byte| *byte == 0xff));
}

#[test]
fn a_long_repeat_takes_several_turns() {
    let mut bus = flat();
    let ran = run(
        64,
        &[0xf3, 0xaa],
        |cpu| {
            cpu.general[1] = ELEMENTS + 5;
            cpu.general[7] = HOLE;
        },
        &mut bus,
    ); // rep stosb
    assert_eq!((ran.result, ran.advance, ran.general[1]), (Ok(()), 0, 5));
}

#[test]
fn a_fault_keeps_finished_elements_and_nothing_else() {
    let mut bus = flat();
    let ran = run(
        64,
        &[0xf3, 0xaa],
        |cpu| {
            cpu.general[1] = 8;
            cpu.general[7] = 0xffff_fffc;
        },
        &mut bus,
    );
    assert!(matches!(ran.result, Err(Stop::Fault { vector: 14, cr2: Some(0x1_0000_0000), .. })));
    assert_eq!((ran.general[1], ran.general[7], ran.advance), (4, 0x1_0000_0000, 0));
    let ran = run(
        64,
        &[0x87, 0x07],
        |cpu| {
            cpu.general[7] = 0x1_0000_0000;
            cpu.general[0] = 7;
        },
        &mut bus,
    ); // xchg [rdi], eax
    assert!(ran.result.is_err());
    assert_eq!((ran.general[0], ran.advance), (7, 0));
}

#[test]
fn scans_stop_where_they_should() {
    let mut bus = flat();
    let ran = run(
        64,
        &[0xf2, 0xae],
        |cpu| {
            cpu.general[0] = 0x42;
            cpu.general[1] = 0x100;
        },
        &mut bus,
    ); // repne scasb
    assert_eq!((ran.general[7], ran.general[1]), (0x43, 0x100 - 0x43));
}

#[test]
fn strings_to_ports_come_from_the_hole_too() {
    let mut bus = flat();
    let ran = run(
        64,
        &[0xf3, 0x6e],
        |cpu| {
            cpu.general[1] = 2;
            cpu.general[2] = 0xe9;
            cpu.general[6] = 0xfff;
        },
        &mut bus,
    ); // rep outsb
    assert_eq!(ran.result, Ok(()));
    assert_eq!(bus.ports, [(0xe9, 0xff), (0xe9, 0xff)]);
}

#[test]
fn addresses_that_are_not_canonical_fault() {
    let mut bus = flat();
    let ran = run(64, &[0x8b, 0x07], |cpu| cpu.general[7] = 1 << 47, &mut bus);
    assert_eq!(ran.result, Err(GENERAL_PROTECTION));
}

#[test]
fn sixteen_bit_code_uses_segments() {
    let mut bus = flat();
    let ran = run(
        16,
        &[0x26, 0x8a, 0x04],
        |cpu| {
            cpu.bases[0] = 0x200;
            cpu.general[6] = 0x5_0003;
        },
        &mut bus,
    ); // mov al, es:[si]
    assert_eq!(ran.result, Ok(()));
    assert_eq!(ran.general[0], 0x03);
}

#[test]
fn vector_loads_fill_the_register() {
    let mut bus = flat();
    let ran = run(64, &[0x66, 0x0f, 0x6f, 0x0f], |cpu| cpu.general[7] = 0x20, &mut bus);
    assert_eq!(ran.sse[176..192], bus.memory[0x20..0x30]); // movdqa xmm1, [rdi]
}

#[test]
fn what_is_not_known_is_refused() {
    let mut bus = flat();
    for code in [&[0x0f, 0x01, 0x17][..], &[0xff, 0x27], &[0x0f, 0xae, 0x07], &[0xff, 0xff]] {
        let ran = run(64, code, |cpu| cpu.general[7] = HOLE, &mut bus);
        assert_eq!(ran.result, Err(Stop::Unsupported), "{code:x?}");
    }
}

#[test]
fn any_bytes_end_in_one_of_the_ways() {
    let mut state = 0x1234_5678_u64;
    let mut bus = flat();
    for round in 0..300_000 {
        let mut code = [0; 15];
        for byte in &mut code {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            *byte = (state >> 40) as u8;
        }
        let bits = [16, 32, 64][round % 3];
        let ran = run(bits, &code, |cpu| cpu.general = [state >> 20 & 0xfff; 16], &mut bus);
        if ran.result.is_err() && !matches!(code[0], 0xf2 | 0xf3) {
            assert_eq!(ran.advance, 0);
        }
    }
}

#[test]
fn registers_are_written_as_wide_as_processors_do() {
    for (code, expected) in [
        (&[0x8b, 0x07][..], 0x1312_1110), // mov eax, [rdi]: clears the rest
        (&[0x66, 0x8b, 0x07], 0x5555_5555_5555_1110), // mov ax, [rdi]: keeps it
        (&[0x8a, 0x07], 0x5555_5555_5555_5510), // mov al, [rdi]
        (&[0x8a, 0x27], 0x5555_5555_5555_1055), // mov ah, [rdi]
        (&[0x0f, 0x45, 0x07], 0x1312_1110), // cmovnz eax, [rdi], taken
        (&[0x0f, 0x44, 0x07], 0x5555_5555), // cmovz eax, [rdi], not taken
    ] {
        let change = |cpu: &mut Cpu<'_>| {
            cpu.general[0] = 0x5555_5555_5555_5555;
            cpu.general[7] = 0x10;
        };
        let ran = run(64, code, change, &mut flat());
        assert_eq!(ran.general[0], expected, "{code:x?}");
    }
}

#[test]
fn the_stack_of_code_below_64_bits_wraps_at_4_gib() {
    for bits in [16, 32] {
        // pop and push of a word or doubleword at [bx+si] or [eax]: 0.
        for code in [[0x8f, 0x00], [0xff, 0x30]] {
            let mut bus = flat();
            let change = |cpu: &mut Cpu<'_>| {
                cpu.general[4] = 0xabab_abab_0000_0110;
                cpu.bases[2] = 0xffff_ff00;
            };
            let ran = run(bits, &code, change, &mut bus);
            assert_eq!(ran.result, Ok(()), "{bits} {code:x?}");
            assert_eq!(bus.forgotten, 0, "{bits} {code:x?}");
            if code[0] == 0x8f {
                assert_eq!(bus.memory[..2], [0x10, 0x11], "{bits}: read beyond 4 GiB");
            }
        }
    }
}

#[test]
fn a_stack_beyond_what_is_canonical_is_a_stack_fault() {
    for code in [[0x8f, 0x00], [0xff, 0x30]] {
        let change = |cpu: &mut Cpu<'_>| cpu.general[4] = 1 << 62;
        let ran = run(64, &code, change, &mut flat());
        assert_eq!(ran.result, Err(Stop::Fault { vector: 12, error: Some(0), cr2: None }));
        assert_eq!(ran.general[4], 1 << 62);
    }
}

#[test]
fn system_registers_are_stored() {
    let store = |bits, code: &[u8]| {
        let mut bus = flat();
        let ran = run(bits, code, |cpu| cpu.sse[..28].fill(0x5a), &mut bus);
        assert_eq!((ran.result, ran.advance), (Ok(()), code.len() as u64), "{code:x?}");
        bus.memory[0x100..0x10c].to_vec()
    };
    // The operand is [0x100]; what lies behind what was written is as it was.
    let with = |reg: u8, code: &[u8]| [code, &[0x04 | reg << 3, 0x25, 0, 1, 0, 0]].concat();
    assert_eq!(store(64, &with(4, &[0x0f, 0x01]))[..3], [0x33, 0x00, 2], "SMSW");
    assert_eq!(store(64, &with(1, &[0x0f, 0x00]))[..3], [0x28, 0, 2], "STR");
    assert_eq!(store(64, &with(0, &[0x0f, 0x00]))[..3], [0x30, 0, 2], "SLDT");
    let pointer = store(64, &with(0, &[0x0f, 0x01]));
    assert_eq!(pointer[..11], [0x7f, 0, 0xbc, 0x9a, 0x78, 0x56, 0x34, 0x12, 0, 0, 10], "SGDT");
    let pointer = store(64, &with(1, &[0x0f, 0x01]));
    assert_eq!(pointer[..11], [0xff, 0xf, 0, 0x10, 0, 0, 0, 0x80, 0xff, 0xff, 10], "SIDT");
    let short = store(32, &[0x0f, 0x01, 0x05, 0, 1, 0, 0]);
    assert_eq!(short[..7], [0x7f, 0, 0xbc, 0x9a, 0x78, 0x56, 6], "SGDT of 32 bits");
    assert_eq!(store(64, &with(3, &[0x0f, 0xae]))[..5], [0x5a, 0x5a, 0x5a, 0x5a, 4], "STMXCSR");
    assert_eq!(store(64, &with(7, &[0xd9]))[..3], [0x5a, 0x5a, 2], "FNSTCW");
    assert_eq!(store(64, &with(7, &[0xdd]))[..3], [0x5a, 0x5a, 2], "FNSTSW");
}
