//! A vCPU's thread: it runs a guest on the software processors, and faults.

use std::sync::TryLockError;
use std::sync::atomic::Ordering;

use machine::{Context, Exit, Paging, Reached};
use vmmu::addr::{Gpa, Hpa, Level, Pfn};
use vmmu::entry::Access as Wants;
use vmmu::slot::AddressSpace;
use vmmu::{Cause, EnterError, Flush, LoadError, Mmu, Outcome, PageFault, Role, Worker};

use crate::Violation;
use crate::arena::{Arena, Owner};
use crate::guest_tables;
use crate::host::Host;
use crate::model::{Pages, SITES, SUM};
use crate::op::{Access, At, Op, Touch};
use crate::play::{Actor, Look, SECOND_ACCESSES, Spot, fault_at};
use crate::vcpu::{Asked, Vcpu};

/// Faults on one access before the guest gives it up for now.
const PATIENCE: u32 = 6;

/// A vCPU and its thread.
pub struct Guest<'p, 'r, 'vm> {
    pub actor: Actor<'p, 'r, 'vm>,
    pub vcpu: Vcpu<'vm>,
    /// For what the library does on its own in the thread of this vCPU.
    pub worker: Worker<&'vm Mmu<Host>>,
    /// Its number among the vCPUs.
    pub number: usize,
    pub role: Role,
}

/// Why the guest was left.
enum Left {
    /// All accesses are done.
    Done,
    /// An interrupt.
    Kicked,
    /// A fault.
    Fault(Exit),
}

/// What an access wants, as the library says it.
fn wants(touch: Touch) -> Wants {
    match touch {
        Touch::Read => Wants::READ,
        Touch::Write | Touch::Add => Wants::WRITE,
        Touch::Fetch => Wants::EXEC,
    }
}

fn kind(touch: Touch) -> machine::Access {
    match touch {
        Touch::Read => machine::Access::Read,
        Touch::Write | Touch::Add => machine::Access::Write,
        Touch::Fetch => machine::Access::Fetch,
    }
}

impl<'vm> Guest<'_, '_, 'vm> {
    /// Does one operation.
    pub fn act(&mut self, op: &Op) -> Result<(), Violation> {
        // What may come to nothing says so itself.
        let says_itself = matches!(
            op,
            Op::Read { .. } | Op::Write { .. } | Op::Starve { .. } | Op::Series { .. }
        );
        if !says_itself {
            self.actor.ran(op.name());
        }
        let space = self.role.space as u8;
        match op {
            Op::Run { processor, accesses } => self.run(*processor, accesses),
            Op::Role(n) => {
                let roles = [(0, 0), (0, 1), (1, 0)];
                let (space, flavour) = roles[*n as usize % roles.len()];
                self.role = Role { space: AddressSpace::ALL[space], flavour };
                self.vcpu.set_role(self.role);
                Ok(())
            }
            Op::Prefault { at, write } => {
                let wants = if *write { Wants::WRITE } else { Wants::READ };
                let spot = Spot::of(space, *at);
                self.actor.fault(&mut self.vcpu, spot, wants, Cause::Prefault, None).map(drop)
            }
            Op::Post { at, write, park } => self.post(Spot::of(space, *at), *write, *park),
            Op::Series { at, pages, write } => {
                let touch = if *write { Touch::Write } else { Touch::Read };
                let is_done = self.series(*at, u32::from(*pages), touch)?;
                self.actor.did(op, is_done);
                Ok(())
            }
            Op::Starve { at, tables, .. } => {
                let (spot, tables) = (Spot::of(space, *at), u64::from(*tables));
                let wants = Wants::READ;
                let fault =
                    self.actor.fault(&mut self.vcpu, spot, wants, Cause::Guest, Some(tables));
                self.actor.did(op, fault? == Outcome::OutOfMemory);
                Ok(())
            }
            op => self.actor.access_by_library(&mut self.worker, space, op),
        }
    }

