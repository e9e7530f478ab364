//! The last of several: the last page of a range, the second address space, the fifth level, the slot
//! that reaches furthest.

use vmmu::addr::{Gfn, Level};
use vmmu::entry::Access;
use vmmu::host::{HostFrame, VcpuId};
use vmmu::internals::Defect;
use vmmu::slot::{AddressSpace, SlotSpec, Source};
use vmmu::{Busy, Config, FaultStep, Mmu, Outcome, Progress, Request, Role, VcpuMmu, Worker};

use crate::catch::{Verdict, catches, ensure};
use crate::processor::{Met, Processor};
use crate::support::{
    Frames, TestHost, backed, fault_at, formats, half, linear, npt, pages, range,
};

const GIB: u64 = 0x4_0000;

/// A slot over pages of backing 7 from `first` on.
fn showing(id: u32, start: u64, pages: u64, first: u64) -> SlotSpec {
    SlotSpec { source: Source::Backed { backing: 7, first }, ..backed(id, range(start, pages)) }
}

/// Taken back are ranges that end with page 0x207 of a slot, which is the first one or the last of
/// its block, of the range's part of the slot, or of the slot.
fn the_last_page_goes() -> Verdict {
    const LAST: u64 = 0x207;
    for (first, many) in [(LAST, 1), (LAST - 1, 2), (0x1f0, LAST - 0x1f0 + 1), (0, LAST + 1)] {
        for slot in
            [showing(1, 0x400, LAST + 1, 0), showing(1, 0x400, 1, LAST), backed(1, range(0, GIB))]
        {
            let Source::Backed { first: shown, .. } = slot.source else { unreachable!() };
            let gfn = slot.range.start().0 + (LAST - shown);
            let vm = Mmu::new(TestHost::default(), &Config::new(npt(), 1)).unwrap();
            let frames = Frames::new(Level::Size4K);
            let (mut worker, mut vcpu) = (vm.worker().unwrap(), vm.vcpu(VcpuId(0)).unwrap());
            worker.create_slot(&slot).unwrap();
            let mut cpu = Processor::new(0, vm.host());
            let what = format!("pages {first:#x} and {many:#x} more");
            // It is mapped.
            cpu.touch(&mut vcpu, &frames, gfn, Access::WRITE)?;
            let taken = vm.invalidate_range(pages(first, many));
            let met = cpu.run(&mut vcpu, gfn, false);
            ensure(met == Met::Nothing, || format!("{what}: the last one is reached: {met:?}"))?;
            // It is asked for meanwhile.
            let outcome = vcpu.handle_fault(&frames, fault_at(gfn, Access::WRITE));
            ensure(outcome == Outcome::Busy(Busy::Invalidation), || {
                format!("{what}: the last one: {outcome:?}")
            })?;
            drop(taken);
            // Its frame was found before.
            let (request, found) = half(&mut vcpu, &frames, gfn);
            drop(vm.invalidate_range(pages(first, many)));
            let outcome = complete(&mut worker, request, found);
            ensure(outcome == Outcome::Retry, || format!("{what}: found before: {outcome:?}"))?;
            // The page after it is nobody's business.
            if slot.range.contains(Gfn(gfn + 1)) {
                let (request, found) = half(&mut vcpu, &frames, gfn + 1);
                let taken = vm.invalidate_range(pages(first, many));
                drop(request);
                let (request, _) = half(&mut vcpu, &frames, gfn + 1);
                let outcome = complete(&mut worker, request, found);
                drop(taken);
                ensure(outcome == Outcome::Fixed(Level::Size4K), || {
                    format!("{what}: the page after them: {outcome:?}")
                })?;
            }
        }
    }
    Ok(())
}

fn complete<'vm>(
    worker: &mut Worker<&'vm Mmu<TestHost>>,
    request: Request<'vm>,
    found: HostFrame,
) -> Outcome {
    worker.reserve(8).unwrap();
    let answer = request.query().answer(found);
    worker.complete(request.resolve(answer).unwrap()).unwrap()
}

/// The host takes pages back, and the guest keeps the last of them.
///
/// F-i1.
#[test]
fn misses_last_page() {
    catches(Defect::MissesLastPage, the_last_page_goes);
}

const SMM: Role = Role { space: AddressSpace::Smm, flavour: 0 };

