//! Every value that the library's formats make, met by the software processor: it sees what the
//! library meant, and the library can read what the processor leaves behind.

use std::sync::atomic::{AtomicU64, Ordering};

use machine::npt::Fault;
use machine::{Access, Context, Ept, Exit, Habits, Nested, Npt, Paging, Processor, qualification};
use vmmu::addr::{Level, Pfn};
use vmmu::entry::{Format, Leaf, MemoryType, Record, State, Tracked, Value, Writable, ept, npt};

const LEVELS: [Level; 5] = [Level::Size4K, Level::Size2M, Level::Size1G, Level::L4, Level::L5];
const ACCESSES: [Access; 3] = [Access::Read, Access::Write, Access::Fetch];
/// The address walked for: index 1 on every level, and an offset.
const GPA: u64 = 1 << 48 | 1 << 39 | 1 << 30 | 1 << 21 | 1 << 12 | 0x128;

/// A format, and the processor that it is for.
struct Setup {
    format: Format,
    nested: Nested,
    records: Vec<Record>,
    memory: Vec<AtomicU64>,
}

/// Frames 0 to 5.
fn memory() -> Vec<AtomicU64> {
    (0..6 * 512).map(|_| AtomicU64::new(0)).collect()
}

fn levels(top: Level) -> u8 {
    if top == Level::L5 { 5 } else { 4 }
}

fn setups() -> Vec<Setup> {
    let mut setups = vec![];
    for top in [Level::L4, Level::L5] {
        for largest in [Level::Size4K, Level::Size2M, Level::Size1G] {
            for phys_bits in [36, 46, 52] {
                for record in Record::ALL {
                    for exec_only in [false, true] {
                        let options =
                            ept::EptOptions { top, largest, phys_bits, record, exec_only };
                        let nested = Nested::Ept(Ept {
                            levels: levels(top),
                            phys_bits: phys_bits as u8,
                            ad: record != Record::Software,
                            exec_only,
                            mib_pages: largest >= Level::Size2M,
                            gib_pages: largest >= Level::Size1G,
                        });
                        let format = ept::format(options).unwrap();
                        // Under a pointer that has A and D off, only what records by software.
                        let records = if record == Record::Software {
                            vec![Record::Software]
                        } else {
                            vec![Record::Hardware, Record::WriteProtect]
                        };
                        setups.push(Setup { format, nested, records, memory: memory() });
                    }
                }
                let nested = Nested::Npt(Npt {
                    levels: levels(top),
                    phys_bits: phys_bits as u8,
                    nx: true,
                    gib_pages: largest == Level::Size1G,
                });
                let format = npt::format(npt::NptOptions { top, largest, phys_bits }).unwrap();
                setups.push(Setup {
                    format,
                    nested,
                    records: Record::ALL.to_vec(),
                    memory: memory(),
                });
            }
        }
    }
    setups
}

/// What the processor made of an access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Seen {
    Reached(u64),
    Absent,
    Forbidden,
    Refused,
    /// It went on to a table at this address.
    Beyond(u64),
}

impl Setup {
    fn top(&self) -> usize {
        LEVELS.iter().position(|level| *level == self.format.top()).unwrap()
    }

    /// Walks through tables that the format points at each other, down to `value` in an entry of
    /// `level`. Also what the entry is afterwards.
    fn walk(&self, value: Value, level: Level, access: Access) -> (Seen, Value) {
        let memory = &self.memory;
        let at = LEVELS.iter().position(|other| *other == level).unwrap();
        // The table of level n is at frame n + 1.
        let place = |n: usize| (n + 1) * 512 + (GPA >> (12 + 9 * n) & 511) as usize;
        (0..LEVELS.len()).for_each(|n| memory[place(n)].store(0, Ordering::Relaxed));
        for n in at + 1..=self.top() {
            let table = State::Table(Pfn(n as u64));
            let word = self.format.make(table, LEVELS[n]).unwrap();
            memory[place(n)].store(word.0, Ordering::Relaxed);
        }
        memory[place(at)].store(value.0, Ordering::Relaxed);
        let context = Context {
            tag: 1,
            nested: self.nested,
            root: (self.top() as u64 + 1) << 12,
            paging: Paging::Off,
        };
        let gpa = if self.format.top() == Level::L5 { GPA } else { GPA & !(1 << 48) };
        let mut processor = Processor::with_habits(0, Habits::nothing());
        let seen = match processor.translate(memory, &context, gpa, access) {
            Ok(reached) => {
                assert_eq!(reached.page, level.pages() << 12);
                Seen::Reached(reached.hpa)
            }
            Err(Exit::NestedFault(Fault { code, .. })) => {
                match (code & Fault::PRESENT, code & Fault::RESERVED) {
                    (0, 0) => Seen::Absent,
                    (_, 0) => Seen::Forbidden,
                    _ => Seen::Refused,
                }
            }
            Err(Exit::EptViolation { qualification: told, .. }) => {
                use qualification::{EXECUTABLE, READABLE, WRITABLE};
                match told & (READABLE | WRITABLE | EXECUTABLE) {
                    0 => Seen::Absent,
                    _ => Seen::Forbidden,
                }
            }
            Err(Exit::EptMisconfiguration { .. }) => Seen::Refused,
            Err(Exit::Bus { address }) => Seen::Beyond(address & !0xfff),
            Err(other) => panic!("{other:?}"),
        };
        (seen, Value(memory[place(at)].load(Ordering::Relaxed)))
    }

