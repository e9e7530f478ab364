//! Where QEMU's emulated processor is known not to do what the manual says.
//!
//! Each fault says exactly what becomes of what should have come; a case that differs in any
//! other way, or by more, is a failure.

use hypervisor::probe::Outcome;

use super::{draw::Drawn, judge::exit, quirks::Quirks, stage::bit};

/// A known fault.
#[derive(Debug)]
pub struct Fault {
    /// Short.
    pub name: &'static str,
    /// What QEMU does, and what the manual says.
    pub says: &'static str,
    /// What it makes of a case.
    pub makes: Makes,
}

/// What a fault makes of a case.
#[derive(Debug)]
pub enum Makes {
    /// It walks like this.
    Walk(fn(&mut Quirks)),
    /// Of what should have come, this; `None` if the fault has nothing to do with it.
    Outcome(fn(&Drawn, &Outcome) -> Option<Outcome>),
}

/// Bits of the error code of a page fault, and of EXITINFO1 (AMD64 APM vol. 2, sections 8.4.2 and
/// 15.25.6).
mod code {
    pub const PRESENT: u64 = 1 << 0;
    pub const RESERVED: u64 = 1 << 3;
}

/// All of them, those first that decide how a walk ends.
pub const FAULTS: &[Fault] = &[
    Fault {
        name: "bit-8-not-reserved",
        says: "bit 8 of a PML4E, or of a PDPE that refers to a table, is ignored; \
               it must be zero",
        // Where it is not reserved it means nothing that can be seen here.
        makes: Makes::Walk(|quirks| quirks.ignored |= bit::G),
    },
    Fault {
        name: "exchange-loads-first",
        says: "with one processor at a time, an exchange is a load and then a store, and faults as \
               the load would; it is one access, and a write",
        makes: Makes::Walk(|quirks| quirks.loads_first = true),
    },
    Fault {
        name: "gigabyte-accessed-first",
        says: "the accessed flag of a 1 GiB leaf is set before the access is judged, so a refused \
               one leaves it; as with smaller pages, it is for an access that is done",
        makes: Makes::Walk(|quirks| quirks.gigabyte_first = true),
    },
    Fault {
        name: "reserved-without-present",
        says: "a fault for a reserved bit has no present bit in its code; \
               both are set, since the entry is present",
        makes: Makes::Outcome(|_, expected| {
            let faults = [exit::NESTED_FAULT, exit::PAGE_FAULT].contains(&expected.exit);
            let both = code::RESERVED | code::PRESENT;
            (faults && expected.info1 & both == both)
                .then(|| Outcome { info1: expected.info1 & !code::PRESENT, ..expected.clone() })
        }),
    },
];
