//! Which values a guest may load into its control registers, and what follows.
//!
//! The processor under QEMU does not fault on several reserved bits (it spins), so every write is
//! judged here first. AMD64 APM vol. 2, section 3.1 (CR0, CR3, CR4, EFER) and 15.5.1 (what VMRUN
//! accepts). A refusal means #GP(0).

use crate::cpuid::Answer;

/// CR0 bits.
pub mod cr0 {
    #![allow(missing_docs, reason = "the names are the manual's")]
    pub const PE: u64 = 1 << 0;
    pub const ET: u64 = 1 << 4;
    pub const WP: u64 = 1 << 16;
    pub const NW: u64 = 1 << 29;
    pub const CD: u64 = 1 << 30;
    pub const PG: u64 = 1 << 31;
    /// Bits that exist; others below bit 32 are ignored on a write.
    pub const DEFINED: u64 = 0xe005_003f;
}

/// CR4 bits.
pub mod cr4 {
    #![allow(missing_docs, reason = "the names are the manual's")]
    pub const PSE: u64 = 1 << 4;
    pub const PAE: u64 = 1 << 5;
    pub const LA57: u64 = 1 << 12;
    pub const PCIDE: u64 = 1 << 17;
    pub const OSXSAVE: u64 = 1 << 18;
    pub const SMEP: u64 = 1 << 20;
    pub const SMAP: u64 = 1 << 21;
    pub const PKE: u64 = 1 << 22;
}

/// EFER bits.
pub mod efer {
    #![allow(missing_docs, reason = "the names are the manual's")]
    pub const SCE: u64 = 1 << 0;
    pub const LME: u64 = 1 << 8;
    pub const LMA: u64 = 1 << 10;
    pub const NXE: u64 = 1 << 11;
    pub const SVME: u64 = 1 << 12;
    pub const FFXSR: u64 = 1 << 14;
}

/// What the guest's CPUID offers, as far as control registers depend on it.
#[derive(Debug, Clone, Copy)]
pub struct Features {
    /// CR4 bits that may be set.
    pub cr4: u64,
    /// EFER bits that may be set.
    pub efer: u64,
    /// Physical address width, bits.
    pub phys_bits: u32,
    /// XCR0 bits that may be set; zero without XSAVE.
    pub xcr0: u64,
}

impl Features {
    /// From the answers the guest gets.
    pub fn of(answer: impl Fn(u32, u32) -> Answer) -> Self {
        let leaf1 = answer(1, 0);
        let leaf7 = if answer(0, 0).eax >= 7 { answer(7, 0) } else { Answer::default() };
        let extended = answer(0x8000_0001, 0);
        let bit = |register: u32, from: u32, to: u32| u64::from(register >> from & 1) << to;
        let cr4 = bit(leaf1.edx, 1, 0)      // VME
            | bit(leaf1.edx, 1, 1)          // PVI
            | bit(leaf1.edx, 4, 2)          // TSD
            | bit(leaf1.edx, 2, 3)          // DE
            | bit(leaf1.edx, 3, 4)          // PSE
            | bit(leaf1.edx, 6, 5)          // PAE
            | bit(leaf1.edx, 7, 6)          // MCE
            | bit(leaf1.edx, 13, 7)         // PGE
            | 1 << 8                        // PCE
            | bit(leaf1.edx, 24, 9)         // OSFXSR
            | bit(leaf1.edx, 25, 10)        // OSXMMEXCPT
            | bit(leaf7.ecx, 2, 11)         // UMIP
            | bit(leaf7.ecx, 16, 12)        // LA57
            | bit(leaf7.ebx, 0, 16)         // FSGSBASE
            | bit(leaf1.ecx, 17, 17)        // PCIDE
            | bit(leaf1.ecx, 26, 18)        // OSXSAVE
            | bit(leaf7.ebx, 7, 20)         // SMEP
            | bit(leaf7.ebx, 20, 21)        // SMAP
            | bit(leaf7.ecx, 3, 22); // PKE
        let efer = bit(extended.edx, 11, 0)
            | bit(extended.edx, 29, 8)
            | bit(extended.edx, 29, 10)
            | bit(extended.edx, 20, 11)
            | bit(extended.edx, 25, 14);
        let has_width = answer(0x8000_0000, 0).eax >= 0x8000_0008;
        let phys_bits = if has_width { answer(0x8000_0008, 0).eax & 0xff } else { 36 };
        let xsave = leaf1.ecx >> 26 & 1 == 1;
        let state = if xsave { answer(0xd, 0) } else { Answer::default() };
        let xcr0 = u64::from(state.edx) << 32 | u64::from(state.eax);
        Self { cr4, efer, phys_bits, xcr0 }
    }
}

