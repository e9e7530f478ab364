//! Counters for the command line.

use super::machine::Machine;
use super::memory;
use alloc::string::String;
use core::sync::atomic::Ordering;
use hypervisor::exit;
use hypervisor::wire::Stats;

/// Counters of the machine and of its tables now.
pub fn stats(machine: &Machine<'_>) -> Stats {
    let mut stats = machine.nested.stats();
    stats.exits = exit::by_cause(machine.posts.iter().map(|post| &post.record));
    let (free, total) = memory::frames();
    let closed = machine.closed.load(Ordering::Relaxed);
    for (name, value) in [
        ("accesses of closed ports and addresses", closed),
        ("guest memory in use, bytes", machine.ram.bytes()),
        ("host frames free", free),
        ("host frames", total),
    ] {
        stats.other.push((String::from(name), value));
    }
    stats
}
