//! Events that were being delivered when the guest exited (EXITINTINFO).
//!
//! AMD64 APM vol. 2, section 15.7.2 and 15.20. An exception is injected at the next entry. An INT3,
//! INTO or INT n is *executed* again: the guest's instruction pointer is still on it, and injecting
//! would push the wrong return address where the processor does not save the next instruction's.
//!
//! An external interrupt was acknowledged at its controller and would be lost, so it is injected too,
//! and a signal is sent behind it, which ends the guest's run before the handler's first instruction.
//! Without that, QEMU 7.2 delivers it twice: it delivers an injected interrupt at once, and then
//! remembers its vector as an exception that is still to come. If the processor's turn ends before the
//! guest exits, that exception is delivered as well, with interrupts off, in the middle of the handler. A
//! handler on a stack of its own then finds its frame overwritten, and returns into itself for ever. An
//! exit makes QEMU forget it. The virtual interrupt (V_IRQ) is no way out: QEMU drops it when a physical
//! interrupt is taken before it.

/// What to do about an interrupted delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Completion {
    /// There was none.
    Nothing,
    /// Put this value into EVENTINJ.
    Inject(u64),
    /// Inject this interrupt, with a signal behind it.
    Interrupt(u8),
    /// The instruction runs again by itself.
    ExecuteAgain,
}

/// Bit 31 of EVENTINJ and EXITINTINFO.
pub const VALID: u64 = 1 << 31;
const ERROR_VALID: u64 = 1 << 11;

/// External interrupt.
pub const INTERRUPT: u64 = 0 << 8;
/// Non-maskable interrupt.
pub const NMI: u64 = 2 << 8;
/// Exception.
pub const EXCEPTION: u64 = 3 << 8;
/// INT n.
const SOFTWARE: u64 = 4 << 8;

/// EVENTINJ for an exception.
pub const fn exception(vector: u8, error: Option<u32>) -> u64 {
    let event = VALID | EXCEPTION | vector as u64;
    match error {
        Some(error) => event | ERROR_VALID | (error as u64) << 32,
        None => event,
    }
}

/// Whether the guest pushes error codes for exceptions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Real mode: never.
    Real,
    /// Protected mode: for the vectors that have one.
    Protected,
}

/// What to do about `info`, the value of EXITINTINFO.
///
/// Some processors (QEMU's among them) label external interrupts as exceptions. One is told by
/// its vector, or by a missing error code where an exception would have one.
pub const fn complete(info: u64, mode: Mode) -> Completion {
    if info & VALID == 0 {
        return Completion::Nothing;
    }
    let vector = (info & 0xff) as u8;
    let kind = info & 7 << 8;
    match (kind, vector) {
        (SOFTWARE, _) | (EXCEPTION, 3 | 4) => Completion::ExecuteAgain,
        (INTERRUPT, _) | (EXCEPTION, 32..) => Completion::Interrupt(vector),
        (EXCEPTION, 2) => Completion::Inject(VALID | NMI | 2),
        (EXCEPTION, 8 | 10..=14 | 17) if info & ERROR_VALID == 0 => match mode {
            Mode::Protected => Completion::Interrupt(vector),
            Mode::Real => Completion::Inject(VALID | EXCEPTION | info & 0xff),
        },
        (NMI | EXCEPTION, _) => {
            Completion::Inject(info & (VALID | 7 << 8 | 0xff | ERROR_VALID | 0xffff_ffff << 32))
        }
        // Reserved types: nothing known to inject.
        _ => Completion::ExecuteAgain,
    }
}

/// Interrupts that were acknowledged and not delivered. There is more than one if another came while the
/// first could not be taken, because an exception or an NMI went before it.
#[derive(Debug, Clone, Copy)]
pub struct Undelivered {
    vectors: [u8; 16],
    count: usize,
}

impl Undelivered {
    /// There is none.
    pub const NONE: Self = Self { vectors: [0; 16], count: 0 };

    /// Whether there is none.
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// EVENTINJ for the one that was acknowledged last: it came in spite of the others.
    pub fn take(&mut self) -> Option<u64> {
        self.count = self.count.checked_sub(1)?;
        let vector = self.vectors.get(self.count)?;
        Some(VALID | INTERRUPT | u64::from(*vector))
    }

    /// The delivery of this one was interrupted. False if there are more than a processor can have in
    /// service.
    pub fn add(&mut self, vector: u8) -> bool {
        let Some(place) = self.vectors.get_mut(self.count) else { return false };
        *place = vector;
        self.count += 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interrupt_that_came_last_is_delivered_first() {
        let mut undelivered = Undelivered::NONE;
        assert_eq!(undelivered.take(), None);
        assert!(undelivered.add(0x40) && undelivered.add(0x51));
        assert_eq!(undelivered.take(), Some(VALID | 0x51));
        // It is interrupted again.
        assert!(undelivered.add(0x51));
        assert_eq!(undelivered.take(), Some(VALID | 0x51));
        assert_eq!(undelivered.take(), Some(VALID | 0x40));
        assert!(undelivered.is_empty());
        for vector in 0..16 {
            assert!(undelivered.add(vector));
        }
        assert!(!undelivered.add(0xf0));
    }

    #[test]
    fn nothing_is_made_of_stale_bits() {
        assert_eq!(complete(0x0000_1234_0000_0b0e, Mode::Protected), Completion::Nothing);
    }

    #[test]
    fn software_exceptions_run_again() {
        for (kind, vector) in [(SOFTWARE, 0x80), (SOFTWARE, 3), (EXCEPTION, 3), (EXCEPTION, 4)] {
            let info = VALID | kind | vector;
            assert_eq!(complete(info, Mode::Protected), Completion::ExecuteAgain);
        }
    }

    #[test]
    fn interrupts_labelled_as_exceptions_are_interrupts() {
        for vector in 32..256 {
            assert_eq!(
                complete(VALID | EXCEPTION | vector, Mode::Protected),
                Completion::Interrupt(vector as u8)
            );
        }
        assert_eq!(complete(VALID | EXCEPTION | 8, Mode::Protected), Completion::Interrupt(8));
    }

    #[test]
    fn exceptions_keep_their_error_code() {
        let info = exception(14, Some(6));
        assert_eq!(complete(info, Mode::Protected), Completion::Inject(info));
        assert_eq!(
            complete(exception(6, None), Mode::Real),
            Completion::Inject(exception(6, None))
        );
    }
}
