//! A vCPU's side of the MMU: it loads roots, enters the guest and handles faults.
//!
//! The hazard: vCPU A has loaded a root's address into hardware and is about to run the guest,
//! while worker B invalidates that root and takes its tables apart.
//!
//! The rule: A says *in the guest* first, then looks at the flushes it is asked for and whether its
//! root is still valid, and backs out if it is not. B marks the root invalid first, and then waits
//! until every vCPU that said *in the guest* has left it. Loading a root may sleep, lock and
//! allocate, so it is a call of its own; entering does none of the three, and answers
//! [`EnterError::LoadRoot`] when the root has gone.

use alloc::sync::Arc;
use core::fmt;
use core::mem::ManuallyDrop;

use crate::addr::{Gpa, Hpa, Pfn};
use crate::api::hold::Hold;
use crate::api::memory::{AccessError, GuestWord, Translation};
use crate::api::mmu::Mmu;
use crate::api::worker::{HandleError, Worker};
use crate::error::NoMemory;
use crate::fault::{Busy, Outcome, PageFault};
use crate::host::backing::{Answer, Backing};
use crate::host::cpus::{Cpus, VcpuId, WaitFor};
use crate::host::host::Host;
use crate::host::memory::GuestMemory;
use crate::host::observer::{Event, Observer};
use crate::state::broken::Broken;
use crate::state::root::{Berth, Role, RootName};
use crate::state::vcpu::VcpuWords;
use crate::tdp::fault::{FaultStep, Faulter, IfShort, NeedsPages};
use crate::tdp::request::{NotCompleted, Parked, Request, ResolvedFault};

/// A physical processor, as the host numbers them. A vCPU that finds itself on another one than
/// last time drops its translations there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Processor(pub u32);

/// One virtual processor. It holds its MMU by `M`: borrowed (`&Mmu<H>`), or by a share
/// (`Arc<Mmu<H>>`) if it has to be stored. Made by [`Mmu::vcpu`], or by [`VcpuMmu::new`] from
/// either.
#[derive(Debug)]
pub struct VcpuMmu<M: Hold> {
    worker: Worker<M>,
    id: VcpuId,
    role: Role,
    root: Option<(RootName, Pfn)>,
    /// Translations of this vCPU may be stale until it has entered with a flush.
    stale: bool,
    processor: Option<Processor>,
}

/// Why a vCPU has no root.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LoadError {
    /// No page for a top table; load again when the host has one.
    OutOfMemory,
    /// Every place for a root is taken, by roots of other roles or by drains that other threads are at
    /// just now: ask again when those have ended.
    RootsBusy,
    /// The MMU is dead.
    Dead(Broken),
}

/// Why a vCPU cannot enter the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EnterError {
    /// It has no root, or the root has been invalidated: [`VcpuMmu::load_root`], where that may
    /// sleep, then enter again.
    LoadRoot,
    /// The MMU is dead.
    Dead(Broken),
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LoadError::OutOfMemory => f.write_str("no page for a top table"),
            LoadError::RootsBusy => f.write_str("all places for roots are being drained"),
            LoadError::Dead(broken) => write!(f, "the MMU is dead: {broken}"),
        }
    }
}

impl core::error::Error for LoadError {}

impl fmt::Display for EnterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EnterError::LoadRoot => f.write_str("no valid root: load one, then enter again"),
            EnterError::Dead(broken) => write!(f, "the MMU is dead: {broken}"),
        }
    }
}

impl core::error::Error for EnterError {}

/// Whether translations must be dropped before the guest runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Flush {
    /// All translations of this vCPU on this processor, paging-structure caches included (SVM:
    /// TLB_CONTROL or a new ASID; VMX: INVEPT or a new VPID with it).
    Needed,
    /// Not needed.
    NotNeeded,
}

/// The vCPU counts as being in the guest. The interrupts by which it is kicked are held pending
/// from before this was made until the guest runs, or a kick may be lost. Dropping this means that
/// the guest was not entered.
#[must_use = "dropped at once, nothing has been entered"]
#[derive(Debug)]
pub struct InGuest<'v, M: Hold> {
    vcpu: &'v mut VcpuMmu<M>,
    entry: Entry,
}

/// What an entry needs to know.
#[derive(Clone, Copy, Debug)]
struct Entry {
    top: Pfn,
    flush: Flush,
    on: Processor,
}

/// Which of the stays in the guest of which vCPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Stay {
    mmu: u64,
    vcpu: VcpuId,
    mode: u64,
}

