//! Pages for tables.

use crate::addr::Pfn;

/// What the library wants of a table page.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Placement {
    /// The page must end at or below this host-physical address in bytes. `None`: anywhere.
    pub below: Option<u64>,
    /// NUMA node to prefer.
    pub node: Option<u32>,
}

/// Whether a page came zeroed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Contents {
    /// All bytes are zero.
    Zeroed,
    /// Anything.
    Unknown,
}

/// A page that becomes a table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TablePage {
    /// Its frame. Frame 0 is never used.
    pub pfn: Pfn,
    /// What is in it.
    pub contents: Contents,
}

/// Pages for tables.
///
/// # Safety
///
/// The library reads and writes table pages through pointers made from what this trait says:
///
/// * a page returned by [`take`](Self::take) is 4096 bytes of memory that is readable and
///   writable at virtual address `pfn * 4096 + window()` (wrapping) until it is released, and
///   that nobody else uses meanwhile except hardware that walks this MMU's tables;
/// * [`window`](Self::window) never changes;
/// * the virtual addresses come from memory whose provenance was exposed (memory outside of
///   Rust's allocator, such as a direct map, always is).
pub unsafe trait TablePages: Sync {
    /// Difference between the virtual and the host-physical address of every table page.
    fn window(&self) -> u64;

    /// Gives a page, or `None`: the operation that needed it says so and changes nothing.
    fn take(&self, placement: Placement) -> Option<TablePage>;

    /// Takes a page back. No walker of hardware or software can reach it any more.
    fn release(&self, page: Pfn);
}
