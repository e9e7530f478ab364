//! COM2: events to the command line, orders from it; and the end of everything.

use super::ports;
use alloc::string::ToString;
use core::sync::atomic::{AtomicBool, Ordering};
use hypervisor::frames::{self, Reader};
use hypervisor::wire::{Event, Order};
use spin::Mutex;
use uart_16550::{Config, Uart16550, backend::PioBackend};

const COM2: u16 = 0x2f8;

struct Line {
    uart: Uart16550<PioBackend>,
    reader: Reader,
}

static LINE: Mutex<Option<Line>> = Mutex::new(None);
static FAILING: AtomicBool = AtomicBool::new(false);

/// Sets the port up. Without one, events go nowhere.
pub fn open() {
    // SAFETY: COM2 belongs to the hypervisor; its ports are closed to guests (policy.rs).
    let Ok(mut uart) = (unsafe { Uart16550::new_port(COM2) }) else { return };
    if uart.init(Config::default()).is_ok() {
        *LINE.lock() = Some(Line { uart, reader: Reader::new() });
    }
}

/// Sends an event.
pub fn send(event: &Event) {
    // What cannot be encoded is lack of memory; the next event may fit.
    let Ok(bytes) = frames::encode(event) else { return };
    if let Some(line) = LINE.lock().as_mut() {
        line.uart.send_bytes_exact(&bytes);
    }
}

/// A line for people.
pub fn note(text: &str) {
    send(&Event::Note { text: text.to_string() });
}

/// The next order that has arrived, if any. Damaged ones are dropped.
pub fn receive() -> Option<Order> {
    let mut line = LINE.lock();
    let line = line.as_mut()?;
    while let Ok(byte) = line.uart.try_receive_byte() {
        if let Some(Ok(order)) = line.reader.push(byte) {
            return Some(order);
        }
    }
    None
}

/// Reports that the hypervisor itself has failed, and ends.
pub fn fail(what: &str) -> ! {
    if !FAILING.swap(true, Ordering::SeqCst) {
        // SAFETY: whoever holds the lock is this processor in the middle of a frame, or another
        // one that will not get far; a reader finds the next frame behind a zero byte.
        unsafe {
            if LINE.is_locked() {
                LINE.force_unlock();
                if let Some(line) = LINE.lock().as_mut() {
                    line.uart.send_bytes_exact(&[0]);
                }
            }
        }
        send(&Event::Failed { what: what.to_string() });
    }
    power_off()
}

/// Switches the machine off (ACPI S5 as QEMU's q35 and SeaBIOS set it up).
pub fn power_off() -> ! {
    // SAFETY: nothing is to run after this. COM2's transmitter is drained first.
    unsafe {
        for _ in 0..1_000_000 {
            if ports::in8(COM2 + 5) & 0x60 == 0x60 {
                break;
            }
        }
        ports::out16(0x604, 0x2000);
        loop {
            core::arch::asm!("cli", "hlt", options(nomem, nostack));
        }
    }
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo) -> ! {
    fail(&info.to_string())
}
