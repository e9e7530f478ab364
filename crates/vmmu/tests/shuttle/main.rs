//! Whole runs of the protocol with many vCPUs, on schedules chosen by chance: what the models of
//! two or three actors (`tests/loom`) cannot reach in size. Memory is sequentially consistent
//! here, so fences are not judged.
//!
//! ```text
//! RUSTFLAGS="--cfg shuttle" cargo test --release -p vmmu --features protocol,defects --test shuttle -- --nocapture
//! ```
//!
//! `VMMU_SCHEDULES` multiplies the number of schedules, for a long run; `VMMU_SEED` changes the
//! first seed. A schedule that fails is printed, and can be repeated by its seed.
//!
//! Under `--cfg shuttle` tables have four entries and all fixed arrays of the library are short, as
//! for loom.
#![cfg(all(shuttle, not(loom), feature = "protocol", feature = "defects"))]

mod explore;
mod guest;
mod machine;
mod rig;
mod whole;
