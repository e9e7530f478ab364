//! Where the host can touch the memory that it gives to guests.

use core::ptr::NonNull;

use crate::addr::{PAGE_SIZE, Pfn};

/// One page of guest memory.
#[derive(Debug)]
#[repr(C, align(4096))]
pub struct GuestPage([u8; PAGE_SIZE as usize]);

/// How this program reaches host frames that belong to guests: for the library's own reads, writes
/// and exchanges of guest memory ([`Worker::read`](crate::Worker::read)), and for nothing else. No
/// fault calls it.
///
/// # Safety
///
/// The library copies to and from what [`bytes`](Self::bytes) names, so an implementation promises:
///
/// * the pointer is aligned to 4096 bytes, and 4096 bytes from it can be read and written, and
///   exchanged atomically, without a fault;
/// * they stay so until an invalidation that covers the page, or the deletion of a linear slot
///   that covers the frame, has returned;
/// * nobody else has a Rust reference to them: guests, devices and this library access them
///   through raw pointers.
pub unsafe trait GuestMemory {
    /// Where the page of `pfn` can be touched. `None`: this program has no address for it.
    fn bytes(&self, pfn: Pfn) -> Option<NonNull<GuestPage>>;
}

/// All host frames below a limit at one distance from their physical addresses, as a kernel's
/// direct map or an identity map has them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DirectMap {
    window: u64,
    end: Pfn,
}

impl DirectMap {
    /// The frame `pfn` is at virtual address `pfn * 4096 + window` (wrapping), for every frame
    /// below `end`.
    ///
    /// # Safety
    ///
    /// That is so for every frame below `end` that a linear slot covers or a
    /// [`Backing`](crate::host::Backing) names, as [`GuestMemory`] demands it. Memory outside of
    /// Rust's allocator, such as a kernel's direct map, has exposed provenance; memory of the
    /// allocator must have had it exposed.
    pub const unsafe fn new(window: u64, end: Pfn) -> Self {
        DirectMap { window, end }
    }
}

// SAFETY: promised to `new`; a frame's address is aligned if the window is, and is refused if it is
// not.
unsafe impl GuestMemory for DirectMap {
    fn bytes(&self, pfn: Pfn) -> Option<NonNull<GuestPage>> {
        let address = pfn.hpa().0.wrapping_add(self.window);
        let page = core::ptr::with_exposed_provenance_mut::<GuestPage>(address as usize);
        NonNull::new(page).filter(|page| pfn < self.end && page.is_aligned())
    }
}
