//! Which host frame stands behind which page of guest RAM.
//!
//! Blocks are found by guest frame number and lie congruent to it, so that a block can be mapped
//! by a leaf of its own size. A block that was given stays where it is until it is replaced, or the
//! guest is gone.

use crate::pool::Size;
use alloc::{boxed::Box, collections::BTreeMap};

/// A present block never starts at frame 0, which is below every frame of the pool.
const NONE: u64 = 0;

enum Mega {
    Empty,
    Block(u64),
    Split(Box<[u64; 512]>),
}

enum Giga {
    Block(u64),
    Split(Box<[Mega; 512]>),
}

/// Frames behind guest RAM, by guest frame number.
#[derive(Default)]
pub struct Ram {
    gigas: BTreeMap<u64, Giga>,
    frames: u64,
}

/// What stands behind a guest frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Host frame of exactly the page asked for.
    pub frame: u64,
    /// Size of the block it lies in.
    pub size: Size,
}

impl Ram {
    /// Nothing yet.
    pub const fn new() -> Self {
        Self { gigas: BTreeMap::new(), frames: 0 }
    }

    /// Where guest frame `gfn` is.
    pub fn find(&self, gfn: u64) -> Option<Place> {
        match self.gigas.get(&(gfn >> 18))? {
            Giga::Block(frame) => Some(Place { frame: frame + (gfn & 0x3_ffff), size: Size::G1 }),
            Giga::Split(megas) => match &megas[(gfn >> 9 & 511) as usize] {
                Mega::Empty => None,
                Mega::Block(frame) => Some(Place { frame: frame + (gfn & 511), size: Size::M2 }),
                Mega::Split(pages) => match pages[(gfn & 511) as usize] {
                    NONE => None,
                    frame => Some(Place { frame, size: Size::K4 }),
                },
            },
        }
    }

    /// The largest block, up to `largest`, around `gfn` in which no page has a frame yet.
    /// `None` if the page itself has one.
    pub fn vacancy(&self, gfn: u64, largest: Size) -> Option<Size> {
        let vacant = match self.gigas.get(&(gfn >> 18)) {
            None => Size::G1,
            Some(Giga::Block(_)) => return None,
            Some(Giga::Split(megas)) => match &megas[(gfn >> 9 & 511) as usize] {
                Mega::Empty => Size::M2,
                Mega::Block(_) => return None,
                Mega::Split(pages) if pages[(gfn & 511) as usize] == NONE => Size::K4,
                Mega::Split(_) => return None,
            },
        };
        Some(vacant.min(largest))
    }

    /// Puts the block that starts at host frame `frame` behind the block of `size` around `gfn`.
    ///
    /// # Errors
    /// If a page of it has a frame already (somebody else was first); nothing has changed then.
    pub fn insert(&mut self, gfn: u64, size: Size, frame: u64) -> Result<(), Taken> {
        if self.vacancy(gfn, size) != Some(size) {
            return Err(Taken);
        }
        self.frames += size.frames();
        if size == Size::G1 {
            self.gigas.insert(gfn >> 18, Giga::Block(frame));
            return Ok(());
        }
        let empty = || Giga::Split(Box::new([const { Mega::Empty }; 512]));
        let Giga::Split(megas) = self.gigas.entry(gfn >> 18).or_insert_with(empty) else {
            return Err(Taken);
        };
        let mega = &mut megas[(gfn >> 9 & 511) as usize];
        if size == Size::M2 {
            *mega = Mega::Block(frame);
            return Ok(());
        }
        if matches!(mega, Mega::Empty) {
            *mega = Mega::Split(Box::new([NONE; 512]));
        }
        let Mega::Split(pages) = mega else { return Err(Taken) };
        pages[(gfn & 511) as usize] = frame;
        Ok(())
    }

    /// Puts the block that starts at host frame `frame` in the place of the one of `size` that
    /// starts at `gfn`, and gives the frame where that one started. `None`, and nothing has
    /// changed, if there is no such block.
    pub fn replace(&mut self, gfn: u64, size: Size, frame: u64) -> Option<u64> {
        let giga = self.gigas.get_mut(&(gfn >> 18))?;
        let place = match (giga, size) {
            (Giga::Block(place), Size::G1) => place,
            (Giga::Split(megas), Size::M2 | Size::K4) => {
                match (&mut megas[(gfn >> 9 & 511) as usize], size) {
                    (Mega::Block(place), Size::M2) => place,
                    (Mega::Split(pages), Size::K4) => {
                        let place = &mut pages[(gfn & 511) as usize];
                        if *place == NONE {
                            return None;
                        }
                        place
                    }
                    _ => return None,
                }
            }
            _ => return None,
        };
        Some(core::mem::replace(place, frame))
    }

