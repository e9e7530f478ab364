//! Non-maskable interrupts for the guest: one at a time, and the next right behind the IRET of the last.
//!
//! The hazard: vCPU A is in its NMI handler when vCPU B sends it another NMI. If the hypervisor injects
//! it before A has executed the IRET at the handler's end, the handler is entered a second time on the
//! same stack, and its frame is lost. If it waits for A's next exit after the IRET, that may be a long
//! time, and a third NMI that comes meanwhile merges with the second.
//!
//! The rule: IRET is intercepted while the handler runs. An exit for it comes *before* it is executed, so
//! that exit ends nothing yet. When an NMI waits then, the IRET is executed as a single step, with every
//! exception intercepted and physical interrupts held back: the debug exception comes after it, at the
//! instruction it returned to, and there the next NMI is injected. If none waits, the place is
//! remembered. As long as the guest is found at that place its IRET is still to be executed, and an NMI
//! that comes has it stepped; anywhere else it is done. AMD64 APM vol. 2, sections 8.2.3 and 15.13.

use super::vmcb::{DEBUG_STATUS_STEP, TRAP_FLAG, Vmcb};
use hypervisor::exit::code;

/// The intercept of IRET in the first word.
const IRET: u32 = 1 << 20;
/// No physical interrupt comes while the hypervisor's own flag is clear.
pub const HOLD_INTERRUPTS: u32 = 1 << 24;

/// NMIs of one vCPU.
#[derive(Debug)]
pub struct Nmis {
    mask: Mask,
    waits: bool,
}

/// Whether the guest can take an NMI.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mask {
    Open,
    /// Its handler runs: no other until IRET.
    Masked,
    /// IRET is to be executed at this place.
    Ending(Place),
    /// It is being stepped over.
    Stepping(Step),
}

/// An instruction about to be executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    rip: u64,
    rsp: u64,
}

/// What a step has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Step {
    from: Place,
    /// The guest steps over it itself.
    is_guests: bool,
    intercepts: u32,
    dr6: u64,
}

/// What is left to do about an exit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// What is done about any exit.
    Handle,
    /// Nothing.
    Nothing,
    /// The guest takes this exception, whose error code is in EXITINFO1 and whose address in EXITINFO2.
    Exception(u8),
}

impl Place {
    fn of(vmcb: &Vmcb) -> Self {
        Self { rip: vmcb.rip, rsp: vmcb.rsp }
    }
}

impl Nmis {
    /// None waits, and the guest can take one.
    pub const fn new() -> Self {
        Self { mask: Mask::Open, waits: false }
    }

    /// One has been sent. A second one before the first is taken is the same one.
    pub fn post(&mut self) {
        self.waits = true;
    }

    /// Whether one waits that nothing but another event holds back.
    pub fn waits(&self, vmcb: &Vmcb) -> bool {
        let is_open = match self.mask {
            Mask::Open => true,
            Mask::Ending(place) => place != Place::of(vmcb),
            Mask::Masked | Mask::Stepping(_) => false,
        };
        self.waits && is_open
    }

    /// Whether the next run of the guest is a step over IRET.
    pub fn is_stepping(&self) -> bool {
        matches!(self.mask, Mask::Stepping(_))
    }

    /// The guest is about to execute IRET while NMIs are masked.
    pub fn ends(&mut self, vmcb: &mut Vmcb) {
        vmcb.intercept_misc1 &= !IRET;
        self.mask = Mask::Ending(Place::of(vmcb));
    }

    /// Takes the one that waits, if the guest can take it now.
    pub fn take(&mut self, vmcb: &mut Vmcb) -> bool {
        if !self.waits {
            return false;
        }
        if let Mask::Ending(place) = self.mask {
            if place == Place::of(vmcb) {
                self.step(vmcb, place);
                return false;
            }
            self.mask = Mask::Open;
        }
        if self.mask != Mask::Open {
            return false;
        }
        (self.waits, self.mask) = (false, Mask::Masked);
        vmcb.intercept_misc1 |= IRET;
        true
    }

    fn step(&mut self, vmcb: &mut Vmcb, from: Place) {
        let is_guests = vmcb.rflags & TRAP_FLAG != 0;
        let (intercepts, dr6) = (vmcb.intercept_exceptions, vmcb.dr6);
        self.mask = Mask::Stepping(Step { from, is_guests, intercepts, dr6 });
        vmcb.rflags |= TRAP_FLAG;
        vmcb.intercept_exceptions = !0;
    }

    /// Looks at an exit, before anybody else does.
    pub fn exited(&mut self, vmcb: &mut Vmcb, exit: u64) -> After {
        let Mask::Stepping(step) = self.mask else { return After::Handle };
        let is_executed = Place::of(vmcb) != step.from;
        let exception = exit.checked_sub(code::EXCEPTION).filter(|vector| *vector < 32);
        if !is_executed && exception.is_none() {
            // A signal, or a nested fault of its own: it is stepped again.
            return After::Handle;
        }
        vmcb.intercept_exceptions = step.intercepts;
        if is_executed {
            // The flags are those that it has loaded.
            self.mask = Mask::Open;
            return match exception {
                Some(vector) if exit == code::DEBUG => {
                    if step.is_guests {
                        vmcb.dr6 = step.dr6 | DEBUG_STATUS_STEP;
                        return After::Exception(vector as u8);
                    }
                    vmcb.dr6 = step.dr6;
                    After::Nothing
                }
                _ => After::Handle,
            };
        }
        // It faults. The handler of that fault ends with an IRET too.
        if !step.is_guests {
            vmcb.rflags &= !TRAP_FLAG;
        }
        self.mask = Mask::Masked;
        vmcb.intercept_misc1 |= IRET;
        exception.map_or(After::Handle, |vector| After::Exception(vector as u8))
    }
}
