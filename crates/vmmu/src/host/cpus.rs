//! The processors that vCPUs run on: how to interrupt one, how to wait, and how to keep a thread
//! from being preempted.

/// Number of a vCPU of one MMU, below [`Config::vcpus`](crate::Config::vcpus).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct VcpuId(pub u32);

/// What the library waits for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum WaitFor {
    /// Other participants leave the sections they are in. A section does at most one table page of
    /// work, so this is short unless a thread is preempted inside one.
    GracePeriod,
    /// A vCPU that was kicked leaves the guest, or does its flush on the way in.
    Vcpu(VcpuId),
    /// Another thread, which is changing slots or invalidating roots, gives the slot guard back.
    SlotGuard,
    /// Another vCPU, which is making a root, has made it.
    RootCreation,
    /// Every participant of the MMU's own is busy with an invalidation: one of them returns.
    OwnParticipant,
    /// Another participant takes its hold off a table entry.
    Entry,
    /// Another thread, which is at the drain of the same root, returns.
    Drain,
    /// Another thread, which is changing the page that faulted or is read or written, its slot, or
    /// the entry that maps it, has done so; or the backing has another answer than *retry*.
    PageChange,
}

/// One step of a wait, as the host is told of it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub struct Wait {
    /// What is waited for.
    pub on: WaitFor,
    /// How often this wait has asked before: 0 the first time. A host spins at first, and yields
    /// or sleeps for a while when the number grows.
    pub asked: u64,
    /// Whether the host may put the thread to sleep. `false` only below
    /// [`Mmu::try_invalidate_begin`](crate::Mmu::try_invalidate_begin).
    pub may_sleep: bool,
}

impl Wait {
    /// A step of a wait that may sleep, as the library makes them: for tests of a host.
    pub const fn new(on: WaitFor, asked: u64) -> Self {
        Wait { on, asked, may_sleep: true }
    }
}

/// How the host keeps a thread from being preempted: two functions that nest.
#[derive(Clone, Copy, Debug)]
pub struct Preemption {
    /// Called before a section opens.
    pub disable: fn(),
    /// Called after it has closed.
    pub enable: fn(),
}

/// The processors the vCPUs run on.
pub trait Cpus: Sync {
    /// Whether, and how, preemption is held off while a section is open. A section that is
    /// preempted makes everybody who waits for a grace period wait longer, and nothing else; a
    /// host whose threads have priorities sets this, and so does one that calls the library with
    /// preemption on from a kernel. The functions may not call the library.
    const PREEMPTION: Option<Preemption> = None;

    /// Makes the vCPU leave the guest soon. Asynchronous and idempotent; may hit the processor it
    /// is called on; must not be lost if the vCPU is just about to enter (an interrupt that stays
    /// pending until entry does). The library kicks only vCPUs whose mode word says "in the
    /// guest".
    fn kick(&self, vcpu: VcpuId);

    /// Passes the time in a wait for other threads or processors. Every wait of the library goes
    /// through here, outside of sections, so the host may yield or sleep; nobody wakes the thread,
    /// so the call must return by itself after a bounded time. The library asks again and again
    /// until it has what it waits for. A debt may be open and the slot guard may be held.
    fn wait(&self, wait: Wait) {
        let _ = wait;
        core::hint::spin_loop();
    }

    /// A number of the thread or processor that calls, if the host has one. With it, a flush that
    /// would wait for a vCPU which the calling thread itself has in the guest, and would never end,
    /// is found: the MMU is dead of [`Broken::FlushInGuest`](crate::Broken::FlushInGuest).
    fn here(&self) -> Option<u32> {
        None
    }
}
