//! A Linux kernel ready to run: the 64-bit boot protocol
//! (Documentation/arch/x86/boot.rst, "64-bit Boot Protocol").

use anyhow::{Context, Result, bail};
use hypervisor::wire::{Range, Start};
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use vm_memory::ByteValued;

use super::{
    Plan, acpi,
    ram::{HIGH_START, Image},
};
use crate::size::{GIB, MIB, PAGE};

/// Where the small pieces stand below 640 KiB; kernels keep their hands off until they have read
/// them.
const GDT: u64 = 0x1000;
const BOOT_PARAMS: u64 = 0x2000;
const STACK_TOP: u64 = 0x8000;
const PAGE_TABLES: u64 = 0x9000;
const COMMAND_LINE: u64 = 0x2_0000;
/// Where PCs have their read-only memory. Kernels search it for tables, ten thousands of reads, each of
/// which would be emulated if nothing were there; the ACPI tables stand there too, so that
/// kernels that do not know `acpi_rsdp_addr` find them by searching.
const FIRMWARE: Range = Range { gpa: 0xc_0000, bytes: 0x4_0000 };
const ACPI: u64 = 0xe_0000;
const FACS: u64 = ACPI + acpi::TABLES_BYTES;

/// Offsets in a bzImage.
const HEADER_AT: usize = 0x1f1;
const SECTOR: usize = 512;
/// The 64-bit entry point lies this far into the kernel.
const ENTRY_64: u64 = 0x200;
/// "HdrS".
const MAGIC: u32 = 0x5372_6448;
/// Protocol 2.12 is the first with `xloadflags`.
const VERSION_64: u16 = 0x020c;
const XLF_KERNEL_64: u16 = 1;
/// "Undefined" boot loader.
const LOADER: u8 = 0xff;

/// Types of memory in the e820 map.
const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;
const E820_ACPI: u32 = 3;
const E820_NVS: u32 = 4;

/// Page-table entry bits.
const PRESENT_WRITABLE: u64 = 3;
const LARGE: u64 = 1 << 7;

/// What is booted.
#[derive(Debug)]
pub struct Linux {
    /// For people.
    pub name: String,
    /// The bzImage.
    pub kernel: Vec<u8>,
    /// Initial RAM file system, perhaps empty.
    pub initrd: Vec<u8>,
    /// Kernel command line.
    pub command_line: String,
}

impl Linux {
    /// Lays the kernel out in `ram` for `cpus` processors.
    pub fn plan(self, mut ram: Vec<Range>, cpus: u32) -> Result<Plan> {
        let (header, body) = split(&self.kernel)?;
        ram.push(FIRMWARE);
        ram.sort_by_key(|range| range.gpa);
        let mut image = Image::new(ram);

        let alignment = u64::from(header.kernel_alignment).max(PAGE);
        let wanted = header.pref_address;
        let load =
            wanted.max(HIGH_START).checked_next_multiple_of(alignment).with_context(|| {
                format!("the kernel wants to be at 0x{wanted:x}, beyond all memory")
            })?;
        let init_size = u64::from(header.init_size).max(body.len() as u64);
        image.put("the kernel", load, body.to_vec())?;
        let loaded_end = load + body.len() as u64;
        image.reserve(
            "room for the kernel to unpack",
            loaded_end,
            load + init_size - loaded_end,
        )?;

        let mut params = boot_params { hdr: header, ..boot_params::default() };
        if !self.initrd.is_empty() {
            let limit = u64::from(header.initrd_addr_max) + 1;
            let bytes = self.initrd.len() as u64;
            let at = image.highest("the initial RAM file system", bytes, HIGH_START, limit)?;
            params.hdr.ramdisk_image = at as u32;
            params.hdr.ramdisk_size = bytes as u32;
            image.put("the initial RAM file system", at, self.initrd)?;
        }

        let longest = header.cmdline_size as usize;
        if self.command_line.len() > longest {
            bail!(
                "the command line has {} bytes, this kernel takes {longest}",
                self.command_line.len()
            );
        }
        params.hdr.cmd_line_ptr = COMMAND_LINE as u32;
        let mut command_line = self.command_line.into_bytes();
        command_line.push(0);
        image.put("the command line", COMMAND_LINE, command_line)?;

        params.hdr.type_of_loader = LOADER;
        params.acpi_rsdp_addr = ACPI;
        let map = memory_map(image.ram());
        params.e820_entries = map.len() as u8;
        params.e820_table[..map.len()].copy_from_slice(&map);
        image.put("boot parameters", BOOT_PARAMS, params.as_slice().to_vec())?;

        image.put("ACPI tables", ACPI, acpi::tables(ACPI, FACS, cpus))?;
        image.put("FACS", FACS, acpi::facs())?;
        let gdt = gdt();
        let gdt_limit = gdt.len() as u16 - 1;
        image.put("GDT", GDT, gdt)?;
        image.put("page tables", PAGE_TABLES, page_tables(PAGE_TABLES))?;

        let start = Start::Long {
            rip: load + ENTRY_64,
            rsp: STACK_TOP,
            rsi: BOOT_PARAMS,
            cr3: PAGE_TABLES,
            gdt: GDT,
            gdt_limit,
        };
        Ok(Plan::new(self.name, cpus, start, image))
    }
}

