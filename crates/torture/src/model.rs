//! The flat reference model: what every page of the guest's memory holds, and which page is where
//! in guest-physical memory.
//!
//! **Contents.** Each word of a page has one writer, who writes ever larger numbers; word 0 is a
//! sum to which every guest adds 1. The model keeps, for each word, what was last *started* and
//! what was last *completed*. Who reads must see a number from what was completed before to what
//! was started after. A page that the host empties begins a new *epoch*; what is said about an
//! older one does not count.
//!
//! **Places.** A *site* is a range of guest frames where there is one slot or none. Its word says
//! what is there, or what it is changing from and to. A guest's access is judged by what the word
//! said before and after.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::arena::{Arena, BLOCKS, HUGE, LINEAR, WORDS};

/// The host's name for the memory in 2 MiB blocks.
pub const BLOCK_BACKING: u64 = 1;
/// The host's name for the memory in one 1 GiB block.
pub const HUGE_BACKING: u64 = 2;
/// Pages of the huge backing that guests use.
pub const TOUCHED: usize = 32;
/// All pages the model knows.
pub const PAGES: usize = BLOCKS as usize + TOUCHED + LINEAR as usize;

/// The page of the huge backing behind the model's `n`-th.
pub const fn touched(n: usize) -> u64 {
    (n as u64 / 4) * 0x7e00 + [0, 1, 511, 512][n % 4]
}

/// What may be in a site.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct View {
    /// Where its pages come from.
    pub pages: Pages,
    /// Whether guests may write.
    pub read_only: bool,
}

/// Where a slot's pages come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pages {
    /// Pages of the block backing, from this one.
    Blocks(u64),
    /// The huge backing.
    Huge,
    /// The linear area.
    Linear,
}

/// A range of guest frames where there is one slot or none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Site {
    /// Address space.
    pub space: u8,
    /// First gfn.
    pub start: u64,
    /// 4 KiB pages.
    pub pages: u64,
    /// What may be there.
    pub views: &'static [View],
}

const fn blocks(first: u64) -> View {
    View { pages: Pages::Blocks(first), read_only: false }
}

const fn flash(first: u64) -> View {
    View { pages: Pages::Blocks(first), read_only: true }
}

const WHOLE: &[View] = &[View { pages: Pages::Huge, read_only: false }];
const PINNED: &[View] = &[View { pages: Pages::Linear, read_only: false }];

const fn site(space: u8, start: u64, pages: u64, views: &'static [View]) -> Site {
    Site { space, start, pages, views }
}

/// The sites. Some begin and end inside a 2 MiB block, some lie askew to their backing, two
/// address spaces see the same pages, and 1 and 8 can change places.
pub const SITES: &[Site] = &[
    site(0, 0x10, 600, &[blocks(0x10), flash(0x20)]),
    site(0, 0x400, 1024, &[blocks(0), blocks(1024)]),
    site(0, 0x1003, 512, &[blocks(515), blocks(700)]),
    site(0, 0x2000, 512, &[flash(1536), blocks(1536)]),
    site(0, 0x4_0000, HUGE, WHOLE),
    site(0, 0xc00, LINEAR, PINNED),
    site(1, 0x400, 1024, &[blocks(0), blocks(512)]),
    site(1, 0x4_0000, HUGE, WHOLE),
    site(0, 0x3000, 1024, &[blocks(0), blocks(1024)]),
    site(1, 0x1000, LINEAR, PINNED),
];

/// Guest frames where there is never a slot.
pub const DEVICES: std::ops::Range<u64> = 0x5000..0x5010;

impl View {
    /// The model's number of the page at an offset into the site.
    pub fn page(&self, offset: u64) -> Option<usize> {
        match self.pages {
            Pages::Blocks(first) => Some((first + offset) as usize),
            Pages::Huge => {
                let n = (0..TOUCHED).find(|n| touched(*n) == offset)?;
                Some(BLOCKS as usize + n)
            }
            Pages::Linear => Some(BLOCKS as usize + TOUCHED + offset as usize),
        }
    }
}

/// What a backing calls a page of the model, as (backing, page). A linear page has no name.
pub fn name_of(page: usize) -> Option<(u64, u64)> {
    match page.checked_sub(BLOCKS as usize) {
        None => Some((BLOCK_BACKING, page as u64)),
        Some(n) if n < TOUCHED => Some((HUGE_BACKING, touched(n))),
        Some(_) => None,
    }
}

/// The page of the model that a backing calls this.
pub fn page_of(backing: u64, page: u64) -> Option<usize> {
    match backing {
        BLOCK_BACKING => Some(page as usize).filter(|page| *page < BLOCKS as usize),
        HUGE_BACKING => View { pages: Pages::Huge, read_only: false }.page(page),
        _ => None,
    }
}

