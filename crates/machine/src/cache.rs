//! What a processor remembers of tables, and for how long it may: the adversary.
//!
//! Two caches of one kind, one for translations and one for upper entries (paging-structure
//! caches). Each may hold *several* lines for one address, of different ages and sizes, and any of
//! them may be used. What the architecture says:
//!
//! AMD (APM volume 2, 5.5 "Translation-Lookaside Buffer", 15.16 "TLB Control", 15.25 "Nested
//! Paging"):
//!
//! * Everything is tagged by ASID and by nothing else. A new nCR3 under the same ASID goes on using
//!   what was cached under the old one until software flushes.
//! * An entry of a table that only comes to allow more needs no invalidation: before the processor
//!   reports a fault it walks the tables again, from the top. So no fault comes from a cache.
//!   Every other change of a present entry is seen when software has invalidated, and perhaps
//!   before.
//! * INVLPGA takes a linear address. What is cached of guest-physical addresses on their own is
//!   forgotten by flushing the ASID.
//!
//! Intel (SDM volume 3, chapter "VMX Support for Address Translation", "Caching Translation
//! Information"):
//!
//! * *Guest-physical* mappings come from the extended page tables alone and are tagged by the
//!   address of the top one (EPTRTA), not by VPID. *Combined* mappings come from both tables and
//!   are tagged by VPID and EPTRTA. While the guest does not page, only the former exist.
//! * INVEPT forgets both kinds, for one EPTRTA or for all. INVVPID, and the guest's INVLPG and MOV
//!   to CR3, forget combined mappings only.
//! * A violation may come from what is cached. It then forgets every guest-physical mapping that
//!   would translate the address, and if a linear address led there the combined mappings for that,
//!   so that the next attempt sees the tables. A page fault of the guest does likewise for the
//!   linear address (SDM volume 3, chapter "Paging", "Caching Translation Information").
//!
//! Both:
//!
//! * What is not present, reserved or misconfigured is never cached, nor an upper entry whose
//!   accessed flag was not set.
//! * A write through a line that was made while the dirty flag was clear sets the flag in the
//!   tables first, by a walk (which may begin at a cached upper entry).
//! * A large page may be kept in smaller pieces (AMD: "page splintering"). Invalidating a linear
//!   address forgets all pieces of the page the guest's tables had there.
//! * The effective page is the smaller of the guest's and the nested one.

use alloc::vec::Vec;

use fastrand::Rng;

use crate::entry::base;
use crate::{Allows, Keep};

/// Lines of one set.
const WAYS: usize = 8;

/// What a line is about: whose tables, which kind of address, and therefore which tags count.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// AMD, linear addresses while the guest does not page. Tagged by ASID.
    AmdUnpaged,
    /// AMD, linear addresses. Tagged by ASID.
    AmdLinear,
    /// AMD, guest-physical addresses. Tagged by ASID.
    AmdPhysical,
    /// Intel, combined mappings: linear addresses. Tagged by VPID and EPTRTA.
    IntelLinear,
    /// Intel, guest-physical mappings. Tagged by EPTRTA.
    IntelPhysical,
}

/// Whose a line is: its kind with those tags that count for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Owner {
    pub kind: Kind,
    /// ASID or VPID; 0 where it does not count.
    pub tag: u16,
    /// EPTRTA; 0 where it does not count.
    pub root: u64,
}

impl Owner {
    fn is_linear(&self) -> bool {
        !matches!(self.kind, Kind::AmdPhysical | Kind::IntelPhysical)
    }

    fn is_intel(&self) -> bool {
        matches!(self.kind, Kind::IntelLinear | Kind::IntelPhysical)
    }

    fn hash(&self) -> u64 {
        self.root ^ u64::from(self.tag) << 3 ^ self.kind as u64
    }
}

/// One thing remembered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Line {
    pub owner: Owner,
    /// The first address it is for.
    pub base: u64,
    /// Log2 of the number of bytes it is for.
    pub shift: u8,
    /// Log2 of the bytes of the guest's page that this is a piece of.
    pub whole: u8,
    /// Translations: host-physical address of the page. Upper entries: that of the next table.
    pub hpa: u64,
    /// The guest-physical address of the same.
    pub gpa: u64,
    /// What the nested entries allow.
    pub nested: Allows,
    /// What the guest's entries allow.
    pub guest: Allows,
    /// The nested leaf's dirty flag was set, or there is none.
    pub nested_dirty: bool,
    /// The guest's leaf's dirty flag was set, or the guest does not page.
    pub guest_dirty: bool,
    /// The guest's leaf is global.
    pub global: bool,
    /// When it was remembered; 0 for a place without a line.
    pub born: u64,
}

