//! Operations: what a thread does next. Each carries everything that was chosen at random, so a
//! list of them can be written down, shortened and run again.

use fastrand::Rng;
use serde::{Deserialize, Serialize};

/// What a guest does with a word of its memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Touch {
    /// Reads a word.
    Read,
    /// Writes its own word.
    Write,
    /// Fetches an instruction.
    Fetch,
    /// Adds 1 to the word that everybody adds to.
    Add,
}

/// Where: a site, or a place without memory, and a page of it. Both are cut down to what there
/// is where it is used.
///
/// Threads that are everywhere never meet. So most choices follow a *focus*, the same for all,
/// that moves on after a while.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct At {
    /// Which site of the address space; now and then none.
    pub site: u8,
    /// Which page of it.
    pub page: u32,
}

/// A site as the host names it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Where {
    /// A place in it.
    pub at: At,
    /// Which address space.
    pub space: u8,
}

/// One access of a guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Access {
    /// What.
    pub touch: Touch,
    /// Where.
    pub at: At,
    /// Which word, where it matters.
    pub word: u8,
    /// The processor walks to another place too, for no reason.
    pub speculates: bool,
    /// Accesses done after an interrupt has come and before it is taken.
    pub lag: u8,
}

/// Pages of the host's memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Pages {
    /// Where the first may be seen by a guest.
    pub at: At,
    /// Which of the things that may be there.
    pub view: u8,
    /// How many at most.
    pub count: u16,
}

/// What the host does to pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Change {
    /// Puts it into another frame of the pool.
    Move,
    /// Puts it where it lies in one block with its neighbours.
    Home,
    /// Takes the frame and keeps the contents.
    Steal,
    /// Empties it; it shares the frame of zeros.
    Empty,
    /// Takes frame and contents.
    Punch,
    /// Nothing: an invalidation for no reason.
    Touch,
}

/// What takes several steps.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Begun {
    /// A zap.
    Zap,
    /// A drain of roots.
    Drain,
    /// A deletion of a slot.
    Deletion,
    /// A fault of which the first half is done.
    Parked,
}

/// How it is left.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Leaving {
    /// Dropped.
    Drop,
    /// Forgotten, without a drop.
    Forget,
    /// Put aside, and gone on with some time later.
    Aside,
}

impl Leaving {
    /// Lets a value go. None of those that are left has a drop today, so it is the same either way;
    /// should one get a drop, it is met with it and without.
    pub fn leave<T>(self, value: T) {
        match self {
            Leaving::Forget => std::mem::forget(value),
            Leaving::Drop | Leaving::Aside => drop(value),
        }
    }
}