/// The registers that depend on each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Control {
    /// CR0.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// EFER as the guest sees it: without SVME.
    pub efer: u64,
}

/// The value is refused: #GP(0).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused;

/// The code segment's L bit, on which switching paging on and off depends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CodeSegment {
    /// L is clear.
    Short,
    /// L is set.
    Long,
}

impl Control {
    /// Whether long mode is active.
    pub const fn long(&self) -> bool {
        self.efer & efer::LMA != 0
    }

    /// A write of CR0.
    ///
    /// # Errors
    /// [`Refused`] if the processor would fault.
    pub fn set_cr0(&mut self, value: u64, code: CodeSegment) -> Result<(), Refused> {
        let new = value & cr0::DEFINED | cr0::ET;
        let set = |bits| new & bits != 0;
        if value >> 32 != 0 || set(cr0::PG) && !set(cr0::PE) || set(cr0::NW) && !set(cr0::CD) {
            return Err(Refused);
        }
        let was_on = self.cr0 & cr0::PG != 0;
        if set(cr0::PG) && !was_on && self.efer & efer::LME != 0 {
            if self.cr4 & cr4::PAE == 0 || code == CodeSegment::Long {
                return Err(Refused);
            }
            self.efer |= efer::LMA;
        }
        if !set(cr0::PG) && was_on {
            if self.cr4 & cr4::PCIDE != 0 || self.long() && code == CodeSegment::Long {
                return Err(Refused);
            }
            self.efer &= !efer::LMA;
        }
        self.cr0 = new;
        Ok(())
    }

    /// A write of CR3.
    ///
    /// # Errors
    /// [`Refused`] if a bit beyond the physical width is set in long mode.
    pub fn set_cr3(&mut self, value: u64, features: &Features) -> Result<(), Refused> {
        if self.long() {
            if value >> features.phys_bits.min(52) != 0 {
                return Err(Refused);
            }
            self.cr3 = value;
        } else {
            self.cr3 = value & 0xffff_ffff;
        }
        Ok(())
    }

    /// A write of CR4.
    ///
    /// # Errors
    /// [`Refused`] for a bit the guest's CPUID does not offer, or a change long mode forbids.
    pub fn set_cr4(&mut self, value: u64, features: &Features) -> Result<(), Refused> {
        let changed = value ^ self.cr4;
        if value & !features.cr4 != 0
            || self.long() && (value & cr4::PAE == 0 || changed & cr4::LA57 != 0)
            || value & changed & cr4::PCIDE != 0 && (!self.long() || self.cr3 & 0xfff != 0)
        {
            return Err(Refused);
        }
        self.cr4 = value;
        Ok(())
    }

    /// A write of EFER. LMA follows paging and cannot be written; a guest that writes back a value
    /// without it is let through, as processors do.
    ///
    /// # Errors
    /// [`Refused`] for a bit the guest's CPUID does not offer, or LME changed while paging is on.
    pub fn set_efer(&mut self, value: u64, features: &Features) -> Result<(), Refused> {
        if value & !features.efer != 0
            || self.cr0 & cr0::PG != 0 && (value ^ self.efer) & efer::LME != 0
        {
            return Err(Refused);
        }
        self.efer = value & !efer::LMA | self.efer & efer::LMA;
        Ok(())
    }
}

/// Whether XSETBV may load `value` into register `index` (APM vol. 2, section 11.5.2).
///
/// # Errors
/// [`Refused`] as the processor would fault.
pub fn check_xcr(index: u32, value: u64, features: &Features) -> Result<(), Refused> {
    let (sse, avx) = (value >> 1 & 1, value >> 2 & 1);
    let bounds = value >> 3 & 3;
    let wide = value >> 5 & 7;
    let fits = index == 0
        && value & 1 == 1
        && value & !features.xcr0 == 0
        && (avx == 0 || sse == 1)
        && (bounds == 0 || bounds == 3)
        && (wide == 0 || wide == 7 && avx == 1);
    if fits { Ok(()) } else { Err(Refused) }
}

