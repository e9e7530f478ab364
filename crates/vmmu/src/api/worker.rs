//! A worker: a participant with a stock of table pages. It changes slots, answers the host's
//! invalidations, drains roots, and completes faults for vCPUs. A vCPU is a worker too.

use crate::api::mmu::Mmu;
use crate::error::NoMemory;
use crate::fault::Outcome;
use crate::host::host::Host;
use crate::protocol::local::Participant;
use crate::state::broken::Broken;
use crate::state::core::Core;
use crate::state::slot_set::Hint;
use crate::table::cache::Cache;
use crate::tdp::fault::{Faulter, NeedsPages};
use crate::tdp::recent::Recent;
use crate::tdp::request::{Parked, Request, ResolvedFault};

/// A participant with table pages; see the module.
#[derive(Debug)]
pub struct Worker<'vm, H: Host> {
    pub(crate) participant: Participant<'vm, H>,
    pub(crate) cache: Cache,
    pub(crate) hint: Hint,
    pub(crate) recent: Recent,
}

impl<H: Host> Mmu<H> {
    /// A participant without a vCPU. `None`: all places are taken.
    pub fn worker(&self) -> Option<Worker<'_, H>> {
        Worker::new(self)
    }
}

impl<'vm, H: Host> Worker<'vm, H> {
    pub(crate) fn new(vm: &'vm Mmu<H>) -> Option<Self> {
        let cache = Cache::new(vm.core.format.top()).ok()?;
        let participant = Participant::register(&vm.core, &vm.host)?;
        Some(Worker { participant, cache, hint: Hint::default(), recent: Recent::default() })
    }

    pub(crate) fn faulter(&mut self) -> Faulter<'_, 'vm, H> {
        let Worker { participant, cache, hint, recent } = self;
        Faulter { local: participant, cache, hint, recent }
    }

    pub(crate) fn core(&self) -> &'vm Core {
        self.participant.core()
    }

    pub(crate) fn alive(&self) -> Result<(), Broken> {
        self.core().broken().map_or(Ok(()), Err)
    }

    /// Takes table pages from the host ahead, so that the next operations need not: at least
    /// `pages`, and at least what one leaf may need.
    pub fn reserve(&mut self, pages: usize) -> Result<(), NoMemory> {
        let core = self.core();
        self.cache.fill(self.participant.host(), core, pages)
    }

    /// Maps a frame that was found for a request, whoever faulted. `Err`: table pages are
    /// missing; the frame comes back, [`reserve`](Self::reserve) and complete it again.
    #[expect(clippy::result_large_err, reason = "the frame comes back; a box would allocate")]
    pub fn complete<'f>(&mut self, frame: ResolvedFault<'f>) -> Result<Outcome, NeedsPages<'f>> {
        self.faulter().complete(frame)
    }

    /// Makes a request of its name again, or gives the name back if it is another VM's.
    pub fn unpark(&mut self, parked: Parked) -> Result<Request<'vm>, Parked> {
        self.participant.unpark(parked)
    }
}

impl<H: Host> Drop for Worker<'_, H> {
    fn drop(&mut self) {
        self.cache.drain(self.participant.host());
    }
}
