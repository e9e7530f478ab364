//! Roots: populated when they are invalid, passed over, dropped too early, shared by those who
//! must not share them.

use vmmu::addr::Level;
use vmmu::entry::Access;
use vmmu::host::VcpuId;
use vmmu::internals::Defect;
use vmmu::slot::{AddressSpace, SlotId, SlotSpec};
use vmmu::{Config, HostRange, Mmu, Progress, Role};
use vmmu::{FaultStep, Outcome};

use crate::catch::{Verdict, catches, ensure};
use crate::processor::{Met, Processor};
use crate::support::{Frames, TestHost, backed, fault_at, half_of, npt, range, ready, resolve};

/// Scenario S3: a vCPU has found its frame when every root becomes invalid; it goes on before the
/// drain has begun. Nothing is put into the old tables, also not by a vCPU that faults anew on a
/// root it still has the name of; and the drain leaves nothing.
fn an_invalid_root_is_not_populated() -> Verdict {
    let vm = Mmu::new(TestHost::default(), &Config::new(npt(), 1)).unwrap();
    let frames = Frames::new(Level::Size4K);
    let mut worker = vm.worker().unwrap();
    worker.create_slot(&backed(1, range(0, 0x400))).unwrap();
    let mut vcpu = ready(&vm, 0);
    let (request, found) = half_of(&mut vcpu, &frames, fault_at(3, Access::WRITE));
    let mut drain = worker.invalidate_roots();
    let outcome = vcpu.complete(resolve(request, found)).unwrap();
    ensure(outcome == Outcome::Retry, || format!("insert into an invalid root: {outcome:?}"))?;
    let anew = vcpu.begin_fault(fault_at(0x203, Access::WRITE));
    ensure(matches!(anew, FaultStep::LoadRoot), || format!("a fault on it: {anew:?}"))?;
    drop(anew);
    while worker.drain(&mut drain, 1) == Progress::More {}
    let stats = vm.stats();
    ensure((stats.leaves, stats.tables, stats.roots) == ([0; 3], 0, 0), || {
        format!("a drain leaves {:?} leaves, {} tables", stats.leaves, stats.tables)
    })
}

/// A frame is mapped below a root that has become invalid.
///
/// K5, B13, S3.
#[test]
fn populates_invalid_root() {
    catches(Defect::PopulatesInvalidRoot, an_invalid_root_is_not_populated);
}

/// Scenario S6: a drain stops on its way; the host takes a page back that the invalid root still
/// maps, and uses its frame; then the drain goes on. When the invalidation returned, nothing named
/// the frame any more.
fn a_drain_pauses_and_a_page_is_taken_back() -> Verdict {
    let vm = Mmu::new(TestHost::default(), &Config::new(npt(), 1)).unwrap();
    let frames = Frames::new(Level::Size4K);
    let (mut worker, mut vcpu) = (vm.worker().unwrap(), vm.vcpu(VcpuId(0)).unwrap());
    worker.create_slot(&backed(1, range(0, 0x2000))).unwrap();
    let mut cpu = Processor::new(0, vm.host());
    for table in 0..16 {
        cpu.touch(&mut vcpu, &frames, table * 0x200, Access::WRITE)?;
    }
    let mut drain = worker.invalidate_roots();
    ensure(worker.drain(&mut drain, 4) == Progress::More, || "drained at once".to_owned())?;
    let last = 15 * 0x200;
    drop(vm.invalidate_range(HostRange { backing: 7, first: last, pages: 1 }));
    let mut text = String::new();
    worker.dump(&mut text).unwrap();
    let frame = format!("{:#x}", last + Frames::OFFSET);
    ensure(!text.contains(&frame), || format!("frame {frame} is still mapped:\n{text}"))?;
    while worker.drain(&mut drain, 1) == Progress::More {}
    let met = cpu.run(&mut vcpu, last, false);
    ensure(met == Met::Nothing, || format!("reached after the drain: {met:?}"))
}

/// Invalidations by the host pass over roots that are being drained.
///
/// K6, S6.
#[test]
fn skips_invalid_roots() {
    catches(Defect::SkipsInvalidRoots, a_drain_pauses_and_a_page_is_taken_back);
}