/// The frame where a page is when it lies with its neighbours in one block.
pub fn home_of(page: usize) -> u64 {
    match page.checked_sub(BLOCKS as usize) {
        None => Arena::BLOCK_HOME + page as u64,
        Some(n) if n < TOUCHED => Arena::HUGE_HOME + touched(n),
        Some(n) => Arena::LINEAR_HOME + (n - TOUCHED) as u64,
    }
}

/// What a site's word says. 0 is nothing; else the number of the view plus 1.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Said {
    version: u32,
    old: u16,
    new: u16,
}

impl Said {
    /// The view that was there before the change that is going on.
    pub fn old(&self) -> Option<usize> {
        usize::from(self.old).checked_sub(1)
    }
}

/// What a site may hold during an access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Possible {
    site: usize,
    codes: [u16; 4],
    /// So much has changed that anything may have been there.
    anything: bool,
}

impl Possible {
    /// Whether there may have been no slot.
    pub fn nothing(&self) -> bool {
        self.anything || self.codes.contains(&0)
    }

    /// The slots that may have been there.
    pub fn views(&self) -> impl Iterator<Item = View> {
        let all = SITES[self.site].views.iter().enumerate();
        let Possible { codes, anything, .. } = *self;
        all.filter(move |(n, _)| anything || codes.contains(&(*n as u16 + 1))).map(|(_, v)| *v)
    }

    /// The one slot that was there all the time, if it was.
    pub fn only(&self) -> Option<View> {
        let mut views = self.views();
        let one = views.next()?;
        (!self.nothing() && views.next().is_none()).then_some(one)
    }
}

/// Words of one page.
#[derive(Debug)]
pub struct Words {
    epoch: AtomicU64,
    started: [AtomicU64; WORDS],
    /// Epoch and number.
    completed: [AtomicU64; WORDS],
}

const VALUE_BITS: u32 = 48;

/// What a word was before a read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Before {
    epoch: u64,
    at_least: u64,
}

impl Words {
    fn new() -> Self {
        Words {
            epoch: AtomicU64::new(0),
            started: std::array::from_fn(|_| AtomicU64::new(0)),
            completed: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }

    fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::SeqCst) & 0xffff
    }

    /// Before a read.
    pub fn before(&self, word: usize) -> Before {
        let epoch = self.epoch();
        let completed = self.completed[word].load(Ordering::SeqCst);
        let is_current = completed >> VALUE_BITS == epoch;
        let at_least = if is_current { completed & ((1 << VALUE_BITS) - 1) } else { 0 };
        Before { epoch, at_least }
    }

    /// After a read: what is wrong with the value, if anything.
    pub fn judge(&self, word: usize, before: Before, value: u64) -> Result<(), String> {
        let at_most = self.started[word].load(Ordering::SeqCst);
        if self.epoch() != before.epoch {
            return Ok(());
        }
        if value < before.at_least || value > at_most {
            return Err(format!(
                "word {word} is {value:#x}, expected {:#x} to {at_most:#x}",
                before.at_least
            ));
        }
        Ok(())
    }

    /// A write begins; gives the epoch for its end.
    pub fn start(&self, word: usize, value: u64) -> u64 {
        self.started[word].fetch_max(value, Ordering::SeqCst);
        self.epoch()
    }

    /// A write has ended. Late news of an older epoch says nothing about this one.
    pub fn complete(&self, word: usize, value: u64, epoch: u64) {
        self.completed[word].store(epoch << VALUE_BITS | value, Ordering::SeqCst);
    }

    /// An addition begins.
    pub fn start_adding(&self, word: usize) {
        self.started[word].fetch_add(1, Ordering::SeqCst);
    }

    /// An addition has ended.
    pub fn complete_adding(&self, word: usize) {
        self.completed[word].fetch_add(1, Ordering::SeqCst);
    }

    /// The host has emptied the page, and nobody reaches it.
    pub fn empty(&self) {
        let epoch = self.epoch.fetch_add(1, Ordering::SeqCst).wrapping_add(1) & 0xffff;
        for completed in &self.completed {
            completed.store(epoch << VALUE_BITS, Ordering::SeqCst);
        }
        // Only guests add, and none can be at it.
        self.started[SUM].store(0, Ordering::SeqCst);
    }

    /// At rest: the words exactly.
    pub fn expected(&self) -> [Before; WORDS] {
        std::array::from_fn(|word| self.before(word))
    }
}

impl Before {
    /// The number that was completed, at rest.
    pub fn value(&self) -> u64 {
        self.at_least
    }
}

/// The word to which every guest adds.
pub const SUM: usize = 0;

/// See the module.
#[derive(Debug)]
pub struct Model {
    /// By page.
    pub pages: Box<[Words]>,
    sites: Box<[AtomicU64]>,
}

