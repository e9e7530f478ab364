//! Withdrawals: taking a permission away, as a chain of values.
//!
//! ```text
//! turn.announce(what) -> Announced -> synchronize() -> Quiesced -> walk(..) -> Walked -> finish() -> Revoked<What>
//! ```
//!
//! *Publish*: from now on permits are refused. *Exclude*: every section that may have been given
//! one before is over. *Then* walk: nothing can be inserted behind the walk any more, and nothing
//! can move from the table it is in to a huge leaf above it. *Finish*: if another participant has
//! a debt over the range, an entry that the walk found clear may still be cached somewhere because
//! that one has not flushed yet; so synchronize once more and flush, without waiting for him.
//!
//! Only `finish` makes a [`Revoked`], typed by what was withdrawn. A walk that ran out of budget
//! gives a [`PausedWalk`], which holds no turn and is resumed.

use crate::active::{HostRange, InvalidationPlace};
use crate::addr::{Gfn, GfnRange, Level};
use crate::host::Host;
use crate::root::{PLACES, Phase, Root, RootName};
use crate::section::{Local, Owing};
use crate::shared::Core;
use crate::slot::{AddressSpace, SlotId, SlotSet};
use crate::table::{Cursor, Order, Page, Target, Then, WalkStep};
use crate::tlb::Due;

/// What can be withdrawn.
#[cfg_attr(
    feature = "protocol",
    expect(private_bounds, reason = "only the library makes publications")
)]
pub trait Revocation: Sealed {
    /// Whether the walk's debts owe no flush.
    const WAIVED: bool = false;
}

pub(crate) trait Sealed: Target {
    /// Makes it visible to everybody who asks for a permit, and hits the watches it concerns.
    /// `slots` are those of a section opened after the publication of what stands in words.
    fn announce(&mut self, core: &Core);

    /// Hits watches; in a section after [`publish`](Self::publish).
    fn hit(&mut self, core: &Core, slots: &SlotSet) {
        let _ = (core, slots);
    }

    /// Guest frames whose debts of others concern the promise.
    fn hull(&self) -> GfnRange;

    /// Publishes what the slots that are known now say: a defect.
    #[cfg(feature = "defects")]
    fn in_guest_frames(&mut self, slots: &SlotSet) {
        let _ = slots;
    }
}

/// Announced, not yet excluded.
#[must_use]
#[derive(Debug)]
pub struct Announced<'p, H: Host, P: Revocation> {
    local: Local<'p, H>,
    what: P,
}

/// GracePeriod: nobody inserts behind a walk that starts now.
#[must_use]
#[derive(Debug)]
pub struct Quiesced<'p, H: Host, P: Revocation> {
    local: Local<'p, H>,
    what: P,
    cursor: Cursor,
}

/// Walked to the end; debts settled.
#[must_use]
#[derive(Debug)]
pub struct Walked<'p, H: Host, P: Revocation> {
    local: Local<'p, H>,
    what: P,
}

/// A walk that stopped before its end. A plain value: it holds no turn.
#[must_use = "the range stays refused until the walk is resumed and finished"]
#[derive(Debug)]
pub struct PausedWalk<P> {
    vm: u64,
    what: P,
    cursor: Cursor,
}

/// How far a walk with a budget came.
#[must_use]
#[derive(Debug)]
pub enum Walk<'p, H: Host, P: Revocation> {
    /// To the end.
    Whole(Walked<'p, H, P>),
    /// There is more.
    More(PausedWalk<P>),
}

/// What was withdrawn is gone: from the tables and from every processor.
#[must_use]
#[derive(Debug)]
pub struct Revoked<P> {
    vm: u64,
    what: P,
}

impl<P> Revoked<P> {
    /// What it is about, for the VM it was made by.
    pub(crate) fn open(self, core: &Core) -> Option<P> {
        (self.vm == core.id).then_some(self.what)
    }
}

