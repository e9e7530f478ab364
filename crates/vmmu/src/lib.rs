//! The memory-management unit of a hypervisor.
