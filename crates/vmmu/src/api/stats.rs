//! Counters: each participant keeps its own, in cache lines of its own; they are summed when read.

use crate::addr::ENTRIES;
use crate::state::core::Core;
use crate::state::participant::ParticipantWords;
use crate::sync::Counter;

/// What has happened in an MMU since it was made. Sums over participants, read one after another
/// while they go on counting.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Stats {
    /// Leaves mapped now: 4K, 2M, 1G (KVM: `pages_4k`, `pages_2m`, `pages_1g`).
    pub leaves: [u64; 3],
    /// Leaves ever mapped by faults or splits, by level.
    pub mapped: [u64; 3],
    /// Table pages linked now, top tables not counted.
    pub tables: u64,
    /// Top tables.
    pub roots: u64,
    /// Faults that found a translation that allowed the access (KVM: `pf_spurious`).
    pub spurious: u64,
    /// Attempts at faults that were out of date and had to be begun again: inside of a call, or by who
    /// uses the two halves.
    pub retries: u64,
    /// Faults where no slot is (KVM: `pf_emulate`).
    pub emulated: u64,
    /// Of these, those that an MMIO entry answered.
    pub emulated_fast: u64,
    /// Writes to read-only slots.
    pub write_protected: u64,
    /// Faults the host will have a page for later.
    pub pending: u64,
    /// Faults for which something else than the host's page was busy
    /// ([`Outcome::Busy`](crate::Outcome::Busy)).
    pub busy: u64,
    /// Faults the VMM has to decide.
    pub faulted: u64,
    /// Faults without table pages.
    pub out_of_memory: u64,
    /// Huge leaves split in place.
    pub splits: u64,
    /// Leaves and MMIO entries zapped.
    pub zapped: u64,
    /// Flushes (KVM: `remote_tlb_flush_requests`).
    pub flushes: u64,
    /// vCPUs interrupted for flushes.
    pub flushes_sent: u64,
    /// vCPUs that needed no interrupt.
    pub flushes_elided: u64,
    /// Grace periods.
    pub grace_periods: u64,
    /// Invalidations by the host.
    pub invalidations: u64,
    /// Revocations that had to flush for somebody else's open debt.
    pub foreign_debts: u64,
    /// Debts dropped unsettled: defects.
    pub debts_leaked: u64,
}

impl Stats {
    pub(crate) fn sum(core: &Core) -> Stats {
        let sum = |count: fn(&ParticipantWords) -> u64| {
            core.participants.iter().fold(0u64, |sum, line| sum.wrapping_add(count(line)))
        };
        let of = |pick: fn(&ParticipantWords) -> &Counter| {
            core.participants.iter().fold(0u64, |sum, line| sum.wrapping_add(pick(line).get()))
        };
        let mapped = [
            of(|words| &words.mapped[0]),
            of(|words| &words.mapped[1]),
            of(|words| &words.mapped[2]),
        ];
        let unmapped = [
            of(|words| &words.counters.unmapped[0]),
            of(|words| &words.counters.unmapped[1]),
            of(|words| &words.counters.unmapped[2]),
        ];
        let mut leaves = mapped;
        for (mapped, unmapped) in leaves.iter_mut().zip(unmapped) {
            *mapped = mapped.wrapping_sub(unmapped);
        }
        let linked = of(|words| &words.counters.tables_linked);
        let unlinked = of(|words| &words.counters.tables_unlinked);
        Stats {
            leaves,
            mapped,
            tables: linked.wrapping_sub(unlinked),
            roots: core.roots.iter().count() as u64,
            spurious: sum(|words| words.again()[0]),
            retries: sum(|words| words.again()[1]),
            emulated: sum(|words| words.emulated()[0]),
            emulated_fast: sum(|words| words.emulated()[1]),
            write_protected: of(|words| &words.counters.write_protected),
            pending: of(|words| &words.counters.pending),
            busy: of(|words| &words.counters.busy),
            faulted: of(|words| &words.counters.faulted),
            out_of_memory: of(|words| &words.counters.out_of_memory),
            splits: of(|words| &words.counters.splits),
            zapped: of(|words| &words.counters.zapped),
            flushes: of(|words| &words.counters.flushes),
            flushes_sent: of(|words| &words.counters.flushes_sent),
            flushes_elided: of(|words| &words.counters.flushes_elided),
            grace_periods: of(|words| &words.counters.grace_periods),
            invalidations: of(|words| &words.counters.invalidations),
            foreign_debts: of(|words| &words.counters.foreign_debts),
            debts_leaked: of(|words| &words.counters.debts_leaked),
        }
    }

    /// Faults that mapped something.
    pub fn fixed(&self) -> u64 {
        let all = self.mapped.iter().fold(0u64, |sum, n| sum.wrapping_add(*n));
        all.wrapping_sub(self.splits.wrapping_mul(ENTRIES as u64))
    }

    /// Faults by outcome, with the names of [`Outcome::name`](crate::Outcome::name).
    pub fn outcomes(&self) -> [(&'static str, u64); 9] {
        [
            ("fixed", self.fixed()),
            ("spurious", self.spurious),
            ("retry", self.retries),
            ("emulate", self.emulated),
            ("write-protected", self.write_protected),
            ("pending", self.pending),
            ("busy", self.busy),
            ("memory-fault", self.faulted),
            ("out-of-memory", self.out_of_memory),
        ]
    }
}