    /// The first half of a fault, for somebody else to complete.
    fn post(&mut self, spot: Spot, write: bool, park: bool) -> Result<(), Violation> {
        let play = self.actor.play;
        let wants = if write { Wants::WRITE } else { Wants::READ };
        let look = play.look(spot);
        let asked = match self.vcpu.begin_fault(fault_at(spot, wants, Cause::Guest)) {
            Ok(Asked::Request(request)) if park => Asked::Parked(request.park()),
            Ok(asked) => asked,
            Err(None) => return Ok(()),
            Err(Some(outcome)) => {
                self.actor.met(outcome.name());
                let answered = crate::store::Answered::Nothing;
                return play.judge(outcome, wants, &play.since(look), answered, false);
            }
        };
        // One too many is dropped, or closed, when the lock is not held.
        match asked {
            Asked::Request(request) => {
                let mut one_more = Some(request);
                let mut posted = play.posted.lock().expect("no panic under it");
                if posted.len() < 3 {
                    posted.extend(one_more.take());
                }
                drop(posted);
            }
            Asked::Parked(parked) => {
                let mut one_more = Some(parked);
                let mut all = play.parked.lock().expect("no panic under it");
                if all.len() < 5 {
                    all.extend(one_more.take().map(|parked| (parked, None)));
                }
                drop(all);
                if let Some(parked) = one_more {
                    drop(self.worker.unpark(parked));
                }
            }
        }
        Ok(())
    }

    /// Runs over pages in a row. Whether they were in a slot of a backing whose leaves are 4 KiB.
    fn series(&mut self, at: At, pages: u32, touch: Touch) -> Result<bool, Violation> {
        let (play, space) = (self.actor.play, self.role.space as u8);
        let sites: Vec<usize> = (0..SITES.len()).filter(|n| SITES[*n].space == space).collect();
        let is_small = |n: &usize| {
            let occupant = play.places.occupant(sites[*n]);
            let is_small = occupant.is_some_and(|o| o.largest == Level::Size4K && !o.is_dying);
            is_small && matches!(SITES[sites[*n]].views[0].pages, Pages::Blocks(_))
        };
        let wanted = at.site as usize % sites.len();
        let found = (wanted..sites.len()).chain(0..wanted).find(is_small);
        let site = found.unwrap_or(wanted) as u8;
        let accesses = (0..pages).map(|n| {
            let at = At { site, page: at.page.wrapping_add(n) };
            Access { touch, at, word: 1, speculates: false, lag: 0 }
        });
        let accesses: Vec<_> = accesses.collect();
        self.run(at.page as u8, &accesses)?;
        Ok(found.is_some())
    }

    /// Runs the guest until all accesses are done or given up.
    fn run(&mut self, wanted: u8, accesses: &[Access]) -> Result<(), Violation> {
        let (mut next, mut tries) = (0, 0);
        while let Some(access) = accesses.get(next) {
            let done = next;
            let left = self.enter(wanted, accesses, &mut next)?;
            if next > done {
                tries = 0;
            }
            match left {
                None => self.actor.play.turns.relax(),
                Some(Left::Done) => return Ok(()),
                Some(Left::Kicked) => self.actor.met("interrupt"),
                Some(Left::Fault(exit)) => {
                    let access = accesses.get(next).unwrap_or(access);
                    let spot = Spot::of(self.role.space as u8, access.at);
                    if !self.fix(spot, access.touch, exit)? {
                        next += 1;
                        tries = 0;
                    }
                }
            }
            if self.actor.play.turns.is_over() {
                return Ok(());
            }
            tries += 1;
            if tries > PATIENCE {
                self.actor.met("given up");
                (next, tries) = (next + 1, 0);
            }
        }
        Ok(())
    }

