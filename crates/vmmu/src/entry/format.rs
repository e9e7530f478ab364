//! How a [`State`] is written down: one set of bit positions for each kind of hardware, one
//! reader and one writer for all.

use core::fmt;

use crate::addr::{INDEX_BITS, Level, PAGE_SIZE, Pfn};
use crate::entry::access::{Access, MemoryType};
use crate::entry::cell::Value;
use crate::entry::leaf::{Leaf, Record, Tracked, Writable};
use crate::entry::state::State;

/// Software bits, the same in every format. All are ignored by hardware: EPT bits 11, 52-56, and
/// 57 while guest-paging verification is off (Intel SDM volume 3, 30.3.2); NPT bits 9-11 and
/// 52-58 (AMD APM volume 2, 5.4).
pub(crate) mod soft {
    /// The library regards the entry as a translation.
    pub const PRESENT: u64 = 1 << 11;
    /// Two bits: [`Record`](super::Record).
    pub const RECORD_SHIFT: u32 = 52;
    pub const RECORD: u64 = 3 << RECORD_SHIFT;
    /// R while tracked.
    pub const SAVED_READ: u64 = 1 << 54;
    /// X while tracked.
    pub const SAVED_EXEC: u64 = 1 << 55;
    /// The host allows writing.
    pub const HOST_WRITABLE: u64 = 1 << 56;
    /// The library allows writing.
    pub const MMU_WRITABLE: u64 = 1 << 57;
    /// Which frozen value, when nothing is present. Both: dead.
    pub const HOLD: u64 = 1 << 3;
    pub const CLAIM: u64 = 1 << 4;
}

/// Address field of every format: bits 12 to 51.
pub(crate) const ADDRESS: u64 = ((1 << 52) - 1) & !(PAGE_SIZE - 1);

/// Which hardware walks the tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// Intel EPT.
    Ept,
    /// AMD nested page tables.
    Npt,
}

/// A table format: the bits of one kind of hardware, with what its configuration allows.
///
/// Made by [`ept::format`](super::ept::format) and [`npt::format`](super::npt::format).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Format {
    pub(crate) kind: Kind,
    pub(crate) top: Level,
    pub(crate) largest: Level,
    pub(crate) phys_bits: u32,
    pub(crate) record: Record,
    /// Ways of recording a leaf may have: bit n for the n-th of [`Record::ALL`].
    pub(crate) records: u8,
    /// Whether hardware accepts leaves that can be fetched from but not read.
    pub(crate) exec_only: bool,
    /// Bits of a leaf or table that hardware needs to regard it as present and readable.
    pub(crate) read: u64,
    pub(crate) write: u64,
    /// Exactly one of these is not zero: X when set, or X when clear.
    pub(crate) exec: u64,
    pub(crate) no_exec: u64,
    pub(crate) accessed: u64,
    pub(crate) dirty: u64,
    pub(crate) huge: u64,
    /// Bits of the memory type, and its code by [`MemoryType`]; [`ILLEGAL`] where there is none.
    pub(crate) memory_mask: u64,
    pub(crate) memory: [u64; 5],
    /// The empty value; its bits are set in every value but a table's.
    pub(crate) empty: u64,
    /// The bits that make a value an MMIO entry; `None` if the address width leaves no reserved
    /// bit.
    pub(crate) mmio: Option<u64>,
    pub(crate) leaves: Leaves,
}

/// Stands for "there is no such value": every legal value has reserved bits that are clear.
pub(crate) const ILLEGAL: u64 = u64::MAX;

/// The bits of leaves, worked out once, so that a fault looks them up instead of asking what is
/// legal. [`ILLEGAL`] where the format cannot express the combination.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Leaves {
    /// By [`permission_index`].
    permission: [u64; 32],
    /// By [`usage_index`].
    usage: [u64; 32],
    /// Bits of a frame number that the address width does not have.
    beyond: u64,
}

impl Leaves {
    /// A placeholder until the rest of the format is known.
    pub(crate) const NONE: Leaves =
        Leaves { permission: [ILLEGAL; 32], usage: [ILLEGAL; 32], beyond: u64::MAX };
}

const fn permission_index(leaf: &Leaf) -> usize {
    leaf.read as usize
        | (leaf.exec as usize) << 1
        | (leaf.writable as usize) << 2
        | (leaf.tracked as usize) << 4
}

const fn usage_index(leaf: &Leaf) -> usize {
    leaf.accessed as usize
        | (leaf.dirty as usize) << 1
        | (leaf.record as usize) << 2
        | (leaf.tracked as usize) << 4
}

/// Why a format cannot be had.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FormatError {
    /// Physical address width outside 32 to 52 bits.
    PhysBits(u32),
    /// The top table must be of level 4 or 5.
    Levels(Level),
    /// A leaf is at most 1 GiB.
    Largest(Level),
}

