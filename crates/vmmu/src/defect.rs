//! Defects that models and tests put back, one at a time, to see that somebody notices.
//!
//! Without the feature `defects` every switch is the constant `false` and no code is left.

/// A piece of the protocol that can be taken out. The names are those of the protocol's models
/// (`D-a3` is the row "section entered without fence").
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
pub enum Defect {
    /// A section opens without a fence.
    A3 = 1,
    /// A watch is resolved before its first section.
    A5,
    /// A watch is resolved though its range is under invalidation.
    A6,
    /// A watch is admitted for leaves of which other pages are under invalidation.
    A10,
    /// A debt is opened in the ledger after what it is about was cleared.
    B3,
    /// A debt leaves the ledger before its flush.
    B4,
    /// A permit does not compare the slot's word with that of the admission.
    E2,
    /// A vCPU loads a root that it saw valid before it said that it enters.
    G1,
    /// A drain starts while vCPUs may still run on the root.
    G3,
    /// A vCPU's entry and a flush look at each other's words without a fence in between.
    G6,
    /// An entry is overwritten, whatever it holds by then.
    H1,
    /// A slot leaves the set while its leaves are mapped.
    K1,
    /// A new slot is live at once, and watches on frames of no known slot are not hit.
    K5,
    /// A drain starts without waiting for the sections open when the root became invalid.
    R2,
    /// A section looks at the top table of a root that is retiring.
    R3,
    /// A turn that becomes odd does not carry what the section before it did.
    R4,
    /// A promise ignores the ledgers of others.
    W2,
    /// A withdrawal walks without having excluded.
    W3,
    /// An invalidation hits no watch.
    W4,
}

/// Whether a defect is switched in.
#[cfg(feature = "defects")]
pub fn is_on(defect: Defect) -> bool {
    ACTIVE.load(core::sync::atomic::Ordering::Relaxed) == defect as u64
}

#[cfg(feature = "defects")]
static ACTIVE: core::sync::atomic::AtomicU64 = core::sync::atomic::AtomicU64::new(0);

/// Switches one defect in, or none.
#[cfg(feature = "defects")]
pub fn switch(defect: Option<Defect>) {
    ACTIVE.store(defect.map_or(0, |d| d as u64), core::sync::atomic::Ordering::Relaxed);
}

/// `defect!(A3)`: whether that defect is switched in.
macro_rules! defect {
    ($name:ident) => {{
        #[cfg(feature = "defects")]
        {
            $crate::defect::is_on($crate::defect::Defect::$name)
        }
        #[cfg(not(feature = "defects"))]
        {
            false
        }
    }};
}
