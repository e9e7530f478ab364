//! Intel's extended page tables (Intel SDM volume 3, 30.3).
//!
//! R, W and X are bits 0 to 2; the memory type is in bits 3 to 5 with bit 6 saying that the
//! guest's PAT does not change it; bit 7 makes a leaf of an upper entry; A and D are bits 8 and 9.
//! Bit 63 suppresses virtualization exceptions and is set in everything but pointers to tables,
//! where hardware ignores it, so that a guest never gets one by accident: not for an empty entry,
//! and not for a leaf that is write-protected or hidden by aging (volume 3, "Convertible EPT
//! Violations"). Write with execute but without read is a misconfiguration (30.3.3.1): the exit
//! that tells MMIO from everything else.

use crate::addr::Level;
use crate::entry::format::{ADDRESS, Format, FormatError, Kind, Leaves};
use crate::entry::leaf::Record;

/// What the processor and its VMCS allow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EptOptions {
    /// Level of the top table: `L4` or `L5` (IA32_VMX_EPT_VPID_CAP bits 6 and 7).
    pub top: Level,
    /// The largest leaf (bits 16 and 17).
    pub largest: Level,
    /// Host-physical address width, CPUID 8000_0008 EAX.
    pub phys_bits: u32,
    /// [`Record::Hardware`] if EPTP bit 6 switches A and D on (capability bit 21).
    pub record: Record,
    /// Whether execute-only leaves exist (capability bit 0).
    pub exec_only: bool,
}

impl Default for EptOptions {
    /// Four levels, 1 GiB leaves, 46 bits, A and D by hardware, execute-only.
    fn default() -> Self {
        EptOptions {
            top: Level::L4,
            largest: Level::Size1G,
            phys_bits: 46,
            record: Record::Hardware,
            exec_only: true,
        }
    }
}

/// The format for one configuration.
const fn unchecked(options: EptOptions) -> Format {
    const fn memory(code: u64) -> u64 {
        code << 3 | 1 << 6
    }
    let empty = 1 << 63;
    Format {
        kind: Kind::Ept,
        top: options.top,
        largest: options.largest,
        phys_bits: options.phys_bits,
        record: options.record,
        // With A and D on, a root may still switch them off (EPTP bit 6) for a nested guest.
        records: match options.record {
            Record::Software => 1 << Record::Software as u8,
            Record::Hardware | Record::WriteProtect => 0b111,
        },
        exec_only: options.exec_only,
        read: 1,
        write: 1 << 1,
        exec: 1 << 2,
        no_exec: 0,
        accessed: 1 << 8,
        dirty: 1 << 9,
        huge: 1 << 7,
        memory_mask: 0b1111 << 3,
        memory: [memory(0), memory(1), memory(4), memory(5), memory(6)],
        empty,
        // The generation is in the low bits of the address field, all ones above it.
        mmio: Some(empty | 0b110 | (ADDRESS & !((1 << (12 + Format::GENERATION_BITS)) - 1))),
        leaves: Leaves::NONE,
    }
}

/// The format for one configuration, or what is wrong with it.
pub const fn format(options: EptOptions) -> Result<Format, FormatError> {
    unchecked(options).complete()
}