impl fmt::Display for FormatError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FormatError::PhysBits(n) => {
                write!(f, "physical address width {n} is not between 32 and 52 bits")
            }
            FormatError::Levels(level) => write!(f, "a top table of {level}: give L4 or L5"),
            FormatError::Largest(level) => {
                write!(f, "a leaf of {level}: give Size4K, Size2M or Size1G")
            }
        }
    }
}

impl core::error::Error for FormatError {}

impl fmt::Debug for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} top {} width {}", self.kind, self.top, self.phys_bits)
    }
}

impl Format {
    /// Bits of the slots' generation that fit into an MMIO entry.
    pub const GENERATION_BITS: u32 = 19;

    /// Bits of the participant that owns a frozen entry. Few, so that the inverted address of a
    /// hold or claim stays at the very top of the address space.
    pub const OWNER_BITS: u32 = 20;

    /// The whole format, or what is wrong with it.
    #[allow(clippy::indexing_slicing, reason = "the loop ends at the length; run when compiling")]
    pub(crate) const fn complete(mut self) -> Result<Self, FormatError> {
        if self.phys_bits < 32 || self.phys_bits > 52 {
            return Err(FormatError::PhysBits(self.phys_bits));
        }
        if self.top.can_be_leaf() {
            return Err(FormatError::Levels(self.top));
        }
        if !self.largest.can_be_leaf() {
            return Err(FormatError::Largest(self.largest));
        }
        let mut n = 0;
        while n < 32 {
            let (a, b, choice) = (n & 1 != 0, n & 2 != 0, n >> 2 & 3);
            let tracked = if n & 16 != 0 { Tracked::Yes } else { Tracked::No };
            self.leaves.permission[n] = self.permission(a, b, Writable::ALL[choice], tracked);
            if choice < Record::ALL.len() {
                self.leaves.usage[n] = self.usage(a, b, Record::ALL[choice], tracked);
            }
            n += 1;
        }
        self.leaves.beyond = !((1 << (self.phys_bits - 12)) - 1);
        Ok(self)
    }

    /// Bits for who may do what. EPT has no write without read (Intel SDM volume 3, 30.3.3.1), and
    /// what aging hides is not written.
    const fn permission(
        &self,
        read: bool,
        exec: bool,
        writable: Writable,
        tracked: Tracked,
    ) -> u64 {
        let writes = matches!(writable, Writable::Yes);
        let hidden = matches!(tracked, Tracked::Yes);
        if !(read || (exec && self.exec_only && !writes)) || (hidden && writes) {
            return ILLEGAL;
        }
        let host = match writable {
            Writable::Never => 0,
            Writable::Hard => soft::HOST_WRITABLE,
            Writable::Soft => soft::HOST_WRITABLE | soft::MMU_WRITABLE,
            Writable::Yes => soft::HOST_WRITABLE | soft::MMU_WRITABLE | self.write,
        };
        let (readable, executable) = match tracked {
            Tracked::No => {
                (if read { self.read } else { 0 }, if exec { self.exec } else { self.no_exec })
            }
            Tracked::Yes => {
                (if read { soft::SAVED_READ } else { 0 }, if exec { soft::SAVED_EXEC } else { 0 })
            }
        };
        self.empty | soft::PRESENT | host | readable | executable
    }

    /// Bits for how use is recorded. Where hardware does, aging clears A and hides nothing; where
    /// it does not, there is no A or D.
    const fn usage(&self, accessed: bool, dirty: bool, record: Record, tracked: Tracked) -> u64 {
        let software = matches!(record, Record::Software);
        let hidden = matches!(tracked, Tracked::Yes);
        let possible = self.records >> record as u8 & 1 != 0;
        if !possible || (software && (accessed || dirty)) || (!software && hidden) {
            return ILLEGAL;
        }
        (record as u64) << soft::RECORD_SHIFT
            | if accessed { self.accessed } else { 0 }
            | if dirty { self.dirty } else { 0 }
    }

    /// Level of the top table.
    pub const fn top(&self) -> Level {
        self.top
    }

    /// The largest leaf hardware accepts.
    pub const fn largest(&self) -> Level {
        self.largest
    }

    /// Width of a host-physical address in bits.
    pub const fn phys_bits(&self) -> u32 {
        self.phys_bits
    }

    /// How leaves record their use.
    pub const fn record(&self) -> Record {
        self.record
    }

    /// Number of guest frames the tables can translate.
    pub const fn frames(&self) -> u64 {
        self.top.pages() << INDEX_BITS
    }

    /// The empty value.
    #[inline]
    pub const fn empty(&self) -> Value {
        Value(self.empty)
    }

