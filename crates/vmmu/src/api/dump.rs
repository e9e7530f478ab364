//! The tables as text: one line for each run of leaves with the same properties and consecutive
//! frames.
//!
//! It works while the guest runs: each table page is copied inside a section and written outside of
//! it, so a line shows what was true of one page at one time.

use alloc::vec::Vec;
use core::fmt::{self, Write};

use crate::addr::{ENTRIES, Gfn, GfnRange, Level, Pfn};
use crate::api::hold::Hold;
use crate::api::worker::Worker;
use crate::entry::cell::Value;
use crate::entry::leaf::{Leaf, Tracked, Writable};
use crate::entry::state::State;
use crate::error::NoMemory;
use crate::state::root::{Root, RootName};
use crate::state::slot::AddressSpace;
use crate::state::slot_set::SlotSet;
use crate::table::page::Then;
use crate::table::walk::{Cursor, Order, Piece, PieceKey, Target, WalkStep};

/// Why a dump ended early.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DumpError {
    /// The writer failed.
    Write,
    /// No memory for the copy of one table.
    NoMemory,
}

impl fmt::Display for DumpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DumpError::Write => "the writer failed",
            DumpError::NoMemory => "no memory for the copy of a table",
        })
    }
}

impl core::error::Error for DumpError {}

impl From<fmt::Error> for DumpError {
    fn from(_: fmt::Error) -> Self {
        DumpError::Write
    }
}

impl From<NoMemory> for DumpError {
    fn from(_: NoMemory) -> Self {
        DumpError::NoMemory
    }
}

/// One root.
struct One {
    name: RootName,
    space: AddressSpace,
}

impl Target for One {
    fn order(&self) -> Order {
        Order::Leaves
    }

    fn piece(&self, _: &SlotSet, from: PieceKey) -> Option<Piece> {
        let key = PieceKey::ONLY;
        (from <= key).then_some(Piece { key, space: self.space, range: GfnRange::ALL })
    }

    fn wants(&self, root: &Root) -> bool {
        root.name == self.name
    }
}

/// Consecutive leaves that differ only by their place.
#[derive(Clone, Copy)]
struct Run {
    start: Gfn,
    end: Gfn,
    level: Level,
    first: State,
}

impl Run {
    fn takes(&self, gfn: Gfn, level: Level, state: &State) -> bool {
        let next = self.end == gfn && self.level == level;
        next && match (self.first, *state) {
            (State::Leaf(a), State::Leaf(b)) => {
                let pfn = Pfn(a.pfn.0 + (gfn.0 - self.start.0));
                Leaf { pfn, ..a } == b
            }
            (State::Mmio { generation: a }, State::Mmio { generation: b }) => a == b,
            _ => false,
        }
    }
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pages = self.end.0 - self.start.0;
        write!(f, "  gfn {:#x}..{:#x} ", self.start.0, self.end.0)?;
        let leaf = match self.first {
            State::Leaf(leaf) => leaf,
            State::Mmio { generation } => return write!(f, "mmio, generation {generation}"),
            other => return write!(f, "{other:?}"),
        };
        let mark = |yes: bool, c: char| if yes { c } else { '-' };
        let w = match leaf.writable {
            Writable::Yes => 'w',
            Writable::Soft => 's',
            Writable::Hard => 'h',
            Writable::Never => '-',
        };
        write!(
            f,
            "-> pfn {:#x}..{:#x} {} {}{w}{} {}{} {:?}",
            leaf.pfn.0,
            leaf.pfn.0 + pages,
            self.level,
            mark(leaf.read, 'r'),
            mark(leaf.exec, 'x'),
            mark(leaf.accessed, 'A'),
            mark(leaf.dirty, 'D'),
            leaf.memory,
        )?;
        if leaf.tracked == Tracked::Yes { f.write_str(" tracked") } else { Ok(()) }
    }
}

impl<M: Hold> Worker<M> {
    /// Writes all tables as text. `s` instead of `w`: protected softly; `h`: protected hard.
    pub fn dump(&mut self, out: &mut dyn Write) -> Result<(), DumpError> {
        let mut local = self.seat.local();
        let core = local.core();
        let mut copy: Vec<(Gfn, Level, Value)> = Vec::new();
        copy.try_reserve_exact(ENTRIES).map_err(|_| NoMemory)?;
        for root in core.roots.iter() {
            let name = root.name;
            writeln!(
                out,
                "root {} generation {}: {:?}, {:?}, top table at pfn {}",
                name.place, name.generation, root.phase, root.role, root.top
            )?;
            let one = One { name, space: root.role.space };
            let mut cursor = Cursor::begin();
            let mut run: Option<Run> = None;
            loop {
                copy.clear();
                let step = local.section().step(&mut cursor, &one, &mut |page| {
                    for entry in page.entries() {
                        // There is room for a whole table.
                        if entry.value() != core.format.empty() && copy.len() < copy.capacity() {
                            copy.push((entry.range().start(), entry.level(), entry.value()));
                        }
                    }
                    Then::Next
                });
                for (gfn, level, value) in copy.drain(..) {
                    let state = core.format.read(value, level);
                    let end = gfn.leaf(level).end();
                    match &mut run {
                        Some(run) if run.takes(gfn, level, &state) => run.end = end,
                        other => {
                            if let Some(done) = other.take() {
                                writeln!(out, "{done}")?;
                            }
                            *other = Some(Run { start: gfn, end, level, first: state });
                        }
                    }
                }
                if matches!(step, WalkStep::Done | WalkStep::VisitedLast) {
                    break;
                }
            }
            if let Some(done) = run {
                writeln!(out, "{done}")?;
            }
        }
        Ok(())
    }
}
