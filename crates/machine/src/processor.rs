//! One physical processor: what it keeps, and what makes it forget. How it translates is in
//! `walk.rs` and `translation.rs`, which stand above.

use fastrand::Rng;

use crate::cache::{Cache, Globals};
use crate::{Counts, Habits, Log};

/// One physical processor: its caches, its choices, its page-modification log.
///
/// It takes whichever guest the [`Context`](crate::Context) of a call describes; a vCPU moves by
/// being run on another processor. Equal seeds, calls and memory give equal results.
#[derive(Clone, Debug)]
pub struct Processor {
    pub(crate) rng: Rng,
    pub(crate) translations: Cache,
    pub(crate) structures: Cache,
    pub(crate) counts: Counts,
    pub(crate) log: Option<Log>,
    pub(crate) compare: bool,
    /// Whether the walk under way used anything cached.
    pub(crate) leaned: bool,
}

impl Processor {
    /// A processor that caches by chance, with choices made from `seed`.
    pub fn new(seed: u64) -> Self {
        Self::with_habits(seed, Habits::default())
    }

    /// A processor with these habits, and choices made from `seed`.
    pub fn with_habits(seed: u64, habits: Habits) -> Self {
        Processor {
            rng: Rng::with_seed(seed),
            translations: Cache::new(habits.keep, habits.translations),
            structures: Cache::new(habits.keep, habits.structures),
            counts: Counts::default(),
            log: None,
            compare: habits.compare,
            leaned: false,
        }
    }

    /// Forgets the translations of the *linear* page of `address` under this tag, and upper entries
    /// used for it: INVLPGA, INVVPID type 0, or the guest's INVLPG.
    ///
    /// Translations of guest-physical addresses stay, on both vendors' processors, even while the
    /// guest does not page.
    pub fn invalidate_address(&mut self, tag: u16, address: u64) {
        self.translations.forget_linear(tag, address);
        self.structures.forget_linear(tag, address);
    }

    /// Forgets what is cached under this tag: TLB_CONTROL 3 on AMD, INVVPID type 1 on Intel.
    ///
    /// On AMD that is everything the tag's guest has cached. On Intel what was cached of the
    /// extended page tables alone has no tag and stays: [`invalidate_root`](Self::invalidate_root)
    /// forgets it.
    pub fn invalidate_tag(&mut self, tag: u16) {
        self.translations.forget_tag(tag, Globals::Too);
        self.structures.forget_tag(tag, Globals::Too);
    }

    /// Forgets the linear translations under this tag but for those of global pages: the guest's
    /// MOV to CR3.
    pub fn reload_cr3(&mut self, tag: u16) {
        self.translations.forget_tag(tag, Globals::Stay);
        self.structures.forget_tag(tag, Globals::Stay);
    }

    /// Forgets everything derived from the extended page tables at `root`: INVEPT type 1. Does
    /// nothing to what was cached from nested page tables, which AMD tags by ASID alone.
    pub fn invalidate_root(&mut self, root: u64) {
        self.translations.forget_root(root);
        self.structures.forget_root(root);
    }

    /// Forgets everything: TLB_CONTROL 1 on AMD, INVEPT type 2 on Intel.
    pub fn invalidate_all(&mut self) {
        self.translations.clear();
        self.structures.clear();
    }

    /// Switches the page-modification log (extended page tables only), and gives back the one used
    /// so far, with its index as it stands. A vCPU that moves takes its log along.
    pub fn set_log(&mut self, log: Option<Log>) -> Option<Log> {
        core::mem::replace(&mut self.log, log)
    }

    /// The page-modification log as it stands.
    pub fn log(&self) -> Option<Log> {
        self.log
    }

    /// What was counted.
    pub fn counts(&self) -> Counts {
        let evictions = self.translations.evictions + self.structures.evictions;
        Counts { evictions, ..self.counts }
    }

    /// Translations and upper entries cached now.
    pub fn cached(&self) -> (usize, usize) {
        (self.translations.len(), self.structures.len())
    }
}