/// How mappings are taken away, of which address spaces, and whether open requests are refused then.
type Taking = (&'static str, fn(&mut Worker<&Mmu<TestHost>>), [bool; 2], bool);

const TAKINGS: [Taking; 7] = [
    (
        "an invalidation",
        |worker| {
            worker.invalidate_begin(pages(0x3, GIB));
            worker.invalidate_end(pages(0x3, GIB)).unwrap();
        },
        [true, true],
        true,
    ),
    ("a zap here", |worker| worker.zap(AddressSpace::Normal, range(3, GIB)), [true, false], true),
    ("a zap there", |worker| worker.zap(AddressSpace::Smm, range(3, GIB)), [false, true], true),
    (
        "a zap there in steps",
        |worker| {
            let mut zap = worker.begin_zap(AddressSpace::Smm, range(3, GIB));
            while worker.zap_some(&mut zap, 1) == Progress::More {}
        },
        [false, true],
        true,
    ),
    (
        "a deletion there",
        |worker| worker.delete_slot(vmmu::slot::SlotId(2)).unwrap(),
        [false, true],
        true,
    ),
    ("all at once", |worker| worker.zap_all(), [true, true], true),
    (
        "a drain in steps",
        |worker| {
            let mut drain = worker.invalidate_roots();
            while worker.drain(&mut drain, 1) == Progress::More {}
        },
        [true, true],
        true,
    ),
];

/// One backing is shown at the same frames of both address spaces. A vCPU maps pages of two blocks of
/// 1 GiB in one, then in the other.
fn both_spaces_are_walked() -> Verdict {
    for level in [Level::Size4K, Level::Size1G] {
        for (name, take, goes, refuses) in TAKINGS {
            let vm = Mmu::new(TestHost::default(), &Config::new(npt(), 1)).unwrap();
            let frames = Frames::new(level);
            let (mut worker, mut vcpu) = (vm.worker().unwrap(), vm.vcpu(VcpuId(0)).unwrap());
            worker.create_slot(&backed(1, range(0, 2 * GIB))).unwrap();
            let there = SlotSpec { space: AddressSpace::Smm, ..backed(2, range(0, 2 * GIB)) };
            worker.create_slot(&there).unwrap();
            let mut cpu = Processor::new(0, vm.host());
            let places = [3, GIB];
            for role in [Role::PLAIN, SMM] {
                vcpu.set_role(role);
                for gfn in places {
                    cpu.touch(&mut vcpu, &frames, gfn, Access::WRITE)?;
                }
            }
            let mapped = vm.stats().leaves.iter().sum::<u64>();
            ensure(mapped == 4, || format!("{mapped} leaves"))?;
            // A request for a page of each, which is not mapped yet in small pages.
            let requests = [(Role::PLAIN, 0), (SMM, 1)].map(|(role, n)| {
                (role, n, {
                    vcpu.set_role(role);
                    (level == Level::Size4K).then(|| half(&mut vcpu, &frames, 5))
                })
            });
            take(&mut worker);
            for (role, n, request) in requests {
                if let Some((request, found)) = request {
                    let outcome = complete(&mut worker, request, found);
                    let expected = if goes[n] && refuses { "retry" } else { "fixed" };
                    ensure(outcome.name() == expected, || {
                        format!("{name}: a request in {:?} ends as {outcome:?}", role.space)
                    })?;
                }
                vcpu.set_role(role);
                for gfn in places {
                    let met = cpu.run(&mut vcpu, gfn, true);
                    ensure((met == Met::Nothing) == goes[n], || {
                        format!("{name}: frame {gfn:#x} in {:?}: {met:x?}", role.space)
                    })?;
                }
            }
        }
    }
    Ok(())
}

/// What is taken away in the first address space stays mapped in the second.
///
/// F-i2.
#[test]
fn forgets_second_space() {
    catches(Defect::ForgetsSecondSpace, both_spaces_are_walked);
}

/// The faults of one vCPU, which has no table page in stock before each, find as many tables missing
/// as there are levels, then fewer.
fn every_missing_table_is_linked_in_one_fault() -> Verdict {
    for (name, format) in formats() {
        for level in Level::LEAVES {
            let vm = Mmu::new(TestHost::default(), &Config::new(format, 1)).unwrap();
            let (mut worker, mut vcpu) = (vm.worker().unwrap(), vm.vcpu(VcpuId(0)).unwrap());
            let all = linear(1, range(0, format.frames()), 0);
            let limit = 1 << (format.phys_bits() - 12);
            let all =
                SlotSpec { range: range(0, format.frames().min(limit)), largest: level, ..all };
            worker.create_slot(&all).unwrap();
            let top = format.top() as u32;
            // At frame 7 all are missing. What lies in another block of the level that many above a
            // leaf's has the tables above that in common with it.
            for missing in std::iter::once(None).chain((0..=top - level as u32).map(Some)) {
                let gfn = 7 + missing.map_or(0, |missing| block(level, missing));
                if !all.range.contains(Gfn(gfn)) {
                    continue;
                }
                let before = vm.stats().tables;
                let outcome = fault(&mut vcpu, gfn);
                ensure(outcome == Outcome::Fixed(level), || {
                    format!("{name}: a leaf of {level} at {gfn:#x}: {outcome:?}")
                })?;
                let (linked, missing) =
                    (vm.stats().tables - before, missing.unwrap_or(top - level as u32));
                ensure(linked == u64::from(missing), || {
                    format!("{name}: {linked} tables were linked where {missing} were missing")
                })?;
                let found = worker.translate(Role::PLAIN, Gfn(gfn).gpa());
                let reached = found.map(|found| found.hpa.pfn().0);
                ensure(reached == Some(gfn), || format!("{name}: {gfn:#x} is at {reached:x?}"))?;
            }
            drop((worker, vcpu));
            let mut vm = vm;
            let checked = vm.check(|_, _| vmmu::check::Witness::Unknown).unwrap();
            ensure(checked.is_clean(), || format!("{name}: {:?}", checked.violations))?;
            ensure(vm.teardown().in_use() == 0, || format!("{name}: tables are lost"))?;
        }
    }
    Ok(())
}

/// Pages in a block of the level that many above a leaf's.
fn block(level: Level, above: u32) -> u64 {
    let mut block = level;
    for _ in 0..above {
        block = block.above().unwrap();
    }
    block.pages()
}

/// A fault of a linear slot that may be tried again a few times, with the pages that the library asks
/// for.
fn fault(vcpu: &mut VcpuMmu<&Mmu<TestHost>>, gfn: u64) -> Outcome {
    vcpu.load_root().unwrap();
    for _ in 0..3 {
        match vcpu.begin_fault(fault_at(gfn, Access::WRITE)) {
            FaultStep::MissingPages(pages) => vcpu.reserve(pages.0).unwrap(),
            FaultStep::Done(Outcome::Retry) => {}
            FaultStep::Done(outcome) => return outcome,
            other => panic!("{other:?}"),
        }
    }
    Outcome::Retry
}

/// A fault below a root of five levels finds no table at all, and never gets as many pages as it needs.
///
/// F-i3.
#[test]
fn stocks_for_four_levels() {
    catches(Defect::StocksForFourLevels, every_missing_table_is_linked_in_one_fault);
}

/// Slots show overlapping parts of one backing: a long one, shorter ones that begin later, one that
/// begins where another one does. Each page that is taken back goes at every frame that shows it.
fn every_alias_goes() -> Verdict {
    let shown = [(0, 0x300), (0, 0x10), (0x10, 0x20), (0x18, 1), (0x40, 0x80), (0x200, 0x100)];
    for page in [0, 0xf, 0x18, 0x2f, 0x30, 0xbf, 0xc0, 0x1ff, 0x200, 0x2ff] {
        let vm = Mmu::new(TestHost::default(), &Config::new(npt(), 1)).unwrap();
        let frames = Frames::new(Level::Size4K);
        let (mut worker, mut vcpu) = (vm.worker().unwrap(), vm.vcpu(VcpuId(0)).unwrap());
        for (n, (first, pages)) in shown.into_iter().enumerate() {
            worker.create_slot(&showing(n as u32, 0x1000 * (n as u64 + 1), pages, first)).unwrap();
        }
        let mut cpu = Processor::new(0, vm.host());
        let places: Vec<u64> = (1..)
            .zip(shown)
            .filter(|(_, (first, pages))| (*first..first + pages).contains(&page))
            .map(|(n, (first, _))| 0x1000 * n + page - first)
            .collect();
        for gfn in &places {
            cpu.touch(&mut vcpu, &frames, *gfn, Access::WRITE)?;
        }
        let _taken = vm.invalidate_range(pages(page, 1));
        for gfn in &places {
            let met = cpu.run(&mut vcpu, *gfn, true);
            ensure(met == Met::Nothing, || {
                format!("page {page:#x} is taken back and reached at {gfn:#x}: {met:x?}")
            })?;
            let outcome = vcpu.handle_fault(&frames, fault_at(*gfn, Access::WRITE));
            ensure(outcome == Outcome::Busy(Busy::Invalidation), || {
                format!("{gfn:#x}: {outcome:?}")
            })?;
        }
    }
    Ok(())
}

/// A search by page stops at a short slot, and does not find the long one before it.
///
/// F-i4.
#[test]
fn forgets_reach() {
    catches(Defect::ForgetsReach, every_alias_goes);
}
