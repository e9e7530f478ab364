//! Writing and reading entries, against the manuals.

use super::super::format::soft;
use super::super::{
    Access, Format, FormatError, Leaf, MemoryType, Record, State, Tracked, Value, Writable, ept,
    npt, split_child,
};
use super::hardware::Seen;
use super::product::{Manual, Setup};
use crate::addr::{Level, Pfn};

/// Calls `check` with every state of every level of every configuration.
fn everything(mut check: impl FnMut(&Setup, Level, State, Value)) -> u64 {
    let mut seen = 0;
    for setup in &Setup::ALL {
        for level in setup.levels() {
            for (state, value) in setup.states(level) {
                check(setup, level, state, value);
                seen += 1;
            }
        }
    }
    seen
}

#[test]
fn what_is_written_reads_back_and_no_two_states_share_a_value() {
    let seen = everything(|setup, level, state, value| {
        assert_eq!(setup.format.read(value, level), state, "{setup:?} {level} {value:?}");
    });
    let mut expected = 0;
    for setup in &Setup::ALL {
        expected += setup.levels().map(|level| setup.count(level)).sum::<u64>();
    }
    assert_eq!(seen, expected);
    println!("{seen} states of {} configurations read back", Setup::ALL.len());
}

#[test]
fn every_combination_of_leaf_fields_has_a_value_exactly_if_the_rules_allow_it() {
    let (mut yes, mut no) = (0, 0);
    for setup in &Setup::ALL {
        for level in setup.levels() {
            for leaf in setup.every_leaf(level) {
                let made = setup.format.make(State::Leaf(leaf), level).is_some();
                assert_eq!(made, setup.expresses(&leaf, level), "{setup:?} {level} {leaf:?}");
                *if made { &mut yes } else { &mut no } += 1;
            }
        }
    }
    println!("{yes} leaves expressed, {no} refused");
    assert!(yes > 0 && no > yes);
}

#[test]
fn frames_that_do_not_fit_and_numbers_that_do_not_fit_have_no_value() {
    for setup in &Setup::ALL {
        let format = &setup.format;
        let beyond = Pfn(1 << (setup.phys_bits - 12));
        let leaf = Leaf { pfn: beyond, ..plain(Writable::Never) };
        for level in setup.levels() {
            assert_eq!(format.make(State::Leaf(leaf), level), None);
            assert_eq!(format.make(State::Table(beyond), level), None);
            assert_eq!(format.make(State::Dead { next: Some(beyond) }, level), None);
            assert_eq!(format.make(State::Dead { next: Some(Pfn(0)) }, level), None);
            let owner = 1 << Format::OWNER_BITS;
            assert_eq!(format.make(State::Hold { owner }, level), None);
            assert_eq!(format.make(State::Claim { owner }, level), None);
            assert_eq!(format.make(State::Corrupt, level), None);
            if level > Level::Size4K {
                let shifted = Leaf { pfn: Pfn(1), ..leaf };
                assert_eq!(format.make(State::Leaf(shifted), level), None);
            }
        }
        assert_eq!(format.make(State::Table(Pfn(1)), Level::Size4K), None);
        if let Some(level) = setup.top.above() {
            assert_eq!(format.make(State::Table(Pfn(1)), level), None);
        }
        // The generation wraps: that is what its invalidation is for.
        let wrapped = State::Mmio { generation: 1 << Format::GENERATION_BITS };
        assert_eq!(
            format.make(wrapped, Level::Size4K),
            format.make(State::Mmio { generation: 0 }, Level::Size4K)
        );
    }
}

fn plain(writable: Writable) -> Leaf {
    Leaf {
        pfn: Pfn(0),
        read: true,
        exec: true,
        writable,
        accessed: false,
        dirty: false,
        record: Record::Hardware,
        tracked: Tracked::No,
        memory: MemoryType::WriteBack,
    }
}

/// What a processor must see of a state.
fn seen_of(setup: &Setup, state: &State) -> Seen {
    match state {
        State::Empty | State::Hold { .. } | State::Claim { .. } | State::Dead { .. } => {
            Seen::NotPresent
        }
        State::Mmio { .. } => Seen::Refused,
        // Set before hardware would, so that hardware never writes a table's entry.
        State::Table(pfn) => {
            Seen::Table { address: pfn.0 << 12, accessed: setup.record != Record::Software }
        }
        State::Leaf(Leaf { tracked: Tracked::Yes, .. }) => Seen::NotPresent,
        State::Leaf(leaf) => Seen::Leaf {
            address: leaf.pfn.0 << 12,
            read: leaf.read,
            write: leaf.writable == Writable::Yes,
            exec: leaf.exec,
            accessed: leaf.accessed,
            dirty: leaf.dirty,
            memory: leaf.memory,
        },
        State::Corrupt => unreachable!("no value is written for it"),
    }
}

