//! Which cache lines an operation writes, by name: for the test that counts them.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::mem::offset_of;

use crate::api::mmu::Mmu;
use crate::host::host::Host;
use crate::state::participant::ParticipantWords;
use crate::watched::writes;

/// Bytes of a cache line.
pub const LINE: usize = 64;

/// Cache lines that were written, each once, by the address of their first byte.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Written(pub Vec<usize>);

/// Runs `work` and gives the cache lines of shared memory that it wrote or tried to write.
///
/// What a vCPU or worker keeps in itself, such as its stock of table pages, is not among them: no
/// other thread can reach it. Nor is what the host's hooks write.
pub fn written<R>(work: impl FnOnce() -> R) -> (R, Written) {
    let (result, addresses) = writes(work);
    let mut lines: Vec<usize> = addresses.iter().map(|address| address & !(LINE - 1)).collect();
    lines.sort_unstable();
    lines.dedup();
    (result, Written(lines))
}

impl<H: Host> Mmu<H> {
    /// What lies in a cache line of this MMU; `None` if it is in a table page or elsewhere.
    pub fn name_of_line(&self, line: usize) -> Option<String> {
        let core = &self.core;
        let touches =
            |address: usize, bytes: usize| address < line + LINE && line < address + bytes;
        for (n, participant) in core.participants.iter().enumerate() {
            let at = core::ptr::from_ref(participant).addr();
            if !touches(at, size_of::<ParticipantWords>()) {
                continue;
            }
            let part = match line.wrapping_sub(at) {
                0 => "marker",
                offset if offset < offset_of!(ParticipantWords, counters) => "ledger",
                _ => "counters",
            };
            return Some(format!("participant {n}: {part}"));
        }
        for (n, words) in core.vcpus.iter().enumerate() {
            if touches(core::ptr::from_ref(words).addr(), size_of_val(words)) {
                return Some(format!("vCPU {n}: words"));
            }
        }
        if core
            .participants
            .spares()
            .iter()
            .any(|s| touches(core::ptr::from_ref(s).addr(), size_of_val(s)))
        {
            return Some(String::from("spare watches"));
        }
        touches(core::ptr::from_ref(core).addr(), size_of_val(core))
            .then(|| String::from("the VM's own words"))
    }
}
