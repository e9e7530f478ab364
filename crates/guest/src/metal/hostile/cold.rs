//! Pages nothing touches before the test that needs them untouched: tables that are ready in the
//! image as the linker made them, and empty pages.

use core::arch::global_asm;
use core::cell::UnsafeCell;

global_asm!(
    r#"
    .section .cold, "aw", @progbits
    .balign 4096
    .globl cold_idt
cold_idt:
    .set vector, 0
    .rept 256
    .short vector_stubs_low + vector * 16
    .short 8
    .byte 4, 0x8e                   /* stack 4; present interrupt gate */
    .short vector_stubs_high
    .quad 0
    .set vector, vector + 1
    .endr

    .balign 4096
    .globl cold_gdt
cold_gdt:
    .quad 0
    .quad 0x00af9a000000ffff        /* code, accessed bit clear: delivery sets it */
    .quad 0x00cf92000000ffff
    .quad 0x00cf9a000000ffff

    .balign 4096
    .globl cold_tss
cold_tss:
    .long 0
    .quad 0, 0, 0, 0                /* stacks of the privilege levels; reserved */
    .rept 7
    .quad cold_ist_top
    .endr
    .quad 0
    .short 0, 104

    .section .bss.cold, "aw", @nobits
    .balign 4096
    .skip 8192
    .globl cold_ist_top
cold_ist_top:
    "#,
    options(att_syntax)
);

unsafe extern "C" {
    static cold_idt: u8;
    static cold_gdt: u8;
    static cold_tss: u8;
}

#[repr(C, align(4096))]
struct Pages(UnsafeCell<[u8; 3 * 4096]>);

// SAFETY: only addresses are handed out.
unsafe impl Sync for Pages {}

static PAGES: Pages = Pages(UnsafeCell::new([0; 3 * 4096]));

/// An IDT all of whose gates want stack 4.
pub fn idt() -> u64 {
    &raw const cold_idt as u64
}

/// A GDT with the usual code and data segments.
pub fn gdt() -> u64 {
    &raw const cold_gdt as u64
}

/// A TSS all of whose stacks are one untouched page.
pub fn tss() -> u64 {
    &raw const cold_tss as u64
}

/// An empty page.
pub fn page() -> u64 {
    PAGES.0.get() as u64
}

/// Top of a stack of two empty pages (two, because handlers keep floating-point state).
pub fn stack() -> u64 {
    PAGES.0.get() as u64 + 3 * 4096
}