#[test]
fn a_processor_sees_what_the_state_says() {
    everything(|setup, level, state, value| {
        let seen = setup.hardware(value, level);
        assert_eq!(seen, seen_of(setup, &state), "{setup:?} {level} {state:?} {value:?}");
    });
}

#[test]
fn quick_questions_agree_with_the_decoded_state() {
    everything(|setup, level, state, value| {
        let format = &setup.format;
        let table = matches!(state, State::Table(_));
        let leaf = matches!(state, State::Leaf(_));
        let frozen = matches!(state, State::Hold { .. } | State::Claim { .. } | State::Dead { .. });
        assert_eq!(format.is_present(value), state.is_present());
        assert_eq!(format.is_table(value, level), table);
        assert_eq!(format.is_leaf(value, level), leaf, "{setup:?} {level} {value:?}");
        assert_eq!(format.is_frozen(value), frozen, "{setup:?} {level} {value:?}");
        assert_eq!(value == format.empty(), state == State::Empty);
        match state {
            State::Table(pfn) => {
                assert_eq!(format.pfn(value), pfn);
                assert_eq!(format.table(pfn), value);
            }
            State::Dead { next } => assert_eq!(format.dead(next), value),
            State::Leaf(leaf) => {
                assert_eq!(format.pfn(value), leaf.pfn);
                assert_eq!(format.leaf(&leaf, level), Some(value));
                let hidden = leaf.tracked == Tracked::Yes;
                assert_eq!(format.is_hidden(value), hidden);
                for access in (0..8).map(Access::from_bits_truncate) {
                    let allowed = access.is_empty()
                        || (!hidden
                            && (leaf.read || !access.contains(Access::READ))
                            && (leaf.exec || !access.contains(Access::EXEC))
                            && (leaf.writable == Writable::Yes || !access.contains(Access::WRITE)));
                    assert_eq!(format.allows(value, access), allowed, "{value:?} {access:?}");
                }
            }
            _ => {}
        }
    });
}

#[test]
fn absent_values_have_no_bit_that_could_be_taken_for_w_d_or_a() {
    everything(|setup, _, state, value| {
        let v = value.0;
        if state.is_present() {
            return;
        }
        assert_eq!(v >> 11 & 1, 0, "the software's present bit");
        let (write, accessed, dirty) = match setup.manual {
            Manual::Intel => (1, 8, 9),
            Manual::Amd => (1, 5, 6),
        };
        // MMIO on Intel is W without R: the one absent value that has a permission bit, and no
        // processor writes through it.
        let mmio = matches!(state, State::Mmio { .. });
        assert!(mmio || v >> write & 1 == 0, "{state:?} {value:?}");
        assert_eq!((v >> accessed & 1, v >> dirty & 1), (0, 0), "{state:?} {value:?}");
    });
}

#[test]
fn no_intel_value_but_a_table_can_cause_a_virtualization_exception() {
    everything(|setup, _, state, value| {
        if setup.manual == Manual::Intel {
            assert_eq!(value.0 >> 63 == 1, !matches!(state, State::Table(_)), "{state:?}");
        }
    });
}

#[test]
fn mmio_entries_are_misconfigured_or_reserved_by_the_letter_of_the_manual() {
    let mut widths = Vec::new();
    everything(|setup, _, state, value| {
        if !matches!(state, State::Mmio { .. }) {
            return;
        }
        match setup.manual {
            // W and X without R (Intel SDM volume 3, 30.3.3.1), whatever the width.
            Manual::Intel => assert_eq!(value.0 & 0b111, 0b110),
            // P, and an address bit from the width upwards (AMD APM volume 2, 5.4).
            Manual::Amd => {
                assert_eq!(value.0 & 1, 1);
                let above = value.0 & ((1 << 52) - 1);
                assert!(above >> setup.phys_bits != 0);
                widths.push(setup.phys_bits);
            }
        }
    });
    assert!(widths.contains(&40) && !widths.contains(&52));
}

#[test]
fn speculation_finds_no_memory_behind_an_absent_value() {
    // L1TF: a processor of 46 bits drops the upper ones, and software keeps its memory below half
    // of what is left. An empty entry names frame 0, as on any machine. A hidden leaf names the
    // guest's own memory.
    const WIDTH: u32 = 46;
    let points_above = |value: Value| {
        let address = value.0 & ((1 << 52) - 1) & !0xfff;
        address >= 1 << WIDTH && address & ((1 << WIDTH) - 1) >= 1 << (WIDTH - 1)
    };
    let mut seen = 0;
    everything(|setup, _, state, value| match state {
        State::Empty => assert_eq!(value.0 & ((1 << 52) - 1), 0),
        State::Mmio { .. } | State::Hold { .. } | State::Claim { .. } => {
            assert!(points_above(value), "{setup:?} {state:?} {value:?}");
            seen += 1;
        }
        State::Dead { next } if next.is_none_or(|pfn| pfn.0 < 1 << (WIDTH - 13)) => {
            assert!(points_above(value), "{setup:?} {state:?} {value:?}");
            seen += 1;
        }
        _ => {}
    });
    assert!(seen > 0);
}

