//! A multiboot 1 kernel ready to run (Multiboot Specification version 0.6.96): ELF32, ELF64, or
//! any file whose header gives the addresses itself.

use anyhow::{Context, Result, bail};
use hypervisor::wire::{Range, Start};
use object::{
    Endianness, FileKind,
    elf::{EM_386, EM_X86_64, FileHeader32, FileHeader64, PT_LOAD},
    read::elf::{FileHeader, ProgramHeader},
};

use super::{
    Plan,
    ram::{HIGH_START, Image, LOW_END},
};
use crate::size::{GIB, KIB};

/// In the header, and in EAX at the entry point.
const HEADER_MAGIC: u32 = 0x1bad_b002;
const ENTRY_MAGIC: u32 = 0x2bad_b002;
/// The header lies in this many bytes at the start of the file.
const SEARCHED: usize = 8192;
/// Header flags: modules page-aligned (always done), memory information (always given), the
/// header's own addresses. Any other of the low 16 is a demand that cannot be met.
const WANTS: u32 = 0b11;
const ADDRESSES: u32 = 1 << 16;
/// Information flags: memory bounds, command line, modules, memory map, loader name.
const INFO_MEMORY: u32 = 1 << 0;
const INFO_COMMAND_LINE: u32 = 1 << 2;
const INFO_MODULES: u32 = 1 << 3;
const INFO_MAP: u32 = 1 << 6;
const INFO_LOADER: u32 = 1 << 9;
/// Bytes of the information block this fills (up to and including the loader's name).
const INFO_BYTES: u32 = 68;
/// Everything a 32-bit kernel is told of lies below this.
const BELOW: u64 = 4 * GIB;

/// What is booted.
#[derive(Debug)]
pub struct Multiboot {
    /// For people.
    pub name: String,
    /// The kernel file.
    pub kernel: Vec<u8>,
    /// The whole command line; boot loaders give the kernel's file as its first word.
    pub command_line: String,
    /// Modules: command line and bytes of each.
    pub modules: Vec<(String, Vec<u8>)>,
}

impl Multiboot {
    /// Lays kernel, modules and information out in `ram`.
    pub fn plan(self, ram: Vec<Range>, cpus: u32) -> Result<Plan> {
        let mut image = Image::new(ram);
        let header = Header::find(&self.kernel)?;
        let entry = match header.addresses {
            Some(addresses) => addresses.load(&self.kernel, header.at, &mut image)?,
            None => load_elf(&self.kernel, &mut image)?,
        };
        let mut modules = Vec::new();
        for (line, bytes) in self.modules {
            let len = bytes.len() as u64;
            let at = image.lowest(&line, len, HIGH_START, BELOW)?;
            image.put(&line, at, bytes)?;
            modules.push((at as u32, (at + len) as u32, line));
        }
        let block = |image: &Image, at| {
            information(at, image.ram(), self.command_line.trim_end(), &modules)
        };
        let info_bytes = block(&image, 0).len() as u64;
        let at = image
            .lowest("multiboot information", info_bytes, 0x1000, LOW_END)
            .or_else(|_| image.lowest("multiboot information", info_bytes, HIGH_START, BELOW))?;
        let info = block(&image, at as u32);
        image.put("multiboot information", at, info)?;
        let start = Start::Protected { eip: entry, eax: ENTRY_MAGIC, ebx: at as u32 };
        Ok(Plan::new(self.name, cpus, start, image))
    }
}

/// A multiboot header.
#[derive(Debug)]
struct Header {
    /// Its offset in the file.
    at: usize,
    addresses: Option<Addresses>,
}

/// The header's own idea of where the file goes.
#[derive(Debug)]
struct Addresses {
    header: u32,
    load: u32,
    load_end: u32,
    bss_end: u32,
    entry: u32,
}

