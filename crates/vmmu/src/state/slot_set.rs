//! The slots of an MMU at one time, ordered for look-ups by guest frame and by host page.
//!
//! Both are binary searches in sorted arrays of plain values, so a copy of the set costs one pass.
//! Sections read only a set that nobody changes any more ([`slots`](super::slots)).

use alloc::vec::Vec;

use crate::addr::{Gfn, GfnRange, HostRange, Level};
use crate::entry::format::Format;
use crate::error::NoMemory;
use crate::state::slot::{AddressSpace, Mutability, SlotId, SlotInfo, SlotSpec, SlotWord, Source};

/// What never changes while a slot lives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Region {
    pub range: GfnRange,
    pub space: AddressSpace,
    pub id: SlotId,
    pub source: Source,
}

impl Region {
    /// The slot as it stands, if `word` is that of one.
    pub(crate) fn describe(&self, word: SlotWord) -> Option<SlotInfo> {
        let mutability =
            if word.is_read_only() { Mutability::ReadOnly } else { Mutability::ReadWrite };
        let spec = SlotSpec {
            id: self.id,
            space: self.space,
            range: self.range,
            source: self.source,
            mutability,
            largest: word.largest(),
        };
        Some(SlotInfo { spec, state: word.state()? })
    }

    /// The pages of the backing behind `range`, which must lie in the region. `None` if linear.
    #[inline]
    pub(crate) fn host_range(&self, range: GfnRange) -> Option<HostRange> {
        match self.source {
            Source::Linear(_) => None,
            Source::Backed { backing, first } => Some(HostRange {
                backing,
                first: first.saturating_add(range.start().0.saturating_sub(self.range.start().0)),
                pages: range.pages(),
            }),
        }
    }

    /// The part of the region that `host` backs.
    pub(crate) fn guest_range(&self, host: &HostRange) -> Option<GfnRange> {
        let Source::Backed { backing, first } = self.source else { return None };
        let mine = HostRange { backing, first, pages: self.range.pages() };
        if !mine.overlaps(host) {
            return None;
        }
        let from = host.first.max(mine.first) - first;
        let end = if defect!(EndWrapsAround) {
            host.first.wrapping_add(host.pages).max(first)
        } else {
            host.end()
        };
        let end = if defect!(MissesLastPage) && host.pages > 1 { end - 1 } else { end };
        let to = end.min(mine.end()) - first;
        let base = self.range.start().0;
        GfnRange::new(Gfn(base + from), Gfn(base + to))
    }

    /// The largest leaf around `gfn` that lies wholly in the region (invariant 15), at most
    /// `largest`.
    #[inline]
    pub(crate) fn level_at(&self, gfn: Gfn, largest: Level) -> Level {
        let mut level = largest;
        while level > Level::Size4K && !self.range.covers(gfn.leaf(level)) {
            match level.below() {
                Some(below) => level = below,
                None => break,
            }
        }
        level
    }
}

/// A backed region seen from its backing; sorted by backing and key.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backed {
    backing: u64,
    first: u64,
    end: u64,
    /// The largest `end` up to here within the backing: regions may alias one another's pages.
    reach: u64,
    /// Generation of the first set that it was in.
    pub born: u64,
    pub region: Region,
}

/// Names a region within its backing, in every set that it is in.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct BackedKey {
    /// The first page of the backing that it shows.
    pub first: u64,
    pub id: SlotId,
}

impl BackedKey {
    /// Not after any.
    pub(crate) const FIRST: BackedKey = BackedKey { first: 0, id: SlotId(0) };
}

impl Backed {
    #[inline]
    pub(crate) fn key(&self) -> BackedKey {
        BackedKey { first: self.first, id: self.region.id }
    }
}

/// Where the last lookup of a vCPU ended.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Hint(usize);

/// One copy of the set.
#[derive(Debug, Default)]
pub(crate) struct SlotSet {
    /// Rises with every change of what is memory. MMIO entries carry its [tag](Self::tag).
    pub generation: u64,
    regions: [Vec<Region>; AddressSpace::COUNT],
    backed: Vec<Backed>,
}

impl SlotSet {
    /// The high part of the generation: how often the tag has come round.
    #[inline]
    pub(crate) fn epoch(&self) -> u64 {
        self.generation >> Format::GENERATION_BITS
    }

    /// The low part of the generation: what fits into an MMIO entry.
    #[inline]
    pub(crate) fn tag(&self) -> u64 {
        self.generation & ((1 << Format::GENERATION_BITS) - 1)
    }

    /// Whether an MMIO entry with `tag`, below a root that was born in `epoch`, was written under
    /// this very generation.
    #[inline]
    pub(crate) fn wrote(&self, epoch: u64, tag: u64) -> bool {
        tag == self.tag() && self.remembers_in(epoch)
    }

    /// Whether MMIO entries below a root that was born in `epoch` may be written and believed.
    #[inline]
    pub(crate) fn remembers_in(&self, epoch: u64) -> bool {
        if defect!(LooksForTagZero) {
            return true;
        }
        epoch == self.epoch() || defect!(BelievesAcrossWrap)
    }