impl<H: Host> Local<'_, H> {
    /// Publishes a withdrawal.
    pub fn announce<P: Revocation>(&mut self, mut what: P) -> Announced<'_, H, P> {
        #[cfg(feature = "defects")]
        self.spoil(&mut what);
        what.announce(self.core());
        if !defect!(HitsBeforeAnnouncement) {
            self.hit(&mut what);
        }
        Announced { local: self.lend(), what }
    }

    /// The fence that opens the section stands between the publication and the look at the
    /// watches: a watch that is not seen here is admitted after it and sees the range.
    fn hit<P: Revocation>(&mut self, what: &mut P) {
        let section = self.section();
        if !defect!(HitsNoWatch) {
            what.hit(section.inside.core, section.slots());
        }
    }

    /// What defects do before the publication.
    #[cfg(feature = "defects")]
    fn spoil<P: Revocation>(&mut self, what: &mut P) {
        if defect!(HitsBeforeAnnouncement) {
            self.hit(what);
        }
        if defect!(AnnouncesInGuestFrames) {
            what.in_guest_frames(self.section().slots());
        }
    }

    /// Goes on with a paused walk, or gives it back if it is another VM's.
    pub fn resume<P: Revocation>(
        &mut self,
        rest: PausedWalk<P>,
    ) -> Result<Quiesced<'_, H, P>, PausedWalk<P>> {
        if rest.vm != self.core().id {
            return Err(rest);
        }
        let mut cursor = rest.cursor;
        if defect!(SkipsAfterRestart) {
            cursor.skip();
        }
        Ok(Quiesced { local: self.lend(), what: rest.what, cursor })
    }

    /// Goes on with what is left of a walk, if it is this VM's, for at most `budget` pages. At its
    /// end nothing is left, and the promise is made.
    pub(crate) fn walk_on<P: Revocation>(
        &mut self,
        left: &mut Option<PausedWalk<P>>,
        budget: u64,
        visit: impl FnMut(&Page<'_, Owing<'_>>) -> Then,
    ) -> Option<Revoked<P>> {
        match self.resume(left.take()?) {
            Ok(withdrawn) => match withdrawn.walk_some(budget, visit) {
                Walk::Whole(walked) => return Some(walked.finish()),
                Walk::More(rest) => *left = Some(rest),
            },
            Err(foreign) => *left = Some(foreign),
        }
        None
    }
}

impl<'p, H: Host, P: Revocation> Announced<'p, H, P> {
    /// Waits for the sections that are open now.
    pub fn synchronize(mut self) -> Quiesced<'p, H, P> {
        let left_out = match self.what.order() {
            Order::Leaves => defect!(WalkWithoutGracePeriod),
            Order::TablesBottomUp => defect!(DrainWithoutGracePeriod),
        };
        if !left_out {
            self.local.synchronize();
        }
        Quiesced { local: self.local, what: self.what, cursor: Cursor::default() }
    }
}

impl<'p, H: Host, P: Revocation> Quiesced<'p, H, P> {
    /// Visits everything that is concerned, one table page a section, under one debt. A visitor
    /// that pauses is simply called again.
    pub fn walk(mut self, mut visit: impl FnMut(&Page<'_, Owing<'_>>) -> Then) -> Walked<'p, H, P> {
        while self.go(u64::MAX, &mut visit) == Progress::More {}
        Walked { local: self.local, what: self.what }
    }

    /// Visits at most `budget` pages, then says where to go on.
    pub fn walk_some(
        mut self,
        budget: u64,
        mut visit: impl FnMut(&Page<'_, Owing<'_>>) -> Then,
    ) -> Walk<'p, H, P> {
        match self.go(budget, &mut visit) {
            Progress::Done => Walk::Whole(Walked { local: self.local, what: self.what }),
            Progress::More => Walk::More(self.pause()),
        }
    }

    /// Stops before the first page.
    pub fn pause(self) -> PausedWalk<P> {
        PausedWalk { vm: self.local.core().id, what: self.what, cursor: self.cursor }
    }

    fn go(&mut self, budget: u64, visit: &mut dyn FnMut(&Page<'_, Owing<'_>>) -> Then) -> Progress {
        let due = if P::WAIVED { Due::Waived } else { Due::Yes };
        let host = &self.local.vm.host;
        let mut debt = self.local.lend().into_debt(self.what.hull(), due);
        let mut left = budget;
        let progress = loop {
            let step = debt.section().step(&mut self.cursor, &self.what, visit);
            match step {
                WalkStep::Done => break Progress::Done,
                WalkStep::Pause => break Progress::More,
                WalkStep::Wait => host.relax(),
                WalkStep::Visited => {
                    left = left.saturating_sub(1);
                    if left == 0 {
                        break Progress::More;
                    }
                }
            }
        };
        if progress == Progress::More && defect!(DropsFlushAtPause) {
            debt.forget_flush();
        }
        debt.settle();
        progress
    }
}

/// Whether work that is done in steps has come to its end.
#[must_use]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    /// It is done.
    Done,
    /// Call again.
    More,
}

impl Progress {
    pub(crate) fn of<P>(rest: &Option<PausedWalk<P>>) -> Progress {
        if rest.is_some() { Progress::More } else { Progress::Done }
    }
}

