//! From the loader to Rust: the multiboot header, the way from 32-bit protected mode to long
//! mode, and the trampoline on which the other processors come up from real mode.
//!
//! Mode changes follow AMD64 Architecture Programmer's Manual, volume 2, section 14.

use core::arch::global_asm;

/// Where the trampoline is copied to: a page below 1 MiB, so that a start-up IPI can name it.
pub const TRAMPOLINE: usize = 0x8000;

/// Processors there are stacks for.
pub const MAX_CPUS: usize = 8;

/// Bytes of each processor's stack.
pub const STACK_BYTES: usize = 128 * 1024;

global_asm!(
    r#"
    .section .multiboot, "a"
    .balign 8
multiboot_header:
    .long 0x1badb002                /* magic */
    .long 0x00010003                /* page-aligned modules, memory information, addresses */
    .long -(0x1badb002 + 0x00010003)
    .long multiboot_header
    .long image_start
    .long image_load_end
    .long image_end
    .long multiboot_entry

    .section .text.entry, "ax"
    .code32
    .globl multiboot_entry
multiboot_entry:
    cli
    cld
    movl %eax, %ebp                 /* multiboot's magic number */
    movl %ebx, %esi                 /* multiboot information */
    movl $stacks + {stack_bytes}, %esp

    /* Identity map of the first 4 GiB in 2 MiB pages. The page that holds the local APIC is
       not cached. */
    movl $boot_pds, %edi
    movl $0x83, %eax
    movl $2048, %ecx
1:  movl %eax, (%edi)
    movl $0, 4(%edi)
    addl $0x200000, %eax
    addl $8, %edi
    decl %ecx
    jnz 1b
    orl $0x18, boot_pds + 0xfee00000 / 0x200000 * 8
    movl $boot_pdpt, %edi
    movl $boot_pds + 7, %eax
    movl $4, %ecx
2:  movl %eax, (%edi)
    addl $4096, %eax
    addl $8, %edi
    decl %ecx
    jnz 2b
    movl $boot_pdpt + 7, boot_pml4

    lgdt boot_gdt_pointer
    call enter_long_mode
    ljmpl $0x08, $entry64

    /* Shared by all processors; 32-bit, paging off. */
enter_long_mode:
    movl %cr4, %eax
    orl $0x620, %eax                /* PAE, OSFXSR, OSXMMEXCPT */
    movl %eax, %cr4
    movl $boot_pml4, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx
    rdmsr
    orl $0x900, %eax                /* LME, NXE */
    wrmsr
    movl %cr0, %eax
    andl $0x9ffffff3, %eax          /* CD, NW, EM, TS off */
    orl $0x80010023, %eax           /* PG, WP, NE, MP, PE */
    movl %eax, %cr0
    ret

    .code64
entry64:
    movw $0x10, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    xorl %eax, %eax
    movw %ax, %fs
    movw %ax, %gs
    leaq stacks + {stack_bytes}(%rip), %rsp
    fninit
    movl %ebp, %edi
    movl %esi, %esi
    xorl %ebp, %ebp
    call boot_main
    ud2

    /* The trampoline: position is fixed at {trampoline}, so labels are computed from there. */
    .code16
    .balign 16
    .globl trampoline_start
trampoline_start:
    cli
    cld
    xorw %ax, %ax
    movw %ax, %ds
    movw %ax, %ss
    lgdtl {trampoline} + trampoline_gdt_pointer - trampoline_start
    movl %cr0, %eax
    orl $1, %eax
    movl %eax, %cr0
    ljmpl $0x18, $trampoline32
trampoline_gdt_pointer:
    .word 31
    .long boot_gdt
    .globl trampoline_end
trampoline_end:

    .code32
trampoline32:
    movw $0x10, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movl $1, %ebx
    lock xaddl %ebx, cpus_started
    incl %ebx                       /* index of this processor; the first one is 0 */
    cmpl ${max_cpus}, %ebx
    jae 4f
    movl %ebx, %esp
    incl %esp
    imull ${stack_bytes}, %esp, %esp
    addl $stacks, %esp
    call enter_long_mode
    ljmpl $0x08, $trampoline64
4:  cli
    hlt
    jmp 4b

    .code64
trampoline64:
    movw $0x10, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    xorl %eax, %eax
    movw %ax, %fs
    movw %ax, %gs
    movl %esp, %esp
    movl %ebx, %edi
    fninit
    xorl %ebp, %ebp
    call processor_main
    ud2

    .section .data.boot_gdt, "aw"
    .balign 16
boot_gdt:
    .quad 0
    .quad 0x00af9b000000ffff        /* 0x08 code, 64-bit */
    .quad 0x00cf93000000ffff        /* 0x10 data */
    .quad 0x00cf9b000000ffff        /* 0x18 code, 32-bit */
boot_gdt_pointer:
    .word 31
    .long boot_gdt
    .globl cpus_started
    .balign 4
cpus_started:
    .long 0

    .section .bss.boot_tables, "aw", @nobits
    .balign 4096
    .globl boot_pml4
boot_pml4:
    .skip 4096
    .globl boot_pdpt
boot_pdpt:
    .skip 4096
    .globl boot_pds
boot_pds:
    .skip 4096 * 4
    .globl stacks
stacks:
    .skip {stack_bytes} * {max_cpus}
    "#,
    stack_bytes = const STACK_BYTES,
    max_cpus = const MAX_CPUS,
    trampoline = const TRAMPOLINE,
    options(att_syntax)
);

// What the compiler calls for copies and comparisons of memory. In assembly, so that the
// compiler cannot turn a body into a call of itself.
global_asm!(
    r#"
    .section .text.memory, "ax"
    .globl memcpy
memcpy:
    movq %rdi, %rax
    movq %rdx, %rcx
    rep movsb
    ret
    .globl memmove
memmove:
    movq %rdi, %rax
    movq %rdx, %rcx
    movq %rdi, %r8
    subq %rsi, %r8
    cmpq %rdx, %r8
    jb 1f
    rep movsb
    ret
1:  leaq -1(%rdi, %rdx), %rdi
    leaq -1(%rsi, %rdx), %rsi
    std
    rep movsb
    cld
    ret
    .globl memset
memset:
    movq %rdi, %r8
    movl %esi, %eax
    movq %rdx, %rcx
    rep stosb
    movq %r8, %rax
    ret
    .globl memcmp
    .globl bcmp
memcmp:
bcmp:
    xorl %eax, %eax
    movq %rdx, %rcx
    cmpq %rcx, %rcx
    repe cmpsb
    je 2f
    movzbl -1(%rdi), %eax
    movzbl -1(%rsi), %ecx
    subl %ecx, %eax
2:  ret
    .globl strlen
strlen:
    xorl %eax, %eax
3:  cmpb $0, (%rdi, %rax)
    je 4f
    incq %rax
    jmp 3b
4:  ret
    .globl rust_eh_personality
rust_eh_personality:
    .globl _Unwind_Resume
_Unwind_Resume:
    ud2
    "#,
    options(att_syntax)
);

unsafe extern "C" {
    /// First byte of the trampoline's 16-bit part.
    pub static trampoline_start: u8;
    /// End of the trampoline's 16-bit part.
    pub static trampoline_end: u8;
    /// Processors that came up through the trampoline.
    pub static cpus_started: core::sync::atomic::AtomicU32;
    /// Top page table.
    pub static mut boot_pml4: [u64; 512];
    /// End of everything linked into the image.
    pub static image_end: u8;
}
