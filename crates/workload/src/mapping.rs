//! Anonymous memory of this process, owned by a value.

use std::{num::NonZeroUsize, ptr::NonNull, slice};

use nix::{
    Result,
    sys::mman::{
        MRemapFlags, MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, mprotect, mremap,
        munmap,
    },
};
use workload::pattern::{PAGE, PAGE_WORDS};

/// Readable and writable.
pub const READ_WRITE: ProtFlags = ProtFlags::PROT_READ.union(ProtFlags::PROT_WRITE);

/// Whether a fork's child sees this memory or a copy of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// A copy, made on the first write.
    Private,
    /// The same pages.
    Shared,
}

/// Whole pages of anonymous memory, unmapped when dropped. Readable as long as nobody protected
/// it otherwise.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<u64>,
    pages: usize,
}

// SAFETY: the pages belong to this value alone; nothing in it is tied to a thread.
unsafe impl Send for Mapping {}

impl Mapping {
    /// `pages` pages of zeros.
    pub fn new(pages: usize, sharing: Sharing) -> Result<Self> {
        let flags = match sharing {
            Sharing::Private => MapFlags::MAP_PRIVATE,
            Sharing::Shared => MapFlags::MAP_SHARED,
        };
        let length = NonZeroUsize::new(pages * PAGE).ok_or(nix::Error::EINVAL)?;
        // SAFETY: a new mapping at an address the kernel chooses touches no existing memory.
        let start = unsafe { mmap_anonymous(None, length, READ_WRITE, flags)? };
        Ok(Mapping { start: start.cast(), pages })
    }

    /// Its size.
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// All words.
    pub fn words(&self) -> &[u64] {
        // SAFETY: the mapping covers these pages, is page-aligned and lives as long as `self`;
        // every bit pattern is a word. Nothing protects pages against reading and keeps them so
        // beyond one call of `protect` and its undoing in this program.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.pages * PAGE_WORDS) }
    }

    /// All words, to write.
    pub fn words_mut(&mut self) -> &mut [u64] {
        // SAFETY: as for `words`, and `self` is borrowed exclusively.
        unsafe { slice::from_raw_parts_mut(self.start.as_ptr(), self.pages * PAGE_WORDS) }
    }

    fn page(&self, page: usize) -> NonNull<std::ffi::c_void> {
        assert!(page <= self.pages);
        // SAFETY: the result lies in the mapping or one past its end.
        unsafe { self.start.add(page * PAGE_WORDS).cast() }
    }

    /// Sets the protection of `count` pages from `first`.
    pub fn protect(&mut self, first: usize, count: usize, allowed: ProtFlags) -> Result<()> {
        assert!(first + count <= self.pages);
        // SAFETY: these pages belong to `self`; callers read and write only what they allowed.
        unsafe { mprotect(self.page(first), count * PAGE, allowed) }
    }

    /// Gives advice on `count` pages from `first`.
    pub fn advise(&mut self, first: usize, count: usize, advice: MmapAdvise) -> Result<()> {
        assert!(first + count <= self.pages);
        // SAFETY: these pages belong to `self`, which is borrowed exclusively, and hold plain
        // words: that their content may become zero harms nothing.
        unsafe { madvise(self.page(first), count * PAGE, advice) }
    }

    /// Grows or shrinks to `pages`, moving if the kernel wants it.
    pub fn resize(&mut self, pages: usize) -> Result<()> {
        let (old, new) = (self.pages * PAGE, pages * PAGE);
        // SAFETY: the old range is this mapping, borrowed exclusively, so nothing points into it.
        let start = unsafe { mremap(self.page(0), old, new, MRemapFlags::MREMAP_MAYMOVE, None)? };
        (self.start, self.pages) = (start.cast(), pages);
        Ok(())
    }

    /// Takes the pages from `at` on off into a mapping of their own.
    pub fn split_off(&mut self, at: usize) -> Mapping {
        let tail = Mapping { start: self.page(at).cast(), pages: self.pages - at };
        self.pages = at;
        tail
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if self.pages > 0 {
            // SAFETY: the range is this mapping's own and nobody borrows it any more.
            unsafe { munmap(self.page(0), self.pages * PAGE) }.ok();
        }
    }
}
