//! The way from a linear address to a host-physical one: from what is cached, or by walks.

use crate::cache::{Kind, Line, Owner};
use crate::entry::within;
use crate::exit::Failed;
use crate::walk::{Effort, Mapped, Purpose};
use crate::{Access, Context, Exit, Long, Memory, Nested, Paging, Processor, Reached, page_fault};

impl Context {
    /// Whose lines for linear addresses are.
    pub(crate) fn linear(&self) -> Owner {
        match (&self.nested, &self.paging) {
            (Nested::Npt(_), Paging::Off) => {
                Owner { kind: Kind::AmdUnpaged, tag: self.tag, root: 0 }
            }
            (Nested::Npt(_), Paging::Long(_)) => {
                Owner { kind: Kind::AmdLinear, tag: self.tag, root: 0 }
            }
            (Nested::Ept(_), _) => {
                Owner { kind: Kind::IntelLinear, tag: self.tag, root: self.root }
            }
        }
    }

    /// Whether there are lines for linear addresses: not on Intel while the guest does not page.
    fn caches_linear(&self) -> bool {
        !self.nested.is_intel() || self.long().is_some()
    }

    fn long(&self) -> Option<&Long> {
        match &self.paging {
            Paging::Off => None,
            Paging::Long(long) => Some(long),
        }
    }
}

impl Processor {
    /// Translates `address` for one access of the guest, as hardware would, and may keep what it
    /// learned. Sets accessed and dirty flags in the tables.
    ///
    /// `address` is linear, in bytes. The access must be made at once: a processor that has
    /// translated and then waited could as well have been interrupted.
    pub fn translate<M: Memory>(
        &mut self,
        memory: &M,
        context: &Context,
        address: u64,
        access: Access,
    ) -> Result<Reached, Exit> {
        self.counts.accesses += 1;
        let mut caches = true;
        loop {
            self.leaned = false;
            let effort = Effort { purpose: Purpose::Access, caches };
            match self.attempt(memory, context, address, access, effort) {
                Ok(reached) => return Ok(reached),
                Err(Failed::Lost) => self.counts.lost += 1,
                Err(Failed::Exit(exit @ (Exit::PmlFull | Exit::Bus { .. }))) => return Err(exit),
                // AMD: no fault from what is cached.
                Err(Failed::Exit(_)) if self.leaned && !context.nested.is_intel() => {}
                Err(Failed::Exit(exit)) => {
                    self.forget_after(context, address, exit);
                    return Err(exit);
                }
            }
            caches = false;
        }
    }

    fn attempt<M: Memory>(
        &mut self,
        memory: &M,
        context: &Context,
        address: u64,
        access: Access,
        effort: Effort,
    ) -> Result<Reached, Failed> {
        let wants = context.nested.access(access);
        let writes = access == Access::Write;
        let long = context.long();
        let permitted = |line: &Line| long.is_none_or(|long| long.permits(line.guest, access));
        let allowed = |line: &Line| line.nested.contains(wants.needs);
        let serves = |line: &Line| {
            let dirty = line.nested_dirty && line.guest_dirty;
            permitted(line) && allowed(line) && (!writes || dirty)
        };
        if effort.caches
            && context.caches_linear()
            && let Some(line) =
                self.translations.pick(&mut self.rng, &context.linear(), address, serves)
        {
            let gpa = line.gpa + within(address, line.shift);
            if serves(&line) {
                self.hit(memory, context, address, &line, long);
                return Ok(Reached {
                    hpa: line.hpa + within(address, line.shift),
                    gpa,
                    page: 1 << line.shift,
                    cached: true,
                });
            }
            if context.nested.is_intel() && self.rng.bool() {
                match long {
                    Some(long) if !permitted(&line) => {
                        return Err(long.fault(address, access, page_fault::PRESENT).into());
                    }
                    _ if !allowed(&line) => {
                        return Err(context.nested.forbidden(gpa, wants, line.nested).into());
                    }
                    _ => {}
                }
            }
        }
        let (gpa, mapped, line) = self.both(memory, context, address, access, effort)?;
        Ok(Reached { hpa: mapped.hpa, gpa, page: 1 << line.shift, cached: mapped.cached })
    }

    /// Walks the guest's tables, if it has any, and the nested ones for the final address.
    fn both<M: Memory>(
        &mut self,
        memory: &M,
        context: &Context,
        address: u64,
        access: Access,
        effort: Effort,
    ) -> Result<(u64, Mapped, Line), Failed> {
        let wants = match effort.purpose {
            Purpose::Speculation => context.nested.speculation(),
            _ => context.nested.access(access),
        };
        let paged = match context.long() {
            None => None,
            Some(long) => Some(self.walk_guest(memory, context, long, address, access, effort)?),
        };
        let gpa = paged.map_or(address, |paged| paged.gpa);
        let mapped = self.nested(memory, context, gpa, wants, effort)?;
        let shift = paged.map_or(mapped.shift, |paged| paged.shift.min(mapped.shift));
        let mut line = Line::new(context.linear(), address, shift, 0);
        line.hpa = mapped.hpa - within(address, shift);
        line.gpa = gpa - within(address, shift);
        line.nested = mapped.allows;
        line.nested_dirty = mapped.dirty;
        if let Some(paged) = paged {
            line.whole = paged.shift;
            line.guest = paged.allows;
            line.guest_dirty = paged.dirty;
            line.global = paged.global;
        }
        if context.caches_linear() {
            self.translations.keep_page(&mut self.rng, address, line);
        }
        Ok((gpa, mapped, line))
    }

    /// What an exit promises about the caches (Intel).
    fn forget_after(&mut self, context: &Context, address: u64, exit: Exit) {
        if let Exit::EptViolation { gpa, .. } = exit {
            self.translations.forget_address(&context.physical(), gpa);
            self.structures.forget_address(&context.physical(), gpa);
        }
        if context.nested.is_intel()
            && matches!(exit, Exit::EptViolation { .. } | Exit::PageFault { .. })
        {
            self.translations.forget_address(&context.linear(), address);
            self.structures.forget_address(&context.linear(), address);
        }
    }

    /// Walks for `address` although nobody asked: hardware may do that at any time while in the
    /// guest. Sets accessed flags, never the dirty flag of the page itself (but of pages in which
    /// the guest's tables are, where reading those counts as writing).
    pub fn speculate<M: Memory>(&mut self, memory: &M, context: &Context, address: u64) {
        self.counts.speculations += 1;
        let effort = Effort { purpose: Purpose::Speculation, caches: self.rng.bool() };
        // Whatever is in the way ends it.
        let _ = self.both(memory, context, address, Access::Read, effort);
    }
}
