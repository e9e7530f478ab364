//! Events that were being delivered when the guest exited (EXITINTINFO).
//!
//! AMD64 APM vol. 2, section 15.7.2 and 15.20. An interrupt was acknowledged at its controller
//! and would be lost, so it is injected at the next entry; so is an exception. An INT3, INTO or
//! INT n is *executed* again: the guest's instruction pointer is still on it, and injecting would
//! push the wrong return address where the processor does not save the next instruction's.

/// What to do about an interrupted delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Completion {
    /// There was none.
    Nothing,
    /// Put this value into EVENTINJ.
    Inject(u64),
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
        (EXCEPTION, 32..) => Completion::Inject(VALID | INTERRUPT | info & 0xff),
        (EXCEPTION, 2) => Completion::Inject(VALID | NMI | 2),
        (EXCEPTION, 8 | 10..=14 | 17) if info & ERROR_VALID == 0 => match mode {
            Mode::Protected => Completion::Inject(VALID | INTERRUPT | info & 0xff),
            Mode::Real => Completion::Inject(VALID | EXCEPTION | info & 0xff),
        },
        (INTERRUPT | NMI | EXCEPTION, _) => {
            Completion::Inject(info & (VALID | 7 << 8 | 0xff | ERROR_VALID | 0xffff_ffff << 32))
        }
        // Reserved types: nothing known to inject.
        _ => Completion::ExecuteAgain,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
                Completion::Inject(VALID | INTERRUPT | vector)
            );
        }
        assert_eq!(
            complete(VALID | EXCEPTION | 8, Mode::Protected),
            Completion::Inject(VALID | INTERRUPT | 8)
        );
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
