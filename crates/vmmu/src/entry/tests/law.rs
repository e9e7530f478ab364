//! The law over every pair of states, against the rules as the behaviour description words them
//! (1.0.2, 1.1.4 to 1.1.8, 1.11; invariants 14, 25 to 27, 38, 39, 42).

use super::super::law::{Consequences, Count, FlushDue, Illegal, consequences};
use super::super::{Leaf, Record, State, Tracked, Value, Writable};
use super::product::Setup;
use crate::addr::Level;

/// What the rules say about one change: the duties, or every rule that it breaks.
#[derive(Debug)]
enum Verdict {
    Legal(Consequences),
    Illegal(Vec<Illegal>),
}

fn is_frozen(state: &State) -> bool {
    matches!(state, State::Hold { .. } | State::Claim { .. })
}

/// D, or what stands in for it where hardware has none: W, for as long as it is set.
fn counts_as_dirty(leaf: &Leaf) -> bool {
    match leaf.record {
        Record::Software => leaf.writable == Writable::Yes,
        Record::Hardware | Record::WriteProtect => leaf.dirty,
    }
}

fn counts_as_accessed(leaf: &Leaf) -> bool {
    match leaf.record {
        Record::Software => leaf.tracked == Tracked::No,
        Record::Hardware | Record::WriteProtect => leaf.accessed,
    }
}

fn judge(old: &State, new: &State) -> Verdict {
    if old == new {
        return Verdict::Legal(Consequences::NOTHING);
    }
    let mut crimes = Vec::new();
    let mut accuse = |guilty: bool, illegal| {
        if guilty {
            crimes.push(illegal);
        }
    };
    let dead = matches!(old, State::Dead { .. });
    accuse(dead && !matches!(new, State::Dead { .. }), Illegal::Dead);
    accuse(is_frozen(old) && is_frozen(new), Illegal::Frozen);
    accuse(old.is_present() && matches!(new, State::Mmio { .. }), Illegal::Mmio);
    match (old, new) {
        (State::Table(_), State::Table(_)) => accuse(true, Illegal::Relink),
        (State::Table(_), State::Leaf(leaf)) => {
            let unborn = leaf.record != Record::Software && !leaf.dirty;
            accuse(leaf.writable == Writable::Yes && unborn, Illegal::Clean);
        }
        (State::Leaf(a), State::Leaf(b)) => {
            accuse(a.pfn != b.pfn, Illegal::Frame);
            accuse(a.writable.by_host() != b.writable.by_host(), Illegal::HostWritable);
            accuse(a.record != b.record, Illegal::Record);
            accuse(a.memory != b.memory, Illegal::Memory);
        }
        _ => {}
    }
    if !crimes.is_empty() {
        return Verdict::Illegal(crimes);
    }
    Verdict::Legal(match (old, new) {
        (State::Leaf(a), State::Leaf(b)) => stays(a, b),
        _ => comes_or_goes(old, new),
    })
}

/// A leaf stays and its bits change.
fn stays(a: &Leaf, b: &Leaf) -> Consequences {
    let hard = a.writable.by_library() && !b.writable.by_library();
    let permission = (a.read && !b.read) || (a.exec && !b.exec);
    let write_lost = a.writable == Writable::Yes && b.writable != Writable::Yes;
    let dirty_lost = a.dirty && !b.dirty;
    let allowed = |leaf: &Leaf| (leaf.read, leaf.exec, leaf.writable.by_library());
    Consequences {
        flush: if hard || permission {
            FlushDue::BeforeReliance
        } else if write_lost || dirty_lost {
            FlushDue::BeforeLog
        } else {
            FlushDue::Never
        },
        dirty: counts_as_dirty(a) && !counts_as_dirty(b),
        log: a.writable != Writable::Yes && b.writable == Writable::Yes,
        external: allowed(a) != allowed(b),
        ..Consequences::NOTHING
    }
}

