//! Two-dimensional paging: faults in two steps, inserts by permit.
//!
//! A fault:
//!
//! 1. *watch* the largest leaf it may map; open a section. In it: what is mapped already is
//!    *spurious* and never overwritten; a linear slot is mapped at once; no slot at all is
//!    emulation; else *admit* the watch.
//! 2. Outside of sections the host finds the frame.
//! 3. In a section of any participant: *permit* for the whole
//!    leaf to be written, then map.
//!
//! A refusal means: let the guest try again. Nothing was changed.

pub mod fault;
pub mod insert;
pub mod request;
pub mod usable;
