//! A vCPU as the library gives it, held in one of the two ways: by a borrow of the MMU, or by a
//! share of it, as a hypervisor has it that stores its vCPUs.

use std::sync::Arc;

use vmmu::addr::Hpa;
use vmmu::host::Backing;
use vmmu::host::VcpuId;
use vmmu::{
    EnterError, Entered, FaultStep, Flush, HandleError, InGuest, LoadError, Mmu, Outcome,
    PageFault, Parked, Processor, Request, Role, VcpuMmu,
};

use crate::host::Host;

/// See the module.
#[derive(Debug)]
pub enum Vcpu<'vm> {
    /// It borrows the MMU.
    Borrowing(VcpuMmu<&'vm Mmu<Host>>),
    /// It has a share of it.
    Sharing(VcpuMmu<Arc<Mmu<Host>>>),
}

/// A fault whose first half is done.
#[derive(Debug)]
pub enum Asked<'vm> {
    /// As a request, which borrows.
    Request(Request<'vm>),
    /// As its name.
    Parked(Parked),
}

/// A vCPU that counts as being in the guest.
#[derive(Debug)]
pub enum Inside<'v, 'vm> {
    /// By a borrow that ends it.
    Borrowing(InGuest<'v, &'vm Mmu<Host>>),
    /// By a plain value.
    Sharing(&'v mut VcpuMmu<Arc<Mmu<Host>>>, Entered),
}

impl<'vm> Vcpu<'vm> {
    /// The vCPU of that number.
    pub fn new(vm: &'vm Arc<Mmu<Host>>, id: VcpuId, is_sharing: bool) -> Result<Self, HandleError> {
        Ok(match is_sharing {
            false => Vcpu::Borrowing(vm.vcpu(id)?),
            true => Vcpu::Sharing(VcpuMmu::new(Arc::clone(vm), id)?),
        })
    }

    /// Chooses its role.
    pub fn set_role(&mut self, role: Role) {
        match self {
            Vcpu::Borrowing(vcpu) => vcpu.set_role(role),
            Vcpu::Sharing(vcpu) => vcpu.set_role(role),
        }
    }

    /// Sees to a valid root.
    pub fn load_root(&mut self) -> Result<(), LoadError> {
        match self {
            Vcpu::Borrowing(vcpu) => vcpu.load_root(),
            Vcpu::Sharing(vcpu) => vcpu.load_root(),
        }
    }

    /// Enters.
    pub fn before_enter(&mut self, on: Processor) -> Result<Inside<'_, 'vm>, EnterError> {
        Ok(match self {
            Vcpu::Borrowing(vcpu) => Inside::Borrowing(vcpu.before_enter(on)?),
            Vcpu::Sharing(vcpu) => {
                let entered = vcpu.before_enter(on)?.keep();
                Inside::Sharing(vcpu, entered)
            }
        })
    }

    /// Handles a fault whole.
    pub fn handle_fault(&mut self, backing: &dyn Backing, fault: PageFault) -> Outcome {
        match self {
            Vcpu::Borrowing(vcpu) => vcpu.handle_fault(backing, fault),
            Vcpu::Sharing(vcpu) => vcpu.handle_fault(backing, fault),
        }
    }

    /// The first half of one. What is done, or why it cannot be, is the error.
    pub fn begin_fault(&mut self, fault: PageFault) -> Result<Asked<'vm>, Option<Outcome>> {
        match self {
            Vcpu::Borrowing(vcpu) => asked(vcpu.begin_fault(fault)).map(Asked::Request),
            Vcpu::Sharing(vcpu) => asked(vcpu.begin_fault(fault)).map(Asked::Parked),
        }
    }
}

fn asked<R>(step: FaultStep<R>) -> Result<R, Option<Outcome>> {
    match step {
        FaultStep::Resolve(request) => Ok(request),
        FaultStep::LoadRoot | FaultStep::MissingPages(_) => Err(None),
        FaultStep::Done(outcome) => Err(Some(outcome)),
    }
}

impl Inside<'_, '_> {
    /// The top table.
    pub fn root(&self) -> Hpa {
        match self {
            Inside::Borrowing(inside) => inside.root(),
            Inside::Sharing(_, entered) => entered.root(),
        }
    }

    /// Whether translations have to go first.
    pub fn flush(&self) -> Flush {
        match self {
            Inside::Borrowing(inside) => inside.flush(),
            Inside::Sharing(_, entered) => entered.flush(),
        }
    }

    /// The guest has run.
    pub fn after_exit(self) {
        match self {
            Inside::Borrowing(inside) => inside.after_exit(),
            Inside::Sharing(vcpu, entered) => vcpu.leave(entered),
        }
    }
}
