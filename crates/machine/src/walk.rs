//! The walks: through the nested tables for one guest-physical address, and through the guest's own
//! for a linear one, each of whose tables is reached through the nested ones.
//!
//! A flag is set by compare-exchange on the word that was read. If another writer was first,
//! nothing that was read counts any more and the walk begins again at the top.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::cache::{Kind, Line, Owner};
use crate::context::Flags;
use crate::entry::{Entry, base, offset, shift, within};
use crate::exit::Failed;
use crate::guest::{self, Long, page_fault};
use crate::want::{Part, Wants};
use crate::{Access, Allows, Context, Exit, Memory, Processor};

/// What a walk may do besides looking.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Purpose {
    /// The guest waits for it.
    Access,
    /// Nobody asked.
    Speculation,
    /// To see what the tables say: no flags, no caches, no counting.
    Peek,
}

/// How a walk is made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Effort {
    pub purpose: Purpose,
    /// Whether what is cached may be used.
    pub caches: bool,
}

impl Effort {
    pub const PEEK: Effort = Effort { purpose: Purpose::Peek, caches: false };

    fn learns(&self) -> bool {
        self.purpose != Purpose::Peek
    }
}

/// A guest-physical address, translated.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mapped {
    pub hpa: u64,
    pub shift: u8,
    pub allows: Allows,
    pub dirty: bool,
    pub cached: bool,
}

/// A linear address, translated to a guest-physical one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Paged {
    pub gpa: u64,
    pub shift: u8,
    pub allows: Allows,
    pub dirty: bool,
    pub global: bool,
}

impl Context {
    /// Whose lines for guest-physical addresses are.
    pub(crate) fn physical(&self) -> Owner {
        if self.nested.is_intel() {
            Owner { kind: Kind::IntelPhysical, tag: 0, root: self.root }
        } else {
            Owner { kind: Kind::AmdPhysical, tag: self.tag, root: 0 }
        }
    }
}

fn word<M: Memory>(memory: &M, address: u64) -> Result<&AtomicU64, Exit> {
    memory.word(address).ok_or(Exit::Bus { address })
}

impl Processor {
    /// Translates a guest-physical address.
    pub(crate) fn nested<M: Memory>(
        &mut self,
        memory: &M,
        context: &Context,
        gpa: u64,
        wants: Wants,
        effort: Effort,
    ) -> Result<Mapped, Failed> {
        let serves = |line: &Line| {
            line.nested.contains(wants.needs) && (!wants.dirties || line.nested_dirty)
        };
        if effort.caches
            && let Some(line) =
                self.translations.pick(&mut self.rng, &context.physical(), gpa, serves)
        {
            self.leaned = true;
            let allowed = line.nested.contains(wants.needs);
            if serves(&line) {
                self.hit(memory, context, gpa, &line, None);
                return Ok(Mapped {
                    hpa: line.hpa + within(gpa, line.shift),
                    shift: line.shift,
                    allows: line.nested,
                    dirty: line.nested_dirty,
                    cached: true,
                });
            }
            if !allowed && context.nested.is_intel() && self.rng.bool() {
                return Err(context.nested.forbidden(gpa, wants, line.nested).into());
            }
        }
        self.walk_nested(memory, context, gpa, wants, effort)
    }

