//! Every invariant the checker knows is violated once, and reported.

mod support;

use support::{Frames, TestHost, backed, ept, fault_at, linear, npt, range};
use vmmu::Outcome;
use vmmu::addr::{Level, Pfn};
use vmmu::check::{Checked, Invariant, Witness};
use vmmu::entry::{Access, Format, State, Value};
use vmmu::host::VcpuId;
use vmmu::slot::{Mutability, SlotSpec};
use vmmu::{Config, Mmu, Processor};

/// A VM with a backed slot at 0, a read-only linear slot at 0x1000, and some of both mapped.
struct Patient {
    vm: Mmu<TestHost>,
    format: Format,
    top: Pfn,
}

const ROM: u64 = 0x1000;

impl Patient {
    fn new(format: Format) -> Self {
        let reserved = [(Pfn(0xf_0000), Pfn(0xf_1000))];
        let config = Config { reserved: &reserved, ..Config::new(format, 1) };
        let vm = Mmu::new(TestHost::default(), &config).unwrap();
        let frames = Frames::new(Level::Size4K);
        let mut vcpu = vm.vcpu(VcpuId(0)).unwrap();
        vm.worker().unwrap().create_slot(&backed(1, range(0, 0x1000))).unwrap();
        let rom = linear(2, range(ROM, 0x400), 0x8_0000);
        vm.worker()
            .unwrap()
            .create_slot(&SlotSpec { mutability: Mutability::ReadOnly, ..rom })
            .unwrap();
        for gfn in [1, 2, 0x201] {
            let outcome = vcpu.handle_fault(&frames, fault_at(gfn, Access::WRITE));
            assert_eq!(outcome, Outcome::Fixed(Level::Size4K));
        }
        assert_eq!(
            vcpu.handle_fault(&frames, fault_at(ROM, Access::READ)),
            Outcome::Fixed(Level::Size2M)
        );
        vcpu.load_root().unwrap();
        let top = vcpu.before_enter(Processor(0)).unwrap().root().pfn();
        drop(vcpu);
        Patient { vm, format, top }
    }

    /// The word for `gfn` in the table of `level`, by a walk of the test's own.
    fn word(&self, gfn: u64, level: Level) -> *mut u64 {
        let mut pfn = self.top;
        let mut at = Level::L4;
        loop {
            let index = (gfn >> ((at as u32 - 1) * 9)) as usize & 511;
            // SAFETY: nothing else runs, and the table is linked.
            let word = unsafe { TestHost::word(pfn, index) };
            if at == level {
                return word;
            }
            // SAFETY: as above.
            pfn = Pfn(unsafe { word.read() } >> 12 & ((1 << 36) - 1));
            at = at.below().unwrap();
        }
    }

    fn set(&mut self, gfn: u64, level: Level, change: impl FnOnce(u64) -> u64) {
        let word = self.word(gfn, level);
        // SAFETY: nothing else runs.
        unsafe { word.write(change(word.read())) };
    }

    fn make(&self, state: State, level: Level) -> u64 {
        self.format.make(state, level).unwrap().0
    }

    fn check(&mut self) -> Checked {
        let host = |_, page| Witness::Frame(Pfn(page + Frames::OFFSET), Access::all());
        self.vm.check(host).unwrap()
    }

    /// The patient is ill with exactly these.
    fn expect(&mut self, mut expected: Vec<Invariant>) {
        let checked = self.check();
        let mut found: Vec<_> = checked.violations.iter().map(|v| v.invariant).collect();
        found.sort();
        found.dedup();
        expected.sort();
        assert_eq!(found, expected, "{:#?}", checked.violations);
        assert!(!checked.is_clean());
    }
}

fn both(test: impl Fn(Patient)) {
    test(Patient::new(ept()));
    test(Patient::new(npt()));
}

#[test]
fn a_healthy_vm_is_clean_and_every_invariant_was_looked_at() {
    both(|mut patient| {
        let checked = patient.check();
        assert!(checked.is_clean(), "{:#?}", checked.violations);
        assert_eq!((checked.tables, checked.entries), (5, 4 + 5 - 1));
        for (name, count) in checked.by_name() {
            let absent = name == Invariant::MmioOutsideSlots.name();
            assert_eq!(count == 0, absent, "{name}: {count}");
        }
        let frames = checked.verified[Invariant::LeafFrame as usize];
        assert_eq!(frames, 3 + 512, "every page of a huge leaf is compared");
    });
}