/// Whether `value` has only types that exist in the page attribute table.
///
/// # Errors
/// [`Refused`] as the processor would fault.
pub fn check_pat(value: u64) -> Result<(), Refused> {
    let fits = value.to_le_bytes().iter().all(|kind| matches!(kind, 0 | 1 | 4..=7));
    if fits { Ok(()) } else { Err(Refused) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FEATURES: Features =
        Features { cr4: 0x37_07ff & !cr4::LA57 & !cr4::PCIDE, efer: 0xd01, phys_bits: 40, xcr0: 7 };

    fn long() -> Control {
        Control { cr0: 0x8001_0033, cr3: 0x1000, cr4: cr4::PAE, efer: efer::LME | efer::LMA }
    }

    #[test]
    fn long_mode_is_entered_and_left_by_paging() {
        let mut control = Control { cr0: 0x11, cr3: 0, cr4: 0, efer: 0 };
        control.set_efer(efer::LME, &FEATURES).unwrap();
        assert_eq!(control.set_cr0(0x8000_0011, CodeSegment::Short), Err(Refused), "no PAE");
        control.set_cr4(cr4::PAE, &FEATURES).unwrap();
        assert_eq!(control.set_cr0(0x8000_0011, CodeSegment::Long), Err(Refused));
        control.set_cr0(0x8000_0011, CodeSegment::Short).unwrap();
        assert!(control.long());
        assert_eq!(control.set_cr0(0x11, CodeSegment::Long), Err(Refused), "64-bit code");
        control.set_cr0(0x11, CodeSegment::Short).unwrap();
        assert!(!control.long());
    }

    #[test]
    fn what_faults_on_a_processor_is_refused_and_changes_nothing() {
        let mut control = long();
        for value in [1 << 32, 1 << 63, 0x8000_0010, 0x2000_0011] {
            assert_eq!(control.set_cr0(value, CodeSegment::Short), Err(Refused), "{value:#x}");
        }
        for bit in (0..64).filter(|bit| FEATURES.cr4 >> bit & 1 == 0) {
            assert_eq!(control.set_cr4(cr4::PAE | 1 << bit, &FEATURES), Err(Refused), "bit {bit}");
        }
        assert_eq!(control.set_cr4(0, &FEATURES), Err(Refused), "PAE in long mode");
        for bit in 40..64 {
            assert_eq!(control.set_cr3(1 << bit, &FEATURES), Err(Refused), "bit {bit}");
        }
        for bit in (0..64).filter(|bit| FEATURES.efer >> bit & 1 == 0) {
            let value = efer::LME | 1 << bit;
            assert_eq!(control.set_efer(value, &FEATURES), Err(Refused), "bit {bit}");
        }
        assert_eq!(control.set_efer(0, &FEATURES), Err(Refused), "LME while paging");
        assert_eq!(control, long());
    }

    #[test]
    fn process_tags_need_long_mode_and_a_clean_cr3() {
        let features = Features { cr4: FEATURES.cr4 | cr4::PCIDE, ..FEATURES };
        let tagged = cr4::PAE | cr4::PCIDE;
        let mut control = long();
        control.cr3 |= 5;
        assert_eq!(control.set_cr4(tagged, &features), Err(Refused));
        control.cr3 = 0x1000;
        control.set_cr4(tagged, &features).unwrap();
        assert_eq!(control.set_cr0(0x11, CodeSegment::Short), Err(Refused), "paging off");
        let mut legacy = Control { efer: 0, ..long() };
        assert_eq!(legacy.set_cr4(tagged, &features), Err(Refused));
    }

    #[test]
    fn svme_is_never_offered() {
        let features = Features::of(|_, _| Answer { eax: !0, ebx: !0, ecx: !0, edx: !0 });
        assert_eq!(features.efer & efer::SVME, 0);
    }

    #[test]
    fn extended_state_is_whole() {
        for (value, fits) in [(1, true), (3, true), (7, true), (0, false), (2, false), (5, false)] {
            assert_eq!(check_xcr(0, value, &FEATURES).is_ok(), fits, "{value:#x}");
        }
        assert_eq!(check_xcr(0, 0xf, &FEATURES), Err(Refused), "not offered");
        assert_eq!(check_xcr(1, 7, &FEATURES), Err(Refused));
    }

    #[test]
    fn attribute_types_exist() {
        assert_eq!(check_pat(0x0007_0406_0007_0406), Ok(()));
        for kind in [2, 3, 8, 0x84] {
            assert_eq!(check_pat(kind << 24), Err(Refused));
        }
    }
}
