//! What all participants of one MMU share: words and arrays, and how each is read and written.
//!
//! Nothing here knows a section or calls the host. Who may touch what, and in which order, is the
//! business of [`protocol`](crate::protocol) and of the layers above it; the races that the words
//! are there to decide are described at the head of each file.

pub mod abandoned;
pub mod broken;
pub mod core;
pub mod invalidations;
pub mod ledger;
pub mod participant;
pub mod reserved;
pub mod root;
pub mod slot;
pub mod slot_set;
pub mod slots;
pub mod table;
pub mod vcpu;
pub mod watch;
pub mod watch_name;
