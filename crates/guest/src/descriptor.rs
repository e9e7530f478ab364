//! Descriptors in memory: interrupt gates and the descriptor of a task-state segment, as in
//! AMD64 Architecture Programmer's Manual, volume 2, section 4.8.

/// Bytes of one long-mode gate.
pub const GATE_BYTES: usize = 16;

/// Present 64-bit interrupt gate, privilege 0: handler at `offset` through code selector
/// `selector`, on stack `ist` of the task-state segment (0: the current stack).
pub const fn interrupt_gate(offset: u64, selector: u16, ist: u8) -> [u64; 2] {
    let low = (offset & 0xffff)
        | (selector as u64) << 16
        | (ist as u64 & 7) << 32
        | 0x8e << 40
        | (offset >> 16 & 0xffff) << 48;
    [low, offset >> 32]
}

/// Available 64-bit task-state segment at `base`, `limit` bytes minus one.
pub const fn task_state_descriptor(base: u64, limit: u32) -> [u64; 2] {
    let low = (limit as u64 & 0xffff)
        | (base & 0xff_ffff) << 16
        | 0x89 << 40
        | (limit as u64 >> 16 & 0xf) << 48
        | (base >> 24 & 0xff) << 56;
    [low, base >> 32]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gate_carries_its_offset_in_three_parts() {
        let [low, high] = interrupt_gate(0x1122_3344_5566_7788, 8, 2);
        assert_eq!(low & 0xffff, 0x7788);
        assert_eq!(low >> 48, 0x5566);
        assert_eq!(high, 0x1122_3344);
        assert_eq!(low >> 16 & 0xffff, 8);
        assert_eq!(low >> 32 & 0xff, 2);
        assert_eq!(low >> 40 & 0xff, 0x8e);
    }

    #[test]
    fn a_task_state_descriptor_carries_base_and_limit() {
        let [low, high] = task_state_descriptor(0x1122_3344_5566_7788, 0xa_bcde);
        assert_eq!(low & 0xffff, 0xbcde);
        assert_eq!(low >> 48 & 0xf, 0xa);
        assert_eq!(low >> 16 & 0xff_ffff, 0x66_7788);
        assert_eq!(low >> 56, 0x55);
        assert_eq!(high, 0x1122_3344);
        assert_eq!(low >> 40 & 0xff, 0x89);
    }
}