    fn levels(&self) -> impl Iterator<Item = Level> {
        let top = self.format.top();
        LEVELS.into_iter().filter(move |level| *level <= top)
    }

    fn leaves(&self, level: Level) -> Vec<Leaf> {
        let highest = Pfn(((1 << (self.format.phys_bits() - 12)) - 1) & !(level.pages() - 1));
        let mut leaves = vec![];
        for bits in 0..32 {
            let bit = |n: u32| bits >> n & 1 == 1;
            for writable in Writable::ALL {
                for &record in &self.records {
                    for memory in MemoryType::ALL {
                        leaves.push(Leaf {
                            pfn: highest,
                            read: bit(0),
                            exec: bit(1),
                            writable,
                            accessed: bit(2),
                            dirty: bit(3),
                            record,
                            tracked: if bit(4) { Tracked::Yes } else { Tracked::No },
                            memory,
                        });
                    }
                }
            }
        }
        leaves
    }
}

#[test]
fn a_processor_sees_in_a_leaf_what_the_library_meant() {
    let mut leaves = 0;
    for setup in setups() {
        for level in [Level::Size4K, Level::Size2M, Level::Size1G] {
            for leaf in setup.leaves(level) {
                let Some(value) = setup.format.make(State::Leaf(leaf), level) else { continue };
                leaves += 1;
                for access in ACCESSES {
                    let (seen, after) = setup.walk(value, level, access);
                    let visible = leaf.tracked == Tracked::No;
                    let allowed = match access {
                        Access::Read => leaf.read,
                        Access::Write => leaf.writable == Writable::Yes,
                        Access::Fetch => leaf.exec,
                    };
                    let inside = GPA & ((level.pages() << 12) - 1);
                    let expected = match (visible, allowed) {
                        (false, _) => Seen::Absent,
                        (true, false) => Seen::Forbidden,
                        (true, true) => Seen::Reached((leaf.pfn.0 << 12) + inside),
                    };
                    assert_eq!(seen, expected, "{access:?} {leaf:?} {level} {:?}", setup.nested);
                    // What the processor has set, the library reads as that and nothing else.
                    let hardware = leaf.record != Record::Software && visible && allowed;
                    let then = Leaf {
                        accessed: leaf.accessed || hardware,
                        dirty: leaf.dirty || (hardware && access == Access::Write),
                        ..leaf
                    };
                    assert_eq!(setup.format.read(after, level), State::Leaf(then));
                }
            }
        }
    }
    assert!(leaves > 10_000, "{leaves}");
}

#[test]
fn a_processor_goes_through_a_table_and_leaves_it_as_it_is() {
    for setup in setups() {
        for level in setup.levels().filter(|level| *level > Level::Size4K) {
            let pfn = Pfn((1 << (setup.format.phys_bits() - 12)) - 1);
            let value = setup.format.make(State::Table(pfn), level).unwrap();
            for access in ACCESSES {
                let (seen, after) = setup.walk(value, level, access);
                assert_eq!(seen, Seen::Beyond(pfn.0 << 12), "{level} {:?}", setup.nested);
                assert_eq!(after, value);
            }
        }
    }
}

#[test]
fn a_processor_finds_nothing_in_what_is_empty_frozen_or_dead() {
    for setup in setups() {
        for level in setup.levels() {
            for state in [
                State::Empty,
                State::Hold { owner: 0 },
                State::Hold { owner: 77 },
                State::Claim { owner: 0 },
                State::Claim { owner: 77 },
                State::Dead { next: None },
                State::Dead { next: Some(Pfn(0xabcd)) },
            ] {
                let value = setup.format.make(state, level).unwrap();
                for access in ACCESSES {
                    let (seen, after) = setup.walk(value, level, access);
                    assert_eq!(seen, Seen::Absent, "{state:?} {level} {:?}", setup.nested);
                    assert_eq!(after, value);
                }
            }
        }
    }
}

#[test]
fn a_processor_refuses_what_says_that_there_is_no_memory() {
    let mut refused = 0;
    for setup in setups() {
        for level in [Level::Size4K, Level::Size2M, Level::Size1G] {
            for generation in [0, 1, (1 << Format::GENERATION_BITS) - 1] {
                let state = State::Mmio { generation };
                let Some(value) = setup.format.make(state, level) else { continue };
                refused += 1;
                for access in ACCESSES {
                    let (seen, after) = setup.walk(value, level, access);
                    assert_eq!(seen, Seen::Refused, "{level} {:?}", setup.nested);
                    assert_eq!(after, value);
                }
            }
        }
    }
    assert!(refused > 1000, "{refused}");
}
