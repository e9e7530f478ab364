//! Everything that only makes sense on a machine of its own.

mod apic;
mod builtin;
mod console;
mod cpu;
mod entry;
mod hostile;
mod information;
mod interrupt;
mod paging;
mod sparse;
mod trap;

use console::say;
use core::panic::PanicInfo;
use guest::boot_info::BootInfo;
use guest::command_line::CommandLine;
use guest::exit;
use guest::memory_map::{Ram, Span};
use multiboot::information::MemoryManagement;
use x86_64::instructions::port::Port;

/// What a test needs to know about its machine.
pub struct Machine {
    /// What the boot loader told.
    pub info: BootInfo,
    /// All RAM of the memory map.
    pub ram: Ram,
    /// RAM that nothing uses: without the first MiB, the image and the modules. Whole pages.
    pub free: Ram,
    /// Processors, this one included.
    pub cpus: usize,
    /// Seed of everything random.
    pub seed: u64,
}

impl Machine {
    /// The command line.
    pub fn command_line(&self) -> CommandLine<'_> {
        CommandLine::new(self.info.command_line.as_deref().unwrap_or(""))
    }

    /// Number behind a key of the command line; a bad one ends the guest.
    pub fn number(&self, key: &str, default: u64) -> u64 {
        match self.command_line().number(key, default) {
            Ok(value) => value,
            Err(bad) => fail(exit::USAGE, format_args!("{}={}: not a number", bad.key, bad.value)),
        }
    }

    /// Guest-physical address, a multiple of 2 MiB below 4 GiB, where there is no RAM for 2 MiB
    /// and where no device of a PC is.
    pub fn hole(&self) -> u64 {
        let hole = self.number("hole", 0xd000_0000);
        if self.ram.overlaps(&Span { start: hole, end: hole + (2 << 20) }) {
            fail(exit::USAGE, format_args!("there is RAM at {hole:#x}: give another hole="));
        }
        hole
    }
}

/// Physical memory as the boot loader left it, all of it readable at its own address.
struct Physical;

impl MemoryManagement for Physical {
    unsafe fn paddr_to_slice(&self, address: u64, length: usize) -> Option<&'static [u8]> {
        let end = address.checked_add(length as u64)?;
        if address == 0 || end > 4 << 30 {
            return None;
        }
        // SAFETY: the first 4 GiB are mapped at their own addresses, and nothing writes to what
        // the boot loader left while it is copied.
        Some(unsafe { core::slice::from_raw_parts(address as *const u8, length) })
    }

    unsafe fn allocate(&mut self, _: usize) -> Option<(u64, &mut [u8])> {
        None
    }

    unsafe fn deallocate(&mut self, _: u64) {}
}

/// First Rust code of the first processor.
#[unsafe(no_mangle)]
extern "C" fn boot_main(magic: u32, address: u32) -> ! {
    console::start();
    cpu::start(0);
    interrupt::start();
    // SAFETY: single-threaded, nothing overwrites the loader's data before this returns.
    let info = unsafe { BootInfo::copy(magic, u64::from(address), &mut Physical) };
    let info = match info {
        Ok(info) => info,
        Err(error) => fail(exit::BOOT, format_args!("multiboot information: {error:?}")),
    };
    let (ram, free) = match (info.ram(), free_ram(&info)) {
        (Ok(ram), Some(free)) => (ram, free),
        _ => fail(exit::BOOT, format_args!("memory map: too many ranges")),
    };
    let mut machine = Machine { info, ram, free, cpus: 1, seed: 1 };
    machine.seed = machine.number("seed", 1);
    machine.cpus = machine.number("cpus", 1) as usize;
    if !(1..=entry::MAX_CPUS).contains(&machine.cpus) {
        fail(exit::USAGE, format_args!("cpus={}: 1 to {}", machine.cpus, entry::MAX_CPUS));
    }
    let name = machine.command_line().test();
    say!("test {name}");
    match name {
        "builtin" => builtin::run(&machine),
        "multiboot" => information::run(&machine),
        "sparse" => sparse::run(&machine),
        hostile if hostile.starts_with("hostile-") => hostile::run(&machine, hostile),
        _ => fail(exit::USAGE, format_args!("there is no test {name}")),
    }
    say!("all ok");
    leave(exit::OK)
}

/// RAM nothing uses, in whole pages.
fn free_ram(info: &BootInfo) -> Option<Ram> {
    let all = info.ram().ok()?;
    let mut free = Ram::default();
    for span in all.spans() {
        if !free.add(span.pages()) {
            return None;
        }
    }
    let image_end = &raw const entry::image_end as u64;
    let mut fits = free.remove(Span { start: 0, end: image_end });
    for module in info.modules.iter().flatten() {
        let span = module.span;
        fits &= free.remove(Span { start: span.start & !4095, end: (span.end + 4095) & !4095 });
    }
    fits.then_some(free)
}

/// Ends the guest with a code.
pub fn leave(code: u32) -> ! {
    // SAFETY: the port ends the guest; nothing else listens there.
    unsafe { Port::<u32>::new(0xf4).write(code) };
    loop {
        x86_64::instructions::interrupts::disable();
        x86_64::instructions::hlt();
    }
}

/// Says what is wrong and ends the guest with a code.
#[track_caller]
pub fn fail(code: u32, what: core::fmt::Arguments<'_>) -> ! {
    let place = core::panic::Location::caller();
    console::urgent(format_args!("failed: {what} [{place}]"));
    leave(code)
}

/// Fails the guest with a code and a message unless a condition holds.
macro_rules! check {
    ($condition:expr, $code:expr, $($message:tt)+) => {
        if !$condition {
            $crate::metal::fail($code, format_args!($($message)+));
        }
    };
}
pub(crate) use check;

#[panic_handler]
fn panic(information: &PanicInfo<'_>) -> ! {
    console::urgent(format_args!("{information}"));
    leave(exit::PANIC)
}
