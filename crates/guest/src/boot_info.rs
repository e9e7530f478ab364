//! What the boot loader told: a copy of the multiboot information, taken before anything can
//! overwrite it (Multiboot Specification 0.6.96, section 3.3).

use crate::memory_map::{Ram, Span};
use arrayvec::{ArrayString, ArrayVec};
use multiboot::information::{MemoryManagement, MemoryType, Multiboot, SIGNATURE_EAX};

/// Modules kept.
pub const MAX_MODULES: usize = 16;
/// Bytes of the guest's command line kept.
pub const MAX_TEXT: usize = 1024;
/// Bytes of a module's command line kept.
pub const MAX_MODULE_TEXT: usize = 128;

/// Why the information cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BootError {
    /// EAX did not hold multiboot's number at the entry; the value it held.
    Magic(u32),
    /// The block does not lie in memory that can be read.
    Address(u64),
    /// More entries than the guest keeps.
    TooMany(&'static str),
    /// A text is longer than the guest keeps, or not UTF-8.
    Text(&'static str),
    /// The range is empty or ends before it begins: first byte and byte after the last.
    Range(u64, u64),
}

/// One module.
#[derive(Debug, Clone)]
pub struct Module {
    /// Where it is.
    pub span: Span,
    /// Its command line.
    pub text: ArrayString<MAX_MODULE_TEXT>,
}

/// One entry of the memory map, as the loader wrote it.
#[derive(Debug, Clone, Copy)]
pub struct Region {
    /// Where it is.
    pub span: Span,
    /// Whether it is RAM for the guest.
    pub usable: bool,
}

/// The copy.
#[derive(Debug, Clone, Default)]
pub struct BootInfo {
    /// KiB below 1 MiB and KiB from 1 MiB to the first hole, if given.
    pub memory_kib: Option<(u32, u32)>,
    /// The command line, if given.
    pub command_line: Option<ArrayString<MAX_TEXT>>,
    /// The memory map in the loader's order, if given.
    pub regions: Option<ArrayVec<Region, { crate::memory_map::MAX_REGIONS }>>,
    /// The modules, if given.
    pub modules: Option<ArrayVec<Module, MAX_MODULES>>,
}

impl BootInfo {
    /// Copies the block at guest-physical `address`; `magic` is what EAX held.
    ///
    /// # Safety
    /// Whatever `memory` hands out stays readable and unchanged during the call.
    ///
    /// # Errors
    /// The block is not there, or holds more than the guest keeps.
    pub unsafe fn copy(
        magic: u32,
        address: u64,
        memory: &mut dyn MemoryManagement,
    ) -> Result<Self, BootError> {
        if magic != SIGNATURE_EAX {
            return Err(BootError::Magic(magic));
        }
        // SAFETY: the magic number says that a block is there; `memory` bounds every access.
        let block = unsafe { Multiboot::from_ptr(address, memory) };
        let block = block.ok_or(BootError::Address(address))?;
        let mut info = Self {
            memory_kib: block.lower_memory_bound().zip(block.upper_memory_bound()),
            ..Self::default()
        };
        if let Some(text) = block.command_line() {
            info.command_line = Some(keep(text, "command line")?);
        }
        if let Some(regions) = block.memory_regions() {
            let mut kept = ArrayVec::new();
            for region in regions {
                let start = region.base_address();
                let end = start
                    .checked_add(region.length())
                    .ok_or(BootError::Range(start, region.length()))?;
                let usable = region.memory_type() == MemoryType::Available;
                kept.try_push(Region { span: Span { start, end }, usable })
                    .map_err(|_| BootError::TooMany("memory map entries"))?;
            }
            info.regions = Some(kept);
        }
        if let Some(modules) = block.modules() {
            let mut kept = ArrayVec::new();
            for module in modules {
                if module.end < module.start {
                    return Err(BootError::Range(module.start, module.end));
                }
                kept.try_push(Module {
                    span: Span { start: module.start, end: module.end },
                    text: keep(module.string.unwrap_or(""), "module command line")?,
                })
                .map_err(|_| BootError::TooMany("modules"))?;
            }
            info.modules = Some(kept);
        }
        Ok(info)
    }

    /// RAM by the memory map, or by the two sizes if there is no map.
    ///
    /// # Errors
    /// There are more ranges than the guest keeps.
    pub fn ram(&self) -> Result<Ram, BootError> {
        let mut ram = Ram::default();
        let mut fits = true;
        match (&self.regions, self.memory_kib) {
            (Some(regions), _) => {
                for region in regions.iter().filter(|region| region.usable) {
                    fits &= ram.add(region.span);
                }
            }
            (None, Some((lower, upper))) => {
                let upper = (1 << 20) + (u64::from(upper) << 10);
                fits &= ram.add(Span { start: 0, end: u64::from(lower) << 10 });
                fits &= ram.add(Span { start: 1 << 20, end: upper });
            }
            (None, None) => {}
        }
        if fits { Ok(ram) } else { Err(BootError::TooMany("RAM ranges")) }
    }
}

fn keep<const N: usize>(text: &str, what: &'static str) -> Result<ArrayString<N>, BootError> {
    let text = core::str::from_utf8(text.as_bytes()).map_err(|_| BootError::Text(what))?;
    ArrayString::from(text).map_err(|_| BootError::Text(what))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Memory of a machine: bytes from `BASE` on.
    struct Arena(&'static mut [u8]);

    const BASE: u64 = 0x9000;

    impl MemoryManagement for Arena {
        unsafe fn paddr_to_slice(&self, address: u64, length: usize) -> Option<&'static [u8]> {
            let start = usize::try_from(address.checked_sub(BASE)?).ok()?;
            let bytes = self.0.get(start..start.checked_add(length)?)?;
            // SAFETY: the bytes are leaked and not written while the test reads.
            Some(unsafe { core::slice::from_raw_parts(bytes.as_ptr(), bytes.len()) })
        }

        unsafe fn allocate(&mut self, _: usize) -> Option<(u64, &mut [u8])> {
            None
        }

        unsafe fn deallocate(&mut self, _: u64) {}
    }

    /// A block written by hand from the specification's table, not by the crate that reads it.
    fn arena() -> Arena {
        let words = vec![0u64; 512].leak();
        // SAFETY: the words are leaked, and bytes have no alignment or invalid values.
        let bytes = unsafe {
            core::slice::from_raw_parts_mut(words.as_mut_ptr().cast::<u8>(), words.len() * 8)
        };
        Arena(bytes)
    }

    fn put(arena: &mut Arena, at: usize, values: &[u32]) {
        for (place, value) in values.iter().enumerate() {
            arena.0[at + place * 4..][..4].copy_from_slice(&value.to_le_bytes());
        }
    }

    fn block(arena: &mut Arena) {
        put(arena, 0, &[0b100_1101, 639, 65535, 0, 0x9100, 1, 0x9200]);
        put(arena, 44, &[48, 0x9300]);
        arena.0[0x100..0x10c].copy_from_slice(b"test=x a=b\0\0");
        put(arena, 0x200, &[0x20_0000, 0x20_0123, 0x9180, 0]);
        arena.0[0x180..0x186].copy_from_slice(b"one 1\0");
        put(arena, 0x300, &[20, 0, 0, 0x9_fc00, 0, 1]);
        put(arena, 0x318, &[20, 0, 1, 0x1000, 0, 2]);
    }

    #[test]
    fn everything_is_copied() {
        let mut arena = arena();
        block(&mut arena);
        // SAFETY: the arena does not change during the call.
        let info = unsafe { BootInfo::copy(SIGNATURE_EAX, BASE, &mut arena) }.unwrap();
        assert_eq!(info.memory_kib, Some((639, 65535)));
        assert_eq!(info.command_line.as_deref(), Some("test=x a=b"));
        let modules = info.modules.as_ref().unwrap();
        assert_eq!(modules.len(), 1);
        assert_eq!(modules[0].span, Span { start: 0x20_0000, end: 0x20_0123 });
        assert_eq!(&modules[0].text, "one 1");
        assert_eq!(info.regions.as_ref().unwrap().len(), 2);
        assert_eq!(info.ram().unwrap().spans(), [Span { start: 0, end: 0x9_fc00 }]);
    }

    #[test]
    fn what_is_missing_is_not_invented() {
        let mut arena = arena();
        // SAFETY: the arena does not change during the call.
        let info = unsafe { BootInfo::copy(SIGNATURE_EAX, BASE, &mut arena) }.unwrap();
        assert!(info.memory_kib.is_none() && info.regions.is_none() && info.modules.is_none());
        assert!(info.ram().unwrap().spans().is_empty());
    }

    #[test]
    fn a_wrong_start_is_refused() {
        let mut arena = arena();
        // SAFETY: the arena does not change during the calls.
        let (magic, address) = unsafe {
            (
                BootInfo::copy(0x36d7_6289, BASE, &mut arena).unwrap_err(),
                BootInfo::copy(SIGNATURE_EAX, 1 << 40, &mut arena).unwrap_err(),
            )
        };
        assert_eq!(magic, BootError::Magic(0x36d7_6289));
        assert_eq!(address, BootError::Address(1 << 40));
    }

    #[test]
    fn a_module_that_ends_before_it_begins_is_refused() {
        let mut arena = arena();
        block(&mut arena);
        put(&mut arena, 0x200, &[0x20_0000, 0x1f_ffff]);
        // SAFETY: the arena does not change during the call.
        let error = unsafe { BootInfo::copy(SIGNATURE_EAX, BASE, &mut arena) }.unwrap_err();
        assert_eq!(error, BootError::Range(0x20_0000, 0x1f_ffff));
    }
}
