//! Switching SVM on, and the world switch. AMD64 APM vol. 2, chapter 15.

use super::memory;
use core::arch::{asm, naked_asm};
use hypervisor::pool::Size;

const EFER: u32 = 0xc000_0080;
const VM_CR: u32 = 0xc001_0114;
const VM_HSAVE_PA: u32 = 0xc001_0117;
/// EFER.SVME.
pub const SVME: u64 = 1 << 12;

/// General registers of a guest that the control block does not hold.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct General {
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rbp: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
}

/// x87 and SSE registers in the layout of FXSAVE64.
#[repr(C, align(16))]
#[derive(Clone)]
pub struct Fpu(pub [u8; 512]);

impl Fpu {
    /// As after a reset (APM vol. 2, table 14-1).
    pub const fn reset() -> Self {
        let mut area = [0; 512];
        area[0] = 0x40;
        area[24] = 0x80;
        area[25] = 0x1f;
        Self(area)
    }
}

/// Reads a model-specific register.
///
/// # Safety
/// The register exists and reading it has no effect.
pub unsafe fn rdmsr(register: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: the caller's.
    unsafe {
        asm!("rdmsr", in("ecx") register, out("eax") low, out("edx") high, options(nomem, nostack));
    }
    u64::from(high) << 32 | u64::from(low)
}

/// Writes a model-specific register.
///
/// # Safety
/// The register exists, accepts the value, and the effect does not break this program.
pub unsafe fn wrmsr(register: u32, value: u64) {
    // SAFETY: the caller's.
    unsafe {
        asm!("wrmsr", in("ecx") register, in("eax") value as u32, in("edx") (value >> 32) as u32,
            options(nostack));
    }
}

/// Switches SVM on for this processor (APM vol. 2, sections 15.4 and 15.30.4).
pub fn switch_on() -> Result<(), &'static str> {
    let cpuid = raw_cpuid::CpuId::new();
    let svm = cpuid.get_extended_processor_and_feature_identifiers().is_some_and(|f| f.has_svm());
    if !svm {
        return Err("the processor has no SVM (QEMU: -cpu EPYC,+svm,+npt)");
    }
    if !cpuid.get_svm_info().is_some_and(|info| info.has_nested_paging()) {
        return Err("the processor has SVM without nested paging (QEMU: +npt)");
    }
    let save = memory::take(Size::K4).ok_or("no memory for the host save area")?;
    // SAFETY: the registers exist because SVM does; the save area is a frame of its own, kept
    // for good.
    unsafe {
        if rdmsr(VM_CR) >> 4 & 1 == 1 {
            return Err("SVM is switched off by the firmware (VM_CR.SVMDIS)");
        }
        memory::zero(save, Size::K4);
        wrmsr(EFER, rdmsr(EFER) | SVME);
        wrmsr(VM_HSAVE_PA, save * 4096);
    }
    Ok(())
}

/// This program's own CR0, which every exit has to bring back.
pub fn own_cr0() -> u64 {
    let value: u64;
    // SAFETY: reading the register has no effect.
    unsafe { asm!("mov {}, cr0", out(reg) value, options(nomem, nostack)) };
    value
}

/// Holds every interrupt of this processor off, NMIs too, until [`open_gate`] or a VMRUN.
pub fn close_gate() {
    // SAFETY: SVM is on.
    unsafe { asm!("clgi", options(nostack)) };
}

/// Lets NMIs come again; one that waited comes now.
pub fn open_gate() {
    // SAFETY: SVM is on, and NMIs have a handler.
    unsafe { asm!("stgi", options(nostack)) };
}

/// Keeps this processor's own state that VMRUN does not keep.
///
/// # Safety
/// `host` is the physical address of a frame of this processor's own.
pub unsafe fn save_host(host: u64) {
    // SAFETY: SVM is on; the frame is the caller's.
    unsafe { asm!("vmsave rax", in("rax") host, options(nostack)) };
}

/// Runs the guest until its next exit. The gate is closed before and after.
///
/// # Safety
/// `vmcb` is the physical address of a control block whose nested tables, permission maps and
/// intercepts keep the guest from this program; `host` was filled by [`save_host`] on this
/// processor.
#[unsafe(naked)]
pub unsafe extern "sysv64" fn enter(general: *mut General, fpu: *mut Fpu, vmcb: u64, host: u64) {
    naked_asm!(
        "push rbp",
        "push rbx",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "sub rsp, 8",
        "stmxcsr [rsp]",
        "fnstcw [rsp + 4]",
        "push rcx",
        "push rsi",
        "push rdi",
        "fxrstor64 [rsi]",
        "mov rax, rdx",
        "mov rbx, [rdi + 0x00]",
        "mov rcx, [rdi + 0x08]",
        "mov rdx, [rdi + 0x10]",
        "mov rsi, [rdi + 0x18]",
        "mov rbp, [rdi + 0x28]",
        "mov r8,  [rdi + 0x30]",
        "mov r9,  [rdi + 0x38]",
        "mov r10, [rdi + 0x40]",
        "mov r11, [rdi + 0x48]",
        "mov r12, [rdi + 0x50]",
        "mov r13, [rdi + 0x58]",
        "mov r14, [rdi + 0x60]",
        "mov r15, [rdi + 0x68]",
        "mov rdi, [rdi + 0x20]",
        "vmload rax",
        "vmrun rax",
        ".global svm_after_vmrun",
        "svm_after_vmrun:",
        "vmsave rax",
        "push rdi",
        "mov rdi, [rsp + 8]",
        "mov [rdi + 0x00], rbx",
        "mov [rdi + 0x08], rcx",
        "mov [rdi + 0x10], rdx",
        "mov [rdi + 0x18], rsi",
        "mov [rdi + 0x28], rbp",
        "mov [rdi + 0x30], r8",
        "mov [rdi + 0x38], r9",
        "mov [rdi + 0x40], r10",
        "mov [rdi + 0x48], r11",
        "mov [rdi + 0x50], r12",
        "mov [rdi + 0x58], r13",
        "mov [rdi + 0x60], r14",
        "mov [rdi + 0x68], r15",
        "pop rax",
        "mov [rdi + 0x20], rax",
        "pop rdi",
        "pop rsi",
        "pop rax",
        "vmload rax",
        "fxsave64 [rsi]",
        "fninit",
        "ldmxcsr [rsp]",
        "fldcw [rsp + 4]",
        "cld",
        "add rsp, 8",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbx",
        "pop rbp",
        "ret",
    )
}
