//! Defects that models and tests put back, one at a time, to see that somebody notices.
//!
//! Each is a mistake that was made in some memory-management unit, or one that the protocol's own
//! models found to matter. It is chosen at run time in a build with the feature `defects`; without
//! that feature every switch is the constant `false` and no code is left.

macro_rules! defects {
    ($(#[doc = $about:literal] $variant:ident $name:ident [$($id:literal),+];)+) => {
        /// A piece of the library that can be put back as it must not be.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[repr(u64)]
        pub enum Defect {
            $(#[doc = $about] $variant,)+
        }

        impl Defect {
            /// All of them.
            pub const ALL: &'static [Defect] = &[$(Defect::$variant),+];

            /// Its name, as a test that catches it is named.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Defect::$variant => stringify!($name),)+
                }
            }

            /// What goes wrong, in a sentence.
            pub const fn about(self) -> &'static str {
                match self {
                    $(Defect::$variant => $about.trim_ascii(),)+
                }
            }

            /// What it is called in lists of such mistakes: `K` from Linux KVM's history, `B` from
            /// other hypervisors, `S` a worked scenario that it breaks, `D-` a row of the
            /// protocol's models that fails, `F-` a fault that a review of this library found.
            pub const fn ids(self) -> &'static [&'static str] {
                match self {
                    $(Defect::$variant => &[$($id),+],)+
                }
            }
        }
    };
}

