//! Everything at once, and then by kinds: vCPUs that run and fault, the host that takes pages and
//! blocks back, slots that come, go and change, zaps in steps, and roots that are drained.

use shuttle::rand::{Rng, thread_rng};
use shuttle::thread::{JoinHandle, spawn};
use vmmu::addr::{Gfn, GfnRange, Level};
use vmmu::internals::Defect;
use vmmu::slot::{AddressSpace, SlotId};
use vmmu::{HostRange, Mmu, Progress, Worker};

use crate::explore::{Model, saw};
use crate::machine::{BLOCK, MEMORY, Machine, OTHER, PAGES};
use crate::rig::{Rig, other};

/// Who takes part: so many vCPUs, and so many rounds of each kind of work.
#[derive(Clone, Copy)]
struct Cast {
    vcpus: u32,
    /// Rounds of a vCPU.
    guest: usize,
    /// What a vCPU accesses.
    choose: fn() -> Gfn,
    /// What the host takes back: first page and how many.
    take: fn() -> (u64, u64),
    host: usize,
    slots: usize,
    zaps: usize,
    drains: usize,
}

/// Any page of either slot.
fn anywhere() -> Gfn {
    let n = thread_rng().gen_range(0..MEMORY + 2 * BLOCK);
    if n < MEMORY { Gfn(n) } else { Gfn(OTHER.0.0 + n - MEMORY) }
}

/// One of few pages, so that all meet.
fn nearby() -> Gfn {
    [Gfn(4), Gfn(5), Gfn(7), OTHER.0][thread_rng().gen_range(0..4)]
}

/// One of two, in one table.
fn close() -> Gfn {
    Gfn(4 + thread_rng().gen_range(0..2))
}

/// A page of the second slot that no other has.
fn in_other() -> Gfn {
    Gfn(OTHER.0.0 + BLOCK + thread_rng().gen_range(0..2))
}

/// A page, or a block.
fn any() -> (u64, u64) {
    if thread_rng().gen_bool(0.5) {
        (thread_rng().gen_range(4..8), 1)
    } else {
        (thread_rng().gen_range(0..PAGES / BLOCK) * BLOCK, BLOCK)
    }
}

/// What [`close`] is backed by.
fn one() -> (u64, u64) {
    (4 + thread_rng().gen_range(0..2), 1)
}

/// What [`in_other`] is backed by.
fn one_of_other() -> (u64, u64) {
    (OTHER.1 + BLOCK + thread_rng().gen_range(0..2), 1)
}

/// The host takes pages back and moves them.
fn take_back(worker: &mut Worker<&'static Mmu<Machine>>, machine: &Machine, cast: Cast) {
    for _ in 0..cast.host {
        let (first, pages) = (cast.take)();
        let invalidation = worker.invalidate_range(HostRange { backing: 0, first, pages });
        machine.migrate(first, pages);
        drop(invalidation);
        saw("taken back");
    }
}

/// A slot comes, changes and goes, at once or in steps.
fn change_slots(worker: &mut Worker<&'static Mmu<Machine>>, machine: &Machine, rounds: usize) {
    for _ in 0..rounds {
        machine.set_other_gone(false);
        worker.create_slot(&other()).expect("there is room");
        worker.limit_slot(SlotId(0), Level::Size4K).expect("it is there");
        if thread_rng().gen_bool(0.5) {
            worker.delete_slot(SlotId(1)).expect("it is there");
        } else {
            let mut deletion = worker.begin_delete(SlotId(1)).expect("it is there");
            while worker.delete_some(&mut deletion, 1) == Progress::More {}
        }
        machine.set_other_gone(true);
        worker.limit_slot(SlotId(0), Level::Size2M).expect("it is there");
        saw("slots changed");
    }
}

/// Somebody zaps in steps, promising nothing.
fn zap(worker: &mut Worker<&'static Mmu<Machine>>, rounds: usize) {
    for _ in 0..rounds {
        let range = GfnRange::sized(Gfn(thread_rng().gen_range(0..6)), 6).expect("short");
        let mut zap = worker.begin_zap(AddressSpace::Normal, range);
        while worker.zap_some(&mut zap, 1) == Progress::More {}
        saw("zapped");
    }
}

/// Somebody drops every mapping, in steps.
fn drain(worker: &mut Worker<&'static Mmu<Machine>>, rounds: usize) {
    for _ in 0..rounds {
        let mut drain = worker.invalidate_roots();
        while worker.drain(&mut drain, 1) == Progress::More {}
        saw("drained");
    }
}

