//! Walking tables and changing entries, inside sections.
//!
//! *The compare-exchange on the parent entry decides every contest*: who wins owns what it
//! unlinked, alone; who loses keeps what it wanted to link.

pub mod cache;
#[cfg(feature = "protocol")]
pub mod claim;
pub mod entry;
pub mod page;
pub mod walk;