defects! {
    /// A section opens without a fence.
    SectionWithoutFence section_without_fence ["D-a3", "D-q2", "D-x6"];
    /// A watch is admitted without a fence between it and what its section reads.
    WatchWithoutFence watch_without_fence ["D-a5", "D-x5"];
    /// A watch is admitted though its range is under invalidation.
    AdmitsUnderInvalidation admits_under_invalidation ["D-a6", "D-x3"];
    /// A watch is admitted for leaves of which other pages are under invalidation.
    BelievesWholeBlock believes_whole_block ["D-a10"];
    /// An invalidation hits the watches before it has announced its range.
    HitsBeforeAnnouncement hits_before_announcement ["D-a2"];
    /// An invalidation hits no watch.
    HitsNoWatch hits_no_watch ["D-w4", "D-a9", "D-x4"];
    /// Two who end an invalidation of the same name end the same one.
    EndsOneTwice ends_one_twice ["D-a18", "D-a24"];
    /// A place for invalidations that is taken anew says the same as before.
    PlaceKeepsItsName place_keeps_its_name ["D-a32"];
    /// A fault takes a watch, its own or a spare one, before it knows whether it needs one.
    WatchesBeforeLooking watches_before_looking ["F-M1"];
    /// A watch is admitted in the section in which it was opened.
    AdmitsWhereOpened admits_where_opened ["D-a28"];
    /// A watch spans the largest leaf of the MMU until it is closed, also after it was hit.
    WatchStaysWide watch_stays_wide ["F-M2"];
    /// A watch is made narrower than the leaf that will be mapped.
    WatchNarrowerThanLeaf watch_narrower_than_leaf ["D-a29"];
    /// A watch is opened over one page, and made wider in the section that admits it.
    WidensInSection widens_in_section ["D-a30"];
    /// An answer is taken for a request it was not asked for.
    TakesAnyAnswer takes_any_answer ["F-M9"];
    /// An invalidation that found no place refuses every page there is.
    OverflowRefusesAll overflow_refuses_all ["F-M3"];
    /// Exactly one invalidation without a place refuses nothing.
    IgnoresOneOverflowed ignores_one_overflowed ["F-f", "D-a22"];
    /// The end of a range that was never begun ends any invalidation without a place.
    EndsAnyOverflowed ends_any_overflowed ["F-M11"];
    /// A debt is opened in the ledger after what it is about was cleared.
    LedgerAfterClear ledger_after_clear ["D-b3"];
    /// A debt leaves the ledger before its flush.
    LedgerClosedBeforeFlush ledger_closed_before_flush ["D-b4"];
    /// A revocation ignores the ledgers of others.
    IgnoresForeignDebts ignores_foreign_debts ["D-b1", "D-n1", "D-w2"];
    /// A zap's debt covers what was asked for, without the huge leaves that reach over its edges.
    ZapsBlockForPage zaps_block_for_page ["F-e"];
    /// A zap hits only the watches around its first frame.
    HitsAroundFirstFrame hits_around_first_frame ["F-c"];
    /// Who reads where a debt begins has not seen that the debt before it is settled.
    LedgerStartRelaxed ledger_start_relaxed ["F-M14"];
    /// A flush waits until a vCPU has done what others have asked for since.
    WaitsForLaterFlushes waits_for_later_flushes ["F-M14b"];
    /// A second debt that is leaked takes the place of the first in the ledger.
    LeakHidesLeak leak_hides_leak ["F-g"];
    /// A permit does not compare the slot's word with that of the admission.
    IgnoresRevision ignores_revision ["D-e2"];
    /// A request keeps the slot's word in 16 bits and widens it with its sign.
    SignExtendsRevision sign_extends_revision ["K11"];
    /// A vCPU loads a root that it saw valid before it said that it enters.
    LoadsUnnamedRoot loads_unnamed_root ["D-g1"];
    /// A drain starts while vCPUs may still run on the root.
    DrainsUnderGuest drains_under_guest ["D-g3"];
    /// A drain waits for vCPUs to leave its roots after it has cleared entries, not before.
    WaivesBeforeUnload waives_before_unload ["F-M6"];
    /// A vCPU's entry and a flush look at each other's words without a fence in between.
    FlushWithoutFences flush_without_fences ["D-g6"];
    /// A flush reaches no vCPU.
    FlushReachesNobody flush_reaches_nobody ["B1"];
    /// A flush says that a vCPU which nobody has made did not have to be interrupted.
    CountsAbsentVcpus counts_absent_vcpus ["F-h"];
    /// A walk in steps that pauses forgets the flush it owes.
    DropsFlushAtPause drops_flush_at_pause ["K3"];
    /// A detached table is given back before the flush.
    FreesTableBeforeFlush frees_table_before_flush ["B3", "K26"];
    /// A detached table is neither made dead nor given back.
    LosesDetachedTable loses_detached_table ["B8"];
    /// A table is taken away though a claim was made in it after the look for claims.
    TakesTableUnderClaim takes_table_under_claim ["F-M13"];
    /// Who has made a claim does not look whether its table is still linked.
    ClaimsUnlinkedEntry claims_unlinked_entry ["F-M13b"];
    /// A permission to write that the library takes is flushed only if hardware could write.
    NoFlushForSoftlyProtected no_flush_for_softly_protected ["K18"];
    /// An entry is overwritten, whatever it holds by then.
    OverwritesBlindly overwrites_blindly ["D-h1", "D-h4"];
    /// A dead entry of a detached table is overwritten by a fault.
    OverwritesFrozen overwrites_frozen ["K4"];
    /// A fault puts its frame over a leaf that allows the access already.
    ReplacesPresentLeaf replaces_present_leaf ["B2"];
    /// Whoever meets a frozen entry waits for it inside the section.
    SpinsInSection spins_in_section ["D-m1"];
    /// A walk leaves a huge leaf that reaches over the edge of its range.
    LeavesOverlappingHugeLeaf leaves_overlapping_huge_leaf ["B7", "S2"];
    /// A walk that is resumed goes on one table too far.
    SkipsAfterRestart skips_after_restart ["K16"];
    /// A walk begins anew when it finds that the slots have changed.
    RestartsAtSlotChange restarts_at_slot_change ["F-H2"];
    /// The end of a range of host pages wraps around.
    EndWrapsAround end_wraps_around ["B10"];
    /// Of a linear slot only the first frame is compared with the reserved ones.
    MapsReservedFrames maps_reserved_frames ["B11"];
    /// Of a range of several host pages the last one stays mapped.
    MissesLastPage misses_last_page ["F-i1"];
    /// A walk passes over the roots of the second address space.
    ForgetsSecondSpace forgets_second_space ["F-i2"];
    /// A fault has table pages for four levels in stock, however many the tables have.
    StocksForFourLevels stocks_for_four_levels ["F-i3"];
    /// Of slots that show the same pages, how far the first ones reach is forgotten.
    ForgetsReach forgets_reach ["F-i4"];
    /// An answer that names a reserved frame is mapped.
    MapsReservedAnswers maps_reserved_answers ["F-H1"];
    /// A slot leaves the set while its leaves are mapped.
    SlotGoneBeforeLeaves slot_gone_before_leaves ["D-k1"];
    /// An invalidation is announced as the guest frames that are known to hold its pages.
    AnnouncesInGuestFrames announces_in_guest_frames ["D-k3"];
    /// A new slot is live at once, and watches on frames of no known slot are not hit.
    SlotLiveAtOnce slot_live_at_once ["D-k5"];
    /// A slot that was moved is live at its new place without a grace period.
    MovedSlotLiveAtOnce moved_slot_live_at_once ["F-d"];
    /// A permit does not look whether the root is still valid.
    PopulatesInvalidRoot populates_invalid_root ["K5", "B13", "S3"];
    /// An invalidation by the host passes over invalid roots.
    SkipsInvalidRoots skips_invalid_roots ["K6", "S6"];
    /// A drain takes the roots apart that were made since it began.
    DrainsNewRoots drains_new_roots ["K23"];
    /// A root that a vCPU leaves is invalidated, whoever may come back to it.
    RootDiesWithItsUser root_dies_with_its_user ["K29", "S5"];
    /// MMIO entries of the round before are believed until their roots have been replaced.
    BelievesAcrossWrap believes_across_wrap ["D-i2"];
    /// Of a change of the slots only the final tag is looked at: old MMIO entries go when it is zero.
    LooksForTagZero looks_for_tag_zero ["D-i3"];
    /// The section in which a root's epoch is read ends before the root is made.
    BornOutsideSection born_outside_section ["D-i5"];
    /// A root is found by any role.
    RoleBlindReuse role_blind_reuse ["K14"];
    /// A drain starts without waiting for the sections open when the root became invalid.
    DrainWithoutGracePeriod drain_without_grace_period ["D-r2"];
    /// A section looks at the top table of a root that is retiring.
    LooksAtRetiringRoot looks_at_retiring_root ["D-r3"];
    /// A section count that becomes odd does not carry what the section before it did.
    CountWithoutRelease count_without_release ["D-r4"];
    /// A translation of an address beyond the tables answers for a low one.
    TranslatesBeyondTables translates_beyond_tables ["F-M8"];
    /// Whether a frame lies in its block as the guest frame does in its own is compared for 2 MiB only.
    ComparesWithinTwoMegabytes compares_within_two_megabytes ["F-a"];
    /// A copy from a linear page does not look again whether its slot is still there.
    CopiesWithoutLook copies_without_look ["F-b"];
    /// A vCPU that finds no place for a root leaves drains alone that nobody goes on with.
    AdoptsNoDrain adopts_no_drain ["F-M5a"];
    /// Whoever takes over a drain of a root that is only invalid does not wait for the vCPUs.
    AdoptsUnderGuest adopts_under_guest ["F-M5b"];
    /// A slot that is being deleted stands in the way of others for ever.
    LeavesDyingSlot leaves_dying_slot ["F-M5c"];
    /// A deletion that ends late takes away the slot that has the number by then.
    RemovesSuccessor removes_successor ["F-M5d"];
    /// Watches of parked requests stay taken though their vCPU has no other.
    RevokesNoParked revokes_no_parked ["F-M5e"];
    /// A parked request's watch is taken without a look whether somebody else has taken it.
    TakesParkedBlindly takes_parked_blindly ["F-M5f"];
    /// The copy of the slot set that was current before is changed while sections may read it.
    EditsCopyInUse edits_copy_in_use ["F-H6c"];
    /// Who takes the slot guard does not look for what an earlier change has left to do.
    ForgetsGracePeriod forgets_grace_period ["F-H6a"];
    /// The top table of a root is released before its place says that it is gone.
    ReleasesBeforeFree releases_before_free ["F-H6b"];
    /// A revocation walks without having waited for a grace period.
    WalkWithoutGracePeriod walk_without_grace_period ["D-w3", "D-e4"];
}

/// Whether a defect is switched in.
#[cfg(feature = "defects")]
#[inline]
pub fn is_on(defect: Defect) -> bool {
    ACTIVE.load(core::sync::atomic::Ordering::Relaxed) == defect as u64 + 1
}

/// The defect that is switched in, plus one. Not modelled: it is set while nothing else runs.
#[cfg(feature = "defects")]
static ACTIVE: core::sync::atomic::AtomicU64 = core::sync::atomic::AtomicU64::new(0);

/// Switches one defect in, or none, for the whole process.
#[cfg(feature = "defects")]
pub fn switch(defect: Option<Defect>) {
    let word = defect.map_or(0, |defect| defect as u64 + 1);
    ACTIVE.store(word, core::sync::atomic::Ordering::Relaxed);
}

/// `defect!(SectionWithoutFence)`: whether that defect is switched in.
macro_rules! defect {
    ($name:ident) => {{
        #[cfg(feature = "defects")]
        {
            $crate::defect::is_on($crate::defect::Defect::$name)
        }
        #[cfg(not(feature = "defects"))]
        {
            false
        }
    }};
}
