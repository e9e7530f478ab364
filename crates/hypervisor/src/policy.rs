//! Everything of the machine a guest may reach, with the reason. What is not listed here reads as
//! all ones, swallows writes (ports and memory) or faults (model-specific registers).

/// What happens to an access of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Port {
    /// Goes to the real device without an exit.
    Through,
    /// Reads come from the real device, writes are dropped.
    ReadOnly,
    /// The hypervisor answers; see [`Trapped`].
    Trapped(Trapped),
    /// All ones, dropped.
    Closed,
}

/// Ports the hypervisor answers itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trapped {
    /// ACPI PM1a event block: status and enable.
    PmEvent,
    /// ACPI PM1a control: power-off.
    PmControl,
    /// The guest's exit code.
    ExitCode,
    /// Debug console.
    Console,
    /// Keyboard controller's command port.
    Keyboard,
    /// Reset control.
    ResetControl,
    /// System control port A.
    SystemControl,
}

/// First and last port, what happens, why.
pub const PORTS: &[(u16, u16, Port, &str)] = &[
    (0x20, 0x21, Port::Through, "first interrupt controller: a guest of this machine owns it"),
    (0x40, 0x43, Port::Through, "interval timer: the guest's clock"),
    (0x61, 0x61, Port::Through, "gate of timer channel 2: guests calibrate their clocks with it"),
    (0x64, 0x64, Port::Trapped(Trapped::Keyboard), "0xfe resets the machine: ends the guest"),
    (0x70, 0x71, Port::Through, "real-time clock"),
    (0x92, 0x92, Port::Trapped(Trapped::SystemControl), "bit 0 resets: ends the guest"),
    (0xa0, 0xa1, Port::Through, "second interrupt controller"),
    (0xe9, 0xe9, Port::Trapped(Trapped::Console), "debug console, shown with the guest's output"),
    (0xf4, 0xf7, Port::Trapped(Trapped::ExitCode), "the guest's exit code; QEMU's would end all"),
    (0x3f8, 0x3ff, Port::Through, "COM1: the guest's console"),
    (0x4d0, 0x4d1, Port::ReadOnly, "edge or level: guests look; all their lines are edges"),
    (0x600, 0x603, Port::Trapped(Trapped::PmEvent), "power management events: there are none"),
    (0x604, 0x605, Port::Trapped(Trapped::PmControl), "power-off ends the guest, not the machine"),
    (0x608, 0x60b, Port::ReadOnly, "power management timer: a clock"),
    (0xcf9, 0xcf9, Port::Trapped(Trapped::ResetControl), "resets the machine: ends the guest"),
];

/// What happens to an access of `port`.
pub fn port(port: u16) -> Port {
    PORTS
        .iter()
        .find(|(first, last, ..)| (*first..=*last).contains(&port))
        .map_or(Port::Closed, |(_, _, what, _)| *what)
}

/// Fills the I/O permission map: a set bit exits (APM vol. 2, section 15.10.1).
pub fn fill_port_map(map: &mut [u8]) {
    map.fill(0xff);
    for (first, last, what, _) in PORTS {
        if *what == Port::Through {
            for port in *first..=*last {
                if let Some(byte) = map.get_mut(usize::from(port / 8)) {
                    *byte &= !(1 << (port % 8));
                }
            }
        }
    }
}

/// What happens to an access of a model-specific register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Msr {
    /// Read and written without an exit: part of the state that the world switch keeps.
    Through,
    /// The hypervisor answers; see [`MsrRule`].
    Trapped(MsrRule),
    /// Does not exist: #GP.
    Absent,
}

/// Registers the hypervisor answers itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MsrRule {
    /// Time-stamp counter: an offset is kept.
    Tsc,
    /// Extended features: validated, SVME hidden.
    Efer,
    /// Page attribute table: validated, kept in the control block.
    Pat,
    /// APIC base: shown, cannot be moved.
    ApicBase,
    /// Memory type ranges: kept, without effect under nested paging.
    Mtrr,
    /// Reads as this value; writes are dropped.
    Constant(u64),
    /// Reads zero; only zero can be written.
    Zero,
}

