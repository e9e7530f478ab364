//! The memory of one guest: frames from the pool, given when a page is first needed, zeroed.

use super::memory;
use core::sync::atomic::{AtomicU32, Ordering};
use hypervisor::pool::{FRAME, Size};
use hypervisor::ram::{Place, Ram};
use hypervisor::wire::Range;
use spin::Mutex;

/// The memory of one guest.
pub struct GuestRam<'a> {
    ranges: &'a [Range],
    largest: Size,
    frames: Mutex<Ram>,
}

/// The guest has no RAM there, or the host has no memory left for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Missing {
    /// Guest-physical address.
    pub gpa: u64,
}

impl<'a> GuestRam<'a> {
    /// Memory at `ranges`, in blocks up to `largest`.
    pub fn new(ranges: &'a [Range], largest: Size) -> Self {
        Self { ranges, largest, frames: Mutex::new(Ram::new()) }
    }

    /// The RAM range a guest frame lies in.
    pub fn range(&self, gfn: u64) -> Option<&Range> {
        let gpa = gfn * FRAME;
        self.ranges.iter().find(|range| gpa >= range.gpa && gpa - range.gpa < range.bytes)
    }

    /// The place behind `gfn`, if it has one already.
    pub fn find(&self, gfn: u64) -> Option<Place> {
        self.frames.lock().find(gfn)
    }

    /// The place behind `gfn`, which lies in a RAM range; taken from the pool, in a block up to
    /// `largest`, if it has none yet. `None` if the pool is empty.
    pub fn provide(&self, gfn: u64, largest: Size) -> Option<Place> {
        let mut size = largest.min(self.largest);
        loop {
            {
                let frames = self.frames.lock();
                if let Some(place) = frames.find(gfn) {
                    return Some(place);
                }
                size = frames.vacancy(gfn, size)?;
            }
            while !self.fits(gfn, size) {
                size = size.smaller()?;
            }
            let Some(frame) = memory::take(size) else {
                size = size.smaller()?;
                continue;
            };
            // SAFETY: the block has just been taken and nobody else knows it.
            unsafe { memory::zero(frame, size) };
            if self.frames.lock().insert(gfn, size, frame).is_err() {
                // Another processor was first.
                memory::put(frame, size);
            }
        }
    }

    /// Whether the block of `size` around `gfn` lies in one RAM range as a whole.
    fn fits(&self, gfn: u64, size: Size) -> bool {
        let first = (gfn & !(size.frames() - 1)) * FRAME;
        self.range(gfn).is_some_and(|r| first >= r.gpa && first - r.gpa + size.bytes() <= r.bytes)
    }

    /// The address of the byte at `gpa`, for this program.
    fn byte(&self, gpa: u64) -> Result<*mut u8, Missing> {
        let gfn = gpa / FRAME;
        self.range(gfn).ok_or(Missing { gpa })?;
        let place = self.provide(gfn, Size::G1).ok_or(Missing { gpa })?;
        Ok((place.frame * FRAME + gpa % FRAME) as *mut u8)
    }

    /// Sets bits of the word at `gpa`, atomically. Nothing where there is no RAM.
    pub fn set(&self, gpa: u64, bits: u32) {
        if let Ok(word) = self.byte(gpa & !3) {
            // SAFETY: an aligned word in a frame of this guest.
            unsafe { AtomicU32::from_ptr(word.cast()) }.fetch_or(bits, Ordering::SeqCst);
        }
    }

    /// Flips a bit of the byte at `gpa`.
    pub fn flip(&self, gpa: u64) -> Result<(), Missing> {
        let byte = self.byte(gpa)?;
        // SAFETY: a byte of guest memory.
        unsafe { byte.write_volatile(byte.read_volatile() ^ 0x10) };
        Ok(())
    }

    /// Bytes taken from the pool.
    pub fn bytes(&self) -> u64 {
        self.frames.lock().frames() * FRAME
    }
}

impl Drop for GuestRam<'_> {
    fn drop(&mut self) {
        self.frames.get_mut().each(|_, size, frame| memory::put(frame, size));
    }
}