/// What an entry needs to know, as a plain value: [`InGuest::keep`] gives it, for hypervisors whose
/// entry and exit are two functions.
///
/// As long as the vCPU counts as being in the guest, whoever flushes kicks it and waits for it. So
/// [`VcpuMmu::leave`] is called after the exit, before anything else: every other call of the vCPU that
/// changes something ends the entry too, as one that was not made.
#[must_use = "the vCPU counts as being in the guest until `leave` is called"]
#[derive(Debug)]
pub struct Entered {
    entry: Entry,
    stay: Option<Stay>,
}

impl Entered {
    /// Host-physical address of the top table (SVM: nCR3; VMX: in the EPTP).
    pub fn root(&self) -> Hpa {
        self.entry.top.hpa()
    }

    /// Whether the entry has to drop translations.
    pub fn flush(&self) -> Flush {
        self.entry.flush
    }
}

impl<H: Host> Mmu<H> {
    /// The vCPU of that number, which borrows the MMU.
    pub fn vcpu(&self, id: VcpuId) -> Result<VcpuMmu<&Self>, HandleError> {
        VcpuMmu::new(self, id)
    }
}

impl<M: Hold> VcpuMmu<M> {
    /// The vCPU of that number, of an MMU that is borrowed or shared.
    pub fn new(mmu: M, id: VcpuId) -> Result<Self, HandleError> {
        let worker = Worker::new(mmu)?;
        let words = worker.seat.core().vcpus.get(id.0 as usize);
        if !words.ok_or(HandleError::NoSuchVcpu(id))?.take() {
            return Err(HandleError::Taken(id));
        }
        Ok(VcpuMmu { worker, id, role: Role::PLAIN, root: None, stale: true, processor: None })
    }

    fn words(&self) -> Option<&VcpuWords> {
        self.worker.seat.core().vcpus.get(self.id.0 as usize)
    }

    /// Which stay it is in now, be it one outside.
    fn stay(&self) -> Option<Stay> {
        let mode = self.words()?.mode();
        Some(Stay { mmu: self.worker.seat.core().id, vcpu: self.id, mode })
    }

    /// Says "outside", if an entry was kept and never left.
    #[inline]
    fn outside(&self) {
        if let Some(words) = self.words() {
            words.leave();
        }
    }

    /// Its number.
    pub fn id(&self) -> VcpuId {
        self.id
    }

    /// The role the next root is loaded for.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Chooses the role of the next root. Roots of other roles stay as they are.
    pub fn set_role(&mut self, role: Role) {
        self.outside();
        if role != self.role {
            if defect!(RootDiesWithItsUser)
                && let Some((name, _)) = self.root
            {
                self.worker.seat.core().roots.invalidate(name);
            }
            self.role = role;
            self.root = None;
            self.stale = true;
        }
    }

    /// Makes sure that the vCPU has a valid root of its role: finds one, or makes a new one. May
    /// sleep, lock and allocate, so it is called with interrupts on.
    pub fn load_root(&mut self) -> Result<(), LoadError> {
        self.outside();
        self.valid_root().map(|_| ())
    }

    #[inline]
    fn valid_root(&mut self) -> Result<RootName, LoadError> {
        let core = self.worker.seat.core();
        core.alive().map_err(LoadError::Dead)?;
        match self.root {
            Some((name, _)) if core.roots.is_valid(name) => Ok(name),
            _ => self.find_root(),
        }
    }

    /// Finds a root of its role, or makes one.
    #[cold]
    fn find_root(&mut self) -> Result<RootName, LoadError> {
        // Only a new root needs a page, and whether it is new is decided under the roots' lock.
        let root = loop {
            let Worker { seat, cache, .. } = &mut self.worker;
            let mut local = seat.local();
            let mut waiting = local.waiting(WaitFor::RootCreation);
            let (core, host) = (local.core(), local.hooks());
            let vacancy = match core.roots.find_or_make(self.role, || waiting.pass(host)) {
                Berth::Taken(root) => break root,
                Berth::Free(vacancy) => vacancy,
                // Drains hold all places; somebody may have begun them and gone.
                Berth::None if local.adopt_drain() => continue,
                Berth::None => return Err(LoadError::RootsBusy),
            };
            if let Some(top) = cache.take() {
                let early = defect!(BornOutsideSection).then(|| local.section().slots().epoch());
                let section = local.section();
                let root = vacancy.fill(top, early.unwrap_or_else(|| section.slots().epoch()));
                break root.ok_or(LoadError::RootsBusy)?;
            }
            drop(vacancy);
            self.worker.reserve(0).map_err(|_| LoadError::OutOfMemory)?;
        };
        self.root = Some((root.name, root.top));
        self.stale = true;
        Ok(root.name)
    }