    fn walk_nested<M: Memory>(
        &mut self,
        memory: &M,
        context: &Context,
        gpa: u64,
        wants: Wants,
        effort: Effort,
    ) -> Result<Mapped, Failed> {
        let nested = &context.nested;
        if !nested.reaches(gpa) {
            return Err(nested.absent(gpa, wants).into());
        }
        let owner = context.physical();
        let mut table = context.root;
        let mut level = nested.levels();
        let mut allows = Allows::all();
        if effort.learns() {
            self.counts.walks += 1;
        }
        if effort.caches
            && let Some(line) = self.structures.pick_upper(&mut self.rng, &owner, gpa)
        {
            self.leaned = true;
            self.counts.structures += 1;
            (table, level, allows) = (line.hpa, (line.shift - 12) / 9, line.nested);
        }
        let flags = nested.flags();
        loop {
            let entry = word(memory, table + offset(gpa, level))?;
            let found = read(memory, entry);
            match nested.entry(found, level) {
                Entry::Absent => return Err(nested.absent(gpa, wants).into()),
                Entry::Wrong => return Err(nested.wrong(gpa, wants).into()),
                Entry::Table(next, also) => {
                    allows &= also;
                    if let Some(flags) = flags {
                        self.flag(memory, context, entry, found, flags, None, effort)?;
                    }
                    if effort.learns() {
                        let line = Line::new(owner, gpa, shift(level), next);
                        self.structures.insert(&mut self.rng, Line { nested: allows, ..line });
                    }
                    (table, level) = (next, level - 1);
                }
                Entry::Leaf(page, also) => {
                    allows &= also;
                    if !allows.contains(wants.needs) {
                        return Err(nested.forbidden(gpa, wants, allows).into());
                    }
                    let mut dirty = true;
                    if let Some(flags) = flags {
                        dirty = wants.dirties || found & flags.dirty != 0;
                        let log = (wants.dirties && found & flags.dirty == 0).then_some(gpa);
                        self.flag(memory, context, entry, found, flags, log, effort)?;
                    }
                    let shift = shift(level);
                    if effort.learns() {
                        let line = Line::new(owner, gpa, shift, page);
                        let line =
                            Line { gpa: line.base, nested: allows, nested_dirty: dirty, ..line };
                        self.translations.keep_page(&mut self.rng, gpa, line);
                    }
                    let hpa = page + within(gpa, shift);
                    return Ok(Mapped { hpa, shift, allows, dirty, cached: false });
                }
            }
        }
    }

    /// Sets the accessed flag in an entry of the nested tables. With an address in `log` the dirty
    /// flag, which is clear, is set with it, and the address is logged.
    #[expect(clippy::too_many_arguments, reason = "one step of one algorithm, with its state")]
    fn flag<M: Memory>(
        &mut self,
        memory: &M,
        context: &Context,
        entry: &AtomicU64,
        found: u64,
        flags: Flags,
        log: Option<u64>,
        effort: Effort,
    ) -> Result<(), Failed> {
        let bits = flags.accessed | log.map_or(0, |_| flags.dirty);
        if found & bits == bits || !effort.learns() {
            return Ok(());
        }
        let mut place = None;
        if let Some(at) = self.log.filter(|_| context.nested.is_intel()) {
            // Even if only an accessed flag is to be set: the processor looks before it knows.
            if at.index > 511 {
                return Err(Exit::PmlFull.into());
            }
            place = Some(word(memory, at.address + u64::from(at.index) * 8)?);
        }
        exchange(memory, entry, found, found | bits)?;
        self.counts.accessed += u64::from(found & flags.accessed == 0);
        if let Some(gpa) = log {
            self.counts.dirtied += 1;
            if let (Some(place), Some(at)) = (place, &mut self.log) {
                place.store(base(gpa, 12), Ordering::Release);
                at.index = at.index.wrapping_sub(1);
                self.counts.logged += 1;
            }
        }
        Ok(())
    }

