//! Two-dimensional paging: faults in two steps, inserts by permit.
//!
//! The hazard: vCPU A faults, asks the host for the frame, and maps what it was told. Meanwhile
//! worker B has taken the frame back, deleted the slot, or invalidated the root.
//!
//! The rule: what the answer rests on is compared again in the section that maps it. A fault has
//! three parts:
//!
//! 1. It opens a [watch](crate::state::watch) over the largest leaf it may map, and a section. In
//!    this section, an access that the tables allow already is *spurious*; a page of a linear slot
//!    is mapped at once; a page of no slot is emulated; in all other cases the watch is *admitted*.
//! 2. Outside of sections the host finds the frame.
//! 3. In a section of any participant it asks for the *permit* for the whole leaf to be written,
//!    and maps it.
//!
//! A refusal means that the guest tries again. Nothing was changed.

pub mod fault;
pub mod insert;
pub mod request;
pub mod usable;