    /// In the guest, once. `None`: it could not be entered just now.
    fn enter(
        &mut self,
        wanted: u8,
        accesses: &[Access],
        next: &mut usize,
    ) -> Result<Option<Left>, Violation> {
        let actor = &mut self.actor;
        let (play, space) = (actor.play, self.role.space as u8);
        let host = play.vm.host();
        // There are more processors than vCPUs.
        let processors = play.processors;
        let mut n = wanted as usize % processors.len();
        let mut processor = loop {
            match processors[n].try_lock() {
                Ok(processor) => break processor,
                Err(TryLockError::Poisoned(processor)) => break processor.into_inner(),
                Err(TryLockError::WouldBlock) => n = (n + 1) % processors.len(),
            }
            play.turns.point();
        };
        match self.vcpu.load_root() {
            Ok(()) => {}
            Err(LoadError::RootsBusy) => return Ok(None),
            Err(why) => return Err(actor.bad(format!("a vCPU has no root: {why}"))),
        }
        let inside = match self.vcpu.before_enter(vmmu::Processor(n as u32)) {
            Ok(inside) => inside,
            Err(EnterError::LoadRoot) => {
                actor.met("root gone before the entry");
                return Ok(None);
            }
            Err(why) => return Err(actor.bad(format!("a vCPU cannot enter: {why}"))),
        };
        let tag = self.number as u16 + 1;
        let Hpa(root) = inside.root();
        // Every other guest uses paging where its tables are, and the others in one of their roles:
        // between two roles nothing of the one's translations may be left for the other.
        let pages = space == 0 && (self.number % 2 == 1 || self.role.flavour == 1);
        let paging = if pages { play.paging } else { Paging::Off };
        let context = Context { tag, nested: play.nested, root, paging };
        if inside.flush() == Flush::Needed {
            processor.invalidate_tag(tag);
            processor.invalidate_root(root);
            actor.met("flush on entry");
        }
        let mut lag = accesses.get(*next).map_or(0, |access| access.lag);
        let left = loop {
            let Some(access) = accesses.get(*next) else { break Left::Done };
            while play.is_ahead(false) && !host.is_kicked(self.number) {
                play.turns.relax();
            }
            if host.is_kicked(self.number) {
                if lag == 0 {
                    break Left::Kicked;
                }
                lag -= 1;
            }
            let spot = Spot::of(space, access.at);
            if access.speculates {
                let elsewhere = Spot::of(space, crate::op::At { page: 67, ..access.at });
                processor.speculate(play.arena, &context, elsewhere.gpa().0);
                actor.met("speculation");
            }
            let look = play.look(spot);
            let address = spot.gpa().0 + 8 * u64::from(access.word % 16);
            match processor.translate(play.arena, &context, address, kind(access.touch)) {
                Ok(reached) if reached.gpa >> 12 != spot.gfn => {
                    return Err(actor.bad(format!("gfn {:#x} became {reached:x?}", spot.gfn)));
                }
                Ok(reached) => {
                    play.turns.point();
                    actor.note_space(space, SECOND_ACCESSES);
                    actor.touch(access, look, &reached)?;
                    *next += 1;
                }
                Err(Exit::Bus { address }) => {
                    return Err(actor.bad(format!("the tables lead to {address:#x}: no memory")));
                }
                Err(exit) => break Left::Fault(exit),
            }
            play.turns.point();
        };
        inside.after_exit();
        drop(processor);
        host.take_kick(self.number);
        Ok(Some(left))
    }

    /// What the hypervisor does about a fault. `false`: the access is not to be repeated.
    fn fix(&mut self, spot: Spot, touch: Touch, exit: Exit) -> Result<bool, Violation> {
        let actor = &self.actor;
        let (wants, gpa) = match exit {
            Exit::NestedFault(fault) => {
                let wants = match (fault.code & 1 << 4 != 0, fault.code & 1 << 1 != 0) {
                    (true, _) => Wants::EXEC,
                    (_, true) => Wants::WRITE,
                    _ => Wants::READ,
                };
                (wants, fault.gpa)
            }
            Exit::EptViolation { qualification, gpa } => {
                let wants = match qualification & 7 {
                    4 => Wants::EXEC,
                    1 => Wants::READ,
                    _ => Wants::WRITE,
                };
                (wants, gpa)
            }
            Exit::EptMisconfiguration { gpa } => (self::wants(touch), gpa),
            other => return Err(actor.bad(format!("the processor says {other:?}"))),
        };
        if guest_tables::holds(gpa >> 12) {
            return self.fix_table(gpa, wants);
        }
        if gpa >> 12 != spot.gfn || wants != self::wants(touch) {
            return Err(actor.bad(format!("{touch:?} of gfn {:#x} met {exit:x?}", spot.gfn)));
        }
        actor.ran("fault");
        let outcome = actor.fault(&mut self.vcpu, spot, wants, Cause::Guest, None)?;
        if matches!(outcome, Outcome::Busy(_)) {
            self.actor.play.turns.relax();
        }
        Ok(matches!(outcome, Outcome::Fixed(_) | Outcome::Spurious | Outcome::Busy(_)))
    }

