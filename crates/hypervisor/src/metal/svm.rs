//! Switching SVM on, the virtual machine control block, and the world switch.
//!
//! AMD64 APM vol. 2: chapter 15 and appendix B (layout).

use super::memory;
use core::arch::{asm, naked_asm};
use core::mem::offset_of;
use hypervisor::pool::Size;

const EFER: u32 = 0xc000_0080;
const VM_CR: u32 = 0xc001_0114;
const VM_HSAVE_PA: u32 = 0xc001_0117;
/// RFLAGS.TF.
pub const TRAP_FLAG: u64 = 1 << 8;
/// DR6.BS: a single step.
pub const DEBUG_STATUS_STEP: u64 = 1 << 14;

/// EFER.SVME.
pub const SVME: u64 = 1 << 12;

/// A segment register with its hidden part, attributes packed as in appendix B.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Segment {
    /// Selector.
    pub selector: u16,
    /// Descriptor bits 55:52 and 47:40.
    pub attributes: u16,
    /// Limit in bytes, already scaled.
    pub limit: u32,
    /// Base.
    pub base: u64,
}

/// Control area and saved state.
#[repr(C, align(4096))]
pub struct Vmcb {
    pub intercept_cr: u32,
    pub intercept_dr: u32,
    pub intercept_exceptions: u32,
    pub intercept_misc1: u32,
    pub intercept_misc2: u32,
    reserved_014: [u32; 11],
    pub iopm_base: u64,
    pub msrpm_base: u64,
    pub tsc_offset: u64,
    pub asid: u32,
    pub tlb_control: u32,
    pub int_ctl: u32,
    pub int_vector: u32,
    pub int_state: u64,
    pub exit_code: u64,
    pub exit_info1: u64,
    pub exit_info2: u64,
    pub exit_int_info: u64,
    pub np_enable: u64,
    reserved_098: [u64; 2],
    pub event_inj: u64,
    pub n_cr3: u64,
    reserved_0b8: [u64; 105],
    pub es: Segment,
    pub cs: Segment,
    pub ss: Segment,
    pub ds: Segment,
    pub fs: Segment,
    pub gs: Segment,
    pub gdtr: Segment,
    pub ldtr: Segment,
    pub idtr: Segment,
    pub tr: Segment,
    reserved_4a0: [u8; 43],
    pub cpl: u8,
    reserved_4cc: u32,
    pub efer: u64,
    reserved_4d8: [u64; 14],
    pub cr4: u64,
    pub cr3: u64,
    pub cr0: u64,
    pub dr7: u64,
    pub dr6: u64,
    pub rflags: u64,
    pub rip: u64,
    reserved_580: [u64; 11],
    pub rsp: u64,
    reserved_5e0: [u64; 3],
    pub rax: u64,
    pub star: u64,
    pub lstar: u64,
    pub cstar: u64,
    pub sfmask: u64,
    pub kernel_gs_base: u64,
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    pub cr2: u64,
    reserved_648: [u64; 4],
    pub g_pat: u64,
    pub dbgctl: u64,
    reserved_678: [u64; 4],
    reserved_698: [u8; 0x1000 - 0x698],
}

const _: () = {
    assert!(offset_of!(Vmcb, iopm_base) == 0x40);
    assert!(offset_of!(Vmcb, exit_code) == 0x70);
    assert!(offset_of!(Vmcb, event_inj) == 0xa8);
    assert!(offset_of!(Vmcb, es) == 0x400);
    assert!(offset_of!(Vmcb, cpl) == 0x4cb);
    assert!(offset_of!(Vmcb, efer) == 0x4d0);
    assert!(offset_of!(Vmcb, cr4) == 0x548);
    assert!(offset_of!(Vmcb, rip) == 0x578);
    assert!(offset_of!(Vmcb, rsp) == 0x5d8);
    assert!(offset_of!(Vmcb, rax) == 0x5f8);
    assert!(offset_of!(Vmcb, cr2) == 0x640);
    assert!(offset_of!(Vmcb, g_pat) == 0x668);
    assert!(size_of::<Vmcb>() == 4096);
};

impl Vmcb {
    /// Whether the last exit stored this program's state instead of the guest's, which is lost.
    ///
    /// QEMU 7.2 does that about once in a million nested faults when it runs several processors on
    /// threads of their own: it exits a second time when it has already gone back to the host. On
    /// one thread it was never seen.
    pub fn is_lost(&self) -> bool {
        unsafe extern "C" {
            static svm_after_vmrun: u8;
        }
        let cr3: u64;
        // SAFETY: reading the register has no effect.
        unsafe { asm!("mov {}, cr3", out(reg) cr3, options(nomem, nostack)) };
        self.rip == &raw const svm_after_vmrun as u64 && self.cr3 == cr3
    }

    /// All zero.
    pub const fn zeroed() -> Self {
        // SAFETY: every field is an integer or an array of integers.
        unsafe { core::mem::zeroed() }
    }
}

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