/// At most one of the two is a leaf.
fn comes_or_goes(old: &State, new: &State) -> Consequences {
    let mut owed =
        Consequences { external: old.is_present() || new.is_present(), ..Consequences::NOTHING };
    let split = matches!((old, new), (State::Leaf(_), State::Table(_)));
    if old.is_present() && !split {
        owed.flush = FlushDue::BeforeReliance;
    }
    if let State::Leaf(leaf) = old {
        owed.leaves = Count::Unmapped;
        owed.dirty = !split && counts_as_dirty(leaf);
        owed.accessed = !split && counts_as_accessed(leaf);
    }
    if let State::Table(pfn) = old {
        owed.detached = Some(*pfn);
    }
    if let State::Leaf(leaf) = new {
        owed.leaves = Count::Mapped;
        owed.log = leaf.writable == Writable::Yes;
    }
    owed
}

/// Checks every pair of states of one configuration and answers how many there were.
fn every_pair(setup: &Setup) -> u64 {
    let mut pairs = 0;
    for level in setup.levels() {
        let states = setup.states(level);
        assert_eq!(states.len() as u64, setup.count(level), "{setup:?} {level}");
        for (old, from) in &states {
            for (new, to) in &states {
                let found = consequences(&setup.format, *from, *to, level);
                let right = match (&found, &judge(old, new)) {
                    (Ok(found), Verdict::Legal(owed)) => found == owed,
                    (Err(illegal), Verdict::Illegal(crimes)) => crimes.contains(illegal),
                    _ => false,
                };
                assert!(
                    right,
                    "{setup:?} {level}\n{old:?} {from:?}\n{new:?} {to:?}\nthe law says {found:?}, \
                     the rules say {:?}",
                    judge(old, new)
                );
                pairs += 1;
            }
        }
    }
    pairs
}

/// Pairs of `Setup::ALL[range]`, all of them checked and counted against arithmetic.
fn check(range: core::ops::Range<usize>) {
    for setup in &Setup::ALL[range] {
        let expected: u64 = setup.levels().map(|level| setup.count(level).pow(2)).sum();
        let pairs = every_pair(setup);
        assert_eq!(pairs, expected);
        println!("{pairs} pairs: {setup:?}");
    }
}

// Several tests, so that they share the processors.

#[test]
fn every_pair_of_ept_with_execute_only_and_4_levels() {
    check(0..1);
}

#[test]
fn every_pair_of_ept_with_execute_only_and_5_levels() {
    check(1..2);
}

#[test]
fn every_pair_of_ept_without_execute_only() {
    check(2..4);
}

#[test]
fn every_pair_of_ept_without_a_and_d_or_with_write_protection() {
    check(4..9);
}

#[test]
fn every_pair_of_npt() {
    check(9..Setup::ALL.len());
}

#[test]
fn the_product_has_as_many_pairs_as_arithmetic_says() {
    let pairs = |setup: &Setup| setup.levels().map(|level| setup.count(level).pow(2)).sum::<u64>();
    let total: u64 = Setup::ALL.iter().map(pairs).sum();
    println!("{total} pairs in all");
    // The first by hand: 10 absent states, 1080 leaves, 2 tables above the last level.
    assert_eq!(pairs(&Setup::ALL[0]), 1090 * 1090 + 2 * 1092 * 1092 + 12 * 12);
    assert_eq!(total, 14_091_084);
}

/// The configurations that differ in what the law reads; width and levels do not.
fn kinds() -> [&'static Setup; 4] {
    [0, 2, 4, 9].map(|n| &Setup::ALL[n])
}

/// One frame, one memory type: nothing but use and permission moves.
fn one_page(setup: &Setup) -> Vec<(Leaf, Value)> {
    let mut first = None;
    let states = setup.states(Level::Size4K).into_iter();
    let leaves = states.filter_map(|(state, value)| match state {
        State::Leaf(leaf) => Some((leaf, value)),
        _ => None,
    });
    leaves
        .filter(|(leaf, _)| {
            *first.get_or_insert((leaf.pfn, leaf.memory)) == (leaf.pfn, leaf.memory)
        })
        .collect()
}

#[test]
fn library_writable_is_never_taken_without_a_flush_even_if_w_was_clear() {
    let mut soft = 0;
    for setup in kinds() {
        for (a, old) in one_page(setup) {
            for (b, new) in one_page(setup) {
                let Ok(owed) = consequences(&setup.format, old, new, Level::Size4K) else {
                    continue;
                };
                if a.writable.by_library() && !b.writable.by_library() {
                    assert_eq!(owed.flush, FlushDue::BeforeReliance);
                    soft += u64::from(a.writable == Writable::Soft);
                }
            }
        }
    }
    assert!(soft > 0);
}