impl<H: Host, P: Revocation> Walked<'_, H, P> {
    /// Makes sure that no debt of others stands between the walk and the promise.
    pub fn finish(mut self) -> Revoked<P> {
        let core = self.local.core();
        if !P::WAIVED
            && !defect!(IgnoresForeignDebts)
            && core.participants.owes(self.local.place, self.what.hull())
        {
            self.local.synchronize();
            let words = self.local.words();
            words.counters.foreign_debts.add(1);
            self.local.vm.flush(words);
        }
        Revoked { vm: core.id, what: self.what }
    }
}

/// Pages that the host takes back; see [`Worker::invalidate_range`](crate::Worker::invalidate_range).
#[derive(Debug)]
pub struct HostPages {
    range: HostRange,
    place: Option<InvalidationPlace>,
    /// Whoever says the same range ends it.
    is_named: bool,
    hull: GfnRange,
    /// What `AnnouncesInGuestFrames` publishes instead.
    #[cfg(feature = "defects")]
    known: HostRange,
}

impl HostPages {
    /// The pages, of an invalidation that lasts until its place is withdrawn.
    pub fn new(range: HostRange) -> Self {
        HostPages {
            range,
            place: None,
            is_named: false,
            hull: GfnRange::ALL,
            #[cfg(feature = "defects")]
            known: range,
        }
    }

    /// The pages, of an invalidation that
    /// [`Worker::invalidate_end`](crate::Worker::invalidate_end) ends.
    pub fn named(range: HostRange) -> Self {
        HostPages { is_named: true, ..Self::new(range) }
    }

    /// Where it is published.
    pub(crate) fn place(&self) -> Option<InvalidationPlace> {
        self.place
    }
}

impl Revocation for HostPages {}

impl Sealed for HostPages {
    fn announce(&mut self, core: &Core) {
        #[cfg(feature = "defects")]
        let range = &self.known;
        #[cfg(not(feature = "defects"))]
        let range = &self.range;
        let place = core.invalidations.announce(range);
        if self.is_named {
            core.invalidations.name(place);
        }
        self.place = Some(place);
    }

    #[cfg(feature = "defects")]
    fn in_guest_frames(&mut self, slots: &SlotSet) {
        if slots.backed_by(&self.range, 0).is_none() {
            self.known.pages = 0;
        }
    }

    fn hit(&mut self, core: &Core, slots: &SlotSet) {
        core.participants.hit(|watched| {
            let mut at = watched.range.start();
            // A watch on frames of no slot that is known now is hit too: the slot may be coming.
            let mut known = false;
            while let Some(region) = slots.next(watched.space, at) {
                if !region.range.overlaps(watched.range) {
                    break;
                }
                known = true;
                let part = intersection(region.range, watched.range);
                if region.host_range(part).is_some_and(|pages| pages.overlaps(&self.range)) {
                    return true;
                }
                at = region.range.end();
            }
            !known && !defect!(SlotLiveAtOnce)
        });
        let mut hull: Option<GfnRange> = None;
        let mut n = 0;
        while let Some((at, region)) = slots.backed_by(&self.range, n) {
            if let Some(part) = region.guest_range(&self.range) {
                let all = hull.unwrap_or(part);
                let start = all.start().min(part.start());
                hull = GfnRange::new(start, all.end().max(part.end()));
            }
            n = at + 1;
        }
        self.hull = hull.map_or(GfnRange::EMPTY, |hull| with_huge_leaves(hull, core.largest));
    }

    fn hull(&self) -> GfnRange {
        self.hull
    }
}

/// The range with all huge leaves that overlap it: they go whole.
fn with_huge_leaves(range: GfnRange, largest: Level) -> GfnRange {
    let last = Gfn(range.end().0.saturating_sub(1));
    let (first, last) = (range.start().leaf(largest), last.leaf(largest));
    GfnRange::new(first.start(), last.end()).unwrap_or(GfnRange::ALL)
}

fn intersection(a: GfnRange, b: GfnRange) -> GfnRange {
    GfnRange::new(a.start().max(b.start()), a.end().min(b.end())).unwrap_or(a)
}

impl Target for HostPages {
    fn order(&self) -> Order {
        Order::Leaves
    }

    fn piece(&self, slots: &SlotSet, n: usize) -> Option<(usize, AddressSpace, GfnRange)> {
        let (n, region) = slots.backed_by(&self.range, n)?;
        Some((n, region.space, region.guest_range(&self.range)?))
    }

