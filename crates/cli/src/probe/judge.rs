//! What the software walker says to a case, and how that compares with what the processor did.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use ::machine::{Context, Exit, Habits, Long, Memory, Nested, Npt, Paging, Processor};
use hypervisor::probe::{self, Outcome, PER_FRAME, WORDS, Word};

use super::{
    bend::Bend,
    draw::{self, Access, Drawn, STORED},
    faults::{FAULTS, Fault, Makes},
    quirks::{self, Quirks, Rules},
    stage::{self, ARENA, bit},
};

/// Exit codes (AMD64 APM vol. 2, appendix C).
pub mod exit {
    /// Exception with vector 0; the others follow.
    pub const EXCEPTION: u64 = 0x40;
    /// Page fault.
    pub const PAGE_FAULT: u64 = EXCEPTION + 14;
    /// VMMCALL: the access was done.
    pub const VMMCALL: u64 = 0x81;
    /// Nested page fault.
    pub const NESTED_FAULT: u64 = 0x400;
}

/// What the walker is told about the processor.
#[derive(Debug, Clone, Copy)]
pub struct Model {
    /// Physical address width.
    pub phys_bits: u8,
    /// A rule left out.
    pub bend: Option<Bend>,
}

/// How a case compares.
#[derive(Debug)]
pub enum Verdict {
    /// The same.
    Agreed,
    /// Different exactly as known faults of the emulator say.
    Known(Vec<&'static Fault>),
    /// Different, with what the walker says.
    Differs(Outcome),
}

/// The arena on this side.
struct Stage<'j> {
    words: &'j [AtomicU64],
    /// Words somebody asked for: no others can have changed.
    touched: RefCell<Vec<usize>>,
    /// What is read where there is no memory: QEMU reads zeros. Nothing is ever written there,
    /// since that is no entry that is present.
    nothing: AtomicU64,
}

impl Memory for Stage<'_> {
    fn word(&self, address: u64) -> Option<&AtomicU64> {
        let Some(index) = probe::index(ARENA, address) else { return Some(&self.nothing) };
        self.touched.borrow_mut().push(index);
        self.words.get(index)
    }
}

/// Judges outcomes one after another.
pub struct Judge {
    model: Model,
    image: Vec<Word>,
    /// All zero but while a case is played.
    words: Vec<AtomicU64>,
}

impl Judge {
    /// For a processor.
    pub fn new(model: Model) -> Self {
        let words = (0..WORDS).map(|_| AtomicU64::new(0)).collect();
        Self { model, image: stage::image(), words }
    }

    /// Compares.
    pub fn judge(&self, drawn: &Drawn, seen: &Outcome) -> Verdict {
        let expected = self.expected(drawn);
        if expected == *seen {
            return Verdict::Agreed;
        }
        // The fewest faults that explain it: another version of the emulator may have fewer.
        let mut sets: Vec<u32> = (1..1 << FAULTS.len()).collect();
        sets.sort_by_key(|set| set.count_ones());
        for set in sets {
            let met = FAULTS.iter().enumerate().filter(|(n, _)| set >> n & 1 == 1);
            let met: Vec<&Fault> = met.map(|(_, fault)| fault).collect();
            if self.with_faults(&met, drawn).is_some_and(|outcome| outcome == *seen) {
                return Verdict::Known(met);
            }
        }
        Verdict::Differs(expected)
    }

    /// What the software walker says about a processor with these faults; `None` if one of them
    /// has nothing to do with the case.
    fn with_faults(&self, faults: &[&Fault], drawn: &Drawn) -> Option<Outcome> {
        let mut quirks = Quirks::default();
        for fault in faults {
            if let Makes::Walk(makes) = fault.makes {
                makes(&mut quirks);
            }
        }
        let (mut outcome, _) = self.with(quirks, drawn);
        for fault in faults {
            if let Makes::Outcome(makes) = fault.makes {
                outcome = makes(drawn, &outcome)?;
            }
        }
        Some(outcome)
    }

    /// What the software walker says.
    pub fn expected(&self, drawn: &Drawn) -> Outcome {
        self.with(Quirks::default(), drawn).0
    }

    /// Numbers of the words it looks at, ascending.
    pub fn walked(&self, drawn: &Drawn) -> Vec<usize> {
        self.with(Quirks::default(), drawn).1
    }

