//! Port input and output.

use core::arch::asm;

/// Reads a byte.
///
/// # Safety
/// Reading `port` has no effect that could break what this program relies on.
pub unsafe fn in8(port: u16) -> u8 {
    let value;
    // SAFETY: the caller's.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack)) };
    value
}

/// Writes a byte.
///
/// # Safety
/// Writing it to `port` has no effect that could break what this program relies on.
pub unsafe fn out8(port: u16, value: u8) {
    // SAFETY: the caller's.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack)) };
}

/// Reads 1, 2 or 4 bytes.
///
/// # Safety
/// As [`in8`].
pub unsafe fn read(port: u16, bytes: u8) -> u32 {
    let value: u32;
    // SAFETY: the caller's.
    unsafe {
        match bytes {
            1 => return u32::from(in8(port)),
            2 => {
                let half: u16;
                asm!("in ax, dx", in("dx") port, out("ax") half, options(nomem, nostack));
                value = u32::from(half);
            }
            _ => asm!("in eax, dx", in("dx") port, out("eax") value, options(nomem, nostack)),
        }
    }
    value
}

/// Writes a 16-bit word.
///
/// # Safety
/// As [`out8`].
pub unsafe fn out16(port: u16, value: u16) {
    // SAFETY: the caller's.
    unsafe { asm!("out dx, ax", in("dx") port, in("ax") value, options(nomem, nostack)) };
}
