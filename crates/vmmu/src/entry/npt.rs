//! AMD's nested page tables: the long-mode format, walked as user accesses (AMD APM volume 2,
//! 15.25 and 5.3).
//!
//! P, W and U are bits 0 to 2, and U is set in every entry because a nested walk is a user access;
//! PWT, PCD and PAT are bits 3, 4 and 7 (12 in a huge leaf); A and D are bits 5 and 6; bit 63
//! forbids fetching. MMIO entries are present with a reserved address bit set; a processor with 52
//! address bits has none, and then there are no MMIO entries.

use crate::addr::Level;
use crate::entry::format::{ADDRESS, Format, FormatError, ILLEGAL, Kind, Leaves};
use crate::entry::leaf::Record;

/// What the processor allows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NptOptions {
    /// Level of the top table: `L4`, or `L5` when the host runs with CR4.LA57.
    pub top: Level,
    /// The largest leaf: `Size1G` if CPUID 8000_0001 EDX bit 26.
    pub largest: Level,
    /// Host-physical address width, CPUID 8000_0008 EAX.
    pub phys_bits: u32,
}

impl Default for NptOptions {
    /// Four levels, 1 GiB leaves, 48 bits.
    fn default() -> Self {
        NptOptions { top: Level::L4, largest: Level::Size1G, phys_bits: 48 }
    }
}

/// The format for one configuration.
const fn unchecked(options: NptOptions) -> Format {
    // The PAT as it is after reset: only these types can be had without a PAT entry of their own,
    // and by bits that lie at the same place in 4K and huge leaves (AMD APM volume 2, 7.8).
    let (pwt, pcd) = (1 << 3, 1 << 4);
    Format {
        kind: Kind::Npt,
        top: options.top,
        largest: options.largest,
        phys_bits: options.phys_bits,
        record: Record::Hardware,
        // Nothing switches A and D off (APM volume 2, 5.4.2).
        records: 1 << Record::Hardware as u8 | 1 << Record::WriteProtect as u8,
        exec_only: false,
        read: 0b101,
        write: 1 << 1,
        exec: 0,
        no_exec: 1 << 63,
        accessed: 1 << 5,
        dirty: 1 << 6,
        huge: 1 << 7,
        memory_mask: pwt | pcd,
        memory: [pcd | pwt, ILLEGAL, pwt, ILLEGAL, 0],
        empty: 0,
        mmio: if options.phys_bits < 52 {
            Some(0b101 | (ADDRESS & !((1 << (12 + Format::GENERATION_BITS)) - 1)))
        } else {
            None
        },
        leaves: Leaves::NONE,
    }
}

/// The format for one configuration, or what is wrong with it.
pub const fn format(options: NptOptions) -> Result<Format, FormatError> {
    unchecked(options).complete()
}