    /// What it says about a processor with these quirks, and the words it looks at.
    fn with(&self, quirks: Quirks, drawn: &Drawn) -> (Outcome, Vec<usize>) {
        let set = || self.image.iter().chain(&drawn.case.words);
        for word in set() {
            self.words[usize::from(word.index)].store(word.value, Relaxed);
        }
        // What bits of present entries the walker is shown otherwise. Probed words are no entries.
        let bent = |index: usize, value: u64| match value & bit::P != 0 {
            true if index % PER_FRAME != stage::ENTRY => {
                self.model.bend.map_or(value, |bend| bend.word(value)) & !quirks.ignored
            }
            _ => value,
        };
        let mut before: BTreeMap<usize, u64> = BTreeMap::new();
        for index in set().map(|word| usize::from(word.index)) {
            before.entry(index).or_insert_with(|| {
                let value = self.words[index].load(Relaxed);
                self.words[index].store(bent(index, value), Relaxed);
                value
            });
        }
        let stage =
            Stage { words: &self.words, touched: RefCell::default(), nothing: AtomicU64::new(0) };
        let mut outcome = self.play(quirks, &stage, drawn);
        let mut touched = stage.touched.into_inner();
        touched.sort_unstable();
        touched.dedup();
        for &index in &touched {
            let before = before.get(&index).copied().unwrap_or(0);
            let difference = self.words[index].swap(0, Relaxed) ^ bent(index, before);
            if difference != 0 {
                let word = Word { index: index as u16, value: before ^ difference };
                outcome.changed.push(word);
            }
        }
        for index in before.into_keys() {
            self.words[index].store(0, Relaxed);
        }
        (outcome, touched)
    }

    /// What the guest's accesses end in.
    fn play(&self, quirks: Quirks, stage: &Stage<'_>, drawn: &Drawn) -> Outcome {
        let registers = &drawn.case.registers;
        let phys_bits = self.model.phys_bits;
        let phys_bits = self.model.bend.map_or(phys_bits, |bend| bend.width(phys_bits));
        let context = Context {
            tag: 1,
            nested: Nested::Npt(Npt {
                levels: 4,
                phys_bits,
                nx: registers.host_nx,
                gib_pages: true,
            }),
            root: registers.n_cr3 & bit::ADDRESS,
            paging: if drawn.flat() {
                Paging::Off
            } else {
                Paging::Long(Long {
                    cr3: registers.cr3 & bit::ADDRESS,
                    levels: 4,
                    wp: registers.cr0 >> 16 & 1 == 1,
                    nx: registers.efer >> 11 & 1 == 1,
                    smep: registers.cr4 >> 20 & 1 == 1,
                    smap: registers.cr4 >> 21 & 1 == 1 && registers.rflags >> 18 & 1 == 0,
                    user: registers.cpl == 3,
                    phys_bits,
                    gib_pages: true,
                })
            },
        };
        let mut processor = Processor::with_habits(u64::from(drawn.number), Habits::nothing());
        let mut outcome =
            Outcome { exit: 0, info1: 0, info2: 0, rip: registers.rip, rbx: 0, changed: vec![] };
        let code = draw::code(drawn.access, drawn.class);
        let steps = match (drawn.access, code.as_slice()) {
            (Access::Fetch, _) => vec![(drawn.linear, machine::Access::Fetch)],
            (Access::Read, &[rip, ..]) => vec![(rip, machine::Access::Read)],
            (Access::Exchange, &[rip, ..]) if quirks.loads_first => {
                vec![(rip, machine::Access::Read), (rip, machine::Access::Write)]
            }
            (Access::Write | Access::Exchange, &[rip, ..]) => {
                vec![(rip, machine::Access::Write)]
            }
            (Access::Update, &[first, second, ..]) => {
                vec![(first, machine::Access::Read), (second, machine::Access::Write)]
            }
            (_, _) => vec![],
        };
        outcome.exit = exit::VMMCALL;
        for (rip, access) in steps {
            outcome.rip = rip;
            let reached = match access {
                machine::Access::Fetch => Ok(()),
                _ => {
                    let fetched = processor.translate(stage, &context, rip, machine::Access::Fetch);
                    fetched.map(|_| ())
                }
            };
            match reached.and_then(|()| processor.translate(stage, &context, drawn.linear, access))
            {
                Ok(reached) => self.access(stage, drawn, access, reached.hpa, &mut outcome),
                Err(Exit::NestedFault(fault)) => {
                    outcome.exit = exit::NESTED_FAULT;
                    outcome.info1 = fault.code;
                    outcome.info2 = fault.gpa;
                    break;
                }
                Err(Exit::PageFault { code, address }) => {
                    outcome.exit = exit::PAGE_FAULT;
                    outcome.info1 = u64::from(code);
                    outcome.info2 = address;
                    break;
                }
                // Nothing a guest on nested tables can end in, and all memory answers.
                Err(other) => panic!("the walker ends a guest on nested tables by {other:?}"),
            }
        }
        if outcome.exit == exit::VMMCALL
            && let Some(last) = code.last()
        {
            outcome.rip = *last;
        }
        if quirks.gigabyte_first {
            let nested =
                Rules { root: registers.n_cr3 & bit::ADDRESS, phys_bits, nx: registers.host_nx };
            let root = registers.cr3 & bit::ADDRESS;
            let guest = Rules { root, phys_bits, nx: registers.efer >> 11 & 1 == 1 };
            quirks::access_gigabyte(stage, &context, nested, guest, &outcome);
        }
        outcome
    }