    /// A table of the guest is not mapped yet, or not for its flags.
    fn fix_table(&mut self, gpa: u64, wants: Wants) -> Result<bool, Violation> {
        self.actor.ran("fault on a guest's table");
        let fault = PageFault { gpa: Gpa(gpa), access: wants, cause: Cause::Guest };
        match self.vcpu.handle_fault(&self.actor.hands, fault) {
            Outcome::Fixed(_) | Outcome::Spurious | Outcome::Busy(_) => Ok(true),
            other => Err(self.actor.bad(format!("a guest's table at {gpa:#x}: {other:?}"))),
        }
    }
}

impl Actor<'_, '_, '_> {
    /// The access itself, through a translation; judged by what the model says.
    ///
    /// While the vCPU is in the guest nobody who has to wait for its translations may go on. So
    /// from here to the end of the access the page stays where it is, and so does everything the
    /// model says of it.
    fn touch(&mut self, access: &Access, look: Look, reached: &Reached) -> Result<(), Violation> {
        let play = self.play;
        let (pfn, touch) = (Pfn(reached.hpa >> 12), access.touch);
        let owner = play.arena.owner(pfn.0);
        if owner == Some(Owner::Trap) {
            return Err(self.bad("a walk went through a released table"));
        }
        let page = self.judge_frame(pfn, &play.since(look))?;
        self.ran(match touch {
            Touch::Read => "guest reads",
            Touch::Write => "guest writes",
            Touch::Fetch => "guest fetches",
            Touch::Add => "guest adds",
        });
        let Some(page) = page else { return self.touch_zeros(access, look, pfn) };
        let words = &play.model.pages[page];
        let wrong = |what: String| {
            Violation::new(format!(
                "page {page}, {touch:?} through frame {pfn} ({}): {what}",
                if reached.cached { "from the TLB" } else { "walked" }
            ))
        };
        let is_write = matches!(touch, Touch::Write | Touch::Add);
        if is_write && play.store.protection.is_sealed(page) {
            return Err(wrong("a zap that made it read-only had returned".into()));
        }
        match touch {
            Touch::Read | Touch::Fetch => {
                let word = access.word as usize % 16;
                let before = words.before(word);
                let value = play.arena.word(pfn.0, word).load(Ordering::SeqCst);
                words.judge(word, before, value).map_err(wrong)?;
            }
            Touch::Write => {
                let (word, value) = (self.word(), self.next_value());
                let before = words.before(word);
                let epoch = words.start(word, value);
                let old = play.arena.word(pfn.0, word).swap(value, Ordering::SeqCst);
                words.judge(word, before, old).map_err(wrong)?;
                words.complete(word, value, epoch);
            }
            Touch::Add => {
                let before = words.before(SUM);
                words.start_adding(SUM);
                let old = play.arena.word(pfn.0, SUM).fetch_add(1, Ordering::SeqCst);
                words.judge(SUM, before, old).map_err(wrong)?;
                words.complete_adding(SUM);
            }
        }
        if !access_allowed(touch, &play.since(look)) {
            return Err(wrong("a page that is only to be read was written".into()));
        }
        match play.arena.owner(pfn.0) {
            now if now == owner => Ok(()),
            now => Err(wrong(format!("it became {now:?} under the access"))),
        }
    }

    /// The frame of zeros stands for a page nobody has written.
    fn touch_zeros(&mut self, access: &Access, look: Look, pfn: Pfn) -> Result<(), Violation> {
        if matches!(access.touch, Touch::Write | Touch::Add) {
            return Err(self.bad("the shared frame of zeros can be written"));
        }
        let Some(page) = self.play.since(look).only() else { return Ok(()) };
        let word = access.word as usize % 16;
        let before = self.play.model.pages[page].before(word);
        debug_assert_eq!(pfn.0, Arena::ZEROS);
        let judged = self.play.model.pages[page].judge(word, before, 0);
        judged.map_err(|what| self.bad(format!("page {page} shares the frame of zeros: {what}")))
    }
}

fn access_allowed(touch: Touch, seen: &crate::play::Seen) -> bool {
    !matches!(touch, Touch::Write | Touch::Add) || seen.some(false)
}