/// One operation.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Op {
    /// A vCPU runs its guest, on one of the processors.
    Run { processor: u8, accesses: Vec<Access> },
    /// A vCPU changes its role.
    Role(u8),
    /// A page is mapped before it is used.
    Prefault { at: At, write: bool },
    /// The first half of a fault; somebody else will complete it. `park`: it becomes a name.
    Post { at: At, write: bool, park: bool },
    /// The second half of one that was posted.
    Complete,
    /// The host finds the frame for one that was parked; it will be completed some time later.
    FindParked,
    /// The second half of one that was parked and whose frame has been found.
    CompleteParked,
    /// A vCPU runs over pages in a row, in a slot whose leaves are 4 KiB if there is one.
    Series { at: At, pages: u8, write: bool },
    /// A fault, or a slot, while the host has only so many tables.
    Starve { at: At, tables: u8, huge: bool },
    /// The host does something to pages.
    Change { pages: Pages, change: Change },
    /// The host makes pages read-only by a zap, at once or in steps.
    Protect { pages: Pages, budget: u8, wide: bool },
    /// An invalidation that lasts begins; `again`: of a range that is under one.
    Long { pages: Pages, again: bool },
    /// One of those that last ends, whoever began it.
    End { which: u8 },
    /// An invalidation ends that was never begun.
    WrongEnd { pages: Pages },
    /// A slot is made where there is none.
    Create { site: Where, view: u8, largest: u8 },
    /// A slot is deleted at once.
    Delete { site: Where },
    /// A slot is deleted in steps; or the next steps of that.
    DeleteSome { site: Where, budget: u8 },
    /// A slot changes places.
    MoveSlot,
    /// The largest leaf of a slot changes.
    Limit { site: Where, largest: u8 },
    /// A change of slots that cannot be.
    Impossible { site: Where, which: u8 },
    /// Guest frames are zapped at once.
    Zap { at: At, pages: u16 },
    /// Guest frames are zapped in steps; or the next steps of that.
    ZapSome { at: At, pages: u16, budget: u8 },
    /// Guest frames are zapped in the smallest steps, or a slot is deleted in them, and between any
    /// two a slot comes and goes.
    Contend { at: At, pages: u16, deletes: bool },
    /// All roots become invalid and are drained in steps; or the next steps of that.
    Roots { budget: u8 },
    /// All roots go at once.
    ZapAll,
    /// What was begun is left half done.
    Abandon { what: Begun, how: Leaving },
    /// The next steps of whatever was begun and has not ended.
    Continue {
        /// Tables in one step.
        budget: u8,
    },
    /// The library reads a word of guest memory.
    Read { at: At, word: u8 },
    /// The library writes a word.
    Write { at: At },
    /// The library exchanges a word.
    Exchange { at: At },
    /// The library translates an address.
    Translate { at: At },
    /// Statistics and dump are asked for.
    Look,
}

