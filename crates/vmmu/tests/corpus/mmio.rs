//! What was remembered to be no memory, when the bits that say since when come round.

use vmmu::addr::{Gfn, Level};
use vmmu::entry::{Access, Format};
use vmmu::host::VcpuId;
use vmmu::internals::Defect;
use vmmu::slot::SlotId;
use vmmu::{Config, Mmu, Outcome};

use crate::catch::{Verdict, catches, ensure};
use crate::support::{Frames, TestHost, backed, fault_at, formats, range};

/// After so many changes of the slots an MMIO entry has the bits of the first generation again.
const ROUND: u64 = 1 << Format::GENERATION_BITS;

/// Where an MMIO entry is, and where a slot comes.
const HERE: u64 = 0x1000;

/// A slot is moved to where an MMIO entry was written a round ago. The move takes the slot away and
/// puts it there, so it steps over the tag zero.
fn a_move_steps_over_the_tag_zero() -> Verdict {
    for (name, format) in formats() {
        let mut vm = Mmu::new(TestHost::default(), &Config::new(format, 1)).unwrap();
        let (frames, fault) = (Frames::new(Level::Size4K), fault_at(HERE, Access::READ));
        {
            let mut vcpu = vm.vcpu(VcpuId(0)).unwrap();
            vm.worker().unwrap().create_slot(&backed(1, range(0x8000, 1))).unwrap();
            let outcome = vcpu.handle_fault(&frames, fault);
            ensure(outcome == Outcome::Emulate, || format!("{name}, a hole: {outcome:?}"))?;
        }
        vm.set_generation(ROUND - 1);
        let mut vcpu = vm.vcpu(VcpuId(0)).unwrap();
        vm.worker().unwrap().move_slot(SlotId(1), Gfn(HERE)).unwrap();
        let outcome = vcpu.handle_fault(&frames, fault);
        ensure(matches!(outcome, Outcome::Fixed(_)), || format!("{name}, memory: {outcome:?}"))?;
    }
    Ok(())
}

/// Old entries are taken away when the low bits are seen to be zero after a change, and at no other
/// time.
///
/// D-i3.
#[test]
fn looks_for_tag_zero() {
    catches(Defect::LooksForTagZero, a_move_steps_over_the_tag_zero);
}

/// A change of the slots has made the set of the next round current, and stands still before the
/// roots of the last round are replaced. A vCPU touches memory where an MMIO entry was written a
/// round ago.
fn a_fault_comes_before_the_renewal() -> Verdict {
    for (name, format) in formats() {
        let mut vm = Mmu::new(TestHost::default(), &Config::new(format, 1)).unwrap();
        let (frames, fault) = (Frames::new(Level::Size4K), fault_at(HERE, Access::READ));
        {
            let mut vcpu = vm.vcpu(VcpuId(0)).unwrap();
            let outcome = vcpu.handle_fault(&frames, fault);
            ensure(outcome == Outcome::Emulate, || format!("{name}, a hole: {outcome:?}"))?;
            vm.worker().unwrap().create_slot(&backed(1, range(HERE, 1))).unwrap();
        }
        vm.set_generation(ROUND - 1);
        let mut vcpu = vm.vcpu(VcpuId(0)).unwrap();
        let mut participant = vm.participant().unwrap();
        let mut guard = participant.slots();
        guard.add(&backed(2, range(0x8000, 1))).unwrap();
        let outcome = vcpu.handle_fault(&frames, fault);
        ensure(matches!(outcome, Outcome::Fixed(_)), || format!("{name}, memory: {outcome:?}"))?;
        drop(guard);
    }
    Ok(())
}

/// Between the change and the renewal, and for ever where the renewal does not come, entries of the
/// round before speak.
///
/// D-i2.
#[test]
fn believes_across_wrap() {
    catches(Defect::BelievesAcrossWrap, a_fault_comes_before_the_renewal);
}
