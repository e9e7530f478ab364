//! A worker: a participant with a stock of table pages. It changes slots, drains roots, reads and
//! writes guest memory, and completes faults for vCPUs.

use core::fmt;

use crate::addr::{Gfn, GfnRange, Gpa, HostRange, Level};
use crate::api::hold::Hold;
use crate::api::memory::{AccessError, Bytes, Copier, GuestWord, Translation};
use crate::api::mmu::Mmu;
use crate::api::seat::Seat;
use crate::error::NoMemory;
use crate::fault::Outcome;
use crate::host::backing::{Answer, Backing};
use crate::host::cpus::VcpuId;
use crate::host::host::Host;
use crate::host::memory::GuestMemory;
use crate::revoke::host_pages::HostPages;
use crate::revoke::invalidation::{Invalidation, NotInvalidating};
use crate::revoke::progress::Progress;
use crate::revoke::zap::Zap;
use crate::slots::deletion::Deletion;
use crate::slots::drain::Drain;
use crate::slots::error::SlotError;
use crate::state::reserved::Gap;
use crate::state::root::Role;
use crate::state::slot::{AddressSpace, SlotId, SlotInfo, SlotSpec};
use crate::state::slot_set::Hint;
use crate::table::cache::Cache;
use crate::tdp::fault::{Faulter, NeedsPages};
use crate::tdp::recent::Recent;
use crate::tdp::request::{NotCompleted, Parked, Request, ResolvedFault, WrongAnswer};

/// A participant with table pages; see the module.
///
/// It holds its MMU by `M`: borrowed (`&Mmu<H>`), or by a share (`Arc<Mmu<H>>`) if it has to be
/// stored. Made by [`Mmu::worker`], or by [`Worker::new`] from either.
#[derive(Debug)]
pub struct Worker<M: Hold> {
    pub(crate) seat: Seat<M>,
    pub(crate) cache: Cache,
    pub(crate) hint: Hint,
    pub(crate) recent: Recent,
    pub(crate) gap: Gap,
}

/// Why a vCPU or worker cannot be made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HandleError {
    /// The MMU was configured for fewer vCPUs than this number needs.
    NoSuchVcpu(VcpuId),
    /// This vCPU has been made and not been dropped.
    Taken(VcpuId),
    /// As many workers and vCPUs as the configuration has room for exist
    /// ([`Config::workers`](crate::Config::workers)): drop one, or configure more.
    NoPlace,
    /// No memory for the handle's stock of table pages.
    NoMemory,
}

impl fmt::Display for HandleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HandleError::NoSuchVcpu(id) => {
                write!(f, "vCPU {}: the MMU was configured for fewer", id.0)
            }
            HandleError::Taken(id) => write!(f, "vCPU {} exists: drop it first", id.0),
            HandleError::NoPlace => {
                f.write_str("all places are taken: drop a worker, or configure more")
            }
            HandleError::NoMemory => f.write_str("no memory for a stock of table pages"),
        }
    }
}

impl core::error::Error for HandleError {}

impl<H: Host> Mmu<H> {
    /// A participant without a vCPU, which borrows the MMU.
    pub fn worker(&self) -> Result<Worker<&Self>, HandleError> {
        Worker::new(self)
    }
}

impl<M: Hold> Worker<M> {
    /// A participant without a vCPU, of an MMU that is borrowed or shared.
    pub fn new(mmu: M) -> Result<Self, HandleError> {
        let top = mmu.mmu().core.format.top();
        let cache = Cache::new(top).map_err(|_| HandleError::NoMemory)?;
        let seat = Seat::take(mmu).ok_or(HandleError::NoPlace)?;
        Ok(Worker {
            seat,
            cache,
            hint: Hint::default(),
            recent: Recent::default(),
            gap: Gap::default(),
        })
    }

    /// Takes table pages from the host ahead, so that the next operations need not: at least
    /// `pages`, and at least what one leaf may need.
    pub fn reserve(&mut self, pages: usize) -> Result<(), NoMemory> {
        self.cache.fill(self.seat.host(), self.seat.core(), pages)
    }

