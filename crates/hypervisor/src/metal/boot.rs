//! From the PVH entry point (32-bit, paging off) to Rust in 64-bit mode, for the boot processor;
//! and from a start-up IPI (real mode) to the same place, for the others.
//!
//! Sources: PVH boot ABI (x86/HVM direct boot: note type 18, `ebx` = start info); AMD64 APM vol. 2,
//! section 14.6 (entering long mode) and 15.2 (1 GiB pages: section 5.3.5).

use core::arch::global_asm;

/// Where the start-up IPI lets the other processors begin: page 8, below the firmware's area.
pub const TRAMPOLINE: u64 = 0x8000;

/// Bytes of stack of each processor.
pub const STACK: usize = 256 << 10;

/// Processors that can be started.
pub const PROCESSORS: usize = 8;

unsafe extern "C" {
    static trampoline_start: u8;
    static trampoline_end: u8;
    static image_start: u8;
    static image_end: u8;
}

/// First and past-the-end address of the hypervisor's image, with its zeroed data.
pub fn image() -> (u64, u64) {
    (&raw const image_start as u64, &raw const image_end as u64)
}

/// Copies the start-up code of the other processors to its place.
pub fn place_trampoline() {
    let start = &raw const trampoline_start;
    let length = &raw const trampoline_end as usize - start as usize;
    // SAFETY: both symbols bound one section of this image; page 8 is conventional memory that
    // nothing else here uses, and no other processor runs yet.
    unsafe { core::ptr::copy_nonoverlapping(start, TRAMPOLINE as *mut u8, length) };
}

global_asm!(
    r#"
    .section .note.pvh, "a", @note
    .balign 4
    .long 4, 4, 18
    .asciz "Xen"
    .long pvh_entry

    .section .bss.boot, "aw", @nobits
    .balign 4096
boot_pml4:  .skip 4096
boot_pdpt:  .skip 8192
    .balign 16
    .global boot_stacks
boot_stacks: .skip {stack} * {processors}

    .section .data.boot, "aw"
    .balign 16
boot_gdt:
    .quad 0
    .quad 0x00cf9b000000ffff    // 0x08: 32-bit code
    .quad 0x00cf93000000ffff    // 0x10: data
    .quad 0x00af9b000000ffff    // 0x18: 64-bit code
boot_gdt_end:
boot_gdtr:
    .word boot_gdt_end - boot_gdt - 1
    .long boot_gdt
    .long 0

    .section .text.boot, "ax"
    .code32
    .global pvh_entry
pvh_entry:
    cli
    cld
    mov esp, offset boot_stacks + {stack}
    mov esi, ebx
    // 1 GiB pages for the first TiB: two tables of 512 entries, virtual = physical.
    mov edi, offset boot_pdpt
    xor ecx, ecx
2:  mov eax, ecx
    shl eax, 30
    or eax, 0x83                // present, writable, large
    mov [edi + ecx * 8], eax
    mov eax, ecx
    shr eax, 2
    mov [edi + ecx * 8 + 4], eax
    inc ecx
    cmp ecx, 1024
    jne 2b
    mov eax, offset boot_pdpt
    or eax, 3
    mov edi, offset boot_pml4
    mov [edi], eax
    add eax, 4096
    mov [edi + 8], eax
    mov eax, offset boot_gdtr
    lgdt [eax]
    mov ebx, offset boot_long
    jmp boot_paging

    // Both kinds of processor come here in flat 32-bit mode; ebx says where to go on.
boot_paging:
    mov eax, 0x620              // PAE, OSFXSR, OSXMMEXCPT
    mov cr4, eax
    mov eax, offset boot_pml4
    mov cr3, eax
    mov ecx, 0xc0000080
    rdmsr
    or eax, 0x900               // LME, NXE
    wrmsr
    mov eax, 0x80010033         // PG, WP, NE, ET, MP, PE
    mov cr0, eax
    push 0x18
    push ebx
    retf

    .code64
boot_long:
    mov ax, 0x10
    mov ds, ax
    mov es, ax
    mov ss, ax
    xor eax, eax
    mov fs, ax
    mov gs, ax
    mov rsp, offset boot_stacks + {stack}
    mov edi, esi
    xor ebp, ebp
    call {start}
    ud2

    // A started processor takes the stack of its local APIC id.
boot_other:
    mov ax, 0x10
    mov ds, ax
    mov es, ax
    mov ss, ax
    xor eax, eax
    mov fs, ax
    mov gs, ax
    mov eax, 1
    cpuid
    shr ebx, 24
    cmp ebx, {processors}
    jae 3f
    mov edi, ebx
    inc ebx
    imul rbx, rbx, {stack}
    mov rsp, offset boot_stacks
    add rsp, rbx
    xor ebp, ebp
    call {other}
3:  cli
    hlt
    jmp 3b

    // Runs at the trampoline's page, not here: only distances may be used.
    .section .text.trampoline, "ax"
    .code16
    .global trampoline_start
trampoline_start:
    cli
    cld
    xor ax, ax
    mov ds, ax
    .byte 0x66, 0x0f, 0x01, 0x16        // lgdt with a 32-bit base, from an absolute address
    .word {trampoline} + trampoline_gdtr - trampoline_start
    mov eax, cr0
    or al, 1
    mov cr0, eax
    .byte 0x66, 0xea                    // far jump into 32-bit code
    .long {trampoline} + trampoline_32 - trampoline_start
    .word 0x08
    .balign 4
trampoline_gdtr:
    .word boot_gdt_end - boot_gdt - 1
    .long boot_gdt
    .code32
trampoline_32:
    mov ax, 0x10
    mov ds, ax
    mov es, ax
    mov ss, ax
    // Two words of stack for the far return, in this processor's own place.
    mov eax, 1
    cpuid
    shr ebx, 24
    shl ebx, 4
    lea esp, [ebx + {trampoline} + 0x810]
    mov ebx, offset boot_other
    mov eax, offset boot_paging
    jmp eax
    .global trampoline_end
trampoline_end:
    .code64
    .text
"#,
    stack = const STACK,
    processors = const PROCESSORS,
    trampoline = const TRAMPOLINE,
    start = sym crate::metal::start::start,
    other = sym crate::metal::start::start_other,
);
