//! What a processor is told when it enters a guest.

use crate::entry::{Entry, base, shift};
use crate::want::{Part, Wants};
use crate::{Access, Allows, Ept, Exit, Npt, Paging, ept, npt};

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

/// Which accessed and dirty flags the nested tables have.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flags {
    pub accessed: u64,
    pub dirty: u64,
}

impl Nested {
    pub(crate) fn levels(&self) -> u8 {
        match self {
            Nested::Npt(npt) => npt.levels,
            Nested::Ept(ept) => ept.levels,
        }
    }

    pub(crate) fn is_intel(&self) -> bool {
        matches!(self, Nested::Ept(_))
    }

    pub(crate) fn entry(&self, word: u64, level: u8) -> Entry {
        match self {
            Nested::Npt(npt) => npt.entry(word, level),
            Nested::Ept(ept) => ept.entry(word, level),
        }
    }

    /// The flags a walk sets, `None` if it sets none.
    pub(crate) fn flags(&self) -> Option<Flags> {
        match self {
            Nested::Npt(_) => Some(Flags { accessed: npt::ACCESSED, dirty: npt::DIRTY }),
            Nested::Ept(ept) if ept.ad => {
                Some(Flags { accessed: ept::ACCESSED, dirty: ept::DIRTY })
            }
            Nested::Ept(_) => None,
        }
    }

    /// What an access of the guest wants at its final address.
    pub(crate) fn access(&self, access: Access) -> Wants {
        let needs = match access {
            Access::Read => Allows::READ,
            Access::Write => Allows::WRITE,
            Access::Fetch => Allows::FETCH,
        };
        Wants { part: Part::Final, needs: needs | Allows::USER, dirties: access == Access::Write }
    }

    /// What a walk nobody asked for wants there.
    pub(crate) fn speculation(&self) -> Wants {
        Wants { part: Part::Final, needs: Allows::USER, dirties: false }
    }

    /// What reading an entry of the guest's tables wants.
    pub(crate) fn table_read(&self) -> Wants {
        let writes = self.flags().is_some();
        let mut needs = Allows::READ | Allows::USER;
        needs.set(Allows::WRITE, writes);
        Wants { part: Part::Table, needs, dirties: writes }
    }

    /// What setting a flag in an entry of the guest's tables wants, where that is more than reading
    /// it does.
    pub(crate) fn table_update(&self) -> Option<Wants> {
        let needs = Allows::WRITE | Allows::USER;
        (self.flags().is_none()).then_some(Wants { part: Part::Table, needs, dirties: true })
    }

    /// The exit for an access that the entries, which together allow `allows`, forbid.
    pub(crate) fn forbidden(&self, gpa: u64, wants: Wants, allows: Allows) -> Exit {
        match self {
            Nested::Npt(npt) => npt.exit(gpa, wants, npt::Fault::PRESENT),
            Nested::Ept(_) => ept::violation(gpa, wants, allows),
        }
    }

    /// The exit for an access to something that is not present.
    pub(crate) fn absent(&self, gpa: u64, wants: Wants) -> Exit {
        match self {
            Nested::Npt(npt) => npt.exit(gpa, wants, 0),
            Nested::Ept(_) => ept::violation(gpa, wants, Allows::empty()),
        }
    }

    /// The exit for an access that meets a wrong entry.
    pub(crate) fn wrong(&self, gpa: u64, wants: Wants) -> Exit {
        match self {
            Nested::Npt(npt) => npt.exit(gpa, wants, npt::Fault::PRESENT | npt::Fault::RESERVED),
            Nested::Ept(_) => Exit::EptMisconfiguration { gpa },
        }
    }

    /// Whether the tables can translate `gpa` at all.
    pub(crate) fn reaches(&self, gpa: u64) -> bool {
        base(gpa, shift(self.levels() + 1)) == 0
    }
}
