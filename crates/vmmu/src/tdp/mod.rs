//! Two-dimensional paging: faults in two steps, inserts by permit.
//!
//! A fault:
//!
//! 1. *watch* the largest leaf it may map; open a section. In it: what is mapped already is
//!    *spurious* and never overwritten; a linear slot is mapped at once; no slot at all is
//!    emulation; else *admit* the watch, which from then on spans no more than the leaf that slot and
//!    invalidations under way allow. While the vCPU's own watch is out with an earlier request, the
//!    first section has none: only when it finds a backed slot a spare one is opened, and another
//!    section begins anew and admits it.
//! 2. Outside of sections the host finds the frame.
//! 3. In a section of any participant: *permit* for the whole
//!    leaf to be written, then map.
//!
//! A refusal means: let the guest try again. Nothing was changed.

pub mod fault;
pub mod insert;
pub(crate) mod recent;
pub mod request;
pub mod usable;
