//! The memory of one guest: frames from the pool, given when a page is first needed, zeroed.

use super::memory;
use hypervisor::pool::{FRAME, Size};
use hypervisor::ram::{Place, Ram};
use hypervisor::wire::Range;
use spin::Mutex;

/// What frames are filled with that a guest has lost.
const LEFT: u8 = 0xdb;

/// Whether a block has other frames now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moved {
    /// It has.
    Yes,
    /// The pool has none, or the block is not what it was.
    No,
}

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

    /// First guest frame and size of the block behind `gfn`, if there is one.
    pub fn block(&self, gfn: u64) -> Option<(u64, Size)> {
        let Place { size, .. } = self.find(gfn)?;
        Some((gfn & !(size.frames() - 1), size))
    }

    /// Moves a block to other frames. The caller has seen to it that nobody reaches it. The frames
    /// it leaves are filled with a pattern.
    pub fn relocate(&self, first: u64, size: Size) -> Moved {
        let Some(old) = self.find(first).filter(|place| place.size == size) else {
            return Moved::No;
        };
        let Some(frame) = memory::take(size) else { return Moved::No };
        // SAFETY: the new block has just been taken; the old one is this guest's, and nobody
        // reaches it.
        unsafe { memory::copy(old.frame, frame, size) };
        let replaced = self.frames.lock().replace(first, size, frame);
        if replaced != Some(old.frame) {
            // Only somebody who moves the same block at the same time can be the reason, and that
            // somebody has his own invalidation: whoever was first has moved it.
            self.frames.lock().replace(first, size, replaced.unwrap_or(frame));
            memory::put(frame, size);
            return Moved::No;
        }
        // SAFETY: nothing refers to the old block any more.
        unsafe { memory::fill(old.frame, size, LEFT) };
        memory::put(old.frame, size);
        Moved::Yes
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
