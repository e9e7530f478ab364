//! The ways in which a host takes pages back: through a worker, or through the MMU alone; held by a
//! value whose drop ends it, or begun and ended by name.

use vmmu::{HostRange, Invalidation, Mmu, Worker};

use crate::Violation;
use crate::host::Host;

/// Through whom.
#[derive(Debug)]
pub enum Through<'w, 'vm> {
    /// A worker of the caller's.
    Worker(&'w mut Worker<&'vm Mmu<Host>>),
    /// The MMU. The caller has no worker.
    Mmu,
}

/// How long, and how it ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Manner {
    /// Until a value is dropped.
    Held,
    /// Until somebody says the range again.
    Named,
    /// The same, for a caller that may not sleep; a worker never has to.
    Trying,
}

impl Manner {
    /// One of them.
    pub fn of(n: u8) -> Manner {
        [Manner::Held, Manner::Named, Manner::Trying][n as usize % 3]
    }
}

/// A range that is under invalidation.
#[derive(Debug)]
pub struct Taken<'vm> {
    vm: &'vm Mmu<Host>,
    range: HostRange,
    /// `None`: it was named.
    held: Option<Invalidation<'vm>>,
    /// Whether there were more at its begin than the library has places for.
    pub overflows: bool,
}

/// Takes pages back. `None`: the caller may not sleep, and nothing has begun.
pub fn take<'vm>(
    vm: &'vm Mmu<Host>,
    through: Through<'_, 'vm>,
    manner: Manner,
    range: HostRange,
) -> Option<Taken<'vm>> {
    let held = match (through, manner) {
        (Through::Worker(worker), Manner::Held) => Some(worker.invalidate_range(range)),
        (Through::Worker(worker), _) => {
            worker.invalidate_begin(range);
            None
        }
        (Through::Mmu, Manner::Held) => Some(vm.invalidate_range(range)),
        (Through::Mmu, Manner::Named) => {
            vm.invalidate_begin(range);
            None
        }
        (Through::Mmu, Manner::Trying) => {
            vm.try_invalidate_begin(range).ok()?;
            None
        }
    };
    let overflows = vm.host().open().begun();
    Some(Taken { vm, range, held, overflows })
}

impl Taken<'_> {
    /// It ends.
    pub fn end(self) -> Result<(), Violation> {
        match self.held {
            Some(held) => {
                self.vm.host().open().ending();
                drop(held);
                Ok(())
            }
            None => end(self.vm, self.range),
        }
    }

    /// Somebody else will end it, by its name.
    pub fn name(self) -> HostRange {
        self.range
    }
}

/// Ends one that was begun by name, whoever began it.
pub fn end(vm: &Mmu<Host>, range: HostRange) -> Result<(), Violation> {
    vm.host().open().ending();
    vm.invalidate_end(range).map_err(|why| Violation::new(why.to_string()))
}