impl Header {
    fn find(file: &[u8]) -> Result<Self> {
        let word =
            |at: usize| file.get(at..at + 4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        let at = (0..file.len().min(SEARCHED))
            .step_by(4)
            .find(|&at| {
                word(at) == Some(HEADER_MAGIC)
                    && word(at + 4).zip(word(at + 8)).is_some_and(|(flags, sum)| {
                        HEADER_MAGIC.wrapping_add(flags).wrapping_add(sum) == 0
                    })
            })
            .context("no multiboot header in the first 8 KiB")?;
        let flags = word(at + 4).context("header cut short")?;
        let demands = flags & 0xffff & !WANTS;
        if demands != 0 {
            bail!("the multiboot header demands what is not given (flags 0x{demands:x})");
        }
        let field = |i: usize| word(at + 12 + 4 * i).context("multiboot header cut short");
        let addresses = match flags & ADDRESSES {
            0 => None,
            _ => Some(Addresses {
                header: field(0)?,
                load: field(1)?,
                load_end: field(2)?,
                bss_end: field(3)?,
                entry: field(4)?,
            }),
        };
        Ok(Header { at, addresses })
    }
}

impl Addresses {
    fn load(&self, file: &[u8], header_at: usize, image: &mut Image) -> Result<u32> {
        let before = self.header.checked_sub(self.load).context("header_addr below load_addr")?;
        let from = header_at.checked_sub(before as usize).context("load_addr before the file")?;
        let to = match self.load_end {
            0 => file.len(),
            end => from + end.checked_sub(self.load).context("load_end below load_addr")? as usize,
        };
        let bytes = file.get(from..to).context("load_end_addr beyond the file")?;
        let end = u64::from(self.load) + bytes.len() as u64;
        image.put("the kernel", self.load.into(), bytes.to_vec())?;
        if let Some(bss) = u64::from(self.bss_end).checked_sub(end) {
            image.reserve("the kernel's zeroed data", end, bss)?;
        }
        Ok(self.entry)
    }
}

fn load_elf(file: &[u8], image: &mut Image) -> Result<u32> {
    match FileKind::parse(file).context("neither ELF nor addresses in the multiboot header")? {
        FileKind::Elf32 => load_segments::<FileHeader32<Endianness>>(file, image),
        FileKind::Elf64 => load_segments::<FileHeader64<Endianness>>(file, image),
        other => bail!("{other:?} is no ELF kernel"),
    }
}

fn load_segments<H: FileHeader<Endian = Endianness>>(
    file: &[u8],
    image: &mut Image,
) -> Result<u32> {
    let header = H::parse(file)?;
    let endian = header.endian()?;
    if ![EM_386, EM_X86_64].contains(&header.e_machine(endian)) {
        bail!("an ELF file for another processor (machine {:?})", header.e_machine(endian));
    }
    let virtual_entry: u64 = header.e_entry(endian).into();
    let mut entry = None;
    for segment in header.program_headers(endian, file)? {
        if segment.p_type(endian) != PT_LOAD {
            continue;
        }
        let bytes = segment.data(endian, file).ok().context("segment beyond the file")?;
        let (gpa, memory): (u64, u64) =
            (segment.p_paddr(endian).into(), segment.p_memsz(endian).into());
        let virt: u64 = segment.p_vaddr(endian).into();
        image.put("a kernel segment", gpa, bytes.to_vec())?;
        let zeroed = memory.saturating_sub(bytes.len() as u64);
        image.reserve("the kernel's zeroed data", gpa + bytes.len() as u64, zeroed)?;
        // The entry point is a physical address; kernels linked high give the virtual one.
        if (gpa..gpa + memory).contains(&virtual_entry) {
            entry = Some(virtual_entry);
        } else if (virt..virt.saturating_add(memory)).contains(&virtual_entry) {
            entry = entry.or(Some(virtual_entry - virt + gpa));
        }
    }
    let entry = entry.with_context(|| format!("entry 0x{virtual_entry:x} is in no segment"))?;
    u32::try_from(entry).with_context(|| format!("entry 0x{entry:x} is above 4 GiB"))
}

/// The information block with everything it points at, in one piece that stands at `at`.
fn information(
    at: u32,
    ram: &[Range],
    command_line: &str,
    modules: &[(u32, u32, String)],
) -> Vec<u8> {
    let mut tail: Vec<u8> = Vec::new();
    let mut place = |bytes: &[u8]| {
        let place = at + INFO_BYTES + tail.len() as u32;
        tail.extend_from_slice(bytes);
        tail.resize(tail.len().next_multiple_of(4), 0);
        place
    };
    let string = |text: &str| [text.as_bytes(), &[0]].concat();
    let words = |words: &[u32]| words.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<_>>();

    let line = place(&string(command_line));
    let loader = place(&string("vmmu"));
    let mut list = Vec::new();
    for (from, to, name) in modules {
        let name = place(&string(name));
        list.extend(words(&[*from, *to, name, 0]));
    }
    let list = place(&list);
    // Each entry: the bytes that follow its first word, base, length, type 1 for RAM.
    let mut map = Vec::new();
    for range in ram {
        map.extend(20u32.to_le_bytes());
        map.extend(range.gpa.to_le_bytes());
        map.extend(range.bytes.to_le_bytes());
        map.extend(1u32.to_le_bytes());
    }
    let map_at = place(&map);

    let lower = ram.first().map_or(0, |r| r.bytes / KIB);
    let upper = ram.iter().find(|r| r.gpa == HIGH_START).map_or(0, |r| r.bytes / KIB);
    let flags = INFO_MEMORY | INFO_COMMAND_LINE | INFO_MODULES | INFO_MAP | INFO_LOADER;
    let count = modules.len() as u32;
    let mut block = words(&[flags, lower as u32, upper as u32, 0, line, count, list]);
    block.extend([0; 16]); // no symbols
    block.extend(words(&[map.len() as u32, map_at]));
    block.extend([0; 12]); // no drives, no configuration table
    block.extend(words(&[loader]));
    debug_assert_eq!(block.len(), INFO_BYTES as usize);
    block.extend(tail);
    block
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ram,
        size::{MIB, Size},
    };