#[test]
fn one_flipped_bit_is_another_state_or_corruption() {
    let (mut other, mut corrupt) = (0u64, 0u64);
    let states = everything(|setup, level, state, value| {
        let table = matches!(state, State::Table(_));
        let mut unused = setup.unused(state.is_present(), table, level);
        if matches!(state, State::Leaf(Leaf { record: Record::Software, .. })) {
            // A and D.
            unused |= if setup.manual == Manual::Intel { 3 << 8 } else { 3 << 5 };
        }
        for n in 0..64 {
            let flipped = Value(value.0 ^ 1 << n);
            match setup.format.read(flipped, level) {
                State::Corrupt => corrupt += 1,
                now => {
                    assert_ne!(now, state, "{setup:?} {level}: bit {n} says nothing");
                    assert_eq!(setup.format.make(now, level), Some(flipped));
                    assert_eq!(setup.hardware(flipped, level), seen_of(setup, &now), "{now:?}");
                    assert_eq!(unused >> n & 1, 0, "{setup:?} {level} {state:?}: bit {n}");
                    other += 1;
                }
            }
        }
    });
    println!("{other} flips make another state, {corrupt} are corruption");
    assert_eq!((other + corrupt, states), (64 * 19_914, 19_914));
    assert_eq!(other, 646_892);
}

#[test]
fn the_software_bits_are_ignored_by_both_processors() {
    let leaf = soft::PRESENT
        | soft::RECORD
        | soft::SAVED_READ
        | soft::SAVED_EXEC
        | soft::HOST_WRITABLE
        | soft::MMU_WRITABLE;
    // Intel SDM volume 3, tables 30-2, 30-4 and 30-6: 11 and 52 to 57 (57 while guest-paging
    // verification is off). AMD APM volume 2, 5.4: 9 to 11 and 52 to 58.
    let ignored = 1 << 11 | 0x3f << 52;
    assert_eq!(leaf & !ignored, 0);
    // None twice.
    assert_eq!(leaf.count_ones(), 7);
    assert_eq!(soft::HOLD & soft::CLAIM, 0);
}

#[test]
fn a_split_inherits_everything_but_the_frame() {
    let mut children = 0;
    everything(|setup, level, state, _| {
        let State::Leaf(parent) = state else { return };
        let Some(below) = level.below() else {
            assert_eq!(split_child(&parent, level, 0), None);
            return;
        };
        for index in [0, 1, 511] {
            let child = split_child(&parent, level, index).expect("a huge leaf has children");
            assert_eq!(child.pfn.0, parent.pfn.0 + index * below.pages());
            assert_eq!(Leaf { pfn: parent.pfn, ..child }, parent);
            assert!(setup.format.make(State::Leaf(child), below).is_some());
            children += 1;
        }
    });
    assert!(children > 0);
}

#[test]
fn configurations_that_no_processor_has_are_refused() {
    for phys_bits in [0, 31, 53, 64] {
        let npt = npt::NptOptions { phys_bits, ..Default::default() };
        assert_eq!(npt::format(npt).err(), Some(FormatError::PhysBits(phys_bits)));
        let ept = ept::EptOptions { phys_bits, ..Default::default() };
        assert_eq!(ept::format(ept).err(), Some(FormatError::PhysBits(phys_bits)));
    }
    let top = Level::Size1G;
    let npt = npt::NptOptions { top, ..Default::default() };
    assert_eq!(npt::format(npt).err(), Some(FormatError::Levels(top)));
    let largest = Level::L4;
    let ept = ept::EptOptions { largest, ..Default::default() };
    assert_eq!(ept::format(ept).err(), Some(FormatError::Largest(largest)));
}

#[test]
fn a_format_says_what_it_was_made_from() {
    for setup in &Setup::ALL {
        let format = &setup.format;
        assert_eq!(format.top(), setup.top);
        assert_eq!(format.largest(), setup.largest);
        assert_eq!(format.phys_bits(), setup.phys_bits);
        assert_eq!(format.record(), setup.record);
        assert_eq!(format.frames(), 1 << if setup.top == Level::L5 { 45 } else { 36 });
        for memory in MemoryType::ALL {
            let leaf = Leaf { memory, record: setup.record, ..plain(Writable::Never) };
            let made = format.make(State::Leaf(leaf), Level::Size4K).is_some();
            assert_eq!(format.has_memory(memory), made);
        }
    }
}