impl Line {
    /// A line that allows everything, dirty; the caller says less.
    pub fn new(owner: Owner, address: u64, shift: u8, hpa: u64) -> Self {
        Line {
            owner,
            base: base(address, shift),
            shift,
            whole: shift,
            hpa,
            gpa: 0,
            nested: Allows::all(),
            guest: Allows::all(),
            nested_dirty: true,
            guest_dirty: true,
            global: false,
            born: 0,
        }
    }

    /// The piece of log2 size `shift` in which `address` is. For translations only.
    fn piece(mut self, address: u64, shift: u8) -> Self {
        let offset = base(address, shift) - self.base;
        self.base += offset;
        self.hpa += offset;
        self.gpa += offset;
        self.shift = shift;
        self
    }

    /// Whether this is the same knowledge, learned at another time.
    fn repeats(&self, other: &Line) -> bool {
        Line { born: other.born, ..*self } == *other
    }

    fn is_for(&self, owner: &Owner, address: u64) -> bool {
        self.born != 0 && base(address, self.shift) == self.base && self.owner == *owner
    }
}

/// A bounded number of lines.
#[derive(Clone, Debug)]
pub(crate) struct Cache {
    keep: Keep,
    lines: Vec<Line>,
    /// Lines of each size, so that sizes of which there are none are not looked for.
    sizes: [u32; 6],
    clock: u64,
    pub evictions: u64,
}

/// The place in `sizes` of a line of so many bytes.
const fn size(shift: u8) -> usize {
    (shift as usize - 12) / 9
}

impl Cache {
    /// Room for so many lines, rounded up.
    pub fn new(keep: Keep, capacity: usize) -> Self {
        let capacity = match keep {
            Keep::Nothing => 0,
            _ => capacity.max(WAYS).next_power_of_two(),
        };
        let owner = Owner { kind: Kind::AmdUnpaged, tag: 0, root: 0 };
        let mut lines = Vec::new();
        lines.resize(capacity, Line::new(owner, 0, 12, 0));
        Cache { keep, lines, sizes: [0; 6], clock: 0, evictions: 0 }
    }

