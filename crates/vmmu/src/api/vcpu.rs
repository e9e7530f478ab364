//! A vCPU: a worker that loads roots, enters the guest and faults.

use core::fmt;
use core::ops::{Deref, DerefMut};

use crate::addr::{Hpa, Pfn};
use crate::api::mmu::Mmu;
use crate::api::worker::Worker;
use crate::fault::{Outcome, PageFault};
use crate::host::backing::Backing;
use crate::host::cpus::VcpuId;
use crate::host::host::Host;
use crate::host::observer::Event;
use crate::state::broken::Broken;
use crate::state::core::Core;
use crate::state::root::{Berth, Role, RootName};
use crate::state::vcpu::VcpuWords;
use crate::tdp::fault::{FaultStep, IfShort};

/// A physical processor, as the host numbers them. A vCPU that finds itself on another one than
/// last time drops its translations there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Processor(pub u32);

/// One virtual processor. Made in the thread that runs it; a worker too.
#[derive(Debug)]
pub struct VcpuMmu<'vm, H: Host> {
    worker: Worker<'vm, H>,
    /// The VM it is a vCPU of. A `&mut VcpuMmu` is a `&mut Worker` too, and two workers can be
    /// swapped; the words that say "in the guest" must be those of the VM whose tables are walked.
    home: &'vm Core,
    id: VcpuId,
    role: Role,
    root: Option<(RootName, Pfn)>,
    /// Translations of this vCPU may be stale until it has entered with a flush.
    stale: bool,
    processor: Option<Processor>,
}

/// Why a vCPU cannot enter the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EnterError {
    /// No page for a top table; ask again when the host has one.
    OutOfMemory,
    /// Every place for a root is taken by a drain: [`Worker::drain`] them, then ask again.
    RootsBusy,
    /// The worker in this vCPU is another VM's: the two were swapped.
    Foreign,
    /// The VM is dead.
    Dead(Broken),
}

impl fmt::Display for EnterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EnterError::OutOfMemory => f.write_str("no page for a top table"),
            EnterError::RootsBusy => f.write_str("all places for roots are being drained"),
            EnterError::Foreign => f.write_str("its worker is another VM's"),
            EnterError::Dead(broken) => write!(f, "the VM is dead: {broken}"),
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

/// The vCPU counts as being in the guest. Enter with interrupts that a kick sends held pending
/// until the entry itself, or a kick may be lost.
#[must_use = "dropped at once, nothing has been entered"]
#[derive(Debug)]
pub struct InGuest<'v, 'vm, H: Host> {
    vcpu: &'v mut VcpuMmu<'vm, H>,
    top: Pfn,
    on: Processor,
}

impl<H: Host> Mmu<H> {
    /// The vCPU of that number. `None`: it exists already, or the number is too large, or all
    /// places are taken.
    pub fn vcpu(&self, id: VcpuId) -> Option<VcpuMmu<'_, H>> {
        VcpuMmu::new(self, id)
    }
}

impl<'vm, H: Host> VcpuMmu<'vm, H> {
    pub(crate) fn new(vm: &'vm Mmu<H>, id: VcpuId) -> Option<Self> {
        let words = vm.core.vcpus.get(id.0 as usize)?;
        if !words.take() {
            return None;
        }
        let Some(worker) = Worker::new(vm) else {
            words.give_back();
            return None;
        };
        let role = Role::PLAIN;
        let home = &vm.core;
        Some(VcpuMmu { worker, home, id, role, root: None, stale: true, processor: None })
    }

