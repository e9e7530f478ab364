//! What each fuzz target does with its bytes, and what must hold whatever they are.

mod emulate;
mod entries;
mod loaders;
mod protocol;

pub use self::{emulate::emulate, entries::entries, loaders::loaders, protocol::protocol};

/// Bytes that are used up; zeros follow the last.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn word(&mut self) -> u64 {
        u64::from_le_bytes(std::array::from_fn(|_| self.byte()))
    }

    /// One of these.
    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[usize::from(self.byte()) % of.len()]
    }

    fn flag(&mut self) -> bool {
        self.byte() & 1 == 1
    }

    fn rest(self) -> &'a [u8] {
        self.0
    }
}