/// The setup header and the protected-mode kernel of a bzImage.
fn split(kernel: &[u8]) -> Result<(setup_header, &[u8])> {
    let known = size_of::<setup_header>();
    let bytes = kernel.get(HEADER_AT..HEADER_AT + known).context("too short for a bzImage")?;
    // The header says itself where it ends (byte 0x201 is the offset of a short jump over it);
    // what follows is code.
    let used = (0x202 - HEADER_AT + usize::from(kernel[0x201])).min(known);
    let mut clean = vec![0; known];
    clean[..used].copy_from_slice(&bytes[..used]);
    let header = *setup_header::from_slice(&clean).context("setup header")?;
    if header.header != MAGIC {
        bail!("no bzImage (no `HdrS` at 0x202)");
    }
    let version = header.version;
    if version < VERSION_64 || header.xloadflags & XLF_KERNEL_64 == 0 {
        bail!("no 64-bit entry point (boot protocol {}.{:02})", version >> 8, version & 0xff);
    }
    let sectors = match header.setup_sects {
        0 => 4,
        n => usize::from(n),
    };
    let body = kernel
        .get((sectors + 1) * SECTOR..)
        .filter(|body| !body.is_empty())
        .context("bzImage ends in its setup code")?;
    Ok((header, body))
}

fn memory_map(ram: &[Range]) -> Vec<boot_e820_entry> {
    let entry = |addr, size, r#type| boot_e820_entry { addr, size, r#type };
    let mut map = Vec::new();
    for range in ram {
        if *range == FIRMWARE {
            let rest = FACS + acpi::FACS_BYTES;
            map.push(entry(FIRMWARE.gpa, ACPI - FIRMWARE.gpa, E820_RESERVED));
            map.push(entry(ACPI, acpi::TABLES_BYTES, E820_ACPI));
            map.push(entry(FACS, acpi::FACS_BYTES, E820_NVS));
            map.push(entry(rest, FIRMWARE.gpa + FIRMWARE.bytes - rest, E820_RESERVED));
        } else {
            map.push(entry(range.gpa, range.bytes, E820_RAM));
        }
    }
    map
}

/// Null, null, flat 64-bit code at 0x10, flat data at 0x18 (AMD APM vol. 2, section 4.8).
fn gdt() -> Vec<u8> {
    [0u64, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff]
        .iter()
        .flat_map(|descriptor| descriptor.to_le_bytes())
        .collect()
}

