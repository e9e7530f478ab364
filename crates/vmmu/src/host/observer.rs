//! What the library tells as it happens.

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
        /// Who.
        vcpu: VcpuId,
        /// Where.
        gfn: Gfn,
        /// What the access wanted.
        access: Access,
        /// How it ended.
        outcome: Outcome,
    },
    /// A revocation began to wait for the sections open now.
    GracePeriod,
    /// A flush reached every vCPU it had to.
    Flushed {
        /// vCPUs interrupted.
        sent: u32,
        /// vCPUs that were outside the guest and see it at their next entry.
        elided: u32,
    },
}

/// Hears of events. Does nothing by default, at no cost.
pub trait Observer: Sync {
    /// Something happened.
    #[inline]
    fn event(&self, event: Event) {
        let _ = event;
    }
}