/// One thread for each vCPU and each kind of work.
fn play(cast: Cast) {
    let rig = Rig::new(cast.vcpus, 4);
    let machine = rig.vm.host();
    let mut threads: Vec<JoinHandle<()>> = (0..cast.vcpus)
        .map(|id| {
            let mut guest = rig.guest(id);
            spawn(move || guest.live(cast.guest, cast.choose))
        })
        .collect();
    let [mut host, mut slots, mut zapper, mut drainer] = std::array::from_fn(|_| rig.worker());
    threads.push(spawn(move || take_back(&mut host, machine, cast)));
    threads.push(spawn(move || change_slots(&mut slots, machine, cast.slots)));
    threads.push(spawn(move || zap(&mut zapper, cast.zaps)));
    threads.push(spawn(move || drain(&mut drainer, cast.drains)));
    for thread in threads {
        thread.join().expect("no panic");
    }
    rig.end();
}

const ALL: Cast =
    Cast { vcpus: 4, guest: 6, choose: nearby, take: any, host: 3, slots: 1, zaps: 2, drains: 1 };

/// Four vCPUs on few pages.
const FOUR: Model = Model { name: "four", schedules: 3000, run: || play(ALL) };

/// Eight vCPUs on all of them.
const EIGHT: Model = Model {
    name: "eight",
    schedules: 1500,
    run: || play(Cast { vcpus: 8, choose: anywhere, ..ALL }),
};

/// Four vCPUs, one that zaps and one that promises.
const DEBTS: Model = Model {
    name: "debts",
    schedules: 6000,
    run: || play(Cast { choose: close, take: one, slots: 0, zaps: 3, drains: 0, ..ALL }),
};

/// Four vCPUs on roots that come and go, and the host that takes their pages back.
const ROOTS: Model = Model {
    name: "roots",
    schedules: 4000,
    run: || play(Cast { choose: close, take: one, slots: 0, zaps: 0, drains: 2, ..ALL }),
};

/// Four vCPUs on a slot that comes and goes, and the host that takes its pages back.
const SLOTS: Model = Model {
    name: "slots",
    schedules: 4000,
    run: || {
        play(Cast {
            choose: in_other,
            take: one_of_other,
            host: 5,
            slots: 2,
            zaps: 0,
            drains: 0,
            ..ALL
        });
    },
};

#[test]
fn four_vcpus_reach_only_what_is_theirs() {
    FOUR.holds(&[
        "fixed",
        "spurious",
        "tried again",
        "busy",
        "emulate",
        "read",
        "kick",
        "taken back",
        "slots changed",
        "zapped",
        "drained",
    ]);
}

#[test]
fn eight_vcpus_reach_only_what_is_theirs() {
    EIGHT.holds(&["fixed", "spurious", "tried again", "emulate", "read", "kick"]);
}

#[test]
fn beside_zaps_nothing_is_reached_that_was_taken_back() {
    DEBTS.holds(&["fixed", "tried again", "read", "kick", "zapped"]);
}

#[test]
fn below_roots_that_come_and_go_nothing_is_reached_that_was_taken_back() {
    ROOTS.holds(&["fixed", "tried again", "read", "kick", "drained"]);
}

#[test]
fn in_slots_that_come_and_go_nothing_is_reached_that_was_taken_back() {
    SLOTS.holds(&["fixed", "tried again", "emulate", "read", "kick", "slots changed"]);
}

/// The same with a defect in the library: some schedule fails.
macro_rules! neighbours {
    ($($name:ident: $model:ident, $defect:ident;)+) => {
        $(
            #[test]
            fn $name() {
                $model.fails(Defect::$defect);
            }
        )+
    };
}

neighbours! {
    without_refusing_watches: ROOTS, AdmitsUnderInvalidation;
    with_blocks_believed_whole: DEBTS, BelievesWholeBlock;
    with_hits_before_the_publication: ROOTS, HitsBeforeAnnouncement;
    without_hits: DEBTS, HitsNoWatch;
    without_looking_at_ledgers: DEBTS, IgnoresForeignDebts;
    without_comparing_revisions: SLOTS, IgnoresRevision;
    without_flushes: DEBTS, FlushReachesNobody;
    without_flushes_at_pauses: DEBTS, DropsFlushAtPause;
    without_burying_tables: ROOTS, LosesDetachedTable;
    without_comparing_entries: EIGHT, OverwritesBlindly;
    with_leaves_replaced: FOUR, ReplacesPresentLeaf;
    with_waiting_inside_sections: ROOTS, SpinsInSection;
    with_huge_leaves_left: DEBTS, LeavesOverlappingHugeLeaf;
    with_walks_that_skip: EIGHT, SkipsAfterRestart;
    with_slots_gone_too_early: SLOTS, SlotGoneBeforeLeaves;
    with_ranges_in_guest_frames: SLOTS, AnnouncesInGuestFrames;
    with_invalid_roots_populated: ROOTS, PopulatesInvalidRoot;
    with_drains_of_new_roots: ROOTS, DrainsNewRoots;
    with_drains_that_do_not_wait: FOUR, DrainWithoutGracePeriod;
}
