//! The guest's own page tables: the first 4 GiB stand at their own addresses; above, every
//! processor has a window of 512 small pages and one of a single large page.

use super::entry::{self, MAX_CPUS};
use core::cell::UnsafeCell;
use x86_64::VirtAddr;
use x86_64::instructions::tlb;

/// Entry bit: mapped.
pub const PRESENT: u64 = 1;
/// Entry bit: may be written.
pub const WRITABLE: u64 = 1 << 1;
/// Entry bit: set by the processor at any access.
pub const ACCESSED: u64 = 1 << 5;
/// Entry bit: set by the processor at a write.
pub const DIRTY: u64 = 1 << 6;
/// Entry bit: leaf above the last level.
pub const LARGE: u64 = 1 << 7;
/// Entry bit: no instruction fetches.
pub const NO_EXECUTE: u64 = 1 << 63;

/// Linear address of the windows: the second entry of the top table.
const WINDOWS: u64 = 1 << 39;
const LARGE_BYTES: u64 = 2 << 20;

#[repr(C, align(4096))]
struct Table(UnsafeCell<[u64; 512]>);

// SAFETY: entries are written by one processor each: the upper tables before others run, the
// rest by the owner of the window.
unsafe impl Sync for Table {}

static UPPER: [Table; 2] = [const { Table(UnsafeCell::new([0; 512])) }; 2];
static SMALL: [Table; MAX_CPUS] = [const { Table(UnsafeCell::new([0; 512])) }; MAX_CPUS];

/// The windows of one processor.
#[derive(Clone, Copy)]
pub struct Window(usize);

impl Window {
    /// The windows of processor `cpu`. The first call is made before other processors run.
    pub fn of(cpu: usize) -> Self {
        let (pointers, directory) = (UPPER[0].0.get(), UPPER[1].0.get());
        // SAFETY: every processor writes the same values to the shared entries, and its own
        // entry of the directory; the top table's second entry is used by nothing else.
        unsafe {
            let top = &raw mut entry::boot_pml4;
            (&raw mut (*top)[1]).write_volatile(pointers as u64 | PRESENT | WRITABLE);
            (&raw mut (*pointers)[0]).write_volatile(directory as u64 | PRESENT | WRITABLE);
            (&raw mut (*directory)[cpu])
                .write_volatile(SMALL[cpu].0.get() as u64 | PRESENT | WRITABLE);
        }
        Self(cpu)
    }

    /// Linear address of small page `page`.
    pub fn address(&self, page: usize) -> u64 {
        WINDOWS + self.0 as u64 * LARGE_BYTES + page as u64 * 4096
    }

    /// Writes the entry of small page `page` and forgets its old translation.
    pub fn set(&self, page: usize, entry: u64) {
        let table = SMALL[self.0].0.get();
        // SAFETY: the entry belongs to this window; what it maps is the caller's business and
        // nothing of the guest's own lies in the window.
        unsafe { (&raw mut (*table)[page]).write_volatile(entry) };
        tlb::flush(VirtAddr::new(self.address(page)));
    }

    /// Reads the entry of small page `page`.
    pub fn get(&self, page: usize) -> u64 {
        let table = SMALL[self.0].0.get();
        // SAFETY: the entry belongs to this window.
        unsafe { (&raw const (*table)[page]).read_volatile() }
    }

    /// Address of the table of small pages, which is also its guest-physical address.
    pub fn table(&self) -> u64 {
        SMALL[self.0].0.get() as u64
    }

    /// Writes the entry of the table of small pages itself, and forgets all translations.
    pub fn set_table(&self, entry: u64) {
        let directory = UPPER[1].0.get();
        // SAFETY: the entry belongs to this window.
        unsafe { (&raw mut (*directory)[self.0]).write_volatile(entry) };
        tlb::flush_all();
    }

    /// Linear address at which the guest-physical `address` can be reached: its own below 4 GiB,
    /// otherwise in the large window, which is moved there.
    pub fn reach(&self, address: u64) -> u64 {
        if address < 4 << 30 {
            return address;
        }
        let place = MAX_CPUS + self.0;
        let directory = UPPER[1].0.get();
        let entry = address & !(LARGE_BYTES - 1) | PRESENT | WRITABLE | LARGE;
        let linear = WINDOWS + place as u64 * LARGE_BYTES;
        // SAFETY: the entry belongs to this window.
        unsafe {
            let place = &raw mut (*directory)[place];
            if place.read_volatile() & !(ACCESSED | DIRTY) != entry {
                place.write_volatile(entry);
                tlb::flush(VirtAddr::new(linear));
            }
        }
        linear + address % LARGE_BYTES
    }
}