    /// The slot around `gfn`; tries where the last search ended first.
    #[inline]
    pub(crate) fn find(&self, space: AddressSpace, gfn: Gfn, hint: &mut Hint) -> Option<&Region> {
        let regions = self.regions.get(space as usize)?;
        if let Some(region) = regions.get(hint.0)
            && region.range.contains(gfn)
        {
            return Some(region);
        }
        let after = regions.partition_point(|region| region.range.start() <= gfn);
        let place = after.checked_sub(1)?;
        let region = regions.get(place).filter(|region| region.range.contains(gfn))?;
        hint.0 = place;
        Some(region)
    }

    /// The first slot that ends after `gfn`.
    pub(crate) fn next(&self, space: AddressSpace, gfn: Gfn) -> Option<&Region> {
        let regions = self.regions.get(space as usize)?;
        regions.get(regions.partition_point(|region| region.range.end() <= gfn))
    }

    /// The regions that have a page of `host`, from one of key `from` on, by their keys.
    pub(crate) fn backed_by(
        &self,
        host: &HostRange,
        from: BackedKey,
    ) -> impl Iterator<Item = &Backed> {
        let (backing, first, end) = (host.backing, host.first, host.end());
        // A key that a walk has come to is hardly ever before the first region that reaches `first`;
        // if it is, the filter passes over those between.
        let start = if from == BackedKey::FIRST {
            self.backed.partition_point(|b| (b.backing, b.reach) <= (backing, first))
        } else {
            self.backed.partition_point(|b| (b.backing, b.key()) < (backing, from))
        };
        let rest = self.backed.get(start..).unwrap_or_default().iter();
        rest.take_while(move |b| b.backing == backing && b.first < end)
            .filter(move |b| b.end > first)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Region> {
        self.regions.iter().flatten()
    }

    pub(crate) fn overlapping(&self, space: AddressSpace, range: GfnRange) -> Option<&Region> {
        self.next(space, range.start()).filter(|region| region.range.overlaps(range))
    }

    pub(crate) fn by_id(&self, id: SlotId) -> Option<&Region> {
        self.iter().find(|region| region.id == id)
    }

    /// Lengths of the vectors with one region more.
    pub(crate) fn lengths_with(&self, spec: &SlotSpec) -> ([usize; AddressSpace::COUNT], usize) {
        let mut regions = [0; AddressSpace::COUNT];
        for (n, (length, list)) in regions.iter_mut().zip(&self.regions).enumerate() {
            *length = list.len() + usize::from(n == spec.space as usize);
        }
        let is_backed = matches!(spec.source, Source::Backed { .. });
        (regions, self.backed.len() + usize::from(is_backed))
    }

    /// Makes room for what `like` has, and for one region more.
    pub(crate) fn reserve(&mut self, like: &SlotSet, more: &SlotSpec) -> Result<(), NoMemory> {
        fn room<T>(to: &mut Vec<T>, n: usize) -> Result<(), NoMemory> {
            to.try_reserve(n.saturating_sub(to.len())).map_err(|_| NoMemory)
        }
        let (regions, backed) = like.lengths_with(more);
        for (to, length) in self.regions.iter_mut().zip(regions) {
            room(to, length)?;
        }
        room(&mut self.backed, backed)
    }

    /// Whether there is room for one region more.
    pub(crate) fn has_room(&self, more: &SlotSpec) -> bool {
        let (regions, backed) = self.lengths_with(more);
        let mut lists = self.regions.iter().zip(regions);
        lists.all(|(list, length)| list.capacity() >= length) && self.backed.capacity() >= backed
    }

    /// Becomes `like` without `without` and with `with`. Allocates nothing if reserved.
    pub(crate) fn rebuild(
        &mut self,
        like: &SlotSet,
        without: Option<SlotId>,
        with: Option<Region>,
    ) {
        self.generation = like.generation + 1;
        self.backed.clear();
        self.backed.extend(like.backed.iter().filter(|b| Some(b.region.id) != without).copied());
        for (space, (to, from)) in self.regions.iter_mut().zip(&like.regions).enumerate() {
            to.clear();
            to.extend(from.iter().filter(|region| Some(region.id) != without).copied());
            if let Some(region) = with.filter(|r| r.space as usize == space) {
                let place = to.partition_point(|r| r.range.start() < region.range.start());
                to.insert(place, region);
            }
        }
        if let Some(region) = with
            && let Source::Backed { backing, first } = region.source
        {
            let end = first.saturating_add(region.range.pages());
            let backed = Backed { backing, first, end, reach: end, born: self.generation, region };
            let key = (backing, backed.key());
            let place = self.backed.partition_point(|b| (b.backing, b.key()) < key);
            self.backed.insert(place, backed);
        }
        let mut before: Option<(u64, u64)> = None;
        for backed in &mut self.backed {
            backed.reach = backed.end;
            if let Some((_, reach)) = before.filter(|(backing, _)| *backing == backed.backing)
                && !defect!(ForgetsReach)
            {
                backed.reach = backed.reach.max(reach);
            }
            before = Some((backed.backing, backed.reach));
        }
    }
}
