//! One physical processor.

use crate::{Access, Counts, Ept, Habits, Log, Memory, Npt, Paging, npt};

/// The nested tables' format.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Nested {
    /// AMD's nested page tables.
    Npt(Npt),
    /// Intel's extended page tables.
    Ept(Ept),
}

/// What the processor is told when it enters a guest.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Context {
    /// ASID or VPID.
    pub tag: u16,
    /// The nested tables' format.
    pub nested: Nested,
    /// Host-physical address of the top nested table, in bytes: nCR3, or the EPT pointer without
    /// its flags.
    pub root: u64,
    /// The guest's own paging.
    pub paging: Paging,
}

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
    NestedFault(npt::Fault),
    /// EPT violation.
    EptViolation {
        /// The exit qualification.
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
    /// The page-modification log is full. Nothing was changed.
    PmlFull,
    /// A table or a table's word is where there is no memory.
    Bus {
        /// Host-physical address, in bytes.
        address: u64,
    },
}

/// One physical processor: its caches, its choices, its page-modification log.
///
/// It takes whichever guest the [`Context`] of a call describes; a vCPU moves by being run on
/// another processor. Equal seeds, calls and memory give equal results.
#[derive(Clone, Debug)]
pub struct Processor {
    log: Option<Log>,
    counts: Counts,
}

impl Processor {
    /// A processor that caches by chance, with choices made from `seed`.
    pub fn new(seed: u64) -> Self {
        Self::with_habits(seed, Habits::default())
    }

    /// A processor with these habits, and choices made from `seed`.
    pub fn with_habits(seed: u64, habits: Habits) -> Self {
        let _ = (seed, habits);
        Processor { log: None, counts: Counts::default() }
    }

    /// Translates `address` for one access of the guest, as hardware would, and may keep what it
    /// learned. Sets accessed and dirty flags in the tables.
    pub fn translate<M: Memory>(
        &mut self,
        memory: &M,
        context: &Context,
        address: u64,
        access: Access,
    ) -> Result<Reached, Exit> {
        let _ = (memory, context, access);
        Err(Exit::Bus { address })
    }

    /// Walks for `address` although nobody asked: hardware may do that at any time while in the
    /// guest. Sets accessed flags, never the dirty flag of the page itself.
    pub fn speculate<M: Memory>(&mut self, memory: &M, context: &Context, address: u64) {
        let _ = (memory, context, address);
    }

    /// Forgets the translations of the *linear* page of `address` under this tag, and upper entries
    /// used for it: INVLPGA, INVVPID type 0, or the guest's INVLPG. Translations of
    /// guest-physical addresses may survive.
    pub fn invalidate_address(&mut self, tag: u16, address: u64) {
        let _ = (tag, address);
    }

    /// Forgets what is cached under this tag: TLB_CONTROL 3 on AMD, INVVPID type 1 on Intel.
    ///
    /// On AMD that is everything. On Intel what was cached of the extended page tables alone has
    /// no tag and stays: [`invalidate_root`](Self::invalidate_root) forgets it.
    pub fn invalidate_tag(&mut self, tag: u16) {
        let _ = tag;
    }

    /// Forgets everything derived from the extended page tables at `root`: INVEPT type 1. Does
    /// nothing to what was cached from nested page tables, which AMD tags by ASID alone.
    pub fn invalidate_root(&mut self, root: u64) {
        let _ = root;
    }

    /// Forgets everything: TLB_CONTROL 1 on AMD, INVEPT type 2 on Intel.
    pub fn invalidate_all(&mut self) {}

    /// Switches the page-modification log (EPT only), and gives back the one used so far, with its
    /// index as it stands. A vCPU that moves takes its log along.
    pub fn set_log(&mut self, log: Option<Log>) -> Option<Log> {
        core::mem::replace(&mut self.log, log)
    }

    /// The page-modification log as it stands.
    pub fn log(&self) -> Option<Log> {
        self.log
    }

    /// What was counted.
    pub fn counts(&self) -> Counts {
        self.counts
    }
}
