//! Memory without a device: reads give all ones in whatever form, writes go nowhere.

use crate::metal::console::say;
use crate::metal::{Machine, check};
use core::arch::asm;
use guest::exit;

/// One instruction that reads at `rsi` into `rax`, which held `before`, and what `rax` holds
/// afterwards.
macro_rules! form {
    ($address:expr, $code:literal, $before:expr => $wanted:expr) => {{
        let mut value: u64 = $before;
        // SAFETY: reads where nothing is.
        unsafe { asm!($code, inout("rax") value, in("rsi") $address) };
        let wanted: u64 = $wanted;
        check!(
            value == wanted,
            exit::MMIO,
            "`{}` at {:#x}: {value:#x} instead of {wanted:#x}",
            $code,
            $address
        );
    }};
}

/// Runs all forms.
pub fn run(machine: &Machine) {
    let address = machine.hole() + 0x120;
    form!(address, "mov al, [rsi]", 0x1111 => 0x11ff);
    form!(address, "mov ax, [rsi]", 0x11_1111 => 0x11_ffff);
    form!(address, "mov eax, [rsi]", 1 << 40 => 0xffff_ffff);
    form!(address, "mov rax, [rsi]", 0 => !0);
    form!(address, "mov ah, [rsi + 3]", 0x1111 => 0xff11);
    form!(address, "movzx eax, byte ptr [rsi]", !0 => 0xff);
    form!(address, "movzx rax, word ptr [rsi]", !0 => 0xffff);
    form!(address, "movsx rax, byte ptr [rsi]", 0 => !0);
    form!(address, "movsxd rax, dword ptr [rsi]", 0 => !0);
    form!(address, "add eax, [rsi]", 5 => 4);
    form!(address, "sub rax, [rsi]", 5 => 6);
    form!(address, "and rax, [rsi]", 0x1234 => 0x1234);
    form!(address, "xor eax, [rsi]", 0x1234 => 0xffff_edcb);
    form!(address, "cmp dword ptr [rsi], -1\n sete al\n movzx eax, al", 0 => 1);
    form!(address, "cmp al, [rsi]\n setb al\n movzx eax, al", 0 => 1);
    form!(address, "test dword ptr [rsi], 0x10\n setnz al\n movzx eax, al", 0 => 1);
    form!(address, "mov dword ptr [rsi], 0\n mov eax, [rsi]", 0 => 0xffff_ffff);
    form!(address, "mov [rsi], ax\n mov eax, [rsi]", 0 => 0xffff_ffff);
    form!(address, "mov [rsi + rax * 8], rax\n mov rax, [rsi]", 2 => !0);

    let mut bytes = [0u8; 32];
    let (from, to, left): (u64, u64, u64);
    // SAFETY: writes the array only; reads where nothing is.
    unsafe {
        asm!("rep movsb", inout("rsi") address => from, inout("rdi") bytes.as_mut_ptr() => to,
            inout("rcx") bytes.len() => left);
    }
    let moved = (from - address, to - bytes.as_ptr() as u64, left);
    check!(moved == (32, 32, 0), exit::MMIO, "rep movsb moved {moved:?}");
    check!(bytes == [0xff; 32], exit::MMIO, "rep movsb read {bytes:x?}");
    say!("mmio ok");
}