#[test]
fn a_leaf_with_another_frame_is_found() {
    both(|mut patient| {
        patient.set(1, Level::Size4K, |word| word ^ 1 << 13);
        patient.expect(vec![Invariant::LeafFrame]);
    });
}

#[test]
fn one_wrong_page_of_a_huge_leaf_is_found() {
    let mut patient = Patient::new(npt());
    let host = |_, page| {
        let moved = page == 2;
        Witness::Frame(Pfn(page + Frames::OFFSET + u64::from(moved)), Access::all())
    };
    let checked = patient.vm.check(host).unwrap();
    assert_eq!(checked.found, 1);
    let text = checked.violations[0].to_string();
    assert!(text.starts_with("leaf-maps-the-frame (12) at gfn 0x2 (4K, root"), "{text}");
    let gone = patient.vm.check(|_, _| Witness::Nothing).unwrap();
    assert_eq!(gone.violations[0].invariant, Invariant::LeafFrame);
}

#[test]
fn every_single_bit_of_a_leaf_is_watched() {
    both(|patient| {
        let mut patient = patient;
        let word = patient.word(1, Level::Size4K);
        for bit in 0..64 {
            // SAFETY: nothing else runs.
            let old = unsafe { word.read() };
            let new = Value(old ^ 1 << bit);
            // SAFETY: nothing else runs.
            unsafe { word.write(new.0) };
            let checked = patient.check();
            let same_mapping = match (
                patient.format.read(Value(old), Level::Size4K),
                patient.format.read(new, Level::Size4K),
            ) {
                (State::Leaf(a), State::Leaf(b)) => {
                    // A and D may be either; less access or another memory type is no lie about
                    // the frame.
                    a.pfn == b.pfn
                }
                _ => false,
            };
            assert_eq!(checked.is_clean(), same_mapping, "bit {bit}: {:?}", checked.violations);
            // SAFETY: nothing else runs.
            unsafe { word.write(old) };
        }
    });
}

#[test]
fn a_leaf_outside_of_every_slot_is_found() {
    both(|mut patient| {
        // The page after the slots, in the table of the ROM's huge leaf's neighbours.
        let leaf = patient.word(ROM, Level::Size2M);
        // SAFETY: nothing else runs.
        let leaf = unsafe { leaf.read() };
        patient.set(0x1400, Level::Size2M, |_| leaf);
        patient.expect(vec![Invariant::LeafInSlot, Invariant::LeavesCounted]);
    });
}

#[test]
fn a_leaf_on_a_table_or_on_reserved_frames_is_found() {
    both(|mut patient| {
        let top = patient.top.0;
        patient.set(1, Level::Size4K, |word| word & !(((1 << 40) - 1) << 12) | top << 12);
        patient.expect(vec![Invariant::LeafFrame, Invariant::LeafNotTable]);
        patient.set(1, Level::Size4K, |word| word & !(((1 << 40) - 1) << 12) | 0xf_0800 << 12);
        patient.expect(vec![Invariant::LeafFrame, Invariant::LeafNotTable]);
    });
}

#[test]
fn a_leaf_larger_than_its_slot_allows_is_found() {
    both(|mut patient| {
        // A slot that ends within the block: 0x1000..0x1400 cannot hold 1 GiB.
        let Some(State::Leaf(leaf)) = Some(patient.format.read(
            // SAFETY: nothing else runs.
            Value(unsafe { patient.word(ROM, Level::Size2M).read() }),
            Level::Size2M,
        )) else {
            panic!()
        };
        let huge = vmmu::entry::Leaf { pfn: Pfn(0x8_0000), ..leaf };
        let huge = patient.make(State::Leaf(huge), Level::Size1G);
        patient.set(0, Level::Size1G, |_| huge);
        let checked = patient.check();
        let has = |i| checked.violations.iter().any(|v| v.invariant == i);
        assert!(has(Invariant::LeafSize), "{:?}", checked.violations);
        assert!(has(Invariant::TablesCounted), "the tables below are cut off");
    });
}

#[test]
fn a_leaf_that_allows_more_than_its_slot_is_found() {
    both(|mut patient| {
        // SAFETY: nothing else runs.
        let value = Value(unsafe { patient.word(ROM, Level::Size2M).read() });
        let State::Leaf(leaf) = patient.format.read(value, Level::Size2M) else { panic!() };
        let writable = vmmu::entry::Leaf { writable: vmmu::entry::Writable::Yes, ..leaf };
        let writable = patient.make(State::Leaf(writable), Level::Size2M);
        patient.set(ROM, Level::Size2M, |_| writable);
        patient.expect(vec![Invariant::LeafAccess]);
    });
}