    /// Whether the format has a code for this memory type.
    #[allow(clippy::indexing_slicing, reason = "one place for each of the enum's five values")]
    pub const fn has_memory(&self, memory: MemoryType) -> bool {
        self.memory[memory as usize] != ILLEGAL
    }

    /// A value for `state` in an entry of `level`, or `None` if the format cannot express it: a
    /// leaf larger than hardware maps, a memory type without code, a misaligned or too wide frame,
    /// write without read, fetch without read where hardware refuses that, a way of recording that
    /// hardware cannot be brought to, tracking where hardware records, A or D where it does not; a
    /// table where none can hang; an owner beyond [`OWNER_BITS`](Self::OWNER_BITS); a link to
    /// frame 0. A generation is cut to [`GENERATION_BITS`](Self::GENERATION_BITS).
    pub fn make(&self, state: State, level: Level) -> Option<Value> {
        match state {
            State::Empty => Some(self.empty()),
            State::Mmio { generation } => self.mmio.map(|bits| {
                let generation = generation & ((1 << Self::GENERATION_BITS) - 1);
                Value(bits | generation << 12)
            }),
            State::Hold { owner } => self.owned(soft::HOLD, owner),
            State::Claim { owner } => self.owned(soft::CLAIM, owner),
            State::Dead { next } => {
                next.is_none_or(|pfn| pfn.0 != 0 && self.fits(pfn)).then(|| self.dead(next))
            }
            State::Table(pfn) => (level > Level::Size4K && level <= self.top && self.fits(pfn))
                .then(|| self.table(pfn)),
            State::Leaf(leaf) => self.leaf(&leaf, level),
            State::Corrupt => None,
        }
    }

    fn fits(&self, pfn: Pfn) -> bool {
        pfn.0 & self.leaves.beyond == 0
    }

    /// The payload is stored inverted, so that the address a processor may speculate on lies at
    /// the top of the address space, where there is no memory (L1TF, CVE-2018-3646).
    fn frozen(&self, tag: u64, payload: u64) -> Value {
        Value(self.empty | tag | (!(payload << 12) & ADDRESS))
    }

    fn owned(&self, tag: u64, owner: u64) -> Option<Value> {
        (owner >> Self::OWNER_BITS == 0).then(|| self.frozen(tag, owner))
    }

    /// A dead entry. Frame 0 is never a table, so it stands for "none".
    #[inline]
    pub(crate) fn dead(&self, next: Option<Pfn>) -> Value {
        self.frozen(soft::HOLD | soft::CLAIM, next.map_or(0, |pfn| pfn.0))
    }

    /// A pointer to a table. It allows everything, so that the leaf decides; A is set so that
    /// hardware need not write it.
    #[inline]
    pub(crate) fn table(&self, pfn: Pfn) -> Value {
        let accessed = match self.record {
            Record::Software => 0,
            Record::Hardware | Record::WriteProtect => self.accessed,
        };
        Value(self.read | self.write | self.exec | accessed | soft::PRESENT | pfn.hpa().0)
    }