impl Op {
    /// The name in reports.
    pub fn name(&self) -> &'static str {
        match self {
            Op::Run { .. } => "run",
            Op::Role(_) => "switch roots",
            Op::Prefault { .. } => "prefault",
            Op::Post { park: false, .. } => "post a fault",
            Op::Post { park: true, .. } => "park a fault",
            Op::Complete => "complete a posted fault",
            Op::FindParked => "find for a parked fault",
            Op::CompleteParked => "complete a parked fault",
            Op::Series { .. } => "series of 4K faults",
            Op::Starve { .. } => "starve",
            Op::Change { change, .. } => match change {
                Change::Move => "move pages",
                Change::Home => "gather pages",
                Change::Steal => "steal pages",
                Change::Empty => "share pages",
                Change::Punch => "punch pages out",
                Change::Touch => "invalidate in vain",
            },
            Op::Protect { .. } => "protect pages",
            Op::Long { .. } => "lasting invalidation",
            Op::End { .. } => "end of a lasting one",
            Op::WrongEnd { .. } => "end of none",
            Op::Create { .. } => "create slot",
            Op::Delete { .. } => "delete slot",
            Op::DeleteSome { .. } => "delete slot in steps",
            Op::MoveSlot => "move slot",
            Op::Limit { .. } => "limit slot",
            Op::Impossible { .. } => "impossible slot",
            Op::Zap { .. } => "zap",
            Op::ZapSome { .. } => "zap in steps",
            Op::Contend { deletes: false, .. } => "zap beside slot changes",
            Op::Contend { deletes: true, .. } => "deletion beside slot changes",
            Op::Roots { .. } => "invalidate roots, drain",
            Op::ZapAll => "zap all",
            Op::Abandon { what, how } => match (what, how) {
                (Begun::Zap, Leaving::Drop) => "drop a zap",
                (Begun::Zap, Leaving::Forget) => "forget a zap",
                (Begun::Zap, Leaving::Aside) => "zap put aside",
                (Begun::Drain, Leaving::Drop) => "drop a drain",
                (Begun::Drain, Leaving::Forget) => "forget a drain",
                (Begun::Drain, Leaving::Aside) => "drain put aside",
                (Begun::Deletion, Leaving::Drop) => "drop a deletion",
                (Begun::Deletion, Leaving::Forget) => "forget a deletion",
                (Begun::Deletion, Leaving::Aside) => "deletion put aside",
                (Begun::Parked, Leaving::Drop) => "drop a parked fault",
                (Begun::Parked, _) => "forget a parked fault",
            },
            Op::Continue { .. } => "continue",
            Op::Read { .. } => "library reads",
            Op::Write { .. } => "library writes",
            Op::Exchange { .. } => "library exchanges",
            Op::Translate { .. } => "translate",
            Op::Look => "statistics, dump",
        }
    }

    /// What a vCPU's thread does next.
    pub fn of_guest(rng: &mut Rng, focus: At) -> Op {
        match rng.u32(..200) {
            0..6 => Op::Role(rng.u8(..)),
            6..10 => Op::Prefault { at: At::any(rng, focus), write: rng.bool() },
            10..24 => {
                let park = rng.u8(..2) == 0;
                Op::Post { at: At::any(rng, focus), write: rng.bool(), park }
            }
            24..27 => Op::Starve { at: At::any(rng, focus), tables: rng.u8(..3), huge: rng.bool() },
            27..29 => Op::Read { at: At::any(rng, focus), word: rng.u8(..) },
            29 => Op::Write { at: At::any(rng, focus) },
            30..36 => {
                Op::Series { at: At::any(rng, focus), pages: rng.u8(8..40), write: rng.bool() }
            }
            _ => {
                // A few places again and again, so that there is something to remember.
                let places: [At; 3] = std::array::from_fn(|_| At::any(rng, focus));
                let accesses = (0..rng.usize(1..=30)).map(|_| {
                    let at = places[rng.usize(..3)];
                    Access { at, ..Access::any(rng, focus) }
                });
                let accesses = accesses.collect();
                Op::Run { processor: rng.u8(..), accesses }
            }
        }
    }

    /// What a thread of the host does next.
    pub fn of_host(rng: &mut Rng, focus: At) -> Op {
        match rng.u32(..1000) {
            0..90 => Op::Change { pages: Pages::any(rng, focus), change: Change::Move },
            90..180 => {
                // Now and then a whole block, or no huge leaf would ever come back.
                let pages = Pages::any(rng, focus);
                let count = if rng.bool() { 512 } else { pages.count };
                Op::Change { pages: Pages { count, ..pages }, change: Change::Home }
            }
            180..235 => Op::Change { pages: Pages::any(rng, focus), change: Change::Steal },
            235..270 => Op::Change { pages: Pages::any(rng, focus), change: Change::Empty },
            270..285 => Op::Change { pages: Pages::any(rng, focus), change: Change::Punch },
            285..310 => Op::Change { pages: Pages::any(rng, focus), change: Change::Touch },
            310..350 => Op::Long { pages: Pages::any(rng, focus), again: rng.u8(..4) == 0 },
            350..388 => Op::End { which: rng.u8(..) },
            388..394 => Op::WrongEnd { pages: Pages::any(rng, focus) },
            394..480 => {
                let (site, view, largest) = (Where::any(rng, focus), rng.u8(..), rng.u8(..));
                Op::Create { site, view, largest }
            }
            480..500 => Op::Delete { site: Where::any(rng, focus) },
            500..518 => Op::DeleteSome { site: Where::any(rng, focus), budget: rng.u8(1..5) },
            518..538 => Op::MoveSlot,
            538..563 => Op::Limit { site: Where::any(rng, focus), largest: rng.u8(..) },
            563..573 => Op::Impossible { site: Where::any(rng, focus), which: rng.u8(..) },
            573..593 => Op::Zap { at: At::any(rng, focus), pages: rng.u16(1..600) },
            593..613 => {
                let at = At::any(rng, focus);
                Op::ZapSome { at, pages: rng.u16(1..8000), budget: rng.u8(1..4) }
            }
            613..644 => Op::Roots { budget: rng.u8(1..8) },
            644..650 => Op::ZapAll,
            650..683 => {
                let (budget, wide) = (rng.u8(..4), rng.u8(..3) == 0);
                Op::Protect { pages: Pages::any(rng, focus), budget, wide }
            }
            683..691 => {
                let (at, pages) = (At::any(rng, focus), rng.u16(600..8000));
                Op::Contend { at, pages, deletes: rng.u8(..3) == 0 }
            }
            691..712 => Op::Read { at: At::any(rng, focus), word: rng.u8(..) },
            712..747 => Op::Write { at: At::any(rng, focus) },
            747..772 => Op::Exchange { at: At::any(rng, focus) },
            772..784 => Op::Translate { at: At::any(rng, focus) },
            784..786 => Op::Look,
            786..798 => Op::Starve { at: At::any(rng, focus), tables: 0, huge: rng.bool() },
            798..822 => Op::leaves(rng),
            822..930 => Op::Continue { budget: rng.u8(1..8) },
            930..950 => Op::Complete,
            950..978 => Op::FindParked,
            _ => Op::CompleteParked,
        }
    }

    /// Something that was begun is left half done; whoever needs its place finishes it.
    fn leaves(rng: &mut Rng) -> Op {
        let what = match rng.u8(..6) {
            1 => Begun::Drain,
            2 => Begun::Deletion,
            // More often, because there is not always one.
            3..=5 => Begun::Parked,
            // Nobody needs to finish it: what it has not come to stays mapped.
            _ => Begun::Zap,
        };
        let how = match what {
            Begun::Parked => [Leaving::Drop, Leaving::Forget][rng.usize(..2)],
            _ => [Leaving::Drop, Leaving::Forget, Leaving::Aside][rng.usize(..3)],
        };
        Op::Abandon { what, how }
    }

    /// What a thread without a worker does next.
    pub fn of_notifier(rng: &mut Rng, focus: At) -> Op {
        let pages = Pages::any(rng, focus);
        match rng.u32(..100) {
            0..20 => Op::Change { pages, change: Change::Move },
            20..35 => Op::Change { pages, change: Change::Steal },
            35..45 => Op::Change { pages: Pages { count: 512, ..pages }, change: Change::Home },
            45..55 => Op::Change { pages, change: Change::Touch },
            55..75 => Op::Long { pages, again: rng.u8(..4) == 0 },
            75..95 => Op::End { which: rng.u8(..) },
            _ => Op::WrongEnd { pages },
        }
    }
}