    fn ram() -> Vec<Range> {
        ram::layout(Size(64 * MIB), &[], 40).unwrap()
    }

    fn words(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|w| w.to_le_bytes()).collect()
    }

    /// A flat file of 64 bytes with addresses in its header at offset 8.
    fn flat(flags: u32) -> Vec<u8> {
        let sum = 0u32.wrapping_sub(HEADER_MAGIC).wrapping_sub(flags);
        let mut file = vec![0xcc; 8];
        let header = [HEADER_MAGIC, flags, sum, 0x20_0008, 0x20_0000, 0, 0x20_2000, 0x20_0030];
        file.extend(words(&header));
        file.resize(64, 0xcc);
        file
    }

    fn boot(kernel: Vec<u8>) -> Result<Plan> {
        let modules = vec![("one a=b".into(), vec![1; 5000]), ("two".into(), vec![2; 3])];
        Multiboot { name: "k".into(), kernel, command_line: "x=1".into(), modules }.plan(ram(), 1)
    }

    #[test]
    fn a_flat_kernel_goes_where_its_header_says() {
        let plan = boot(flat(ADDRESSES | 3)).unwrap();
        let Start::Protected { eip, eax, ebx } = plan.start else { panic!("32-bit start") };
        assert_eq!((eip, eax), (0x20_0030, ENTRY_MAGIC));
        let piece = |gpa: u32| &plan.segments.iter().find(|s| s.0 == u64::from(gpa)).unwrap().1;
        assert_eq!(piece(0x20_0000).len(), 64);

        let info = piece(ebx);
        let word = |at: u32| {
            let at = (at - ebx) as usize;
            u32::from_le_bytes(info[at..at + 4].try_into().unwrap())
        };
        let text = |at: u32| {
            let bytes = &info[(at - ebx) as usize..];
            String::from_utf8(bytes.iter().take_while(|b| **b != 0).copied().collect()).unwrap()
        };
        assert_eq!((word(ebx + 4), word(ebx + 8)), (640, 63 * 1024));
        assert_eq!(text(word(ebx + 16)), "x=1");
        assert_eq!(word(ebx + 20), 2);
        let list = word(ebx + 24);
        assert_eq!(piece(word(list)).len(), 5000);
        assert_eq!(word(list + 4) - word(list), 5000);
        assert_eq!(word(list) % 4096, 0);
        assert_eq!(text(word(list + 8)), "one a=b");
        assert_eq!(text(word(list + 24)), "two");
        let map = word(ebx + 48);
        assert_eq!(word(ebx + 44), 48);
        assert_eq!((word(map), word(map + 24 + 4)), (20, HIGH_START as u32));
        assert_eq!(text(word(ebx + 64)), "vmmu");
    }

    #[test]
    fn an_elf_kernel_linked_high_starts_at_its_physical_entry() {
        // ELF32, one segment: virtual 0xc0100000, physical 0x100000, entry virtual + 0x60.
        let mut file = vec![0x7f, b'E', b'L', b'F', 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        file.extend([2, 0, 3, 0]);
        file.extend(words(&[1, 0xc010_0060, 52, 0, 0]));
        file.extend([52, 0, 32, 0, 1, 0, 40, 0, 0, 0, 0, 0]);
        file.extend(words(&[1, 0, 0xc010_0000, 0x10_0000, 128, 4096, 7, 4096]));
        let sum = 0u32.wrapping_sub(HEADER_MAGIC);
        file.extend(words(&[HEADER_MAGIC, 0, sum]));
        file.resize(128, 0);
        let plan = boot(file).unwrap();
        assert!(matches!(plan.start, Start::Protected { eip: 0x10_0060, .. }), "{:?}", plan.start);
    }

    #[test]
    fn what_cannot_boot_is_refused_with_the_reason() {
        let why = |kernel| format!("{:#}", boot(kernel).unwrap_err());
        assert!(why(vec![0; 100]).contains("no multiboot header"));
        assert!(why(flat(ADDRESSES | 4)).contains("flags 0x4"));
        assert!(why(flat(3)).contains("neither ELF"));
        let mut damaged = flat(ADDRESSES);
        damaged[16] ^= 2;
        assert!(why(damaged).contains("no multiboot header"));
    }
}
