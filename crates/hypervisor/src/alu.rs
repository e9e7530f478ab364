//! Results and flags of the arithmetic that instructions with a memory operand do.
//! AMD64 APM vol. 3, chapter 3.

/// Carry.
pub const CF: u64 = 1 << 0;
/// Parity of the low byte.
pub const PF: u64 = 1 << 2;
/// Carry out of bit 3.
pub const AF: u64 = 1 << 4;
/// Zero.
pub const ZF: u64 = 1 << 6;
/// Sign.
pub const SF: u64 = 1 << 7;
/// Signed overflow.
pub const OF: u64 = 1 << 11;

const ALL: u64 = CF | PF | AF | ZF | SF | OF;

/// A two-operand operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are the instructions'")]
pub enum Operation {
    Add,
    Adc,
    Sub,
    Sbb,
    And,
    Or,
    Xor,
}

/// The low `bytes` bytes of `value`.
pub const fn truncate(value: u64, bytes: usize) -> u64 {
    if bytes >= 8 { value } else { value & ((1 << (bytes * 8)) - 1) }
}

/// `value` of `bytes` bytes, extended by its sign.
pub const fn sign_extend(value: u64, bytes: usize) -> u64 {
    if bytes >= 8 {
        return value;
    }
    let shift = 64 - bytes * 8;
    ((value << shift) as i64 >> shift) as u64
}

fn sign(value: u64, bytes: usize) -> bool {
    value >> (bytes * 8 - 1) & 1 == 1
}

fn result_flags(result: u64, bytes: usize) -> u64 {
    let mut flags = 0;
    if result == 0 {
        flags |= ZF;
    }
    if sign(result, bytes) {
        flags |= SF;
    }
    if (result as u8).count_ones().is_multiple_of(2) {
        flags |= PF;
    }
    flags
}

/// `a` operation `b` of `bytes` bytes, with `flags` before. Gives the result and the flags after.
pub fn combine(operation: Operation, a: u64, b: u64, bytes: usize, flags: u64) -> (u64, u64) {
    let (a, b) = (truncate(a, bytes), truncate(b, bytes));
    let carry = flags & CF;
    let (result, mut new) = match operation {
        Operation::Add | Operation::Adc => {
            let carry = if operation == Operation::Adc { carry } else { 0 };
            let wide = u128::from(a) + u128::from(b) + u128::from(carry);
            let result = truncate(wide as u64, bytes);
            let mut new = if wide >> (bytes * 8) != 0 { CF } else { 0 };
            if sign(!(a ^ b) & (a ^ result), bytes) {
                new |= OF;
            }
            (result, new | (a ^ b ^ result) & AF)
        }
        Operation::Sub | Operation::Sbb => {
            let carry = if operation == Operation::Sbb { carry } else { 0 };
            let result = truncate(a.wrapping_sub(b).wrapping_sub(carry), bytes);
            let mut new = if u128::from(a) < u128::from(b) + u128::from(carry) { CF } else { 0 };
            if sign((a ^ b) & (a ^ result), bytes) {
                new |= OF;
            }
            (result, new | (a ^ b ^ result) & AF)
        }
        Operation::And => (a & b, 0),
        Operation::Or => (a | b, 0),
        Operation::Xor => (a ^ b, 0),
    };
    new |= result_flags(result, bytes);
    (result, flags & !ALL | new)
}

/// `a` plus or minus one, which leaves the carry alone.
pub fn count(operation: Operation, a: u64, bytes: usize, flags: u64) -> (u64, u64) {
    let (result, new) = combine(operation, a, 1, bytes, flags);
    (result, new & !CF | flags & CF)
}