    /// Gets ready to run guest code on processor `on`: sees every flush that was asked for, and
    /// that the root is still valid. From here on a flush kicks this vCPU. Neither sleeps, nor
    /// locks, nor allocates, nor calls a hook but [`Cpus::here`].
    pub fn before_enter(&mut self, on: Processor) -> Result<InGuest<'_, M>, EnterError> {
        let core = self.worker.seat.core();
        core.alive().map_err(EnterError::Dead)?;
        let (name, top) = self.root.ok_or(EnterError::LoadRoot)?;
        let words = core.vcpus.get(self.id.0 as usize).ok_or(EnterError::LoadRoot)?;
        words.note_here(self.worker.seat.host().here());
        words.enter();
        let wanted = words.flush_wanted();
        if let Some(number) = wanted {
            words.flush_done(number);
        }
        // After the look at the flushes: whoever waits for that look to be over knows that this one
        // comes after it, and sees the root invalid.
        let valid = core.roots.is_valid(name) || defect!(LoadsUnnamedRoot);
        if !valid {
            words.leave();
        }
        if wanted.is_some() {
            self.stale = true;
        }
        if !valid {
            return Err(EnterError::LoadRoot);
        }
        let moved = self.processor != Some(on);
        let flush = if self.stale || moved { Flush::Needed } else { Flush::NotNeeded };
        Ok(InGuest { vcpu: self, entry: Entry { top, flush, on } })
    }

    /// The guest has run and has exited: what [`Entered::flush`] asked for has been done.
    ///
    /// An entry that another call has ended meanwhile, or that is another vCPU's, counts as one that was
    /// not made: what has become stale since then would be forgotten otherwise. The vCPU is outside, and
    /// the flush is asked for again.
    pub fn leave(&mut self, entered: Entered) {
        if entered.stay.is_some() && entered.stay == self.stay() {
            self.stale = false;
            self.processor = Some(entered.entry.on);
        }
        self.outside();
    }

    /// Handles a fault from end to end: asks `backing` for the frame, and the host for table pages.
    /// Also for prefaulting, before the first entry: it loads a root if there is none.
    ///
    /// Never answers [`Outcome::Retry`]: it waits for what other threads end in a few steps, by
    /// [`Cpus::wait`]. For everything that may last, and that the caller itself may have to end, it
    /// answers [`Outcome::Busy`].
    pub fn handle_fault(&mut self, backing: &dyn Backing, fault: PageFault) -> Outcome {
        self.outside();
        let space = self.role.space;
        let outcome = loop {
            let root = self.valid_root();
            let Worker { seat, cache, hint, recent, gap } = &mut self.worker;
            let mut local = seat.local();
            let mut faulter = Faulter { local: &mut local, cache, hint, recent, gap };
            let without_root = match root {
                Ok(root) => match faulter.handle_fault(backing, root, space, fault) {
                    Some(outcome) => break outcome,
                    None => continue,
                },
                Err(LoadError::RootsBusy) => Outcome::Busy(Busy::Roots),
                Err(LoadError::OutOfMemory) => Outcome::OutOfMemory,
                Err(LoadError::Dead(broken)) => break Outcome::Dead(broken),
            };
            break faulter.without_root(space, fault, without_root);
        };
        let (vcpu, gfn, access) = (self.id, fault.gpa.gfn(), fault.access);
        self.worker.seat.host().event(Event::Fault { vcpu, gfn, access, outcome });
        outcome
    }

    /// As [`Worker::reserve`].
    pub fn reserve(&mut self, pages: usize) -> Result<(), NoMemory> {
        self.worker.reserve(pages)
    }

    /// As [`Worker::complete`].
    #[expect(clippy::result_large_err, reason = "the frame comes back; a box would allocate")]
    pub fn complete<'f>(&mut self, frame: ResolvedFault<'f>) -> Result<Outcome, NeedsPages<'f>> {
        self.outside();
        self.worker.complete(frame)
    }

    /// As [`Worker::complete_parked`].
    #[expect(clippy::result_large_err, reason = "the request comes back; a box would allocate")]
    pub fn complete_parked(
        &mut self,
        parked: Parked,
        answer: Answer,
    ) -> Result<Outcome, NotCompleted> {
        self.outside();
        self.worker.complete_parked(parked, answer)
    }

    /// As [`Worker::translate`], for the role of this vCPU.
    pub fn translate(&mut self, gpa: Gpa) -> Option<Translation> {
        self.worker.translate(self.role, gpa)
    }

    /// As [`Worker::read`], of the address space that this vCPU sees.
    pub fn read(
        &mut self,
        memory: &(impl Backing + GuestMemory + ?Sized),
        gpa: Gpa,
        buffer: &mut [u8],
    ) -> Result<(), AccessError> {
        self.outside();
        self.worker.read(memory, self.role.space, gpa, buffer)
    }

    /// As [`Worker::write`], of the address space that this vCPU sees.
    pub fn write(
        &mut self,
        memory: &(impl Backing + GuestMemory + ?Sized),
        gpa: Gpa,
        bytes: &[u8],
    ) -> Result<(), AccessError> {
        self.outside();
        self.worker.write(memory, self.role.space, gpa, bytes)
    }

    /// As [`Worker::compare_exchange`], of the address space that this vCPU sees.
    pub fn compare_exchange<W: GuestWord>(
        &mut self,
        memory: &(impl Backing + GuestMemory + ?Sized),
        gpa: Gpa,
        seen: W,
        new: W,
    ) -> Result<Result<W, W>, AccessError> {
        self.outside();
        self.worker.compare_exchange(memory, self.role.space, gpa, seen, new)
    }
}

