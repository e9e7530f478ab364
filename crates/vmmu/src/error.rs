//! Errors that any layer can meet.

/// Memory ran out. Nothing has changed; give the host or the allocator more, and try again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoMemory;

impl core::fmt::Display for NoMemory {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("out of memory; nothing has changed")
    }
}

impl core::error::Error for NoMemory {}
