//! String instructions that run from RAM into something else.

use super::{cold, unknown};
use crate::metal::console::say;
use crate::metal::paging::{PRESENT, WRITABLE, Window};
use crate::metal::trap::{Fault, attempt};
use crate::metal::{Machine, check};
use guest::exit;

/// Page of RAM in the window; the next one is what the instruction runs into.
const RAM: usize = 24;
/// Bytes before the border and behind it.
const SIDE: u64 = 16;
/// The debug console, or nothing.
const OUT: u16 = 0xe9;
/// Nothing.
const IN: u16 = 0x5a5c;

/// State of the registers after a string instruction.
#[derive(Debug)]
struct Left {
    count: u64,
    source: u64,
    target: u64,
}

macro_rules! string {
    ($code:literal, $source:expr, $target:expr, $count:expr, $port:expr) => {{
        let (mut source, mut target, mut count): (u64, u64, u64) = ($source, $target, $count);
        // SAFETY: memory is touched in the window only; the callers map what it may touch.
        let result: Result<(), Fault> = unsafe {
            attempt!($code; inout("rsi") source, inout("rdi") target, inout("rcx") count,
                in("dx") $port, in("rax") 0x2020_2020_2020_2020u64)
        };
        say!("{}: {result:x?}, {count} left", $code);
        (result, Left { count, source, target })
    }};
}

/// Runs one form.
pub fn run(machine: &Machine, form: &str) {
    let window = Window::of(0);
    let base = window.address(RAM);
    let border = base + 4096;
    let start = border - SIDE;
    window.set(RAM, cold::page() | PRESENT | WRITABLE);
    let hole = machine.hole() | PRESENT | WRITABLE;
    let behind = match form {
        "outs-unmapped" | "ins-unmapped" => 0,
        "ins-read-only" => (cold::page() + 4096) | PRESENT,
        _ => hole,
    };
    window.set(RAM + 1, behind);
    let bytes = start as *mut [u8; SIDE as usize];
    // SAFETY: the page is in the window, and only this test uses it.
    unsafe { bytes.write_volatile([b'.'; SIDE as usize]) };

    let whole = |(result, left): (Result<(), Fault>, Left)| {
        check!(result.is_ok() && left.count == 0, exit::PORTS, "stopped: {result:x?} {left:x?}");
        left
    };
    match form {
        "outs" => {
            let left = whole(string!("rep outsb", start, 0, 2 * SIDE, OUT));
            check!(left.source == border + SIDE, exit::PORTS, "{left:x?}");
        }
        "ins" => {
            let left = whole(string!("rep insb", 0, start, 2 * SIDE, IN));
            check!(left.target == border + SIDE, exit::PORTS, "{left:x?}");
            // SAFETY: as above.
            let read = unsafe { bytes.read_volatile() };
            check!(read == [0xff; SIDE as usize], exit::PORTS, "read {read:x?}");
        }
        "movs-from" => {
            let left = whole(string!("rep movsb", start, base, 2 * SIDE, 0u16));
            check!(left.source == border + SIDE, exit::MMIO, "{left:x?}");
            // SAFETY: the page is in the window.
            let read = unsafe { (base as *const [[u8; SIDE as usize]; 2]).read_volatile() };
            check!(
                read[0] == [b'.'; SIDE as usize] && read[1] == [0xff; SIDE as usize],
                exit::MMIO,
                "read {read:x?}"
            );
        }
        "movs-to" => {
            // SAFETY: the page is in the window.
            unsafe { (base as *mut [u8; 32]).write_volatile([b'#'; 32]) };
            whole(string!("rep movsb", base, start, 2 * SIDE, 0u16));
            // SAFETY: as above.
            let read = unsafe { bytes.read_volatile() };
            check!(read == [b'#'; SIDE as usize], exit::MMIO, "read {read:x?}");
        }
        "movs-hole" => {
            whole(string!("rep movsq", border, border + 2048, SIDE, 0u16));
        }
        "stos" => {
            whole(string!("rep stosd", 0, start, SIDE / 2, 0u16));
            // SAFETY: as above.
            let read = unsafe { bytes.read_volatile() };
            check!(read == [0x20; SIDE as usize], exit::MMIO, "read {read:x?}");
        }
        "cmps" => {
            // SAFETY: the page is in the window.
            unsafe {
                (base as *mut [[u8; SIDE as usize]; 2])
                    .write_volatile([[b'.'; SIDE as usize], [0xff; SIDE as usize]]);
            }
            whole(string!("repe cmpsb", start, base, 2 * SIDE, 0u16));
            let (result, left) = string!("repne scasb", 0, start, 2 * SIDE, 0u16);
            check!(result.is_ok() && left.count == 0, exit::MMIO, "{result:x?} {left:x?}");
        }
        "outs-unmapped" => {
            let result = string!("rep outsb", start, 0, 2 * SIDE, OUT);
            stopped(result, |left| left.source, border, 0b00);
        }
        "ins-unmapped" => {
            let result = string!("rep insb", 0, start, 2 * SIDE, IN);
            stopped(result, |left| left.target, border, 0b10);
        }
        "ins-read-only" => {
            let result = string!("rep insb", 0, start, 2 * SIDE, IN);
            stopped(result, |left| left.target, border, 0b11);
        }
        _ => unknown(form),
    }
    window.set(RAM, 0);
    window.set(RAM + 1, 0);
}

/// The instruction stopped at the border with a page fault, and its registers show how far it
/// came.
fn stopped(
    (result, left): (Result<(), Fault>, Left),
    pointer: impl Fn(&Left) -> u64,
    border: u64,
    error: u64,
) {
    let right = matches!(result, Err(fault)
        if fault.vector == 14 && fault.address == border && fault.error == error)
        && left.count == SIDE
        && pointer(&left) == border;
    check!(right, exit::PORTS, "{result:x?} {left:x?}, border {border:#x}");
}
