//! How an access ends.

use crate::fault::Fault;

/// Where an access ended.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Reached {
    /// Host-physical address, in bytes.
    pub hpa: u64,
    /// Guest-physical address, in bytes.
    pub gpa: u64,
    /// Bytes of the effective page: the smaller of the guest's and the nested page, or, from the
    /// cache, what was kept of it.
    pub page: u64,
    /// Whether a cached translation was used.
    pub cached: bool,
}

/// Why an access did not happen.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Exit {
    /// VMEXIT_NPF.
    NestedFault(Fault),
    /// EPT violation.
    EptViolation {
        /// The exit qualification ([`qualification`](crate::qualification)).
        qualification: u64,
        /// The guest-physical address, in bytes.
        gpa: u64,
    },
    /// EPT misconfiguration.
    EptMisconfiguration {
        /// The guest-physical address, in bytes.
        gpa: u64,
    },
    /// The guest's own page fault.
    PageFault {
        /// The error code.
        code: u32,
        /// The linear address (CR2).
        address: u64,
    },
    /// The page-modification log is full, and an accessed or dirty flag was to be set. It was not.
    PmlFull,
    /// A table, a page of the guest's tables or the log is where there is no memory.
    Bus {
        /// Host-physical address, in bytes.
        address: u64,
    },
}

/// Why a walk did not arrive.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Failed {
    /// The guest exits, or faults.
    Exit(Exit),
    /// Another writer changed an entry before its flag was set.
    Lost,
}

impl From<Exit> for Failed {
    fn from(exit: Exit) -> Self {
        Failed::Exit(exit)
    }
}