/// Whether the condition with this number (as in Jcc's opcode) holds.
pub const fn condition(number: u8, flags: u64) -> bool {
    let less = (flags & SF != 0) != (flags & OF != 0);
    let holds = match number >> 1 {
        0 => flags & OF != 0,
        1 => flags & CF != 0,
        2 => flags & ZF != 0,
        3 => flags & (CF | ZF) != 0,
        4 => flags & SF != 0,
        5 => flags & PF != 0,
        6 => less,
        _ => less || flags & ZF != 0,
    };
    holds != (number & 1 == 1)
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;
    use core::arch::asm;

    macro_rules! real {
        ($name:literal, $bytes:expr, $a:expr, $b:expr, $flags:expr) => {{
            let (mut a, b, mut flags): (u64, u64, u64) = ($a, $b, $flags);
            // SAFETY: arithmetic on registers; the flags go through the stack.
            unsafe {
                match $bytes {
                    1 => asm!("push {f}", "popfq", concat!($name, " {a:l}, {b:l}"), "pushfq",
                        "pop {f}", a = inout(reg) a, b = in(reg) b, f = inout(reg) flags),
                    2 => asm!("push {f}", "popfq", concat!($name, " {a:x}, {b:x}"), "pushfq",
                        "pop {f}", a = inout(reg) a, b = in(reg) b, f = inout(reg) flags),
                    4 => asm!("push {f}", "popfq", concat!($name, " {a:e}, {b:e}"), "pushfq",
                        "pop {f}", a = inout(reg) a, b = in(reg) b, f = inout(reg) flags),
                    _ => asm!("push {f}", "popfq", concat!($name, " {a:r}, {b:r}"), "pushfq",
                        "pop {f}", a = inout(reg) a, b = in(reg) b, f = inout(reg) flags),
                }
            }
            (truncate(a, $bytes), flags & ALL)
        }};
    }

    #[test]
    fn the_processor_agrees() {
        let edges = [
            0,
            1,
            2,
            0xf,
            0x10,
            0x7f,
            0x80,
            0xff,
            0x7fff,
            0x8000,
            0xffff,
            0x7fff_ffff,
            0x8000_0000,
            0xffff_ffff,
            i64::MAX as u64,
            1 << 63,
            !0,
            0x1234_5678_9abc_def0,
        ];
        for a in edges {
            for b in edges {
                for bytes in [1, 2, 4, 8] {
                    for carry in [0, CF] {
                        let flags = carry | 2;
                        // AF is undefined after AND, OR and XOR.
                        let check = |operation, real: (u64, u64), mask: u64| {
                            let (result, new) = combine(operation, a, b, bytes, flags);
                            let ours = (result, new & ALL & mask);
                            assert_eq!(
                                ours,
                                (real.0, real.1 & mask),
                                "{operation:?} {a:#x} {b:#x}"
                            );
                        };
                        check(Operation::Add, real!("add", bytes, a, b, flags), ALL);
                        check(Operation::Adc, real!("adc", bytes, a, b, flags), ALL);
                        check(Operation::Sub, real!("sub", bytes, a, b, flags), ALL);
                        check(Operation::Sbb, real!("sbb", bytes, a, b, flags), ALL);
                        check(Operation::And, real!("and", bytes, a, b, flags), ALL & !AF);
                        check(Operation::Or, real!("or", bytes, a, b, flags), ALL & !AF);
                        check(Operation::Xor, real!("xor", bytes, a, b, flags), ALL & !AF);
                    }
                }
            }
        }
    }

    #[test]
    fn counting_keeps_the_carry() {
        assert_eq!(count(Operation::Add, 0xff, 1, CF).0, 0);
        assert_ne!(count(Operation::Add, 0xff, 1, CF).1 & CF, 0);
        assert_eq!(count(Operation::Add, 0xff, 1, 0).1 & CF, 0);
        assert_eq!(count(Operation::Sub, 0, 4, 0), (0xffff_ffff, SF | PF | AF));
    }

    #[test]
    fn conditions_come_in_pairs() {
        for flags in 0..1 << 12 {
            for number in (0..16).step_by(2) {
                assert_ne!(condition(number, flags), condition(number + 1, flags));
            }
        }
        assert!(condition(4, ZF) && condition(0xc, SF) && !condition(0xc, SF | OF));
    }
}
