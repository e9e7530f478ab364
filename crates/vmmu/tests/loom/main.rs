//! Models of the protocol, on the library's own functions: every interleaving of two or three
//! actors, up to a bound on preemptions, with every value a weak memory lets a load return.
//!
//! No model contains a copy of the protocol. Its neighbours are defects that are switched in at
//! their place in the library; a neighbour must fail, or the model proves nothing.
//!
//! ```text
//! RUSTFLAGS="--cfg loom" cargo test --release -p vmmu --features protocol,defects --test loom -- --nocapture
//! ```
//!
//! With `VMMU_PREEMPTIONS=long` the larger models are explored with one preemption more, which takes
//! several times as long. Their neighbours fail in both forms.
//!
//! Under `--cfg loom` tables have four entries and all fixed arrays of the library are short
//! (`addr::INDEX_BITS`, `PLACES`, `SPARES`): smaller, not different.
#![cfg(all(loom, feature = "protocol", feature = "defects"))]

mod explore;
mod guest;
mod machine;
mod rig;

mod debts;
mod entering;
mod exchange;
mod frozen;
mod mmio;
mod roots;
mod slots;
mod watches;
mod whole;