/// A vCPU fills its new root as fast as the old ones are drained.
fn a_drain_ends_while_vcpus_fault() -> Verdict {
    let vm = Mmu::new(TestHost::default(), &Config::new(npt(), 1)).unwrap();
    let frames = Frames::new(Level::Size4K);
    let (mut worker, mut vcpu) = (vm.worker().unwrap(), vm.vcpu(VcpuId(0)).unwrap());
    worker.create_slot(&backed(1, range(0, 0x2000))).unwrap();
    let mut cpu = Processor::new(0, vm.host());
    for table in 0..16 {
        cpu.touch(&mut vcpu, &frames, table * 0x200, Access::WRITE)?;
    }
    let tables = vm.stats().tables;
    let mut drain = worker.invalidate_roots();
    let mut steps = 0;
    while worker.drain(&mut drain, 1) == Progress::More {
        steps += 1;
        ensure(steps <= tables, || format!("{tables} tables, and no end after {steps} steps"))?;
        for table in 0..16 {
            let outcome = vcpu.handle_fault(&frames, fault_at(table * 0x200, Access::WRITE));
            let settled = matches!(outcome, Outcome::Fixed(_) | Outcome::Spurious);
            ensure(settled, || format!("{outcome:?}"))?;
        }
    }
    Ok(())
}

/// A zap of everything does not tell what was there when it began from what came since.
///
/// K23.
#[test]
fn drains_new_roots() {
    catches(Defect::DrainsNewRoots, a_drain_ends_while_vcpus_fault);
}

/// Scenario S5: a vCPU changes between two roles many times, as a guest does that switches a mode
/// bit. After the first round nothing faults and no table page is taken. Then the VM is taken down
/// in the middle of a drain, and every page comes back.
fn roots_outlive_their_users() -> Verdict {
    let vm = Mmu::new(TestHost::default(), &Config::new(npt(), 2)).unwrap();
    let frames = Frames::new(Level::Size4K);
    let mut worker = vm.worker().unwrap();
    worker.create_slot(&backed(1, range(0, 0x400))).unwrap();
    let mut vcpus = [0, 1].map(|id| vm.vcpu(VcpuId(id)).unwrap());
    let mut cpus = [0, 1].map(|id| Processor::new(id, vm.host()));
    let roles = [0, 1].map(|flavour| Role { flavour, ..Role::PLAIN });
    let mut round = || -> Verdict {
        for role in roles {
            for (vcpu, cpu) in vcpus.iter_mut().zip(&mut cpus) {
                vcpu.set_role(role);
                cpu.touch(vcpu, &frames, 3, Access::WRITE)?;
            }
        }
        Ok(())
    };
    round()?;
    let (before, pages) = (vm.stats(), vm.host().in_use());
    for n in 0..1000 {
        round()?;
        let (now, in_use) = (vm.stats(), vm.host().in_use());
        ensure((now.mapped, now.tables, in_use) == (before.mapped, before.tables, pages), || {
            format!("round {n}: {in_use} table pages, {:?} mapped", now.mapped)
        })?;
    }
    let mut drain = worker.invalidate_roots();
    ensure(worker.drain(&mut drain, 2) == Progress::More, || "drained at once".to_owned())?;
    drop((worker, vcpus));
    let host = vm.teardown();
    ensure(host.in_use() == 0, || format!("{} pages lost", host.in_use()))
}

/// A root goes when a vCPU leaves it, and every change of a mode bit builds the tables anew.
///
/// K29, S5.
#[test]
fn root_dies_with_its_user() {
    catches(Defect::RootDiesWithItsUser, roots_outlive_their_users);
}

/// Two address spaces have other memory at the same place.
fn a_role_has_its_own_tables() -> Verdict {
    let vm = Mmu::new(TestHost::default(), &Config::new(npt(), 1)).unwrap();
    let frames = Frames::new(Level::Size4K);
    let mut vcpu = vm.vcpu(VcpuId(0)).unwrap();
    vm.worker().unwrap().create_slot(&backed(1, range(0, 0x400))).unwrap();
    let other = SlotSpec {
        id: SlotId(2),
        space: AddressSpace::Smm,
        source: vmmu::slot::Source::Backed { backing: 7, first: 0x1000 },
        ..backed(2, range(0, 0x400))
    };
    vm.worker().unwrap().create_slot(&other).unwrap();
    let mut cpu = Processor::new(0, vm.host());
    for (space, expected) in {
        let [normal, smm] = AddressSpace::ALL;
        [(normal, 3), (smm, 0x1003), (normal, 3)]
    } {
        vcpu.set_role(Role { space, flavour: 0 });
        let frame = cpu.touch(&mut vcpu, &frames, 3, Access::WRITE)?;
        ensure(frame == expected + Frames::OFFSET, || format!("{space:?}: frame {frame:#x}"))?;
    }
    Ok(())
}

/// Tables are found for reuse without comparing what they were made for.
///
/// K14.
#[test]
fn role_blind_reuse() {
    catches(Defect::RoleBlindReuse, a_role_has_its_own_tables);
}