impl Model {
    /// Memory of zeros, and no slots.
    pub fn new() -> Self {
        Model {
            pages: (0..PAGES).map(|_| Words::new()).collect(),
            sites: SITES.iter().map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// What is, or is changing, at a site.
    pub fn look(&self, site: usize) -> Said {
        let word = self.sites[site].load(Ordering::SeqCst);
        Said { version: (word >> 32) as u32, old: (word >> 16) as u16, new: word as u16 }
    }

    /// What may have been at a site between two looks.
    pub fn between(&self, site: usize, first: Said, last: Said) -> Possible {
        let codes = [first.old, first.new, last.old, last.new];
        // Each change takes two steps; with three, everything that was there is named.
        let anything = last.version.wrapping_sub(first.version) > 3;
        Possible { site, codes, anything }
    }

    /// A change begins: from what is there to view `new`, or to nothing. Only one at a time.
    pub fn begin(&self, site: usize, new: Option<usize>) {
        let Said { version, new: old, .. } = self.look(site);
        self.say(site, Said { version: version + 1, old, new: code(new) });
    }

    /// The change has been made, or, if not, what was there before is there.
    pub fn end(&self, site: usize, is_made: bool) {
        let Said { version, old, new } = self.look(site);
        let now = if is_made { new } else { old };
        self.say(site, Said { version: version + 1, old: now, new: now });
    }

    fn say(&self, site: usize, said: Said) {
        let Said { version, old, new } = said;
        let word = u64::from(version) << 32 | u64::from(old) << 16 | u64::from(new);
        self.sites[site].store(word, Ordering::SeqCst);
    }
}

fn code(view: Option<usize>) -> u16 {
    view.map_or(0, |n| n as u16 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_lies_between_what_was_completed_and_what_was_started() {
        let words = Words::new();
        let epoch = words.start(2, 5);
        let before = words.before(2);
        assert!(words.judge(2, before, 0).is_ok(), "it may not have happened yet");
        assert!(words.judge(2, before, 5).is_ok());
        assert!(words.judge(2, before, 6).is_err(), "nobody wrote that");
        words.complete(2, 5, epoch);
        assert!(words.judge(2, before, 0).is_ok(), "it may have happened after the read");
        assert!(words.judge(2, words.before(2), 0).is_err(), "a write was lost");
    }

    #[test]
    fn an_emptied_page_begins_anew() {
        let words = Words::new();
        let epoch = words.start(1, 9);
        let before = words.before(1);
        words.empty();
        assert!(words.judge(1, before, 77).is_ok(), "of a page that was emptied nothing is said");
        // Late news of before does not count.
        words.complete(1, 9, epoch);
        assert!(words.judge(1, words.before(1), 0).is_ok());
        let epoch = words.start(1, 10);
        words.complete(1, 10, epoch);
        assert!(words.judge(1, words.before(1), 0).is_err());
    }

    #[test]
    fn a_sum_counts_every_addition() {
        let words = Words::new();
        for _ in 0..3 {
            words.start_adding(SUM);
            words.complete_adding(SUM);
        }
        assert!(words.judge(SUM, words.before(SUM), 3).is_ok());
        assert!(words.judge(SUM, words.before(SUM), 2).is_err());
    }

    #[test]
    fn what_may_be_at_a_site_follows_from_two_looks() {
        let model = Model::new();
        let first = model.look(1);
        assert!(model.between(1, first, model.look(1)).nothing());
        model.begin(1, Some(0));
        let during = model.between(1, first, model.look(1));
        assert!(during.nothing() && during.views().count() == 1 && during.only().is_none());
        model.end(1, true);
        let last = model.look(1);
        assert_eq!(model.between(1, last, model.look(1)).only(), Some(SITES[1].views[0]));
        // A change that failed leaves what was there.
        model.begin(1, None);
        model.end(1, false);
        let now = model.look(1);
        assert_eq!(model.between(1, now, now).only(), Some(SITES[1].views[0]));
        for view in [None, Some(1), None] {
            model.begin(1, view);
            model.end(1, true);
        }
        let much = model.between(1, first, model.look(1));
        assert_eq!(much.views().count(), SITES[1].views.len(), "anything may have been there");
    }

    #[test]
    fn every_page_has_one_name_and_one_home() {
        let mut homes = std::collections::BTreeSet::new();
        for page in 0..PAGES {
            assert!(homes.insert(home_of(page)));
            if let Some((backing, name)) = name_of(page) {
                assert_eq!(page_of(backing, name), Some(page));
            }
        }
        assert_eq!(page_of(HUGE_BACKING, 2), None, "no guest uses that one");
    }

    #[test]
    fn sites_do_not_overlap() {
        for (n, one) in SITES.iter().enumerate() {
            for other in &SITES[n + 1..] {
                let apart =
                    one.start + one.pages <= other.start || other.start + other.pages <= one.start;
                assert!(one.space != other.space || apart, "{one:?} {other:?}");
            }
            assert!(one.start + one.pages <= DEVICES.start || DEVICES.end <= one.start);
        }
    }
}