    /// A mapping.
    #[inline]
    #[allow(
        clippy::indexing_slicing,
        reason = "indices are made of enums and have five bits, the tables 32 places"
    )]
    pub(crate) fn leaf(&self, leaf: &Leaf, level: Level) -> Option<Value> {
        let bits = self.leaves.permission[permission_index(leaf)]
            | self.leaves.usage[usage_index(leaf)]
            | self.memory[leaf.memory as usize];
        let misplaced = leaf.pfn.0 & (self.leaves.beyond | (level.pages() - 1)) != 0;
        if bits == ILLEGAL || misplaced || level > self.largest {
            return None;
        }
        let huge = if level > Level::Size4K { self.huge } else { 0 };
        Some(Value(bits | huge | leaf.pfn.hpa().0))
    }

    /// What `value` says in an entry of `level`. Anything the library does not write, a reserved
    /// bit for instance, is [`State::Corrupt`].
    pub fn read(&self, value: Value, level: Level) -> State {
        let state = self.guess(value, level);
        // Reading is the inverse of making, so a stray bit cannot hide. What hardware sets, A and
        // D of a leaf, the guess has taken over; A of a table is set before hardware would.
        if self.make(state, level) == Some(value) { state } else { State::Corrupt }
    }

    fn guess(&self, value: Value, level: Level) -> State {
        let v = value.0;
        if v == self.empty {
            return State::Empty;
        }
        if v & soft::PRESENT == 0 {
            if self.mmio.is_some_and(|bits| v & bits == bits) {
                let generation = v >> 12 & ((1 << Self::GENERATION_BITS) - 1);
                return State::Mmio { generation };
            }
            let payload = (!v & ADDRESS) >> 12;
            return match v & (soft::HOLD | soft::CLAIM) {
                soft::HOLD => State::Hold { owner: payload },
                soft::CLAIM => State::Claim { owner: payload },
                0 => State::Corrupt,
                _ => State::Dead { next: (payload != 0).then_some(Pfn(payload)) },
            };
        }
        let pfn = Pfn((v & ADDRESS) >> 12);
        if level > Level::Size4K && v & self.huge == 0 {
            return State::Table(pfn);
        }
        let record = match (v & soft::RECORD) >> soft::RECORD_SHIFT {
            0 => Record::Hardware,
            1 => Record::Software,
            2 => Record::WriteProtect,
            _ => return State::Corrupt,
        };
        let tracked = if self.is_hidden(value) { Tracked::Yes } else { Tracked::No };
        let rights = self.rights(v);
        let writable = match (
            v & soft::HOST_WRITABLE != 0,
            v & soft::MMU_WRITABLE != 0,
            v & self.write != 0,
        ) {
            (false, false, false) => Writable::Never,
            (true, false, false) => Writable::Hard,
            (true, true, false) => Writable::Soft,
            (true, true, true) => Writable::Yes,
            _ => return State::Corrupt,
        };
        let mut codes = MemoryType::ALL.into_iter().zip(self.memory);
        let Some((memory, _)) = codes.find(|(_, code)| *code == v & self.memory_mask) else {
            return State::Corrupt;
        };
        State::Leaf(Leaf {
            pfn,
            read: rights.contains(Access::READ),
            exec: rights.contains(Access::EXEC),
            writable,
            accessed: v & self.accessed != 0,
            dirty: v & self.dirty != 0,
            record,
            tracked,
            memory,
        })
    }

    #[inline]
    fn executes(&self, v: u64) -> bool {
        if self.exec != 0 { v & self.exec != 0 } else { v & self.no_exec == 0 }
    }

    /// What the library allows of a leaf. Hardware may still fault on such an access, because aging
    /// has hidden the leaf or because it is write-protected softly.
    #[inline]
    pub(crate) fn rights(&self, v: u64) -> Access {
        let (read, exec) = if self.is_hidden(Value(v)) {
            (v & soft::SAVED_READ != 0, v & soft::SAVED_EXEC != 0)
        } else {
            (v & self.read == self.read, self.executes(v))
        };
        let mut rights = Access::empty();
        rights.set(Access::READ, read);
        rights.set(Access::EXEC, exec);
        rights.set(Access::WRITE, v & soft::MMU_WRITABLE != 0);
        rights
    }

    /// Whether aging has moved R and X of a present leaf to software bits.
    #[inline]
    pub(crate) fn is_hidden(&self, value: Value) -> bool {
        value.0 & (soft::SAVED_READ | soft::SAVED_EXEC) != 0
    }

    /// Whether the library regards the value as a translation.
    #[inline]
    pub(crate) fn is_present(&self, value: Value) -> bool {
        value.0 & soft::PRESENT != 0
    }

    /// Whether a present value of `level` points at a table.
    #[inline]
    pub(crate) fn is_table(&self, value: Value, level: Level) -> bool {
        level > Level::Size4K && value.0 & (soft::PRESENT | self.huge) == soft::PRESENT
    }

    /// Whether a present value of a level above 4K points at a table.
    #[inline]
    pub(crate) fn is_upper_table(&self, value: Value) -> bool {
        value.0 & (soft::PRESENT | self.huge) == soft::PRESENT
    }

    /// Whether a value of `level` is a mapping.
    #[inline]
    pub(crate) fn is_leaf(&self, value: Value, level: Level) -> bool {
        self.is_present(value) && !self.is_table(value, level)
    }

    /// Whether the value is frozen: somebody works on it, or its table is gone.
    #[inline]
    pub(crate) fn is_frozen(&self, value: Value) -> bool {
        value.0 & soft::PRESENT == 0 && value.0 & (soft::HOLD | soft::CLAIM) != 0
    }

    /// Whether the value is frozen for longer than a section.
    #[inline]
    pub(crate) fn is_claimed(&self, value: Value) -> bool {
        value.0 & (soft::PRESENT | soft::HOLD | soft::CLAIM) == soft::CLAIM
    }

    /// Whether hardware lets `access` through a present leaf.
    #[inline]
    pub(crate) fn allows(&self, value: Value, access: Access) -> bool {
        let wants = |access_bit, bits| if access.contains(access_bit) { bits } else { 0 };
        let needed = wants(Access::READ, self.read)
            | wants(Access::WRITE, self.write)
            | wants(Access::EXEC, self.exec);
        value.0 & needed == needed && value.0 & wants(Access::EXEC, self.no_exec) == 0
    }

    /// The frame a present value names.
    #[inline]
    pub(crate) fn pfn(&self, value: Value) -> Pfn {
        Pfn((value.0 & ADDRESS) >> 12)
    }
}