    fn words(&self) -> Option<&'vm VcpuWords> {
        self.home.vcpus.get(self.id.0 as usize)
    }

    /// Its number.
    pub fn id(&self) -> VcpuId {
        self.id
    }

    /// Chooses the role the next entry uses. Roots of other roles stay as they are.
    pub fn set_role(&mut self, role: Role) {
        if role != self.role {
            if defect!(RootDiesWithItsUser)
                && let Some((name, _)) = self.root
            {
                self.home.roots.invalidate(name);
            }
            self.role = role;
            self.root = None;
            self.stale = true;
        }
    }

    /// Loads the root of the role, a new one if there is none that is valid.
    fn load_root(&mut self) -> Result<(RootName, Pfn), EnterError> {
        let core = self.worker.core();
        if let Some(loaded) = self.root.filter(|(name, _)| core.roots.is_valid(*name)) {
            return Ok(loaded);
        }
        // Only a new root needs a page, and whether it is new is decided under the roots' lock.
        let root = loop {
            let vacancy = match core.roots.find_or_make(self.role) {
                Berth::Taken(root) => break root,
                Berth::Free(vacancy) => vacancy,
                Berth::None => return Err(EnterError::RootsBusy),
            };
            if let Some(top) = self.worker.cache.take() {
                let participant = &mut self.worker.participant;
                let early =
                    defect!(BornOutsideSection).then(|| participant.section().slots().epoch());
                let section = participant.section();
                let root = vacancy.fill(top, early.unwrap_or_else(|| section.slots().epoch()));
                break root.ok_or(EnterError::RootsBusy)?;
            }
            drop(vacancy);
            self.worker.reserve(0).map_err(|_| EnterError::OutOfMemory)?;
        };
        self.root = Some((root.name, root.top));
        self.stale = true;
        Ok((root.name, root.top))
    }

    /// Gets ready to run guest code on processor `on`: loads a root if the last one has been
    /// invalidated, and sees every flush that was asked for. From here on a flush kicks this vCPU.
    pub fn before_enter(&mut self, on: Processor) -> Result<InGuest<'_, 'vm, H>, EnterError> {
        let core = self.worker.core();
        if !core::ptr::eq(core, self.home) {
            return Err(EnterError::Foreign);
        }
        loop {
            if let Some(broken) = core.broken() {
                return Err(EnterError::Dead(broken));
            }
            let (name, top) = self.load_root()?;
            let Some(words) = self.words() else { return Err(EnterError::RootsBusy) };
            words.enter();
            if let Some(count) = words.flush_wanted() {
                self.stale = true;
                words.flush_done(count);
            }
            // After the look at the flushes: who has seen that look has seen this one too.
            if core.roots.is_valid(name) || defect!(LoadsUnnamedRoot) {
                return Ok(InGuest { vcpu: self, top, on });
            }
            words.leave();
        }
    }

    /// The first half of a fault; see [`tdp`](crate::tdp). Never calls the host.
    pub fn begin_fault(&mut self, fault: PageFault) -> FaultStep<'vm> {
        match self.root {
            Some((root, _)) => {
                let (mut faulter, space) = (self.worker.faulter(), self.role.space);
                faulter.begin_fault(root, space, fault, IfShort::Emulate)
            }
            None => FaultStep::Done(Outcome::Retry),
        }
    }

    /// A whole fault: asks `backing` for the frame, and the host for table pages. Also for
    /// prefaulting, before the first entry.
    pub fn handle_fault(&mut self, backing: &dyn Backing, fault: PageFault) -> Outcome {
        let root = self.load_root();
        let space = self.role.space;
        let mut faulter = self.worker.faulter();
        let outcome = match root {
            Ok((root, _)) => faulter.handle_fault(backing, root, space, fault),
            // Drains end, and none of them waits for this fault.
            Err(EnterError::RootsBusy) => faulter.without_root(space, fault, Outcome::Retry),
            Err(EnterError::Dead(broken)) => Outcome::Dead(broken),
            Err(EnterError::OutOfMemory | EnterError::Foreign) => {
                faulter.without_root(space, fault, Outcome::OutOfMemory)
            }
        };
        let (vcpu, gfn, access) = (self.id, fault.gpa.gfn(), fault.access);
        let host = self.worker.participant.host();
        host.event(Event::Fault { vcpu, gfn, access, outcome });
        outcome
    }
}

impl<H: Host> InGuest<'_, '_, H> {
    /// Host-physical address of the top table (SVM: nCR3; VMX: in the EPTP).
    pub fn root(&self) -> Hpa {
        self.top.hpa()
    }

    /// Whether the entry has to drop translations.
    pub fn flush(&self) -> Flush {
        let moved = self.vcpu.processor != Some(self.on);
        if self.vcpu.stale || moved { Flush::Needed } else { Flush::NotNeeded }
    }

    /// The guest has run and has exited: what [`flush`](Self::flush) asked for has been done.
    /// Without this call, dropping the value means that nothing was entered.
    pub fn after_exit(self) {
        self.vcpu.stale = false;
        self.vcpu.processor = Some(self.on);
    }
}

impl<H: Host> Drop for InGuest<'_, '_, H> {
    fn drop(&mut self) {
        if let Some(words) = self.vcpu.words() {
            words.leave();
        }
    }
}

impl<'vm, H: Host> Deref for VcpuMmu<'vm, H> {
    type Target = Worker<'vm, H>;

    fn deref(&self) -> &Self::Target {
        &self.worker
    }
}

impl<H: Host> DerefMut for VcpuMmu<'_, H> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.worker
    }
}

impl<H: Host> Drop for VcpuMmu<'_, H> {
    fn drop(&mut self) {
        if let Some(words) = self.words() {
            // An entry that was forgotten is over too; nobody is to wait for it.
            words.leave();
            words.give_back();
        }
    }
}