impl<'m, H: Host> VcpuMmu<&'m Mmu<H>> {
    /// The first half of a fault; see [`tdp`](crate::tdp). Calls no hook of the host.
    pub fn begin_fault(&mut self, fault: PageFault) -> FaultStep<Request<'m>> {
        self.outside();
        let Some((root, _)) = self.root else { return FaultStep::LoadRoot };
        let Worker { seat, cache, hint, recent, gap } = &mut self.worker;
        let mut local = seat.lasting();
        Faulter { local: &mut local, cache, hint, recent, gap }.begin_fault(
            root,
            self.role.space,
            fault,
            IfShort::Emulate,
        )
    }

    /// As [`Worker::unpark`].
    pub fn unpark(&mut self, parked: Parked) -> Result<Request<'m>, Parked> {
        self.worker.unpark(parked)
    }
}

impl<H: Host> VcpuMmu<Arc<Mmu<H>>> {
    /// The first half of a fault; see [`tdp`](crate::tdp). Calls no hook of the host. The request
    /// is a parked one, which borrows nothing: complete it by
    /// [`complete_parked`](Self::complete_parked) here, or by a worker anywhere.
    pub fn begin_fault(&mut self, fault: PageFault) -> FaultStep<Parked> {
        self.outside();
        let Some((root, _)) = self.root else { return FaultStep::LoadRoot };
        let Worker { seat, cache, hint, recent, gap } = &mut self.worker;
        let mut local = seat.local();
        let mut faulter = Faulter { local: &mut local, cache, hint, recent, gap };
        faulter.begin_fault(root, self.role.space, fault, IfShort::Emulate).map(Request::park)
    }
}

impl<M: Hold> InGuest<'_, M> {
    /// Host-physical address of the top table (SVM: nCR3; VMX: in the EPTP).
    pub fn root(&self) -> Hpa {
        self.entry.top.hpa()
    }

    /// Whether the entry has to drop translations.
    pub fn flush(&self) -> Flush {
        self.entry.flush
    }

    /// The guest has run and has exited: what [`flush`](Self::flush) asked for has been done.
    /// Without this call, dropping the value means that nothing was entered.
    pub fn after_exit(self) {
        self.vcpu.stale = false;
        self.vcpu.processor = Some(self.entry.on);
    }

    /// Goes on counting as being in the guest, without a borrow of the vCPU, until
    /// [`VcpuMmu::leave`].
    pub fn keep(self) -> Entered {
        let this = ManuallyDrop::new(self);
        Entered { entry: this.entry, stay: this.vcpu.stay() }
    }
}

impl<M: Hold> Drop for InGuest<'_, M> {
    fn drop(&mut self) {
        self.vcpu.outside();
    }
}

impl<M: Hold> Drop for VcpuMmu<M> {
    fn drop(&mut self) {
        if let Some(words) = self.words() {
            // An entry that was forgotten is over too; nobody is to wait for it.
            words.leave();
            words.give_back();
        }
    }
}