impl At {
    /// Mostly where everybody is just now, or in one of a few places.
    fn any(rng: &mut Rng, focus: At) -> At {
        let page = 67 * rng.u32(..8);
        match rng.u8(..8) {
            0 => At { site: rng.u8(..), page: rng.u32(..) },
            1..4 => At { site: rng.u8(..), page },
            4 => At { page, ..focus },
            _ => focus,
        }
    }

    /// Where everybody is just now.
    pub fn focus(rng: &mut Rng) -> At {
        At { site: rng.u8(..), page: 67 * rng.u32(..8) }
    }
}

impl Where {
    fn any(rng: &mut Rng, focus: At) -> Where {
        Where { at: At::any(rng, focus), space: rng.u8(..4) / 3 }
    }
}

impl Access {
    fn any(rng: &mut Rng, focus: At) -> Access {
        let touch = match rng.u8(..8) {
            0..3 => Touch::Read,
            3..6 => Touch::Write,
            6 => Touch::Add,
            _ => Touch::Fetch,
        };
        let (at, word) = (At::any(rng, focus), rng.u8(..));
        Access { touch, at, word, speculates: rng.u8(..16) == 0, lag: rng.u8(..4) }
    }
}

impl Pages {
    fn any(rng: &mut Rng, focus: At) -> Pages {
        let count = match rng.u8(..16) {
            0 => 512,
            1 => rng.u16(2..100),
            _ => 1,
        };
        Pages { at: At::any(rng, focus), view: rng.u8(..), count }
    }
}
