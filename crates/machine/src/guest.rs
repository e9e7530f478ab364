//! The guest's own paging.

/// How the guest translates linear to guest-physical addresses.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Paging {
    /// Not at all (CR0.PG = 0): linear addresses are guest-physical.
    Off,
    /// Long mode.
    Long(Long),
}

/// The guest's state in long mode.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Long {
    /// Guest-physical address of the top table, in bytes.
    pub cr3: u64,
    /// Levels of the tables: 4, or 5 with CR4.LA57.
    pub levels: u8,
    /// CR0.WP: supervisor writes obey read-only entries.
    pub wp: bool,
    /// EFER.NXE: bit 63 forbids fetching. Without it bit 63 is reserved.
    pub nx: bool,
    /// CR4.SMEP: supervisors do not fetch from user pages.
    pub smep: bool,
    /// CR4.SMAP, while EFLAGS.AC is clear: supervisors do not touch data in user pages.
    pub smap: bool,
    /// Whether accesses are made as user (CPL 3).
    pub user: bool,
    /// The physical address width that the guest sees, in bits.
    pub phys_bits: u8,
    /// Whether there are 1 GiB pages.
    pub gib_pages: bool,
}

impl Long {
    /// A supervisor in 4 levels with everything on, 48 address bits and 1 GiB pages.
    pub const fn new(cr3: u64) -> Self {
        Long {
            cr3,
            levels: 4,
            wp: true,
            nx: true,
            smep: true,
            smap: true,
            user: false,
            phys_bits: 48,
            gib_pages: true,
        }
    }
}