    /// Frames of 4 KiB behind the guest.
    pub const fn frames(&self) -> u64 {
        self.frames
    }

    /// Calls `visit(gfn, size, frame)` for every block, ascending.
    pub fn each(&self, mut visit: impl FnMut(u64, Size, u64)) {
        for (giga, content) in &self.gigas {
            let gfn = giga << 18;
            let megas = match content {
                Giga::Block(frame) => {
                    visit(gfn, Size::G1, *frame);
                    continue;
                }
                Giga::Split(megas) => megas,
            };
            for (mega, content) in (0_u64..).zip(megas.iter()) {
                let gfn = gfn | mega << 9;
                match content {
                    Mega::Empty => {}
                    Mega::Block(frame) => visit(gfn, Size::M2, *frame),
                    Mega::Split(pages) => {
                        let present = (0_u64..).zip(pages.iter()).filter(|(_, f)| **f != NONE);
                        present.for_each(|(page, frame)| visit(gfn | page, Size::K4, *frame));
                    }
                }
            }
        }
    }
}

/// A page of the block has a frame already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken;

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::{vec, vec::Vec};

    #[test]
    fn pages_are_found_where_they_were_put() {
        let mut ram = Ram::new();
        assert_eq!(ram.vacancy(0x12345, Size::G1), Some(Size::G1));
        ram.insert(0x12345, Size::K4, 0x777).unwrap();
        assert_eq!(ram.find(0x12345), Some(Place { frame: 0x777, size: Size::K4 }));
        assert_eq!(ram.find(0x12346), None);
        assert_eq!(ram.vacancy(0x12346, Size::G1), Some(Size::K4));
        assert_eq!(ram.vacancy(0x12500, Size::G1), Some(Size::M2));
        assert_eq!(ram.vacancy(0x12500, Size::K4), Some(Size::K4));
        ram.insert(0x12401, Size::M2, 0x2000).unwrap();
        assert_eq!(ram.find(0x12401), Some(Place { frame: 0x2001, size: Size::M2 }));
        ram.insert(0x40000, Size::G1, 0x80000).unwrap();
        assert_eq!(ram.find(0x7ffff), Some(Place { frame: 0xbffff, size: Size::G1 }));
        assert_eq!(ram.frames(), 1 + 512 + (1 << 18));
    }

    #[test]
    fn nothing_is_put_over_what_is_there() {
        let mut ram = Ram::new();
        ram.insert(0x1000, Size::K4, 5).unwrap();
        assert_eq!(ram.insert(0x1000, Size::K4, 6), Err(Taken));
        assert_eq!(ram.insert(0x1000, Size::M2, 512), Err(Taken));
        assert_eq!(ram.insert(0x1001, Size::M2, 512), Err(Taken), "a neighbour is there");
        assert_eq!(ram.insert(0x1000, Size::G1, 1 << 18), Err(Taken));
        assert_eq!(ram.find(0x1000).unwrap().frame, 5);
        assert_eq!(ram.find(0x1001), None);
        assert_eq!(ram.frames(), 1);
    }

    #[test]
    fn a_block_is_replaced_by_one_of_its_size_only() {
        let mut ram = Ram::new();
        ram.insert(0x40000, Size::G1, 1 << 18).unwrap();
        ram.insert(0x200, Size::M2, 0x400).unwrap();
        ram.insert(0x3, Size::K4, 9).unwrap();
        assert_eq!(ram.replace(0x3, Size::K4, 10), Some(9));
        assert_eq!(ram.replace(0x200, Size::M2, 0x800), Some(0x400));
        assert_eq!(ram.replace(0x40000, Size::G1, 2 << 18), Some(1 << 18));
        for (gfn, size) in [(4, Size::K4), (3, Size::M2), (0x200, Size::K4), (0x200, Size::G1)] {
            assert_eq!(ram.replace(gfn, size, 77), None);
        }
        assert_eq!(ram.find(0x3).unwrap().frame, 10);
        assert_eq!(ram.find(0x201).unwrap().frame, 0x801);
        assert_eq!(ram.find(0x40001).unwrap().frame, (2 << 18) + 1);
    }

    #[test]
    fn every_block_is_visited_once_in_order() {
        let mut ram = Ram::new();
        ram.insert(0x80000, Size::G1, 1 << 18).unwrap();
        ram.insert(0x200, Size::M2, 0x400).unwrap();
        ram.insert(0x3, Size::K4, 9).unwrap();
        let mut seen = Vec::new();
        ram.each(|gfn, size, frame| seen.push((gfn, size, frame)));
        assert_eq!(
            seen,
            vec![(3, Size::K4, 9), (0x200, Size::M2, 0x400), (0x80000, Size::G1, 1 << 18)]
        );
    }
}
