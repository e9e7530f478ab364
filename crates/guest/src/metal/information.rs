//! `multiboot`: the information block holds what the specification and the project promise.

use super::console::say;
use super::{Machine, check};
use crc::{CRC_32_ISO_HDLC, Crc};
use guest::exit;

/// The checksum of a module's bytes, the same as `crc32` of common tools.
const CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISO_HDLC);

/// Checks the block and prints every module: `module N: "TEXT" BYTES bytes crc32 SUM`.
pub fn run(machine: &Machine) {
    let info = &machine.info;
    let Some((lower, upper)) = info.memory_kib else {
        super::fail(exit::BOOT, format_args!("mem_lower and mem_upper are missing"))
    };
    check!((256..=640).contains(&lower), exit::BOOT, "mem_lower is {lower} KiB");
    say!("mem_lower {lower} KiB, mem_upper {upper} KiB");
    let Some(regions) = &info.regions else {
        super::fail(exit::BOOT, format_args!("the memory map is missing"))
    };
    for region in regions {
        let kind = if region.usable { "RAM" } else { "reserved" };
        say!("memory {:#014x}-{:#014x} {kind}", region.span.start, region.span.end);
    }
    // mem_upper counts from 1 MiB to the first hole; the map must have RAM there and, by one
    // common rounding, not less.
    let above = machine.ram.spans().iter().find(|span| (span.start..span.end).contains(&(1 << 20)));
    let above = above.map_or(0, |span| (span.end >> 10) - 1024);
    check!(
        u64::from(upper) <= above && above - u64::from(upper) <= 1024,
        exit::BOOT,
        "mem_upper is {upper} KiB, the map has {above} KiB above 1 MiB"
    );
    check!(info.command_line.is_some(), exit::BOOT, "the command line is missing");
    say!("command line \"{}\"", machine.command_line().text());
    let Some(modules) = &info.modules else {
        check!(machine.number("modules", 0) == 0, exit::BOOT, "the modules are missing");
        return;
    };
    for (number, module) in modules.iter().enumerate() {
        let span = module.span;
        check!(
            span.start.is_multiple_of(4096),
            exit::BOOT,
            "module {number} begins at {:#x}, not on a page",
            span.start
        );
        check!(
            machine.ram.spans().iter().any(|ram| ram.start <= span.start && span.end <= ram.end),
            exit::BOOT,
            "module {number} is not in RAM: {span:x?}"
        );
        // SAFETY: RAM below 4 GiB, which nothing writes.
        let bytes =
            unsafe { core::slice::from_raw_parts(span.start as *const u8, span.bytes() as usize) };
        say!(
            "module {number}: \"{}\" {} bytes crc32 {:08x}",
            module.text,
            span.bytes(),
            CRC.checksum(bytes)
        );
    }
    let wanted = machine.number("modules", modules.len() as u64);
    check!(modules.len() as u64 == wanted, exit::BOOT, "{} of {wanted} modules", modules.len());
}
