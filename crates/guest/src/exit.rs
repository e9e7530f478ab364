//! Exit codes: what the guest writes to port 0xf4.
//!
//! QEMU's `isa-debug-exit` turns a code into the process status `code << 1 | 1`, so all of them
//! stay below 128.

/// Everything asked for was done and was as it must be.
pub const OK: u32 = 0;
/// The guest's own code panicked.
pub const PANIC: u32 = 1;
/// The command line asks for something that does not exist.
pub const USAGE: u32 = 2;
/// The boot loader did not hand over a usable multiboot information block.
pub const BOOT: u32 = 3;
/// Something a test checks was not as it must be; the console says what.
pub const FAILED: u32 = 4;
/// The other processors did not come up, or too many did.
pub const CPUS: u32 = 5;
/// RAM did not hold what was written to it.
pub const RAM: u32 = 6;
/// Processors disagree about memory they share.
pub const ATOMICS: u32 = 7;
/// The guest's own page tables do not do what was written into them.
pub const PAGE_TABLES: u32 = 8;
/// An exception was not delivered, or not with the right frame.
pub const EXCEPTIONS: u32 = 9;
/// A timer did not interrupt.
pub const TIMER: u32 = 10;
/// Floating-point state was not kept.
pub const FPU: u32 = 11;
/// An unassigned port or a string instruction on a port is wrong.
pub const PORTS: u32 = 12;
/// Memory without a device does not read as all ones.
pub const MMIO: u32 = 13;

/// Code for an exception nobody expected.
pub const fn unexpected(vector: u8) -> u32 {
    64 + (vector as u32 & 31)
}

/// What a code means, for reports.
pub const fn meaning(code: u32) -> &'static str {
    match code {
        OK => "all as it must be",
        PANIC => "the guest panicked",
        USAGE => "unknown test or option",
        BOOT => "no usable multiboot information",
        FAILED => "a test failed",
        CPUS => "wrong number of processors",
        RAM => "RAM lost data",
        ATOMICS => "shared memory is not coherent",
        PAGE_TABLES => "the guest's page tables are not followed",
        EXCEPTIONS => "an exception was delivered wrongly",
        TIMER => "a timer did not interrupt",
        FPU => "floating-point state was lost",
        PORTS => "port access is wrong",
        MMIO => "unassigned memory does not read as all ones",
        64..=95 => "an exception nobody expected (code minus 64 is the vector)",
        _ => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_fits_a_process_status() {
        for code in (0..=13).chain((0..=255).map(unexpected)) {
            assert!(code < 128);
            assert_ne!(meaning(code), "unknown", "{code}");
        }
    }
}
