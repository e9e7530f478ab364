//! Which writes of its local APIC a guest may do.
//!
//! The guest has the real APIC of the processor its vCPU runs on. Reads and most writes are
//! harmless. Kept back is what would stop, reset or rename a processor that runs the hypervisor:
//! INIT, start-up, NMI and SMI messages (the first three are carried out on vCPUs instead) and the
//! APIC's own id. AMD64 APM vol. 2, sections 16.3 to 16.6.

/// What to do with a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Write {
    /// Do it, with this value.
    Pass(u32),
    /// As [`Write::Pass`]; and the guest's logical destination is this now.
    PassLogical(u32),
    /// Not done.
    Drop,
    /// Not done; this is to happen to vCPUs instead.
    Signal(Signal),
}

/// A message between vCPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signal {
    /// What.
    pub kind: Kind,
    /// To whom.
    pub to: Destination,
}

/// Messages that are carried out on vCPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Reset and wait for start-up.
    Init,
    /// Start in real mode at this page.
    StartUp(u8),
    /// Non-maskable interrupt.
    Nmi,
}

/// Receivers of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destination {
    /// The sender.
    Oneself,
    /// Every vCPU.
    All,
    /// Every vCPU but the sender.
    Others,
    /// The vCPU with this APIC id.
    Physical(u8),
    /// Every vCPU whose logical destination has one of these bits.
    Logical(u8),
}

impl Destination {
    /// Whether vCPU `id`, with logical destination register `logical`, is meant.
    pub const fn includes(self, sender: u8, id: u8, logical: u32) -> bool {
        match self {
            Self::Oneself => id == sender,
            Self::All => true,
            Self::Others => id != sender,
            Self::Physical(to) => to == id || to == 0xff,
            Self::Logical(mask) => mask == 0xff || (logical >> 24) as u8 & mask != 0,
        }
    }
}

const LDR: u16 = 0xd0;
const ICR_LOW: u16 = 0x300;

/// What to do with a 32-bit write of `value` at `offset` of the page. `high` is the high word of
/// the interrupt command register.
pub const fn write(offset: u16, value: u32, high: u32) -> Write {
    match offset {
        // Task priority, end of interrupt, destination format, spurious vector, error status.
        0x80 | 0xb0 | 0xe0 | 0xf0 | 0x280 => Write::Pass(value),
        LDR => Write::PassLogical(value),
        ICR_LOW => command(value, high),
        // High word of the command, timer counts and divisor.
        0x310 | 0x380 | 0x3e0 => Write::Pass(value),
        0x320..=0x370 if offset & 15 == 0 => match value >> 8 & 7 {
            // SMI and INIT, from a pin.
            2 | 5 => Write::Pass(value | 1 << 16),
            _ => Write::Pass(value),
        },
        _ => Write::Drop,
    }
}

const fn command(low: u32, high: u32) -> Write {
    let kind = match low >> 8 & 7 {
        // Fixed, lowest priority, external.
        0 | 1 | 7 => return Write::Pass(low),
        4 => Kind::Nmi,
        // The level-deassert form only synchronises arbitration.
        5 if low & 0xc000 == 0x8000 => return Write::Drop,
        5 => Kind::Init,
        6 => Kind::StartUp(low as u8),
        _ => return Write::Drop,
    };
    let to = match low >> 18 & 3 {
        0 if low >> 11 & 1 == 1 => Destination::Logical((high >> 24) as u8),
        0 => Destination::Physical((high >> 24) as u8),
        1 => Destination::Oneself,
        2 => Destination::All,
        _ => Destination::Others,
    };
    Write::Signal(Signal { kind, to })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_up_messages_are_kept_back() {
        let init = Write::Signal(Signal { kind: Kind::Init, to: Destination::Others });
        assert_eq!(write(0x300, 0xc_4500, 0), init);
        let start =
            Write::Signal(Signal { kind: Kind::StartUp(0x9a), to: Destination::Physical(3) });
        assert_eq!(write(0x300, 0x469a, 3 << 24), start);
        assert_eq!(write(0x300, 0x8500, 1 << 24), Write::Drop, "deassert");
        assert_eq!(write(0x300, 0x0200, 1 << 24), Write::Drop, "SMI");
    }

    #[test]
    fn no_command_that_passes_resets_a_processor() {
        for low in 0..1 << 20 {
            if let Write::Pass(low) = write(0x300, low, 0) {
                assert!(matches!(low >> 8 & 7, 0 | 1 | 7), "{low:#x}");
            }
        }
    }

    #[test]
    fn the_id_cannot_be_written_nor_anything_unaligned() {
        for offset in 0..0x1000 {
            if write(offset, 0, 0) != Write::Drop {
                assert_eq!(offset % 16, 0, "{offset:#x}");
                assert!(offset >= 0x80, "{offset:#x}");
            }
        }
    }

    #[test]
    fn pins_cannot_reset() {
        assert_eq!(write(0x350, 0x500, 0), Write::Pass(0x1_0500));
        assert_eq!(write(0x350, 0x700, 0), Write::Pass(0x700));
    }

    #[test]
    fn destinations() {
        assert!(Destination::Others.includes(0, 1, 0) && !Destination::Others.includes(0, 0, 0));
        assert!(Destination::Physical(0xff).includes(0, 5, 0));
        assert!(Destination::Logical(2).includes(0, 1, 2 << 24));
        assert!(!Destination::Logical(2).includes(0, 1, 1 << 24));
    }
}