    fn wants(&self, root: &Root) -> bool {
        root.phase == Phase::Valid || !defect!(SkipsInvalidRoots)
    }
}

/// Guest frames whose mappings must be made anew, because what a new one would say has changed.
///
/// The caller has changed that before; requests under way, which may still know the old, are hit.
#[derive(Debug)]
pub struct GuestFrames {
    /// Address space.
    pub(crate) space: AddressSpace,
    /// Frames.
    pub(crate) range: GfnRange,
    hull: GfnRange,
}

impl GuestFrames {
    /// The frames.
    pub fn new(space: AddressSpace, range: GfnRange) -> Self {
        GuestFrames { space, range, hull: range }
    }
}

impl Revocation for GuestFrames {}

impl Sealed for GuestFrames {
    fn announce(&mut self, _: &Core) {}

    fn hit(&mut self, core: &Core, _: &SlotSet) {
        core.participants.hit(|w| w.space == self.space && w.range.overlaps(self.range));
        self.hull = with_huge_leaves(self.range, core.largest);
    }

    fn hull(&self) -> GfnRange {
        self.hull
    }
}

impl Target for GuestFrames {
    fn order(&self) -> Order {
        Order::Leaves
    }

    fn piece(&self, _: &SlotSet, n: usize) -> Option<(usize, AddressSpace, GfnRange)> {
        (n == 0).then_some((0, self.space, self.range))
    }
}

/// A slot that is dying, made by the slot guard.
#[derive(Debug)]
pub struct SlotDying {
    /// The VM whose slot it is.
    pub(crate) vm: u64,
    pub(crate) id: SlotId,
    pub(crate) space: AddressSpace,
    pub(crate) range: GfnRange,
}

impl Revocation for SlotDying {}

impl Sealed for SlotDying {
    /// The slot guard has put the word down already.
    fn announce(&mut self, _: &Core) {}

    fn hull(&self) -> GfnRange {
        self.range
    }
}

impl Target for SlotDying {
    fn order(&self) -> Order {
        Order::Leaves
    }

    fn piece(&self, _: &SlotSet, n: usize) -> Option<(usize, AddressSpace, GfnRange)> {
        (n == 0).then_some((0, self.space, self.range))
    }
}

/// Roots that have become invalid together, made by the slot guard.
#[derive(Debug)]
pub struct RootInvalid {
    pub(crate) names: [Option<RootName>; PLACES],
}

impl Revocation for RootInvalid {}

impl Sealed for RootInvalid {
    /// The slot guard has changed the phases already.
    fn announce(&mut self, _: &Core) {}

    fn hull(&self) -> GfnRange {
        GfnRange::ALL
    }
}

impl Target for RootInvalid {
    fn order(&self) -> Order {
        Order::TablesBottomUp
    }

    fn piece(&self, _: &SlotSet, n: usize) -> Option<(usize, AddressSpace, GfnRange)> {
        (n < AddressSpace::COUNT).then_some((n, AddressSpace(n as u8), GfnRange::ALL))
    }

    fn wants(&self, root: &Root) -> bool {
        self.names.contains(&Some(root.name)) || defect!(DrainsNewRoots)
    }
}

/// Invalid roots that every vCPU has left: what is cleared below them owes no flush.
#[derive(Debug)]
pub struct Unloaded(pub(crate) RootInvalid);

impl Unloaded {
    pub(crate) fn names(self) -> [Option<RootName>; PLACES] {
        self.0.names
    }
}

impl Revocation for Unloaded {
    const WAIVED: bool = true;
}

impl Sealed for Unloaded {
    fn announce(&mut self, _: &Core) {}

    fn hull(&self) -> GfnRange {
        self.0.hull()
    }
}

impl Target for Unloaded {
    fn order(&self) -> Order {
        self.0.order()
    }

    fn piece(&self, slots: &SlotSet, n: usize) -> Option<(usize, AddressSpace, GfnRange)> {
        self.0.piece(slots, n)
    }

    fn wants(&self, root: &Root) -> bool {
        self.0.wants(root)
    }
}

impl<'p, H: Host> Quiesced<'p, H, RootInvalid> {
    /// Waits until every vCPU has been outside the guest once. At its next entry it loads another
    /// root, and flushes with that; so nothing below these can be cached any more.
    pub fn unload(self) -> Quiesced<'p, H, Unloaded> {
        if !defect!(DrainsUnderGuest) {
            self.local.vm.outside_once();
        }
        Quiesced { local: self.local, what: Unloaded(self.what), cursor: self.cursor }
    }
}
