//! Counters for the command line.

use super::machine::Machine;
use super::memory;
use alloc::string::String;
use core::sync::atomic::Ordering;
use hypervisor::exit;
use hypervisor::wire::Stats;

const CLOSED: &str = "accesses of closed ports and addresses";

/// Closed ports and addresses that are shown by name.
const SHOWN: usize = 5;

/// Counters of the machine and of its tables now.
pub fn stats(machine: &Machine<'_>) -> Stats {
    let mut stats = machine.nested.stats();
    stats.exits = exit::by_cause(machine.posts.iter().map(|post| &post.record));
    let (free, total) = memory::frames();
    let closed = machine.closed.total();
    let (moved, dropped) = (&machine.churn.moved, &machine.churn.dropped);
    for (name, value) in [
        ("blocks moved under the guest", moved.load(Ordering::Relaxed)),
        ("mappings dropped under the guest", dropped.load(Ordering::Relaxed)),
        (CLOSED, closed),
        ("guest memory in use, bytes", machine.ram.bytes()),
        ("host frames free", free),
        ("host frames", total),
    ] {
        stats.other.push((String::from(name), value));
        if name == CLOSED {
            stats.other.extend(machine.closed.most(SHOWN));
        }
    }
    stats
}

/// The library's counters in the words of the control line.
pub fn library(counted: &vmmu::Stats) -> Stats {
    let named = |(name, count): &(&str, u64)| (String::from(*name), *count);
    let other = [
        ("leaves ever mapped, 4K", counted.mapped[0]),
        ("leaves ever mapped, 2M", counted.mapped[1]),
        ("leaves ever mapped, 1G", counted.mapped[2]),
        ("top tables", counted.roots),
        ("emulated by an MMIO entry", counted.emulated_fast),
        ("splits", counted.splits),
        ("zapped", counted.zapped),
        ("flushes", counted.flushes),
        ("grace_periods", counted.grace_periods),
        ("invalidations", counted.invalidations),
        ("flushes for others' debts", counted.foreign_debts),
        ("debts leaked", counted.debts_leaked),
    ];
    Stats {
        faults: counted.outcomes().iter().map(named).collect(),
        leaves: counted.leaves,
        table_pages: counted.tables + counted.roots,
        flushes_sent: counted.flushes_sent,
        flushes_elided: counted.flushes_elided,
        exits: alloc::vec![],
        other: other.iter().map(named).collect(),
    }
}
