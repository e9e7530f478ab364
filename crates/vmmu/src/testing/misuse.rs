//! What the compiler refuses: every misuse of the protocol that the types make impossible, each
//! with a legal neighbour that differs only by the misuse.
//!
//! The examples are tests (`cargo test -p vmmu --doc --features protocol`): each misuse must not
//! compile, each neighbour must. Which error stops it, `E0499` and so on, is compared only by a
//! compiler with unstable features, so that a misuse refused for a wrong reason is found: run the
//! same tests with `cargo +nightly`, or with `RUSTC_BOOTSTRAP=1` on the stable compiler. A misuse
//! that is refused by a lint has no code; its neighbour runs under the same lint.
//!
//! | group | where |
//! |---|---|
//! | sections: what may begin inside one, and what may leave it | [`sections`] |
//! | hooks: when the host may be called | [`hooks`] |
//! | inserts: from the watch to the leaf | [`inserts`] |
//! | clears: debts and what they cover | [`clears`] |
//! | revocations: the order of their steps, and what shows that they are finished | [`revocations`] |
//! | entries: an observation is written once | [`entries`] |
//!
//! # Not there yet
//!
//! A misuse of something that does not exist cannot be written down, so it has no test:
//!
//! * *holds* kept after their section: outside of tests sections lend no holds, because nothing that
//!   needs one (aging, promotion, reclaiming tables) exists;
//! * *claims* completed twice: claims outlive their section for firmware calls and
//!   break-before-make, and no format in the crate needs either; those of the tests are values that
//!   giving back consumes;
//! * *promotion* without a debt: leaves are split, never joined;
//! * *harvests*: bits taken without a debt, handed out before the flush, or said to be complete
//!   while a part is open: there is no dirty log;
//! * a hook under the *shadow lock*: there is no shadow paging;
//! * a backing *called inside a section*: a [`Backing`](crate::host::Backing) is not kept by the
//!   MMU. It is an argument of the calls that use it, and those call it between their sections
//!   only; no code of a host runs inside a section.
//!
//! # What the compiler cannot refuse
//!
//! Seen at run time, and tested in `tests/misuse.rs`: a debt dropped unsettled, a section
//! forgotten, and values without a borrow (frames, names of roots, paused walks, revoked values,
//! parked requests) brought to another MMU. Forbidden by the contract only: two participants on one
//! thread, a section of one open while the other waits for a grace period; two slot guards on one
//! thread; [`Mmu::host`](crate::Mmu::host), by which the owner reaches its own host, called in a
//! section.

pub mod clears;
pub mod entries;
pub mod hooks;
pub mod inserts;
pub mod revocations;
pub mod sections;