    /// What an access that is allowed does.
    fn access(
        &self,
        stage: &Stage<'_>,
        drawn: &Drawn,
        access: machine::Access,
        address: u64,
        outcome: &mut Outcome,
    ) {
        let here = probe::index(ARENA, address & !7).is_some();
        let word = stage.word(address & !7).filter(|_| here);
        let value = word.map_or(0, |word| word.load(Relaxed));
        // The upper half is all of it that 32-bit code accesses.
        let (kept, shift) = if drawn.flat() { (0xffff_ffff, 32) } else { (0, 0) };
        match access {
            machine::Access::Read if drawn.access == Access::Exchange => {}
            machine::Access::Read => outcome.rbx = value >> shift,
            machine::Access::Write => {
                if drawn.access == Access::Exchange {
                    outcome.rbx = value >> shift;
                }
                if let Some(word) = word {
                    word.store(value & kept | STORED << shift, Relaxed);
                }
            }
            // Zeros are an addition to where RAX says.
            machine::Access::Fetch if !here => outcome.exit = exit::EXCEPTION + 13,
            machine::Access::Fetch => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::draw::draw;
    use clap::ValueEnum;

    fn judge(bend: Option<Bend>) -> Judge {
        Judge::new(Model { phys_bits: 40, bend })
    }

    /// Whatever an outcome says wrong is noticed, unless it is one of the known faults.
    #[test]
    fn any_other_outcome_is_a_difference() {
        let judge = judge(None);
        let mut differ = 0;
        for drawn in (0..300).map(|number| draw(5, number)) {
            let right = judge.expected(&drawn);
            assert!(matches!(judge.judge(&drawn, &right), Verdict::Agreed));
            let mut wrong = vec![right.clone(); 7];
            wrong[0].exit ^= 1;
            wrong[1].info1 ^= 1 << 2;
            wrong[2].info1 ^= 1 << 33;
            wrong[3].info2 ^= 8;
            wrong[4].rip ^= 1;
            wrong[5].rbx ^= 1;
            match wrong[6].changed.first_mut() {
                Some(word) => word.value ^= bit::A,
                None => wrong[6].changed.push(Word { index: 0, value: 1 }),
            }
            for wrong in wrong {
                let verdict = judge.judge(&drawn, &wrong);
                assert!(matches!(verdict, Verdict::Differs(_)), "case {}", drawn.number);
                differ += 1;
            }
        }
        assert_eq!(differ, 300 * 7);
    }

    /// Each fault is known, and most of what it does is its alone.
    #[test]
    fn a_known_fault_is_called_by_its_name() {
        let judge = judge(None);
        for fault in FAULTS {
            let mut named = 0;
            for drawn in (0..2000).map(|number| draw(6, number)) {
                let Some(seen) = judge.with_faults(&[fault], &drawn) else { continue };
                match judge.judge(&drawn, &seen) {
                    Verdict::Agreed => {}
                    Verdict::Known(known) => {
                        assert_eq!(known.len(), 1, "case {}", drawn.number);
                        named += u32::from(known[0].name == fault.name);
                    }
                    Verdict::Differs(_) => panic!("case {}", drawn.number),
                }
            }
            assert!(named > 10, "{} was named {named} times", fault.name);
        }
    }

    /// A walker that lacks a rule differs from what has it.
    #[test]
    fn every_bent_rule_is_missed() {
        let right = judge(None);
        for bend in Bend::value_variants() {
            let bent = judge(Some(*bend));
            let differs = (0..1000).map(|number| draw(7, number)).filter(|drawn| {
                matches!(bent.judge(drawn, &right.expected(drawn)), Verdict::Differs(_))
            });
            assert!(differs.count() > 10, "{bend:?}");
        }
    }

    #[test]
    fn every_kind_of_end_is_drawn() {
        let judge = judge(None);
        let mut ends: Vec<u64> = (0..3000)
            .map(|number| judge.expected(&draw(1, number)))
            .map(|outcome| outcome.exit << 56 ^ outcome.info1)
            .collect();
        ends.sort_unstable();
        ends.dedup();
        // Done; #GP of what is no code; 16 codes of nested faults and 16 of page faults or so.
        assert!(ends.len() >= 30, "{ends:x?}");
    }
}
