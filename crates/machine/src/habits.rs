//! How a processor caches: what the architecture leaves open.

/// What a processor does with what it has learned.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Keep {
    /// It caches nothing.
    Nothing,
    /// It uses the oldest translation it has that serves the access, and the oldest upper entry of
    /// the lowest level; when there is no room it forgets the newest.
    Oldest,
    /// It uses any translation it has or none, and forgets any, by chance.
    ByChance,
}

/// How a processor caches.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Habits {
    /// What it does with what it has learned.
    pub keep: Keep,
    /// Translations it has room for; rounded up to a power of two, at least 8.
    pub translations: usize,
    /// Upper entries it has room for; rounded up to a power of two, at least 8.
    pub structures: usize,
    /// Whether to compare every translation used from a cache with what the tables say now, for
    /// [`Counts::stale`](crate::Counts::stale). It costs a walk, and changes nothing.
    pub compare: bool,
}

impl Default for Habits {
    /// By chance, with 1024 translations and 256 upper entries, without comparing.
    fn default() -> Self {
        Habits { keep: Keep::ByChance, translations: 1024, structures: 256, compare: false }
    }
}

impl Habits {
    /// Caches nothing: every access is a walk.
    pub fn nothing() -> Self {
        Habits { keep: Keep::Nothing, ..Habits::default() }
    }

    /// Keeps the oldest.
    pub fn oldest() -> Self {
        Habits { keep: Keep::Oldest, ..Habits::default() }
    }
}