#[test]
fn what_is_frozen_at_rest_is_found() {
    both(|patient| {
        let mut patient = patient;
        for state in
            [State::Hold { owner: 1 }, State::Claim { owner: 1 }, State::Dead { next: None }]
        {
            let frozen = patient.make(state, Level::Size4K);
            patient.set(7, Level::Size4K, |_| frozen);
            patient.expect(vec![Invariant::NotFrozen]);
        }
    });
}

#[test]
fn an_mmio_entry_of_now_over_a_slot_is_found() {
    both(|mut patient| {
        // Two slots: generation 2.
        let mmio = patient.make(State::Mmio { generation: 2 }, Level::Size4K);
        patient.set(7, Level::Size4K, |_| mmio);
        patient.expect(vec![Invariant::MmioOutsideSlots]);
        // An old one may be there; nobody believes it.
        let old = patient.make(State::Mmio { generation: 1 }, Level::Size4K);
        patient.set(7, Level::Size4K, |_| old);
        assert!(patient.check().is_clean());
    });
}

/// The same bits say *now* or *a round ago*, by what the root is.
#[cfg(feature = "protocol")]
#[test]
fn an_mmio_entry_of_the_round_before_over_a_slot_is_none_of_now() {
    both(|mut patient| {
        let mmio = patient.make(State::Mmio { generation: 2 }, Level::Size4K);
        patient.set(7, Level::Size4K, |_| mmio);
        patient.vm.set_generation((1 << Format::GENERATION_BITS) + 2);
        assert!(patient.check().is_clean());
        patient.vm.set_generation(2);
        patient.expect(vec![Invariant::MmioOutsideSlots]);
    });
}

#[test]
fn an_entry_the_library_does_not_write_is_found() {
    both(|mut patient| {
        patient.set(7, Level::Size4K, |_| 0x1234_5678_9000);
        patient.expect(vec![Invariant::EntryLegal]);
    });
}

#[test]
fn a_table_linked_twice_is_found_and_the_check_ends() {
    both(|mut patient| {
        // SAFETY: nothing else runs.
        let link = unsafe { patient.word(0, Level::Size2M).read() };
        patient.set(0x800, Level::Size2M, |_| link);
        let checked = patient.check();
        let has = |i| checked.violations.iter().any(|v| v.invariant == i);
        assert!(has(Invariant::TableOnce), "{:?}", checked.violations);
        // A loop from below to the top.
        let top = patient.top;
        let up = patient.make(State::Table(top), Level::Size2M);
        patient.set(0x800, Level::Size2M, |_| up);
        assert!(!patient.check().is_clean());
        // Or its teardown would walk in circles.
        let empty = patient.format.empty().0;
        patient.set(0x800, Level::Size2M, |_| empty);
    });
}

#[test]
fn a_table_or_leaf_that_was_lost_is_found() {
    both(|mut patient| {
        let empty = patient.format.empty().0;
        patient.set(2, Level::Size4K, |_| empty);
        patient.expect(vec![Invariant::LeavesCounted]);
        patient.set(0, Level::Size2M, |_| empty);
        patient.expect(vec![Invariant::LeavesCounted, Invariant::TablesCounted]);
    });
}

#[test]
fn an_answer_of_the_host_that_allows_less_than_the_leaf_is_found() {
    let mut patient = Patient::new(npt());
    let host = |_, page| Witness::Frame(Pfn(page + Frames::OFFSET), Access::READ);
    let checked = patient.vm.check(host).unwrap();
    assert!(checked.violations.iter().all(|v| v.invariant == Invariant::LeafAccess));
    assert_eq!(checked.found, 3);
}

#[test]
#[cfg(feature = "protocol")]
fn a_debt_that_was_never_settled_is_found() {
    let mut patient = Patient::new(npt());
    {
        let root = patient.vm.root(vmmu::Role::PLAIN).unwrap();
        let mut participant = patient.vm.participant().unwrap();
        let mut debt = participant.debt(range(1, 1));
        {
            let section = debt.section();
            let entry = section.entry(root, vmmu::addr::Gfn(1), Level::Size4K).unwrap();
            assert!(entry.zap().is_ok());
        }
        drop(debt);
    }
    patient.expect(vec![Invariant::DebtsSettled]);
}
