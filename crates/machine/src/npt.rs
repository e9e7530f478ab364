//! AMD's nested page tables.

/// What the processor allows in nested page tables.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Npt {
    /// Levels of the tables: 4, or 5 when the host runs with CR4.LA57.
    pub levels: u8,
    /// Physical address width in bits (CPUID 8000_0008 EAX): address bits above it are reserved.
    pub phys_bits: u8,
    /// The host's EFER.NXE. Without it bit 63 is reserved.
    pub nx: bool,
    /// Whether there are 1 GiB leaves (CPUID 8000_0001 EDX bit 26).
    pub gib_pages: bool,
}

/// What VMEXIT_NPF tells.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Fault {
    /// EXITINFO1: the error code with bit 32 or 33.
    pub code: u64,
    /// EXITINFO2: the guest-physical address, in bytes.
    pub gpa: u64,
}
