//! What CPUID tells the guest: the processor's own answer, less what the guest is not given.

use crate::wire::CpuidBit;

/// The four registers of one answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Answer {
    /// EAX.
    pub eax: u32,
    /// EBX.
    pub ebx: u32,
    /// ECX.
    pub ecx: u32,
    /// EDX.
    pub edx: u32,
}

/// What the answer depends on besides the leaf.
#[derive(Debug, Clone, Copy)]
pub struct Guest<'a> {
    /// The guest's CR4, which some bits mirror.
    pub cr4: u64,
    /// vCPUs of this guest.
    pub cpus: u32,
    /// Physical address width to show, if not the processor's.
    pub phys_bits: Option<u8>,
    /// Bits the run takes away.
    pub hide: &'a [CpuidBit],
    /// Whether the processor's local APIC is on.
    pub has_apic: bool,
}

/// The first leaf hypervisors answer.
const HYPERVISOR: u32 = 0x4000_0000;

/// Feature bits no guest sees: (leaf, subleaf or any, register, bit, why).
const HIDDEN: &[(u32, u8, u8, &str)] = &[
    (1, 2, 3, "MONITOR: intercepted, waiting would not be seen"),
    (1, 2, 15, "PDCM: no performance counters"),
    (1, 2, 17, "PCID: CR3 loads are emulated without tags"),
    (1, 2, 21, "x2APIC: the register page is what is looked at"),
    (1, 2, 24, "TSC deadline: the timer is set through the register page"),
    (1, 3, 14, "MCA: machine checks are the hypervisor's"),
    (1, 3, 21, "debug store"),
    (7, 1, 1, "TSC_ADJUST: the counter's offset is kept by the hypervisor"),
    (7, 1, 2, "SGX"),
    (7, 1, 10, "INVPCID: no PCID"),
    (7, 2, 7, "CET shadow stacks: their registers are not kept"),
    (0x8000_0001, 2, 2, "SVM: one level only"),
    (0x8000_0001, 2, 3, "extended APIC registers"),
    (0x8000_0001, 2, 10, "instruction based sampling"),
    (0x8000_0001, 2, 12, "SKINIT"),
    (0x8000_0001, 2, 13, "watchdog"),
    (0x8000_0001, 2, 15, "lightweight profiling"),
    (0x8000_0001, 2, 19, "node identity register"),
    (0x8000_0001, 2, 23, "performance counters"),
    (0x8000_0001, 2, 24, "north bridge counters"),
    (0x8000_0001, 2, 26, "data breakpoint extension"),
    (0x8000_0001, 2, 28, "cache counters"),
    (0x8000_0001, 2, 29, "MONITORX"),
    (0x8000_0001, 3, 25, "fast FXSR: the world switch saves all of it"),
];

/// What the guest is answered. `real(leaf, subleaf)` is the processor's own answer.
pub fn answer(
    leaf: u32,
    subleaf: u32,
    guest: &Guest<'_>,
    real: impl Fn(u32, u32) -> Answer,
) -> Answer {
    let mut answer = match leaf {
        HYPERVISOR => {
            let text = |part: &[u8; 4]| u32::from_le_bytes(*part);
            Answer { eax: HYPERVISOR, ebx: text(b"vmmu"), ecx: text(b"vmmu"), edx: text(b"vmmu") }
        }
        0x4000_0001..=0x4fff_ffff => Answer::default(),
        _ => real(leaf, subleaf),
    };
    for (_, register, bit, _) in HIDDEN.iter().filter(|(hidden, ..)| *hidden == leaf) {
        // Leaf 7 has subleaves with other meanings.
        if leaf != 7 || subleaf == 0 {
            *answer.register(*register) &= !(1 << bit);
        }
    }
    if matches!(leaf, 1 | 0x8000_0001) {
        mirror(&mut answer.edx, 9, u64::from(guest.has_apic));
    }
    match leaf {
        1 => {
            mirror(&mut answer.ecx, 27, guest.cr4 >> 18 & 1);
            answer.ecx |= 1 << 31;
        }
        5 => answer = Answer::default(),
        7 if subleaf == 0 => {
            mirror(&mut answer.ecx, 4, guest.cr4 >> 22 & 1);
            // Speculation controls and the registers behind them are not passed on.
            answer.edx = 0;
        }
        7 => answer = Answer::default(),
        0xa => answer = Answer::default(),
        0xd if subleaf == 1 => {
            // XSAVES would need the register 0xda0.
            answer.eax &= 0b0111;
            answer.ecx = 0;
            answer.edx = 0;
        }
        0x8000_0008 => {
            if let Some(bits) = guest.phys_bits {
                answer.eax = answer.eax & !0xff | u32::from(bits).min(answer.eax & 0xff);
            }
            // Of these, only CLZERO and the FXSAVE pointers need no register of their own.
            answer.ebx &= 0b101;
        }
        0x8000_000a | 0x8000_001b | 0x8000_001f..=0x8000_0026 => answer = Answer::default(),
        _ => {}
    }
    for bit in guest.hide {
        if bit.leaf == leaf && bit.subleaf == subleaf && bit.bit < 32 {
            *answer.register(bit.register) &= !(1 << bit.bit);
        }
    }
    answer
}

