//! Events that were being delivered when the guest exited (EXITINTINFO).
//!
//! AMD64 APM vol. 2, section 15.7.2 and 15.20. An exception is injected at the next entry. An INT3,
//! INTO or INT n is *executed* again: the guest's instruction pointer is still on it, and injecting
//! would push the wrong return address where the processor does not save the next instruction's.
//!
//! An external interrupt was acknowledged at its controller and would be lost. It is offered again as
//! the virtual interrupt (V_IRQ), which the guest takes as soon as it can take interrupts, as a rule
//! with its first instruction. It is not injected: QEMU 7.2 delivers an injected interrupt at once, and
//! then remembers its vector as an exception that is still to come. If the processor's turn ends before
//! the guest exits, that exception is delivered as well, with interrupts off, in the middle of the
//! interrupt's handler. A handler on a stack of its own then finds its frame overwritten, and returns
//! into itself for ever.

/// What to do about an interrupted delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Completion {
    /// There was none.
    Nothing,
    /// Put this value into EVENTINJ.
    Inject(u64),
    /// Offer this interrupt again.
    Offer(u8),
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
        (INTERRUPT, _) | (EXCEPTION, 32..) => Completion::Offer(vector),
        (EXCEPTION, 2) => Completion::Inject(VALID | NMI | 2),
        (EXCEPTION, 8 | 10..=14 | 17) if info & ERROR_VALID == 0 => match mode {
            Mode::Protected => Completion::Offer(vector),
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

/// Bits of the word of the control block that holds the virtual interrupt (APM vol. 2, section 15.21.4):
/// it waits; its priority; no task priority holds it back.
const V_IRQ: u32 = 1 << 8;
const V_PRIORITY: u32 = 0xf << 16;
const V_IGNORE_TPR: u32 = 1 << 20;

impl Undelivered {
    /// There is none.
    pub const NONE: Self = Self { vectors: [0; 16], count: 0 };

    /// Whether there is none.
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The control word and the vector of the virtual interrupt for the next run of the guest: the
    /// interrupt that was acknowledged last goes first, because it came in spite of the others.
    pub fn offer(&self) -> (u32, u32) {
        match self.vectors[..self.count].last() {
            Some(vector) => (V_IRQ | V_PRIORITY | V_IGNORE_TPR, u32::from(*vector)),
            None => (0, 0),
        }
    }

    /// The run is over; this is the control word now. What was offered has been taken if it does not
    /// wait any more.
    pub fn ended(&mut self, control: u32) {
        if control & V_IRQ == 0 {
            self.count = self.count.saturating_sub(1);
        }
    }

    /// This one's delivery was interrupted. It may be the one that was offered, and wait still. False
    /// if there are more than a processor could have in service.
    pub fn add(&mut self, vector: u8) -> bool {
        if self.vectors[..self.count].contains(&vector) {
            return true;
        }
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
    fn what_is_not_taken_is_offered_again_and_the_latest_first() {
        let mut undelivered = Undelivered::NONE;
        assert_eq!(undelivered.offer(), (0, 0));
        undelivered.ended(0);
        assert!(undelivered.add(0x40) && !undelivered.is_empty());
        let (control, vector) = undelivered.offer();
        assert_eq!((control & V_IRQ, vector), (V_IRQ, 0x40));
        // Not taken: interrupts were off.
        undelivered.ended(control);
        // Taken, and its delivery was interrupted: some processors say that it waits, others not.
        undelivered.ended(control);
        assert!(undelivered.add(0x40));
        undelivered.ended(control & !V_IRQ);
        assert!(undelivered.is_empty());
        assert!(undelivered.add(0x40) && undelivered.add(0x51));
        assert_eq!(undelivered.offer().1, 0x51);
        undelivered.ended(0);
        assert_eq!(undelivered.offer().1, 0x40);
        for vector in 0..15 {
            assert!(undelivered.add(vector));
        }
        assert!(!undelivered.add(0xf0) && undelivered.add(0x40));
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
                Completion::Offer(vector as u8)
            );
        }
        assert_eq!(complete(VALID | EXCEPTION | 8, Mode::Protected), Completion::Offer(8));
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