#[test]
fn a_dirty_bit_is_never_lost_unreported() {
    let mut drops = 0;
    for setup in kinds() {
        for level in setup.levels() {
            let states = setup.states(level);
            for (old, from) in &states {
                let State::Leaf(Leaf { dirty: true, .. }) = old else { continue };
                for (new, to) in &states {
                    // The children of a split carry it on.
                    if matches!(new, State::Leaf(Leaf { dirty: true, .. }) | State::Table(_)) {
                        continue;
                    }
                    if let Ok(owed) = consequences(&setup.format, *from, *to, level) {
                        assert!(owed.dirty && owed.flush != FlushDue::Never, "{old:?} {new:?}");
                        drops += 1;
                    }
                }
            }
        }
    }
    assert!(drops > 0);
}

#[test]
fn what_hardware_does_by_itself_is_legal_and_owes_nothing() {
    let mut steps = 0;
    for setup in kinds() {
        for (leaf, old) in one_page(setup) {
            if leaf.record == Record::Software {
                continue;
            }
            let dirty = leaf.writable == Writable::Yes;
            for after in [Leaf { accessed: true, ..leaf }, Leaf { accessed: true, dirty, ..leaf }] {
                // D that was set stays set.
                let after = Leaf { dirty: after.dirty || leaf.dirty, ..after };
                let new = setup.format.make(State::Leaf(after), Level::Size4K).unwrap();
                assert_eq!(
                    consequences(&setup.format, old, new, Level::Size4K),
                    Ok(Consequences::NOTHING)
                );
                steps += 1;
            }
        }
    }
    assert!(steps > 0);
}

#[test]
fn small_steps_never_owe_less_than_the_large_one() {
    let mut triples = 0;
    for setup in kinds() {
        let leaves = one_page(setup);
        let law = |old, new| consequences(&setup.format, old, new, Level::Size4K);
        for (_, a) in &leaves {
            for (_, c) in &leaves {
                let Ok(large) = law(*a, *c) else { continue };
                for (_, b) in &leaves {
                    let (Ok(first), Ok(second)) = (law(*a, *b), law(*b, *c)) else { continue };
                    assert!(first.flush.max(second.flush) >= large.flush);
                    assert!(first.dirty || second.dirty || !large.dirty);
                    assert!(first.log || second.log || !large.log);
                    assert!(first.external || second.external || !large.external);
                    triples += 1;
                }
            }
        }
    }
    println!("{triples} triples");
    assert!(triples > 0);
}

#[test]
fn values_that_no_state_has_are_corrupt_at_a_glance() {
    for setup in &Setup::ALL {
        let format = &setup.format;
        let corrupt = |value, level| {
            assert_eq!(consequences(format, format.empty(), value, level), Err(Illegal::Corrupt));
            assert_eq!(consequences(format, value, format.empty(), level), Err(Illegal::Corrupt));
        };
        for (_, value) in setup.states(Level::Size4K) {
            if !format.is_present(value) {
                continue;
            }
            // The four combinations of host, library and W that no leaf may have: bits 56, 57, 1.
            let bare = value.0 & !(1 << 56 | 1 << 57 | 1 << 1);
            for bits in [1 << 1, 1 << 57, 1 << 57 | 1 << 1, 1 << 56 | 1 << 1] {
                corrupt(Value(bare | bits), Level::Size4K);
            }
        }
        // Absent, but neither empty, nor MMIO, nor frozen.
        corrupt(Value(format.empty().0 ^ 1 << 63), Level::Size4K);
        corrupt(Value(format.empty().0 | 1 << 20), Level::Size4K);
        // A leaf above what hardware can map.
        let record = setup.record;
        let states = setup.states(setup.largest);
        let huge = states.iter().find(|(state, _)| match state {
            State::Leaf(leaf) => leaf.pfn.0 == 0 && leaf.record == record,
            _ => false,
        });
        let above = setup.largest.above().unwrap();
        let value = Value(huge.unwrap().1.0 | 1 << 7);
        corrupt(value, above);
    }
}
