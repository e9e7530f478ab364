//! Pages that are taken back one by one, while they are mapped and while somebody asks for them: does
//! the author's code invalidate, and is a page replaced inside of an invalidation only?

use fastrand::Rng;
use vmmu::addr::{Gfn, Level, Pfn};
use vmmu::entry::Access;
use vmmu::host::{Backing, GuestMemory, Host, Resolution, VcpuId};
use vmmu::slot::{AddressSpace, SlotId};
use vmmu::{Cause, FaultStep, Mmu, Outcome, PageFault, Role, VcpuMmu, Worker};

use crate::report::Breaches;
use crate::together::judged::Judged;
use crate::together::options::TogetherOptions;

/// Pages that are looked at one by one at the end.
const LOOKED_AT: usize = 32;

/// See the module.
pub struct TakingBack<'o, 'b, B> {
    options: &'o TogetherOptions,
    backing: &'b B,
    rng: Rng,
    /// Pages that stayed mapped.
    pub kept: Breaches,
    /// Pages that were mapped and replaced outside of an invalidation.
    pub replaced: Breaches,
    /// Pages that were mapped by a request of before.
    pub overtaken: Breaches,
    /// Pages that were mapped when they were taken back.
    pub mapped: u64,
    /// Pages that somebody had asked for.
    pub asked: u64,
}

impl<'o, 'b, B: Backing + GuestMemory> TakingBack<'o, 'b, B> {
    /// Nothing has been taken back yet.
    pub fn new(options: &'o TogetherOptions, backing: &'b B, rng: Rng) -> Self {
        let (kept, replaced, overtaken) = Default::default();
        TakingBack { options, backing, rng, kept, replaced, overtaken, mapped: 0, asked: 0 }
    }

    /// Looks at pages of the slot one by one; `Err` if that cannot be.
    pub fn look<H: Host>(
        &mut self,
        vm: &Mmu<Judged<'_, H>>,
        take_back: &mut impl FnMut(&mut Worker<&Mmu<Judged<'_, H>>>, u64),
    ) -> Result<(), String> {
        let mut worker = vm.worker().map_err(|error| format!("no worker: {error}"))?;
        let mut vcpu = vm.vcpu(VcpuId(0)).map_err(|error| format!("no vCPU: {error}"))?;
        // Every leaf is of one page from here on, so that what an invalidation has taken away shows
        // which pages it was about.
        let limited = worker.limit_slot(SlotId(0), Level::Size4K);
        limited.map_err(|error| format!("the slot cannot be limited: {error}"))?;
        for _ in 0..LOOKED_AT {
            let range = self.options.range;
            let gfn = Gfn(range.start().0 + self.rng.u64(..range.pages()));
            self.while_mapped(vm, &mut vcpu, &mut worker, gfn, take_back);
            self.while_asked(&mut vcpu, &mut worker, gfn, take_back);
        }
        Ok(())
    }

    /// Where the tables lead for a page.
    fn mapped<H: Host>(worker: &mut Worker<&Mmu<H>>, gfn: Gfn) -> Option<Pfn> {
        worker.translate(Role::PLAIN, gfn.gpa()).map(|there| Pfn(there.hpa.0 >> 12))
    }

    /// What the backing says of a page: `None` if it does not say.
    fn named(&self, gfn: Gfn) -> Option<Option<Pfn>> {
        match self.backing.find(&self.options.query(gfn, Access::READ)) {
            Resolution::Frame(frame) => Some(Some(frame.pfn)),
            Resolution::Hole | Resolution::Poisoned => Some(None),
            Resolution::Pending | Resolution::Retry => None,
        }
    }

    /// A page is taken back while it and those beside it are mapped.
    fn while_mapped<'v, H: Host>(
        &mut self,
        vm: &'v Mmu<Judged<'_, H>>,
        vcpu: &mut VcpuMmu<&'v Mmu<Judged<'_, H>>>,
        worker: &mut Worker<&'v Mmu<Judged<'_, H>>>,
        gfn: Gfn,
        take_back: &mut impl FnMut(&mut Worker<&'v Mmu<Judged<'_, H>>>, u64),
    ) {
        let around = [gfn.0.wrapping_sub(1), gfn.0, gfn.0 + 1].map(Gfn);
        let around =
            around.map(|near| Some(near).filter(|near| self.options.range.contains(*near)));
        for near in around.into_iter().flatten() {
            let (gpa, access) = (near.gpa(), Access::READ);
            let fault = PageFault { gpa, access, cause: Cause::Guest };
            let backing: &B = self.backing;
            let patience = self.options.patience;
            let mut asked = (0..patience).map(|_| vcpu.handle_fault(backing, fault));
            asked.find(|outcome| !matches!(outcome, Outcome::Busy(_)));
        }
        let [_, page, _] = around.map(|near| near.and_then(|near| Self::mapped(worker, near)));
        let before = vm.stats().invalidations;
        take_back(worker, self.options.page(gfn));
        let invalidates = vm.stats().invalidations > before;
        if page.is_some() {
            self.mapped += 1;
        }
        for near in around.into_iter().flatten() {
            let Some(is) = Self::mapped(worker, near) else { continue };
            let named = self.named(near);
            let is_replaced = named.is_some_and(|named| named != Some(is));
            // Said of this page by one rule alone.
            if near == gfn && (invalidates || !is_replaced) {
                self.kept.add(|| format!("{near:?} was taken back, and is mapped to {is}"));
            } else if is_replaced {
                self.replaced
                    .add(|| format!("{near:?} is mapped to {is}, and the backing names {named:?}"));
            }
        }
    }

    /// A page is taken back while a vCPU has asked for it and nothing is mapped.
    fn while_asked<'v, H: Host>(
        &mut self,
        vcpu: &mut VcpuMmu<&'v Mmu<Judged<'_, H>>>,
        worker: &mut Worker<&'v Mmu<Judged<'_, H>>>,
        gfn: Gfn,
        take_back: &mut impl FnMut(&mut Worker<&'v Mmu<Judged<'_, H>>>, u64),
    ) {
        worker.zap(AddressSpace::Normal, gfn.leaf(Level::Size4K));
        let fault = PageFault { gpa: gfn.gpa(), access: Access::READ, cause: Cause::Guest };
        if vcpu.load_root().is_err() || worker.reserve(0).is_err() {
            return;
        }
        let FaultStep::Resolve(request) = vcpu.begin_fault(fault) else { return };
        let query = request.query();
        let Resolution::Frame(found) = self.backing.find(&query) else { return };
        take_back(worker, self.options.page(gfn));
        self.asked += 1;
        let Ok(request) = request.resolve(query.answer(found)) else { return };
        let Ok(outcome) = worker.complete(request) else { return };
        let (is, named) = (Self::mapped(worker, gfn), self.named(gfn));
        let is_replaced = is.is_some() && named.is_some_and(|named| named != is);
        self.overtaken.add_if(is_replaced, || {
            format!("{gfn:?}: a request of before ended as {}, at {is:?}, and the backing names {named:?}", outcome.name())
        });
        // Nobody is to meet it.
        worker.zap(AddressSpace::Normal, gfn.leaf(Level::Size4K));
    }
}
