//! What a hypervisor provides: small instance traits, no statics, so that two MMUs with different
//! hosts live in one process.
//!
//! No hook is ever called inside a section, except the two functions of [`Cpus::PREEMPTION`], which
//! stand around it. The library holds no lock of its own over a hook except the slot guard, which
//! a call that changes slots or invalidates roots takes.
//!
//! | hook | called from | may sleep | may allocate | may call the library |
//! |---|---|---|---|---|
//! | [`TablePages::take`] | refilling a cache, before a fault's or range operation's section | yes | yes | by a handle of its own |
//! | [`TablePages::release`] | settling a debt, teardown | yes | no | no |
//! | [`Cpus::kick`] | a flush, an invalidation of roots | no | no | no |
//! | [`Cpus::wait`] | every wait | yes, if [`Wait::may_sleep`] | no | no |
//! | [`Cpus::here`] | entering the guest, a flush | no | no | no |
//! | [`Backing::find`] | between the two sections of a fault | yes | yes | by a handle of its own |
//! | [`GuestMemory::bytes`] | reads and writes of guest memory | yes | yes | no |
//! | [`Observer::event`] | after an operation, outside of sections | no | no | no |

pub(crate) mod backing;
pub(crate) mod cpus;
#[expect(clippy::module_inception, reason = "the trait that sums up the others has this name")]
pub(crate) mod host;
pub(crate) mod memory;
pub(crate) mod observer;
pub(crate) mod pages;

pub use backing::{Answer, Backing, FrameQuery, HostFrame, Resolution};
pub use cpus::{Cpus, Preemption, VcpuId, Wait, WaitFor};
pub use host::Host;
pub use memory::{DirectMap, GuestMemory, GuestPage};
pub use observer::{Event, Observer};
pub use pages::{Contents, Placement, TablePage, TablePages};
