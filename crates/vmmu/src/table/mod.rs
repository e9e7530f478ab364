//! Walking tables and changing entries, inside sections.
//!
//! The hazard: vCPU A links a table below an entry while worker B takes away what is there, or
//! while vCPU C links a table of its own.
//!
//! The rule: *the compare-exchange on the parent's entry decides every contest*. The winner alone
//! owns what it unlinked; the loser keeps what it wanted to link.

pub mod cache;
#[cfg(feature = "protocol")]
pub mod claim;
pub mod entry;
pub mod page;
pub mod walk;
