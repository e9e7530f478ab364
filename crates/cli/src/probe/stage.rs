//! The world every case of a probe begins with: which page of the arena is what, and the
//! mappings that always work.
//!
//! The arena lies at 4 GiB, so that its first byte is the start of a page of every size, and every
//! address a table may name by chance stays inside it whatever the level it is read at. The words
//! that are probed are the last but one of a page; all of them hold the instruction that ends the
//! guest, and the number of their page.
//!
//! Guest-physical addresses below 512 GiB are the same physical ones, by tables that are never
//! drawn; what is drawn decides about those from 512 GiB on. The guest's own tables are divided in
//! the same way: its code is mapped by tables that are never drawn. A guest without paging has its
//! code at 3 GiB, and what is drawn decides about what is below.

use std::collections::BTreeMap;

use hypervisor::probe::{self, BLOCK, BLOCKS, Case, FRAMES, PER_FRAME, Word};

use crate::size::GIB;

/// Where the arena is.
pub const ARENA: u64 = 4 * GIB;
/// Where in its page the probed word is, in bytes.
pub const OFFSET: u64 = ENTRY as u64 * 8;
/// The entry no table uses: it is the probed word, should the page be read as a table.
pub const ENTRY: usize = 510;

/// Entry bits, the same in both dimensions (AMD64 APM vol. 2, sections 5.3 and 15.25).
pub mod bit {
    /// Present.
    pub const P: u64 = 1 << 0;
    /// Writable.
    pub const W: u64 = 1 << 1;
    /// User.
    pub const U: u64 = 1 << 2;
    /// Accessed.
    pub const A: u64 = 1 << 5;
    /// Dirty.
    pub const D: u64 = 1 << 6;
    /// A leaf above the last level; the memory type's high bit in the last.
    pub const PS: u64 = 1 << 7;
    /// Global.
    pub const G: u64 = 1 << 8;
    /// No execution.
    pub const NX: u64 = 1 << 63;
    /// The address.
    pub const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
}

/// Pages of the first block.
#[allow(missing_docs, reason = "NAMES says what they are")]
pub mod page {
    pub const N_ROOT: usize = 0;
    pub const N_FIXED_3: usize = 1;
    pub const N_FIXED_2: usize = 2;
    pub const N_3: usize = 3;
    pub const N_2: usize = 4;
    pub const N_1: usize = 5;
    pub const G_ROOT: usize = 7;
    pub const G_FIXED_3: usize = 8;
    pub const G_FIXED_2: usize = 9;
    pub const G_3: usize = 10;
    pub const G_2: usize = 11;
    pub const G_1: usize = 12;
    pub const DATA: usize = 13;
    pub const CODE: usize = 15;
}

/// What the pages of the first block are; those of the second are data.
const NAMES: [&str; FRAMES] = [
    "nested PML4",
    "nested PDPT, fixed",
    "nested PD, fixed",
    "nested PDPT",
    "nested PD",
    "nested PT",
    "spare",
    "guest PML4",
    "guest PDPT, fixed",
    "guest PD, fixed",
    "guest PDPT",
    "guest PD",
    "guest PT",
    "data 13",
    "data 14",
    "code",
];

/// Entry of the guest's top table that maps its code.
pub const CODE_SLOT: usize = 1;
/// Entry of the nested top table that is drawn.
pub const HIGH_SLOT: usize = 1;

/// Entry of the fixed nested PDPT that maps the code of a guest without paging.
pub const FLAT_CODE_SLOT: usize = 3;

// In 32-bit code the prefix of 64-bit operands is an instruction of its own, which counts EAX down.
/// `mov rbx, [rsi]`, then VMMCALL; HLT behind it ends what an emulator translates in one go.
const READ: [u8; 8] = [0x48, 0x8b, 0x1e, 0x0f, 0x01, 0xd9, 0xf4, 0xf4];
/// `mov [rsi], rdi`, then VMMCALL.
const WRITE: [u8; 8] = [0x48, 0x89, 0x3e, 0x0f, 0x01, 0xd9, 0xf4, 0xf4];
/// `xchg [rsi], rdi`, `mov rbx, rdi`, then VMMCALL.
const EXCHANGE: [[u8; 8]; 2] = [
    [0x48, 0x87, 0x3e, 0x48, 0x89, 0xfb, 0x0f, 0x01],
    [0xd9, 0xf4, 0xf4, 0xf4, 0xf4, 0xf4, 0xf4, 0xf4],
];

