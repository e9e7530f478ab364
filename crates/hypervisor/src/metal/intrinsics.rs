//! The memory functions the compiler and `core` call by name, and two names that the prebuilt
//! `core` and `alloc` refer to because they were built able to unwind.
//!
//! Written in assembly so that they cannot be turned into calls of themselves. Long runs go
//! through SSE registers: frames are zeroed and copied here, and an emulated processor takes a
//! string instruction one element at a time.

use core::arch::global_asm;

global_asm!(
    r#"
    .text
    .global memcpy
memcpy:
    mov rax, rdi
2:  cmp rdx, 64
    jb 3f
    movups xmm0, [rsi]
    movups xmm1, [rsi + 16]
    movups xmm2, [rsi + 32]
    movups xmm3, [rsi + 48]
    movups [rdi], xmm0
    movups [rdi + 16], xmm1
    movups [rdi + 32], xmm2
    movups [rdi + 48], xmm3
    add rsi, 64
    add rdi, 64
    sub rdx, 64
    jmp 2b
3:  mov rcx, rdx
    shr rcx, 3
    rep movsq
    mov ecx, edx
    and ecx, 7
    rep movsb
    ret

    .global memmove
memmove:
    mov rax, rdi
    mov rcx, rdi
    sub rcx, rsi
    cmp rcx, rdx
    jae memcpy                  // destination below the source, or beyond its end
    mov rcx, rdx
    lea rdi, [rdi + rdx - 1]
    lea rsi, [rsi + rdx - 1]
    std
    rep movsb
    cld
    ret

    .global memset
memset:
    mov r8, rdi
    movzx eax, sil
    mov rcx, 0x0101010101010101
    imul rax, rcx
    cmp rdx, 128
    jb 3f
    movq xmm0, rax
    punpcklqdq xmm0, xmm0
2:  movups [rdi], xmm0
    movups [rdi + 16], xmm0
    movups [rdi + 32], xmm0
    movups [rdi + 48], xmm0
    movups [rdi + 64], xmm0
    movups [rdi + 80], xmm0
    movups [rdi + 96], xmm0
    movups [rdi + 112], xmm0
    add rdi, 128
    sub rdx, 128
    cmp rdx, 128
    jae 2b
3:  mov rcx, rdx
    shr rcx, 3
    rep stosq
    mov ecx, edx
    and ecx, 7
    rep stosb
    mov rax, r8
    ret

    .global memcmp
    .global bcmp
memcmp:
bcmp:
    xor eax, eax
    xor ecx, ecx
2:  cmp rcx, rdx
    je 3f
    movzx eax, byte ptr [rdi + rcx]
    movzx r8d, byte ptr [rsi + rcx]
    inc rcx
    sub eax, r8d
    je 2b
3:  ret

    .global strlen
strlen:
    xor eax, eax
2:  cmp byte ptr [rdi + rax], 0
    je 3f
    inc rax
    jmp 2b
3:  ret

    .global rust_eh_personality
rust_eh_personality:
    .global _Unwind_Resume
_Unwind_Resume:
    ud2
"#
);