    /// First place of the set for a line.
    fn set(&self, owner: &Owner, address: u64, shift: u8) -> usize {
        let key = (address >> shift).wrapping_add(owner.hash().wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mixed = (key ^ u64::from(shift) << 56).wrapping_mul(0xd6e8_feb8_6659_fd93) >> 32;
        (mixed as usize & (self.lines.len() / WAYS - 1)) * WAYS
    }

    /// A translation of the address, if there is one and the processor wants to use it. By habit
    /// the oldest of those that serve the access; one that does not if none does.
    pub fn pick(
        &self,
        rng: &mut Rng,
        owner: &Owner,
        address: u64,
        serves: impl Fn(&Line) -> bool,
    ) -> Option<Line> {
        self.choose(rng, owner, address, |line| (!serves(line), line.born))
    }

    /// An upper entry for the address, likewise. By habit one of the lowest level, where a walk has
    /// least to read, and of these the oldest.
    pub fn pick_upper(&self, rng: &mut Rng, owner: &Owner, address: u64) -> Option<Line> {
        self.choose(rng, owner, address, |line| (line.shift, line.born))
    }

    /// By habit the line with the lowest rank, by chance any.
    fn choose<R: Ord>(
        &self,
        rng: &mut Rng,
        owner: &Owner,
        address: u64,
        rank: impl Fn(&Line) -> R,
    ) -> Option<Line> {
        if self.lines.is_empty() || (self.keep == Keep::ByChance && rng.u8(..) < 32) {
            return None;
        }
        let mut chosen: Option<&Line> = None;
        let mut seen = 0;
        for size in (0..self.sizes.len()).filter(|&size| self.sizes[size] != 0) {
            let shift = 12 + 9 * size as u8;
            let first = self.set(owner, address, shift);
            for line in &self.lines[first..first + WAYS] {
                if line.shift != shift || !line.is_for(owner, address) {
                    continue;
                }
                seen += 1;
                let better = match (self.keep, chosen) {
                    (_, None) => true,
                    (Keep::Oldest, Some(old)) => rank(line) < rank(old),
                    (_, Some(_)) => rng.u32(..seen) == 0,
                };
                if better {
                    chosen = Some(line);
                }
            }
        }
        chosen.copied()
    }

    /// Remembers a translation that was learned for `address`: perhaps, and perhaps in a piece.
    pub fn keep_page(&mut self, rng: &mut Rng, address: u64, line: Line) {
        if self.keep != Keep::ByChance || line.shift == 12 {
            return self.insert(rng, line);
        }
        let shift = match rng.u8(..8) {
            0 | 1 => 12,
            2 => line.shift.min(21),
            _ => line.shift,
        };
        self.insert(rng, line.piece(address, shift));
    }

    /// Remembers a line: perhaps.
    pub fn insert(&mut self, rng: &mut Rng, line: Line) {
        if self.lines.is_empty() || (self.keep == Keep::ByChance && rng.u8(..) < 16) {
            return;
        }
        self.clock += 1;
        let line = Line { born: self.clock, ..line };
        let first = self.set(&line.owner, line.base, line.shift);
        let set = &self.lines[first..first + WAYS];
        if set.iter().any(|old| old.born != 0 && old.repeats(&line)) {
            return;
        }
        let way = match set.iter().position(|old| old.born == 0) {
            Some(free) => free,
            None => {
                let way = match self.keep {
                    Keep::Oldest => (0..WAYS).max_by_key(|&way| set[way].born).unwrap_or(0),
                    _ => rng.usize(..WAYS),
                };
                self.forget(first + way);
                self.evictions += 1;
                way
            }
        };
        self.lines[first + way] = line;
        self.sizes[size(line.shift)] += 1;
        // Now and then one goes for no reason at all.
        if self.keep == Keep::ByChance && rng.u8(..) < 4 {
            let victim = rng.usize(..self.lines.len());
            if self.lines[victim].born != 0 {
                self.forget(victim);
                self.evictions += 1;
            }
        }
    }

    fn forget(&mut self, place: usize) {
        let line = &mut self.lines[place];
        line.born = 0;
        self.sizes[size(line.shift)] -= 1;
    }

    fn forget_if(&mut self, mut condition: impl FnMut(&Line) -> bool) {
        for place in 0..self.lines.len() {
            let line = &self.lines[place];
            if line.born != 0 && condition(line) {
                self.forget(place);
            }
        }
    }

    /// Forgets what would translate this very address for this owner.
    pub fn forget_address(&mut self, owner: &Owner, address: u64) {
        if self.lines.is_empty() {
            return;
        }
        for size in 0..self.sizes.len() {
            let shift = 12 + 9 * size as u8;
            let first = self.set(owner, address, shift);
            for place in first..first + WAYS {
                let line = &self.lines[place];
                if line.shift == shift && line.is_for(owner, address) {
                    self.forget(place);
                }
            }
        }
    }

    /// Forgets all pieces of the linear page of this address, under whichever root.
    pub fn forget_linear(&mut self, tag: u16, address: u64) {
        self.forget_if(|line| {
            let size = line.whole.max(line.shift);
            line.owner.is_linear()
                && line.owner.tag == tag
                && base(address, size) == base(line.base, size)
        });
    }

    /// Forgets what has this tag, but for global pages if those are to stay.
    pub fn forget_tag(&mut self, tag: u16, globals: Globals) {
        self.forget_if(|line| {
            line.owner.kind != Kind::IntelPhysical
                && line.owner.tag == tag
                && (globals == Globals::Too || (line.owner.is_linear() && !line.global))
        });
    }

    /// Forgets what was derived from the extended page tables with this root.
    pub fn forget_root(&mut self, root: u64) {
        self.forget_if(|line| line.owner.is_intel() && line.owner.root == root);
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.forget_if(|_| true);
    }

    /// Lines remembered.
    pub fn len(&self) -> usize {
        self.sizes.iter().sum::<u32>() as usize
    }
}

/// Whether translations of global pages are forgotten too.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Globals {
    /// They are.
    Too,
    /// They may stay.
    Stay,
}