fn mirror(register: &mut u32, bit: u32, value: u64) {
    if value == 0 {
        *register &= !(1 << bit);
    }
}

impl Answer {
    fn register(&mut self, number: u8) -> &mut u32 {
        match number {
            0 => &mut self.eax,
            1 => &mut self.ebx,
            2 => &mut self.ecx,
            _ => &mut self.edx,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Answer = Answer { eax: !0, ebx: !0, ecx: !0, edx: !0 };

    fn ask(leaf: u32, subleaf: u32, cr4: u64, hide: &[CpuidBit]) -> Answer {
        let guest = Guest { cr4, cpus: 1, phys_bits: Some(36), hide, has_apic: true };
        answer(leaf, subleaf, &guest, |_, _| ALL)
    }

    #[test]
    fn svm_is_hidden() {
        assert_eq!(ask(0x8000_0001, 0, !0, &[]).ecx >> 2 & 1, 0);
        assert_eq!(ask(0x8000_000a, 0, !0, &[]), Answer::default());
    }

    #[test]
    fn what_the_run_hides_is_hidden_only_there() {
        let smap = CpuidBit { leaf: 7, subleaf: 0, register: 1, bit: 20 };
        assert_eq!(ask(7, 0, 0, &[]).ebx >> 20 & 1, 1);
        assert_eq!(ask(7, 0, 0, &[smap]).ebx, ask(7, 0, 0, &[]).ebx & !(1 << 20));
        assert_eq!(ask(1, 0, 0, &[smap]), ask(1, 0, 0, &[]));
    }

    #[test]
    fn mirrored_bits_follow_cr4() {
        assert_eq!(ask(1, 0, 0, &[]).ecx >> 27 & 1, 0);
        assert_eq!(ask(1, 0, 1 << 18, &[]).ecx >> 27 & 1, 1);
        assert_eq!(ask(7, 0, 0, &[]).ecx >> 4 & 1, 0);
        assert_eq!(ask(7, 0, 1 << 22, &[]).ecx >> 4 & 1, 1);
    }

    #[test]
    fn a_local_apic_that_is_off_is_not_there() {
        for leaf in [1, 0x8000_0001] {
            let bit = |has_apic| {
                let guest = Guest { cr4: 0, cpus: 1, phys_bits: None, hide: &[], has_apic };
                answer(leaf, 0, &guest, |_, _| ALL).edx >> 9 & 1
            };
            assert_eq!((bit(true), bit(false)), (1, 0), "{leaf:#x}");
        }
    }

    #[test]
    fn the_physical_width_only_shrinks() {
        let guest =
            |bits| Guest { cr4: 0, cpus: 1, phys_bits: Some(bits), hide: &[], has_apic: true };
        let real = |_, _| Answer { eax: 0x3028, ..Answer::default() };
        assert_eq!(answer(0x8000_0008, 0, &guest(36), real).eax, 0x3024);
        assert_eq!(answer(0x8000_0008, 0, &guest(52), real).eax, 0x3028);
    }
}
