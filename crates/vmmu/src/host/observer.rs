//! Events that the library reports to the host.

use crate::addr::Gfn;
use crate::entry::access::Access;
use crate::fault::Outcome;
use crate::host::cpus::VcpuId;

/// Something that happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Event {
    /// A vCPU's fault was answered.
    Fault {
        /// The vCPU.
        vcpu: VcpuId,
        /// The guest frame.
        gfn: Gfn,
        /// What the access wanted.
        access: Access,
        /// How it ended.
        outcome: Outcome,
    },
    /// A grace period is over.
    GracePeriod,
    /// A flush reached every vCPU it had to.
    Flushed {
        /// vCPUs interrupted.
        sent: u32,
        /// vCPUs that were outside the guest and see it at their next entry.
        elided: u32,
    },
}

/// Is told of events. Does nothing by default, at no cost.
pub trait Observer: Sync {
    /// Something happened.
    #[inline]
    fn event(&self, event: Event) {
        let _ = event;
    }
}
