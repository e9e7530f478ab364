//! How a handle holds its MMU: borrowed, or by a share of it.

use alloc::sync::Arc;

use crate::api::mmu::Mmu;
use crate::host::host::Host;

/// A way to hold an [`Mmu`]: `&Mmu<H>`, or `Arc<Mmu<H>>` for handles that are stored.
///
/// There are these two and no others. A handle names its place among the participants by a number,
/// so it must find the same MMU at every call. A type of somebody else's that implemented this
/// might give another one.
pub trait Hold: sealed::Sealed {
    /// The MMU's host.
    type Host: Host;

    /// The MMU.
    fn mmu(&self) -> &Mmu<Self::Host>;
}

mod sealed {
    pub trait Sealed {}
    impl<H> Sealed for &super::Mmu<H> where H: super::Host {}
    impl<H> Sealed for super::Arc<super::Mmu<H>> where H: super::Host {}
}

impl<H: Host> Hold for &Mmu<H> {
    type Host = H;

    #[inline]
    fn mmu(&self) -> &Mmu<H> {
        self
    }
}

impl<H: Host> Hold for Arc<Mmu<H>> {
    type Host = H;

    #[inline]
    fn mmu(&self) -> &Mmu<H> {
        self
    }
}
