//! Table entries: any word is read without a panic, what is no corruption is written back bit by
//! bit, and the law has an answer for any two words.

use vmmu::{
    addr::{Level, Pfn},
    entry::{
        Format, Leaf, MemoryType, Record, State, Tracked, Value, Writable,
        ept::{self, EptOptions},
        law,
        npt::{self, NptOptions},
    },
};

use super::Input;

const LEVELS: [Level; 5] = [Level::Size4K, Level::Size2M, Level::Size1G, Level::L4, Level::L5];

fn format(input: &mut Input<'_>) -> Option<Format> {
    let is_ept = input.flag();
    let top = input.pick(&[Level::L4, Level::L5]);
    let largest = input.pick(&[Level::Size4K, Level::Size2M, Level::Size1G]);
    let phys_bits = 32 + u32::from(input.byte()) % 21;
    let record = input.pick(&Record::ALL);
    let exec_only = input.flag();
    if is_ept {
        ept::format(EptOptions { top, largest, phys_bits, record, exec_only }).ok()
    } else {
        npt::format(NptOptions { top, largest, phys_bits, ..NptOptions::default() }).ok()
    }
}

fn state(input: &mut Input<'_>) -> State {
    match input.byte() % 8 {
        0 => State::Empty,
        // Of a generation only so many bits are kept.
        1 => State::Mmio { generation: input.word() & ((1 << Format::GENERATION_BITS) - 1) },
        2 => State::Hold { owner: input.word() },
        3 => State::Claim { owner: input.word() },
        4 => State::Dead { next: input.flag().then(|| Pfn(input.word())) },
        5 => State::Table(Pfn(input.word())),
        6 => State::Corrupt,
        _ => State::Leaf(Leaf {
            pfn: Pfn(input.word()),
            read: input.flag(),
            exec: input.flag(),
            writable: input.pick(&Writable::ALL),
            accessed: input.flag(),
            dirty: input.flag(),
            record: input.pick(&Record::ALL),
            tracked: input.pick(&[Tracked::No, Tracked::Yes]),
            memory: input.pick(&MemoryType::ALL),
        }),
    }
}

/// Layout: a format, a level, two words as they come, and two states.
pub fn entries(data: &[u8]) {
    let mut input = Input(data);
    let Some(format) = format(&mut input) else { return };
    let level = input.pick(&LEVELS);
    let mut values = vec![Value(input.word()), Value(input.word()), format.empty()];
    for value in values.clone() {
        let state = format.read(value, level);
        if state != State::Corrupt {
            assert_eq!(format.make(state, level), Some(value), "{state:?}");
        }
    }
    for _ in 0..2 {
        let state = state(&mut input);
        if let Some(value) = format.make(state, level) {
            assert_eq!(format.read(value, level), state, "{value:?}");
            values.push(value);
        }
    }
    for old in &values {
        for new in &values {
            let owed = law::consequences(&format, *old, *new, level);
            if old == new && format.read(*old, level) != State::Corrupt {
                assert!(owed.is_ok_and(|owed| owed.flush == law::FlushDue::Never), "{old:?}");
            }
        }
    }
}