/// `mov rbx, [rsi]`, `mov [rsi], rdi`, then VMMCALL.
const UPDATE: [[u8; 8]; 2] = [
    [0x48, 0x8b, 0x1e, 0x48, 0x89, 0x3e, 0x0f, 0x01],
    [0xd9, 0xf4, 0xf4, 0xf4, 0xf4, 0xf4, 0xf4, 0xf4],
];

/// Address of page `frame` of block `block`, physical and, below 512 GiB, guest-physical.
pub const fn at(block: usize, frame: usize) -> u64 {
    ARENA + block as u64 * BLOCK + frame as u64 * 4096
}

/// Number of word `entry` of page `frame` of block `block`.
pub const fn slot(block: usize, frame: usize, entry: usize) -> u16 {
    ((block * FRAMES + frame) * PER_FRAME + entry) as u16
}

/// What a word is, for people.
pub fn name(index: u16) -> String {
    let (page, entry) = (usize::from(index) / PER_FRAME, usize::from(index) % PER_FRAME);
    match (page / FRAMES, page % FRAMES) {
        (0, frame) => format!("{}[{entry}]", NAMES[frame]),
        (block, frame) => format!("block {block} page {frame}[{entry}]"),
    }
}

/// What a physical address is, for people.
pub fn place(address: u64) -> String {
    match probe::index(ARENA, address & !4095) {
        Some(index) if index < FRAMES * PER_FRAME => NAMES[index / PER_FRAME].to_owned(),
        Some(index) => format!("block 1 page {}", index / PER_FRAME % FRAMES),
        None => "not in the arena".to_owned(),
    }
}

/// The probed word of a page: VMMCALL, HLT, and which page it is.
pub const fn signature(block: usize, frame: usize) -> u64 {
    u64::from_le_bytes([0x0f, 0x01, 0xd9, 0xf4, frame as u8, block as u8, 0xa5, 0x5a])
}

/// What every case begins with.
pub fn image() -> Vec<Word> {
    use bit::{A, D, P, PS, U, W};
    use page::{CODE, G_FIXED_2, G_FIXED_3, G_ROOT, N_FIXED_2, N_FIXED_3, N_ROOT};
    let table = P | W | U | A;
    let leaf = table | D | PS;
    let four = (ARENA / GIB) as usize;
    let mut words = Vec::new();
    let mut word = |block, frame, entry, value| {
        words.push(Word { index: slot(block, frame, entry), value });
    };
    word(0, N_ROOT, 0, at(0, N_FIXED_3) | table);
    word(0, N_FIXED_3, four, at(0, N_FIXED_2) | table);
    word(0, N_FIXED_3, FLAT_CODE_SLOT, at(0, N_FIXED_2) | table);
    word(0, G_ROOT, CODE_SLOT, at(0, G_FIXED_3) | table);
    word(0, G_FIXED_3, 0, at(0, G_FIXED_2) | table);
    for block in 0..BLOCKS {
        word(0, N_FIXED_2, block, at(block, 0) | leaf);
        for frame in 0..FRAMES {
            word(block, frame, ENTRY, signature(block, frame));
        }
    }
    let code = [READ, WRITE, EXCHANGE[0], EXCHANGE[1], UPDATE[0], UPDATE[1]];
    for (entry, bytes) in code.into_iter().enumerate() {
        word(0, CODE, entry, u64::from_le_bytes(bytes));
    }
    words
}

/// The entry that maps the guest's code, for its privilege level: a supervisor may have to keep
/// from executing a user's page.
pub fn code_leaf(user: bool) -> Word {
    use bit::{A, D, P, PS, U, W};
    let value = at(0, 0) | P | W | A | D | PS | if user { U } else { 0 };
    Word { index: slot(0, page::G_FIXED_2, 0), value }
}

/// Linear address of byte `offset` of the guest's code.
pub const fn code(offset: u64) -> u64 {
    (CODE_SLOT as u64) << 39 | (page::CODE as u64) << 12 | offset
}

/// The same for a guest without paging.
pub const fn flat_code(offset: u64) -> u64 {
    (FLAT_CODE_SLOT as u64) << 30 | (page::CODE as u64) << 12 | offset
}

/// A case with its words over the image, in the order of their numbers.
pub fn whole(case: &Case) -> impl Iterator<Item = Word> {
    let words: BTreeMap<u16, u64> =
        image().into_iter().chain(case.words.iter().copied()).map(|w| (w.index, w.value)).collect();
    words.into_iter().map(|(index, value)| Word { index, value })
}
