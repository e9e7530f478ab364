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
//!    is mapped at once; a page of no slot is emulated; in all other cases the watch is *admitted*,
//!    and from then on spans no more than the leaf that slot and invalidations under way allow.
//!    While the vCPU's own watch is out with an earlier request, the first section has none: only
//!    when it finds a backed slot a spare one is opened, and another section begins anew and admits
//!    it.
//! 2. Outside of sections the host finds the frame.
//! 3. In a section of any participant it asks for the *permit* for the whole leaf to be written,
//!    and maps it.
//!
//! A refusal changes nothing. If its reason ends by itself in a few steps of others (a hit, an entry
//! that is frozen or has changed, a slot that is coming, a root that has gone), the fault begins again:
//! [`handle_fault`](crate::VcpuMmu::handle_fault) waits through the host, outside of sections, and does
//! so; the two halves answer [`Outcome::Retry`](crate::Outcome::Retry). If the reason may last, because
//! somebody holds it open who may be the caller (an invalidation, a deletion in steps, all watches out
//! with requests), the answer is [`Outcome::Busy`](crate::Outcome::Busy): whoever waited for that
//! inside the library could wait for itself.

pub mod fault;
pub mod insert;
pub(crate) mod recent;
pub mod request;
pub mod usable;
