//! A worker: a participant with a stock of table pages. It changes slots, answers the host's
//! invalidations, drains roots, and completes faults for vCPUs. A vCPU is a worker too.

use crate::host::Host;
use crate::section::Participant;
use crate::shared::{Broken, Core};
use crate::slot::Hint;
use crate::table::Cache;
use crate::tdp::{Faulter, NeedsPages, Outcome, Parked, Request, ResolvedFault};
use crate::{Mmu, NoMemory};

/// A participant with table pages; see the module.
#[derive(Debug)]
pub struct Worker<'vm, H: Host> {
    pub(crate) participant: Participant<'vm, H>,
    pub(crate) cache: Cache,
    pub(crate) hint: Hint,
}

impl<'vm, H: Host> Worker<'vm, H> {
    pub(crate) fn new(vm: &'vm Mmu<H>) -> Option<Self> {
        let cache = Cache::new(vm.core.format.top()).ok()?;
        let participant = Participant::register(vm)?;
        Some(Worker { participant, cache, hint: Hint::default() })
    }

    pub(crate) fn faulter(&mut self) -> Faulter<'_, 'vm, H> {
        Faulter { local: &mut self.participant, cache: &mut self.cache, hint: &mut self.hint }
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

    /// How many of these frames are memory, looked up in one section: for benchmarks.
    #[cfg(feature = "protocol")]
    #[doc(hidden)]
    pub fn look_up(&mut self, frames: &[crate::addr::Gfn]) -> u64 {
        let mut hint = Hint::default();
        let section = self.participant.section();
        let (slots, space) = (section.slots(), crate::slot::AddressSpace(0));
        let is_memory = |gfn: &&crate::addr::Gfn| slots.find(space, **gfn, &mut hint).is_some();
        frames.iter().filter(is_memory).count() as u64
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
