//! Intel's extended page tables.

/// What the processor and the EPT pointer allow in extended page tables.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Ept {
    /// Levels of the tables: 4 or 5.
    pub levels: u8,
    /// Physical address width in bits (CPUID 8000_0008 EAX): address bits above it are reserved.
    pub phys_bits: u8,
    /// Whether accessed and dirty flags are on (EPTP bit 6).
    pub ad: bool,
    /// Whether execute-only entries exist.
    pub exec_only: bool,
    /// Whether there are 2 MiB leaves.
    pub mib_pages: bool,
    /// Whether there are 1 GiB leaves.
    pub gib_pages: bool,
}