    /// Walks the guest's tables.
    pub(crate) fn walk_guest<M: Memory>(
        &mut self,
        memory: &M,
        context: &Context,
        long: &Long,
        address: u64,
        access: Access,
        effort: Effort,
    ) -> Result<Paged, Failed> {
        let nested = &context.nested;
        let asked = effort.purpose != Purpose::Speculation;
        let owner = context.linear();
        let looks = nested.table_read();
        let mut level = long.levels;
        let mut table = base(long.cr3, 12);
        let mut allows = Allows::all();
        let mut known = None;
        if effort.caches
            && let Some(line) = self.structures.pick_upper(&mut self.rng, &owner, address)
        {
            self.leaned = true;
            self.counts.structures += 1;
            (table, level, allows) = (line.gpa, (line.shift - 12) / 9, line.guest);
            known = Some(line.hpa);
        }
        loop {
            let entry_gpa = table + offset(address, level);
            let place = match known.take() {
                Some(page) => page + within(entry_gpa, 12),
                None => {
                    let mapped = self.nested(memory, context, entry_gpa, looks, effort)?;
                    if effort.learns() && level < long.levels {
                        let line =
                            Line::new(owner, address, shift(level + 1), base(mapped.hpa, 12));
                        let line =
                            Line { gpa: table, guest: allows, nested: mapped.allows, ..line };
                        self.structures.insert(&mut self.rng, line);
                    }
                    mapped.hpa
                }
            };
            let entry = word(memory, place)?;
            let found = read(memory, entry);
            match long.entry(found, level, !nested.is_intel()) {
                Entry::Absent => return Err(long.fault(address, access, 0).into()),
                Entry::Wrong => {
                    let why = page_fault::PRESENT | page_fault::RESERVED;
                    return Err(long.fault(address, access, why).into());
                }
                Entry::Table(next, also) => {
                    allows &= also;
                    let bits = guest::ACCESSED;
                    self.guest_flag(memory, context, entry_gpa, entry, found, bits, effort)?;
                    (table, level) = (next, level - 1);
                }
                Entry::Leaf(page, also) => {
                    allows &= also;
                    if asked && !long.permits(allows, access) {
                        return Err(long.fault(address, access, page_fault::PRESENT).into());
                    }
                    let writes = asked && access == Access::Write;
                    let bits = guest::ACCESSED | if writes { guest::DIRTY } else { 0 };
                    self.guest_flag(memory, context, entry_gpa, entry, found, bits, effort)?;
                    let shift = shift(level);
                    return Ok(Paged {
                        gpa: page + within(address, shift),
                        shift,
                        allows,
                        dirty: writes || found & guest::DIRTY != 0,
                        global: found & guest::GLOBAL != 0,
                    });
                }
            }
        }
    }

    /// Sets flags in an entry of the guest's tables.
    #[expect(clippy::too_many_arguments, reason = "one step of one algorithm, with its state")]
    fn guest_flag<M: Memory>(
        &mut self,
        memory: &M,
        context: &Context,
        gpa: u64,
        entry: &AtomicU64,
        found: u64,
        bits: u64,
        effort: Effort,
    ) -> Result<(), Failed> {
        if found & bits == bits || !effort.learns() {
            return Ok(());
        }
        match context.nested.table_update() {
            // Reading the entry was a write already.
            None => exchange(memory, entry, found, found | bits),
            Some(wants) => {
                let mapped = self.nested(memory, context, gpa, wants, effort)?;
                exchange(memory, word(memory, mapped.hpa)?, found, found | bits)
            }
        }
    }

    /// Counts a line that is used, and compares it with the tables if asked to.
    pub(crate) fn hit<M: Memory>(
        &mut self,
        memory: &M,
        context: &Context,
        address: u64,
        line: &Line,
        long: Option<&Long>,
    ) {
        self.counts.hits += 1;
        if !self.compare {
            return;
        }
        let wants = Wants { part: Part::Final, needs: line.nested, dirties: false };
        let now = match long {
            None => self.nested(memory, context, address, wants, Effort::PEEK),
            Some(long) => self
                .peek_guest(memory, context, long, address, line)
                .and_then(|gpa| self.nested(memory, context, gpa, wants, Effort::PEEK)),
        };
        let same = now.is_ok_and(|now| now.hpa == line.hpa + within(address, line.shift));
        self.counts.stale += u64::from(!same);
    }

    /// Where the guest's tables lead now, if they allow what the line does.
    fn peek_guest<M: Memory>(
        &mut self,
        memory: &M,
        context: &Context,
        long: &Long,
        address: u64,
        line: &Line,
    ) -> Result<u64, Failed> {
        // Asked as somebody to whom reading is never forbidden: only the entries decide.
        let paged = self.walk_guest(
            memory,
            context,
            &Long { user: false, smap: false, ..*long },
            address,
            Access::Read,
            Effort::PEEK,
        )?;
        if paged.allows.contains(line.guest) { Ok(paged.gpa) } else { Err(Failed::Lost) }
    }
}

fn read<M: Memory>(memory: &M, entry: &AtomicU64) -> u64 {
    memory.pause();
    entry.load(Ordering::Acquire)
}

fn exchange<M: Memory>(
    memory: &M,
    entry: &AtomicU64,
    found: u64,
    wanted: u64,
) -> Result<(), Failed> {
    memory.pause();
    match entry.compare_exchange(found, wanted, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => Ok(()),
        Err(_) => Err(Failed::Lost),
    }
}