/// The first 4 GiB mapped to themselves in pages of 2 MiB: top page, one below it, four of
/// leaves (AMD APM vol. 2, section 5.3).
fn page_tables(gpa: u64) -> Vec<u8> {
    let directories = 4 * GIB / GIB;
    let mut words = vec![0u64; 512 * (2 + directories as usize)];
    words[0] = (gpa + PAGE) | PRESENT_WRITABLE;
    for directory in 0..directories {
        words[512 + directory as usize] = (gpa + (2 + directory) * PAGE) | PRESENT_WRITABLE;
    }
    for leaf in 0..512 * directories {
        words[1024 + leaf as usize] = (leaf * 2 * MIB) | PRESENT_WRITABLE | LARGE;
    }
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ram, size::Size};

    fn kernel() -> Vec<u8> {
        let header = setup_header {
            setup_sects: 1,
            jump: 0x66eb,
            header: MAGIC,
            version: 0x020f,
            xloadflags: XLF_KERNEL_64,
            pref_address: 16 * MIB,
            kernel_alignment: 2 * MIB as u32,
            init_size: 8 * MIB as u32,
            initrd_addr_max: 0x7fff_ffff,
            cmdline_size: 2047,
            ..setup_header::default()
        };
        let mut bytes = vec![0; 2 * SECTOR];
        bytes[HEADER_AT..HEADER_AT + size_of::<setup_header>()].copy_from_slice(header.as_slice());
        bytes.extend([0x90; 5000]);
        bytes
    }

    fn linux(kernel: Vec<u8>) -> Linux {
        Linux { name: "k".into(), kernel, initrd: vec![7; 100], command_line: "quiet".into() }
    }

    fn plan(kernel: Vec<u8>, memory: u64) -> Result<Plan> {
        linux(kernel).plan(ram::layout(Size(memory), &[], 40).unwrap(), 2)
    }

    #[test]
    fn the_pieces_stand_where_the_start_state_says() {
        let plan = plan(kernel(), 64 * MIB).unwrap();
        let piece = |gpa: u64| &plan.segments.iter().find(|s| s.0 == gpa).expect("piece").1;
        let Start::Long { rip, rsi, cr3, gdt, .. } = plan.start else { panic!("64-bit start") };
        assert_eq!(rip, 16 * MIB + 0x200);
        assert_eq!(piece(16 * MIB).len(), 5000);
        assert_eq!(piece(gdt).len(), 32);
        assert_eq!(piece(cr3)[0], (PAGE_TABLES + PAGE) as u8 | 3);
        let params = boot_params::from_slice(piece(rsi)).unwrap();
        assert_eq!(piece(params.hdr.ramdisk_image.into()).len(), 100);
        assert_eq!(piece(params.hdr.cmd_line_ptr.into()), b"quiet\0");
        assert_eq!(&piece(params.acpi_rsdp_addr)[..4], b"RSD ");
        let map = &params.e820_table[..params.e820_entries.into()];
        let types: Vec<u32> = map.iter().map(|entry| entry.r#type).collect();
        assert_eq!(types, [E820_RAM, E820_RESERVED, E820_ACPI, E820_NVS, E820_RESERVED, E820_RAM]);
    }

    #[test]
    fn the_map_covers_all_ram_and_nothing_else() {
        let mut ram = ram::layout(Size(5 * GIB), &[], 40).unwrap();
        ram.insert(1, FIRMWARE);
        let map = memory_map(&ram);
        let total: u64 = map.iter().map(|e| e.size).sum();
        assert_eq!(total, ram.iter().map(|r| r.bytes).sum::<u64>());
    }

    #[test]
    fn what_cannot_boot_is_refused_with_the_reason() {
        let why = |kernel, memory| format!("{:#}", plan(kernel, memory).unwrap_err());
        assert!(why(vec![0; 10], 64 * MIB).contains("too short"));
        assert!(why(vec![0; 9999], 64 * MIB).contains("HdrS"));
        assert!(why(kernel(), 20 * MIB).contains("--memory"));
        let mut far = kernel();
        far[0x258..0x260].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(why(far, 64 * MIB).contains("beyond all memory"));
        let mut empty = kernel();
        empty.truncate((usize::from(empty[0x1f1]) + 1) * SECTOR);
        assert!(why(empty, 64 * MIB).contains("setup code"));
        let mut old = kernel();
        old[0x206] = 0x0b;
        assert!(why(old, 64 * MIB).contains("protocol 2.11"));
        let mut chatty = linux(kernel());
        chatty.command_line = "x".repeat(3000);
        let ram = ram::layout(Size(64 * MIB), &[], 40).unwrap();
        assert!(chatty.plan(ram, 1).unwrap_err().to_string().contains("2047"));
    }
}
