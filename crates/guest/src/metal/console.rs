//! COM1, polled: the guest's console.

use core::fmt::{Arguments, Write};
use spin::Mutex;
use uart_16550::backend::PioBackend;
use uart_16550::{Config, Uart16550};

/// Held for a line, so that processors do not mix theirs.
static LINE: Mutex<()> = Mutex::new(());

struct Serial(Uart16550<PioBackend>);

impl Serial {
    fn new() -> Option<Self> {
        // SAFETY: COM1 is a legacy port range, and lines are serialised by `LINE`.
        unsafe { Uart16550::new_port(0x3f8) }.ok().map(Self)
    }
}

impl Write for Serial {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        for piece in text.split_inclusive('\n') {
            match piece.strip_suffix('\n') {
                Some(line) => {
                    self.0.send_bytes_exact(line.as_bytes());
                    self.0.send_bytes_exact(b"\r\n");
                }
                None => self.0.send_bytes_exact(piece.as_bytes()),
            }
        }
        Ok(())
    }
}

/// Sets the line up. Without a UART the guest runs silently: its exit code still speaks.
pub fn start() {
    if let Some(mut serial) = Serial::new() {
        let _silent = serial.0.init(Config::default());
    }
}

/// Writes one line.
pub fn line(text: Arguments<'_>) {
    let _line = LINE.lock();
    write(text);
}

/// Writes one line even if a processor that will not go on holds the console.
pub fn urgent(text: Arguments<'_>) {
    let mut line = None;
    for _ in 0..1_000_000 {
        line = LINE.try_lock();
        if line.is_some() {
            break;
        }
        core::hint::spin_loop();
    }
    write(text);
    drop(line);
}

fn write(text: Arguments<'_>) {
    if let Some(mut serial) = Serial::new() {
        let _silent = serial.write_fmt(format_args!("guest: {text}\n"));
    }
}

/// Writes one line of the guest's report.
macro_rules! say {
    ($($text:tt)+) => { $crate::metal::console::line(format_args!($($text)+)) };
}
pub(crate) use say;
