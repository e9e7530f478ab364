//! Host memory: the heap of this program, the pool of frames, the identity window.

use super::boot;
use alloc::vec::Vec;
use core::{fmt, ptr};
use hypervisor::map::{self, Span};
use hypervisor::pool::{FRAME, Pool, Size};
use spin::Mutex;
use talc::{TalcLock, source::Claim};

/// For what is needed before the memory map is known.
const FIRST_HEAP: usize = 2 << 20;
static mut HEAP: [u8; FIRST_HEAP] = [0; FIRST_HEAP];

#[global_allocator]
static ALLOCATOR: TalcLock<Mutex<()>, Claim> =
    // SAFETY: nobody else uses the array.
    TalcLock::new(unsafe { Claim::array(&raw mut HEAP) });

static POOL: Mutex<Option<Pool>> = Mutex::new(None);

/// What the loader tells (PVH boot ABI, `hvm_start_info`, version 1).
#[repr(C)]
struct StartInfo {
    magic: u32,
    version: u32,
    flags: u32,
    modules: u32,
    module_list: u64,
    command_line: u64,
    rsdp: u64,
    memory_map: u64,
    memory_map_entries: u32,
    reserved: u32,
}

#[repr(C)]
struct Module {
    address: u64,
    bytes: u64,
    command_line: u64,
    reserved: u64,
}

#[repr(C)]
struct MapEntry {
    address: u64,
    bytes: u64,
    kind: u32,
    reserved: u32,
}

/// Why the machine cannot be used.
#[derive(Debug)]
pub enum Unusable {
    /// Not started by the PVH protocol, or by a version without a memory map.
    NotPvh,
    /// No boot module.
    NoModule,
    /// No span of memory is large enough for the heap, in bytes.
    NoHeap {
        /// Bytes wanted.
        wanted: u64,
    },
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotPvh => f.write_str("not started by the PVH protocol, version 1 or later"),
            Self::NoModule => f.write_str("no boot module (QEMU: -initrd)"),
            Self::NoHeap { wanted } => write!(f, "no {wanted} bytes of memory in one piece"),
        }
    }
}

/// Reads the loader's information, claims the heap and fills the pool. Gives the boot module.
///
/// # Safety
/// `info` is what the loader gave at entry, and memory it reports as free is used by nobody.
pub unsafe fn open(info: u32) -> Result<&'static [u8], Unusable> {
    // SAFETY: the loader's structure lies in identity-mapped memory; the magic number tells
    // whether it is one.
    let info = unsafe { ptr::read_unaligned(info as usize as *const StartInfo) };
    if info.magic != 0x336e_c578 || info.version < 1 || info.memory_map_entries == 0 {
        return Err(Unusable::NotPvh);
    }
    if info.modules == 0 {
        return Err(Unusable::NoModule);
    }
    // SAFETY: as above; there is at least one module.
    let module = unsafe { ptr::read_unaligned(info.module_list as *const Module) };
    let mut memory = Vec::new();
    for entry in 0..info.memory_map_entries as usize {
        // SAFETY: the loader says so many entries follow each other.
        let entry = unsafe { ptr::read_unaligned((info.memory_map as *const MapEntry).add(entry)) };
        // The identity map ends at 1 TiB.
        if entry.kind == 1 && entry.address < 1 << 40 {
            let end = entry.address.saturating_add(entry.bytes).min(1 << 40);
            memory.push(Span { start: entry.address, end });
        }
    }
    let (image, image_end) = boot::image();
    let mut used = alloc::vec![
        Span { start: 0, end: 1 << 20 },
        Span { start: image, end: image_end },
        Span { start: module.address, end: module.address + module.bytes },
    ];

    let spans = map::free(&memory, &used);
    let end = spans.last().map_or(0, |span| span.end);
    let total: u64 = spans.iter().map(|span| span.bytes()).sum();
    // One word per page of guest RAM, the pool's bits, and what the library and this program keep.
    let wanted = ((24 << 20) + total / 256 + 2 * Pool::bookkeeping(end / FRAME)) & !4095;
    let home = spans.iter().find(|span| span.bytes() >= wanted);
    let home = home.ok_or(Unusable::NoHeap { wanted })?.start;
    // SAFETY: the span is free memory, identity-mapped, and taken out of the pool below.
    unsafe { ALLOCATOR.lock().claim(home as *mut u8, wanted as usize) };
    used.push(Span { start: home, end: home + wanted });

    let mut pool = Pool::new(end / FRAME);
    for span in map::free(&memory, &used) {
        pool.add(span.start / FRAME, span.end / FRAME);
    }
    *POOL.lock() = Some(pool);
    // SAFETY: the module is taken out of the pool, so nobody writes it.
    Ok(unsafe { core::slice::from_raw_parts(module.address as *const u8, module.bytes as usize) })
}

/// A block from the pool, as frame number. Its contents are whatever was there.
pub fn take(size: Size) -> Option<u64> {
    POOL.lock().as_mut()?.take(size)
}

/// Gives a block back.
pub fn put(frame: u64, size: Size) {
    if let Some(pool) = POOL.lock().as_mut() {
        pool.put(frame, size);
    }
}

/// Free and all frames of the pool.
pub fn frames() -> (u64, u64) {
    POOL.lock().as_ref().map_or((0, 0), |pool| (pool.free(), pool.total()))
}

/// Copies a block to another.
///
/// # Safety
/// Both blocks belong to the caller, and nobody else writes the first.
pub unsafe fn copy(from: u64, to: u64, size: Size) {
    let (from, to) = ((from * FRAME) as *const u8, (to * FRAME) as *mut u8);
    // SAFETY: two different blocks of the caller, identity-mapped.
    unsafe { ptr::copy_nonoverlapping(from, to, size.bytes() as usize) };
}

/// Fills a block with a byte.
///
/// # Safety
/// The block belongs to the caller.
pub unsafe fn fill(frame: u64, size: Size, byte: u8) {
    // SAFETY: the block belongs to the caller and is identity-mapped.
    unsafe { ptr::write_bytes((frame * FRAME) as *mut u8, byte, size.bytes() as usize) };
}

/// Fills a block with zeros.
///
/// # Safety
/// The block belongs to the caller.
pub unsafe fn zero(frame: u64, size: Size) {
    // SAFETY: the caller's promise.
    unsafe { fill(frame, size, 0) };
}
