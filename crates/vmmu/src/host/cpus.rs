//! The processors that vCPUs run on.

/// Number of a vCPU of one VM, below [`Config::vcpus`](crate::Config::vcpus).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct VcpuId(pub u32);

/// The processors the vCPUs run on.
pub trait Cpus: Sync {
    /// Makes the vCPU leave the guest soon. Asynchronous and idempotent; may hit the processor it
    /// is called on; must not be lost if the vCPU is just about to enter (an interrupt that stays
    /// pending until entry does). The library kicks only vCPUs whose mode word says "in the
    /// guest".
    fn kick(&self, vcpu: VcpuId);

    /// Passes the time in a wait for other processors.
    fn relax(&self) {
        core::hint::spin_loop();
    }
}
