//! The virtual machine control block: what a processor reads at an entry and writes at an exit. AMD64 APM
//! vol. 2, appendix B.

use core::arch::asm;
use core::mem::offset_of;

/// RFLAGS.TF.
pub const TRAP_FLAG: u64 = 1 << 8;
/// DR6.BS: a single step.
pub const DEBUG_STATUS_STEP: u64 = 1 << 14;

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
