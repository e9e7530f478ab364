//! Pages that the host has made read-only by a zap: what a zap promises, judged.
//!
//! The host says that a page may only be read, zaps every guest frame where the page may be, and
//! *seals* it. From then on no vCPU reaches the page by a translation that allows a write, because
//! none of those that there were is left, until the host allows writes again, which it does when
//! somebody asks for one. A guest that writes to a sealed page used a translation that the zap did
//! not take away, or a mapping that was made from an answer of before it.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

const PHASE: u64 = 0b11;
/// Writes are allowed.
const OPEN: u64 = 0;
/// Answers do not allow writes any more; mappings may.
const CLOSING: u64 = 1;
/// The zap has returned.
const SEALED: u64 = 2;
/// A new time of the same page.
const TIME: u64 = 0b100;

/// See the module.
#[derive(Debug)]
pub struct Protection {
    pages: Box<[AtomicU64]>,
    /// Pages that are not open, by block.
    blocks: Box<[AtomicUsize]>,
}

/// A page on its way to be sealed.
#[derive(Clone, Copy, Debug)]
pub struct Closing {
    page: usize,
    word: u64,
}

impl Protection {
    /// Every page is open.
    pub fn new(pages: usize, blocks: usize) -> Self {
        Protection {
            pages: (0..pages).map(|_| AtomicU64::new(OPEN)).collect(),
            blocks: (0..blocks).map(|_| AtomicUsize::new(0)).collect(),
        }
    }

    /// From now on answers do not allow writes to a page of a block. `None`: somebody else sees to
    /// that. A zap follows.
    pub fn close(&self, page: usize, block: usize) -> Option<Closing> {
        let word = self.pages[page].load(Ordering::SeqCst);
        if word & PHASE != OPEN {
            return None;
        }
        // Before the word: whoever answers for a page beside it is to see it no later.
        self.blocks[block].fetch_add(1, Ordering::SeqCst);
        let closing = (word + TIME) & !PHASE | CLOSING;
        let order = Ordering::SeqCst;
        if self.pages[page].compare_exchange(word, closing, order, order).is_err() {
            self.blocks[block].fetch_sub(1, Ordering::SeqCst);
            return None;
        }
        Some(Closing { page, word: closing })
    }

    /// The zap has returned. `false`: writes were allowed meanwhile.
    pub fn seal(&self, closing: Closing) -> bool {
        let (sealed, order) = (closing.word & !PHASE | SEALED, Ordering::SeqCst);
        self.pages[closing.page].compare_exchange(closing.word, sealed, order, order).is_ok()
    }

    /// Allows writes.
    pub fn open(&self, page: usize, block: usize) {
        let word = self.pages[page].load(Ordering::SeqCst);
        let (open, order) = (word & !PHASE | OPEN, Ordering::SeqCst);
        if word & PHASE != OPEN
            && self.pages[page].compare_exchange(word, open, order, order).is_ok()
        {
            self.blocks[block].fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// Whether answers allow writes.
    pub fn is_open(&self, page: usize) -> bool {
        self.pages[page].load(Ordering::SeqCst) & PHASE == OPEN
    }

    /// Whether nobody can write to a page.
    pub fn is_sealed(&self, page: usize) -> bool {
        self.pages[page].load(Ordering::SeqCst) & PHASE == SEALED
    }

    /// Whether every page of a block is open, so that it can be given in one piece.
    pub fn is_whole(&self, block: usize) -> bool {
        self.blocks[block].load(Ordering::SeqCst) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_sealed_unless_a_write_came_between() {
        let all = Protection::new(2, 1);
        let closing = all.close(1, 0).unwrap();
        assert!(all.close(1, 0).is_none(), "somebody else is at it");
        assert!(!all.is_open(1) && !all.is_whole(0) && !all.is_sealed(1));
        assert!(all.seal(closing) && all.is_sealed(1));
        all.open(1, 0);
        all.open(1, 0);
        assert!(all.is_open(1) && all.is_whole(0), "once");
        let closing = all.close(1, 0).unwrap();
        all.open(1, 0);
        let again = all.close(1, 0).unwrap();
        assert!(!all.seal(closing), "of another time");
        assert!(all.seal(again) && !all.is_sealed(0));
    }
}