    /// Maps a frame that was found for a request, whoever faulted. `Err`: table pages are
    /// missing; the frame comes back, [`reserve`](Self::reserve) and complete it again.
    #[expect(clippy::result_large_err, reason = "the frame comes back; a box would allocate")]
    pub fn complete<'f>(&mut self, frame: ResolvedFault<'f>) -> Result<Outcome, NeedsPages<'f>> {
        let Worker { seat, cache, hint, recent, gap } = self;
        Faulter { local: &mut seat.local(), cache, hint, recent, gap }.complete(frame)
    }

    /// Maps a frame that was found for a parked request, whoever faulted: `answer` is made from the
    /// request's [`query`](Parked::query).
    ///
    /// `Err`: table pages are missing, or the answer is another request's; the request comes back. A
    /// request that is another MMU's, or has been taken away from its vCPU meanwhile, ends as
    /// [`Outcome::Retry`].
    #[expect(clippy::result_large_err, reason = "the request comes back; a box would allocate")]
    pub fn complete_parked(
        &mut self,
        parked: Parked,
        answer: Answer,
    ) -> Result<Outcome, NotCompleted> {
        let Worker { seat, cache, hint, recent, gap } = self;
        let mut local = seat.local();
        let Ok(request) = local.unpark(parked) else { return Ok(Outcome::Retry) };
        let resolved = match request.resolve(answer) {
            Ok(resolved) => resolved,
            Err(WrongAnswer { request, answer }) => {
                return Err(NotCompleted::WrongAnswer { parked: request.park(), answer });
            }
        };
        let done = Faulter { local: &mut local, cache, hint, recent, gap }.complete(resolved);
        done.map_err(|needs| NotCompleted::MissingPages {
            missing: needs.missing,
            parked: needs.resolved.reopen().park(),
        })
    }

    /// Makes a slot. When this returns, faults map from it.
    pub fn create_slot(&mut self, spec: &SlotSpec) -> Result<(), SlotError> {
        self.seat.local().create_slot(spec)
    }

    /// Deletes a slot: zaps exactly its leaves, in every root. When this returns, nothing reaches
    /// its pages; requests of vCPUs that still resolve frames of it will be refused, and are not
    /// waited for.
    pub fn delete_slot(&mut self, id: SlotId) -> Result<(), SlotError> {
        self.seat.local().delete_slot(id)
    }

    /// Begins to delete a slot in steps: from now on nothing of it is mapped any more, and nobody
    /// is held up while [`delete_some`](Self::delete_some) takes away what is.
    pub fn begin_delete(&mut self, id: SlotId) -> Result<Deletion, SlotError> {
        self.seat.local().begin_delete(id)
    }

    /// Goes on with a deletion for at most `budget` table pages. The slot's number is free when
    /// it is done. A deletion that another MMU began is left alone.
    pub fn delete_some(&mut self, deletion: &mut Deletion, budget: u64) -> Progress {
        self.seat.local().delete_some(deletion, budget)
    }

    /// Moves a slot to another place of its address space; mappings of the old place go.
    pub fn move_slot(&mut self, id: SlotId, to: Gfn) -> Result<(), SlotError> {
        self.seat.local().move_slot(id, to)
    }

    /// Changes the largest leaf of a slot. When this returns, no larger one is mapped; faults on
    /// other slots are not held up.
    pub fn limit_slot(&mut self, id: SlotId, largest: Level) -> Result<(), SlotError> {
        self.seat.local().limit_slot(id, largest)
    }

    /// The slot of that number, as it stands. Waits for nobody.
    pub fn slot(&mut self, id: SlotId) -> Result<SlotInfo, SlotError> {
        self.seat.local().slot(id)
    }

    /// Drops every mapping of guest frames, so that faults make them anew: leaves only, and an
    /// overlapping huge leaf goes whole. Requests under way are refused. Call it after changing
    /// what a mapping would say.
    pub fn zap(&mut self, space: AddressSpace, range: GfnRange) {
        let mut local = self.seat.local();
        let mut zap = local.begin_zap(space, range);
        while local.zap_some(&mut zap, u64::MAX) == Progress::More {}
    }

    /// Begins a [`zap`](Self::zap) in steps.
    pub fn begin_zap(&mut self, space: AddressSpace, range: GfnRange) -> Zap {
        self.seat.local().begin_zap(space, range)
    }

    /// Goes on with a zap for at most `budget` table pages. Only when it is done is everything
    /// gone that was mapped when it began. A zap that another MMU began is left alone.
    pub fn zap_some(&mut self, zap: &mut Zap, budget: u64) -> Progress {
        self.seat.local().zap_some(zap, budget)
    }

    /// Invalidates every root and waits until no vCPU runs on one: the first half of
    /// [`zap_all`](Self::zap_all). vCPUs load new roots at their next entry. [`drain`](Self::drain)
    /// the old ones.
    pub fn invalidate_roots(&mut self) -> Drain {
        self.seat.local().invalidate_roots()
    }

    /// Takes at most `budget` tables of invalid roots apart and gives them back to the host. A
    /// drain that another MMU began is left alone.
    pub fn drain(&mut self, drain: &mut Drain, budget: u64) -> Progress {
        self.seat.local().drain(drain, budget)
    }

    /// Drops every mapping there is, with all tables. What it costs depends on how much is mapped.
    pub fn zap_all(&mut self) {
        self.seat.local().zap_all();
    }

    /// The host takes pages back; see [`Mmu::invalidate_begin`]. Uses this worker's place, so it
    /// never waits for one.
    pub fn invalidate_begin(&mut self, range: HostRange) {
        self.seat.local().invalidate(HostPages::named(range));
    }

    /// As [`Mmu::invalidate_end`].
    pub fn invalidate_end(&mut self, range: HostRange) -> Result<(), NotInvalidating> {
        self.seat.mmu().invalidate_end(range)
    }

    /// Where the tables of `role` lead for `gpa` now, if they lead anywhere.
    pub fn translate(&mut self, role: Role, gpa: Gpa) -> Option<Translation> {
        let Worker { seat, hint, recent, gap, .. } = self;
        Copier { local: &mut seat.local(), hint, recent, gap }.translate(role, gpa)
    }

    /// Reads guest memory. The bytes of each page are copied at one time; those of different
    /// pages are not.
    pub fn read(
        &mut self,
        memory: &(impl Backing + GuestMemory + ?Sized),
        space: AddressSpace,
        gpa: Gpa,
        buffer: &mut [u8],
    ) -> Result<(), AccessError> {
        let Worker { seat, hint, recent, gap, .. } = self;
        let mut copier = Copier { local: &mut seat.local(), hint, recent, gap };
        copier.copy(memory, space, gpa, Bytes::Out(buffer))
    }

    /// Writes guest memory, page by page.
    pub fn write(
        &mut self,
        memory: &(impl Backing + GuestMemory + ?Sized),
        space: AddressSpace,
        gpa: Gpa,
        bytes: &[u8],
    ) -> Result<(), AccessError> {
        let Worker { seat, hint, recent, gap, .. } = self;
        let mut copier = Copier { local: &mut seat.local(), hint, recent, gap };
        copier.copy(memory, space, gpa, Bytes::In(bytes))
    }

    /// Replaces an aligned word of guest memory if it is what was `seen`, atomically against the
    /// guest and everybody else: how a walker of the guest's page tables sets A and D.
    ///
    /// `Ok(Err(now))`: it is something else. A word that is not aligned to its size is
    /// [`AccessFailure::Unaligned`](crate::AccessFailure::Unaligned).
    pub fn compare_exchange<W: GuestWord>(
        &mut self,
        memory: &(impl Backing + GuestMemory + ?Sized),
        space: AddressSpace,
        gpa: Gpa,
        seen: W,
        new: W,
    ) -> Result<Result<W, W>, AccessError> {
        let Worker { seat, hint, recent, gap, .. } = self;
        let mut copier = Copier { local: &mut seat.local(), hint, recent, gap };
        copier.compare_exchange(memory, space, gpa, seen, new)
    }
}

impl<'m, H: Host> Worker<&'m Mmu<H>> {
    /// The host takes pages back. When this returns, no vCPU reaches them by any translation, in
    /// any root, also not by a huge leaf that overlaps them by one page; and while the result
    /// lives nothing is mapped from them.
    ///
    /// Takes no lock, and does not wait for a vCPU that is looking up a frame. Uses this worker's
    /// place; see [`Mmu::invalidate_range`] for callers who have no worker.
    pub fn invalidate_range(&mut self, range: HostRange) -> Invalidation<'m> {
        let mut local = self.seat.lasting();
        let core = local.core();
        Invalidation::new(core, local.invalidate(HostPages::new(range)))
    }

    /// Makes a parked request a request again, or gives it back if it is another MMU's.
    pub fn unpark(&mut self, parked: Parked) -> Result<Request<'m>, Parked> {
        self.seat.lasting().unpark(parked)
    }
}

impl<M: Hold> Drop for Worker<M> {
    fn drop(&mut self) {
        self.cache.release_all(self.seat.core(), self.seat.host());
    }
}
