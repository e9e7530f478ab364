//! The memory type range registers as a guest sees them: they keep what is written, and have no
//! effect (with nested paging, types come from the nested tables and the guest's PAT; AMD64 APM
//! vol. 2, section 15.25.8).

use crate::registers::Refused;

const RANGES: u32 = 8;
/// Eight ranges, the fixed registers, write-combining.
const CAPABILITIES: u64 = 0x500 | RANGES as u64;

/// One vCPU's registers.
#[derive(Debug, Clone)]
pub struct Mtrr {
    variable: [u64; 2 * RANGES as usize],
    fixed: [u64; 11],
    default: u64,
}

impl Default for Mtrr {
    fn default() -> Self {
        Self::new()
    }
}

impl Mtrr {
    /// As firmware leaves them on a machine whose memory is all write-back: a guest that looks
    /// for uncached memory finds none.
    pub const fn new() -> Self {
        Self { variable: [0; 16], fixed: [0x0606_0606_0606_0606; 11], default: 0xc06 }
    }

    /// Reads one; `None` if there is none.
    pub fn read(&self, register: u32) -> Option<u64> {
        match register {
            0xfe => Some(CAPABILITIES),
            0x2ff => Some(self.default),
            0x200..=0x20f => self.variable.get((register - 0x200) as usize).copied(),
            _ => self.fixed.get(fixed(register)?).copied(),
        }
    }

    /// Writes one.
    ///
    /// # Errors
    /// [`Refused`] for one that is not there or read-only, and for types that do not exist.
    pub fn write(&mut self, register: u32, value: u64) -> Result<(), Refused> {
        match register {
            0x2ff if value & !0xcff == 0 && exists(value as u8) => self.default = value,
            0x200..=0x20f => {
                let base = register & 1 == 0;
                let reserved = if base { 0xf00 } else { 0x7ff };
                if value & reserved != 0 || base && !exists(value as u8) || value >> 52 != 0 {
                    return Err(Refused);
                }
                let place = self.variable.get_mut((register - 0x200) as usize);
                *place.ok_or(Refused)? = value;
            }
            0xfe | 0x2ff => return Err(Refused),
            _ => {
                let place = fixed(register).and_then(|index| self.fixed.get_mut(index));
                if !value.to_le_bytes().into_iter().all(exists) {
                    return Err(Refused);
                }
                *place.ok_or(Refused)? = value;
            }
        }
        Ok(())
    }
}

const fn exists(kind: u8) -> bool {
    matches!(kind, 0 | 1 | 4 | 5 | 6)
}

fn fixed(register: u32) -> Option<usize> {
    match register {
        0x250 => Some(0),
        0x258 | 0x259 => Some((register - 0x257) as usize),
        0x268..=0x26f => Some((register - 0x268 + 3) as usize),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{self, Msr, MsrRule};

    #[test]
    fn every_register_of_the_list_is_there() {
        let listed = |msr: &u32| policy::msr(*msr) == Msr::Trapped(MsrRule::Mtrr);
        assert_eq!((0..0x1000).filter(listed).count(), 1 + 16 + 11 + 1);
        for register in (0..0x1000).filter(listed) {
            assert!(Mtrr::new().read(register).is_some(), "{register:#x}");
        }
    }

    #[test]
    fn what_is_written_is_read_and_garbage_is_refused() {
        let mut mtrr = Mtrr::new();
        mtrr.write(0x203, 0xff_f000_0800).unwrap();
        assert_eq!(mtrr.read(0x203), Some(0xff_f000_0800));
        for (register, value) in [(0x200, 2), (0x201, 1), (0x250, 3), (0x2ff, 0x100), (0xfe, 0)] {
            assert_eq!(mtrr.write(register, value), Err(Refused), "{register:#x}");
        }
    }
}