/// First and last register, what happens, why.
pub const MSRS: &[(u32, u32, Msr, &str)] = &[
    (0x10, 0x10, Msr::Trapped(MsrRule::Tsc), "a write must not move the other guests' clock"),
    (0x1b, 0x1b, Msr::Trapped(MsrRule::ApicBase), "the hypervisor's signals go through the APIC"),
    (0x8b, 0x8b, Msr::Trapped(MsrRule::Constant(0)), "microcode level; Linux asks"),
    (0xfe, 0xfe, Msr::Trapped(MsrRule::Mtrr), "memory type ranges: how many"),
    (0x174, 0x176, Msr::Through, "SYSENTER: kept by VMLOAD and VMSAVE"),
    (0x1d9, 0x1d9, Msr::Trapped(MsrRule::Constant(0)), "debug control: no branch records"),
    (0x200, 0x20f, Msr::Trapped(MsrRule::Mtrr), "memory type ranges"),
    (0x250, 0x250, Msr::Trapped(MsrRule::Mtrr), "memory type ranges"),
    (0x258, 0x259, Msr::Trapped(MsrRule::Mtrr), "memory type ranges"),
    (0x268, 0x26f, Msr::Trapped(MsrRule::Mtrr), "memory type ranges"),
    (0x277, 0x277, Msr::Trapped(MsrRule::Pat), "attribute table: reserved types fault"),
    (0x2ff, 0x2ff, Msr::Trapped(MsrRule::Mtrr), "memory type ranges"),
    (0xda0, 0xda0, Msr::Trapped(MsrRule::Zero), "supervisor extended state: none is offered"),
    (0xc000_0080, 0xc000_0080, Msr::Trapped(MsrRule::Efer), "SVME must stay set, and be hidden"),
    (0xc000_0081, 0xc000_0084, Msr::Through, "SYSCALL: kept by VMLOAD and VMSAVE"),
    (0xc000_0100, 0xc000_0102, Msr::Through, "FS, GS and kernel GS: kept by VMLOAD and VMSAVE"),
    (0xc000_0103, 0xc000_0103, Msr::Through, "RDTSCP's number; the hypervisor does not use it"),
    (0xc001_0000, 0xc001_0007, Msr::Trapped(MsrRule::Constant(0)), "old counters; Linux probes"),
    (0xc001_0010, 0xc001_0010, Msr::Trapped(MsrRule::Constant(0)), "system configuration"),
    (0xc001_0015, 0xc001_0015, Msr::Trapped(MsrRule::Constant(0x100_0000)), "TSC always counts"),
    (0xc001_001f, 0xc001_001f, Msr::Trapped(MsrRule::Constant(0)), "north bridge; Linux asks"),
    (0xc001_0055, 0xc001_0055, Msr::Trapped(MsrRule::Constant(0)), "idle messages; Linux asks"),
    (0xc001_1020, 0xc001_1023, Msr::Trapped(MsrRule::Constant(0)), "errata bits; Linux sets them"),
    (0xc001_1029, 0xc001_102a, Msr::Trapped(MsrRule::Constant(2)), "LFENCE serialises already"),
];

/// What happens to an access of register `msr`.
pub fn msr(msr: u32) -> Msr {
    MSRS.iter()
        .find(|(first, last, ..)| (*first..=*last).contains(&msr))
        .map_or(Msr::Absent, |(_, _, what, _)| *what)
}

/// Fills the MSR permission map: two bits a register, read then write, set bits exit (APM vol. 2,
/// section 15.11).
pub fn fill_msr_map(map: &mut [u8]) {
    map.fill(0xff);
    for (first, last, what, _) in MSRS {
        if *what != Msr::Through {
            continue;
        }
        for register in *first..=*last {
            if let Some((byte, shift)) = msr_bits(register)
                && let Some(byte) = map.get_mut(byte)
            {
                *byte &= !(3 << shift);
            }
        }
    }
}

/// Byte and bit of a register's read bit in the permission map; `None` if it always exits.
fn msr_bits(register: u32) -> Option<(usize, u32)> {
    let (base, offset) = match register {
        0..=0x1fff => (0, register),
        0xc000_0000..=0xc000_1fff => (0x800, register - 0xc000_0000),
        0xc001_0000..=0xc001_1fff => (0x1000, register - 0xc001_0000),
        _ => return None,
    };
    Some((base + offset as usize / 4, offset % 4 * 2))
}

/// Guest-physical pages that are devices, each with the reason.
pub const MMIO: &[(u64, &str)] = &[(
    LOCAL_APIC,
    "local APIC: each vCPU has its processor's own; read directly, writes are looked at (apic.rs)",
)];

/// The local APIC's page, guest-physical and host-physical.
pub const LOCAL_APIC: u64 = 0xfee0_0000;

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    #[test]
    fn the_port_map_opens_what_passes_through_and_nothing_else() {
        let mut map = vec![0; 3 * 4096];
        fill_port_map(&mut map);
        for number in 0..=u16::MAX {
            let exits = map[usize::from(number / 8)] >> (number % 8) & 1 == 1;
            assert_eq!(exits, port(number) != Port::Through, "port {number:#x}");
        }
        assert!(map[8192..].iter().all(|byte| *byte == 0xff), "accesses across the top exit");
    }

    #[test]
    fn the_hypervisors_own_devices_are_closed() {
        let com2 = 0x2f8..=0x2ff;
        let pci = 0xcf8..=0xcff;
        for number in com2.chain(pci).filter(|number| *number != 0xcf9) {
            assert_eq!(port(number), Port::Closed, "port {number:#x}");
        }
    }

    #[test]
    fn the_register_map_follows_the_list() {
        let mut map = vec![0; 2 * 4096];
        fill_msr_map(&mut map);
        let registers = (0..0x2000).chain(0xc000_0000..0xc000_2000).chain(0xc001_0000..0xc001_2000);
        for number in registers {
            let (byte, shift) = msr_bits(number).unwrap();
            let exits = map[byte] >> shift & 3;
            let expected = match msr(number) {
                Msr::Through => 0,
                Msr::Trapped(_) | Msr::Absent => 3,
            };
            assert_eq!(exits, expected, "register {number:#x}");
        }
        assert!(map[0x1800..].iter().all(|byte| *byte == 0xff));
    }

    #[test]
    fn svm_does_not_exist_for_guests() {
        for number in [0xc001_0114, 0xc001_0115, 0xc001_0117] {
            assert_eq!(msr(number), Msr::Absent, "register {number:#x}");
        }
    }

    #[test]
    fn no_entry_hides_another() {
        for window in PORTS.windows(2) {
            assert!(window[0].1 < window[1].0, "port {:#x}", window[1].0);
        }
        for window in MSRS.windows(2) {
            assert!(window[0].1 < window[1].0, "register {:#x}", window[1].0);
        }
    }
}
