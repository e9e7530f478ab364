//! Entries that are overwritten, and tables that are lost with them.

use vmmu::addr::{Level, Pfn};
use vmmu::entry::{Access, MemoryType};
use vmmu::host::{HostFrame, VcpuId};
use vmmu::internals::Defect;
use vmmu::{Config, Mmu, Processor as Number};
use vmmu::{FaultStep, Outcome};

use crate::catch::{Verdict, catches, ensure};
use crate::processor::{Met, Processor};
use crate::support::{Frames, TestHost, backed, fault_at, npt, range};

/// Two vCPUs fault on one page, and a backing that allocates on demand gives each a frame of its
/// own. The first stays: the guest has written to it.
fn the_first_of_two_frames_stays() -> Verdict {
    let vm = Mmu::new(TestHost::default(), &Config::new(npt(), 2)).unwrap();
    let mut vcpus = [0, 1].map(|id| vm.vcpu(VcpuId(id)).unwrap());
    vm.worker().unwrap().create_slot(&backed(1, range(0, 0x400))).unwrap();
    let mut requests = Vec::new();
    for (n, vcpu) in vcpus.iter_mut().enumerate() {
        vcpu.reserve(8).unwrap();
        vcpu.load_root().unwrap();
        drop(vcpu.before_enter(Number(n as u32)).unwrap());
        match vcpu.begin_fault(fault_at(3, Access::WRITE)) {
            FaultStep::Resolve(request) => requests.push(request),
            other => return Err(format!("no request: {other:?}")),
        }
    }
    let mut outcomes = Vec::new();
    for (frame, (vcpu, request)) in [0x1000, 0x2000].into_iter().zip(vcpus.iter_mut().zip(requests))
    {
        let (access, memory) = (Access::all(), MemoryType::WriteBack);
        let found = HostFrame { pfn: Pfn(frame), level: Level::Size4K, access, memory };
        outcomes.push(vcpu.complete(crate::support::resolve(request, found)).unwrap());
    }
    ensure(outcomes == [Outcome::Fixed(Level::Size4K), Outcome::Spurious], || {
        format!("two faults on one page end as {outcomes:?}")
    })?;
    let mut cpu = Processor::new(1, vm.host());
    let met = cpu.run(&mut vcpus[1], 3, true);
    ensure(met == Met::Frame(0x1000), || format!("the page has moved: {met:?}"))
}

/// The second of two faults on one page replaces the first one's frame, and what was written to
/// that is lost.
///
/// B2.
#[test]
fn replaces_present_leaf() {
    catches(Defect::ReplacesPresentLeaf, the_first_of_two_frames_stays);
}

/// Every table page that was taken comes back.
fn every_table_comes_back() -> Verdict {
    let vm = Mmu::new(TestHost::default(), &Config::new(npt(), 1)).unwrap();
    let frames = Frames::new(Level::Size4K);
    let (mut worker, mut vcpu) = (vm.worker().unwrap(), vm.vcpu(VcpuId(0)).unwrap());
    worker.create_slot(&backed(1, range(0, 0x1000))).unwrap();
    let mut cpu = Processor::new(0, vm.host());
    for table in 0..8 {
        cpu.touch(&mut vcpu, &frames, table * 0x200, Access::READ)?;
    }
    worker.zap_all();
    let tables = vm.stats().tables;
    drop((worker, vcpu));
    let host = vm.teardown();
    ensure((tables, host.in_use()) == (0, 0), || {
        format!("{tables} tables are counted, {} pages are out", host.in_use())
    })
}

/// An upper entry becomes absent, and the tables below it are forgotten.
///
/// B8.
#[test]
fn loses_detached_table() {
    catches(Defect::LosesDetachedTable, every_table_comes_back);
}
