//! What a processor counted.

/// What a processor counted since it was made.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[non_exhaustive]
pub struct Counts {
    /// Accesses asked for.
    pub accesses: u64,
    /// Walks nobody asked for.
    pub speculations: u64,
    /// Walks of the nested tables.
    pub walks: u64,
    /// Walks begun again because another writer changed an entry first.
    pub lost: u64,
    /// Translations used from the cache.
    pub hits: u64,
    /// Of `hits`: those that the tables do not say any more
    /// ([`Habits::compare`](crate::Habits::compare)).
    pub stale: u64,
    /// Walks begun at a cached upper entry.
    pub structures: u64,
    /// Cached lines forgotten for want of room, or by chance.
    pub evictions: u64,
    /// Accessed flags set.
    pub accessed: u64,
    /// Dirty flags set.
    pub dirtied: u64,
    /// Entries written to the page-modification log.
    pub logged: u64,
}

impl core::ops::AddAssign for Counts {
    fn add_assign(&mut self, more: Counts) {
        self.accesses += more.accesses;
        self.speculations += more.speculations;
        self.walks += more.walks;
        self.lost += more.lost;
        self.hits += more.hits;
        self.stale += more.stale;
        self.structures += more.structures;
        self.evictions += more.evictions;
        self.accessed += more.accessed;
        self.dirtied += more.dirtied;
        self.logged += more.logged;
    }
}
