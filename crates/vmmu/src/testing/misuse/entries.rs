//! An observation of an entry is spent by the write it decides.
//!
//! One observation written twice:
//! ```compile_fail,E0382
//! # use vmmu::internals::*;
//! fn write<'s>(entry: Entry<'s, Owing<'s>>) {
//!     let _first = entry.zap();
//!     let _second = entry.zap();
//! }
//! ```
//! Whoever loses the exchange gets a new one:
//! ```
//! # use vmmu::internals::*;
//! fn write<'s>(entry: Entry<'s, Owing<'s>>) {
//!     let first = entry.zap();
//!     let _second = first.map_err(|changed| changed.zap());
//! }
//! ```
//!
//! Split after it was zapped, from the value it had before:
//! ```compile_fail,E0382
//! # use vmmu::internals::*;
//! fn write<'s>(entry: Entry<'s, Owing<'s>>, full: &mut ReservedPages<'_>) {
//!     let _zapped = entry.zap();
//!     let _split = entry.split(full);
//! }
//! ```
//! ```
//! # use vmmu::internals::*;
//! fn write<'s>(entry: Entry<'s, Owing<'s>>, full: &mut ReservedPages<'_>) {
//!     let _split = entry.split(full);
//! }
//! ```
//!
//! A copy of an observation:
//! ```compile_fail,E0599
//! # use vmmu::internals::*;
//! fn copy<'s>(entry: Entry<'s, Owing<'s>>) {
//!     let again = entry.clone();
//!     let _first = entry.zap();
//!     let _second = again.zap();
//! }
//! ```
//! ```
//! # use vmmu::internals::*;
//! fn copy<'s>(entry: Entry<'s, Owing<'s>>) {
//!     let again = entry.value();
//!     let _first = entry.zap();
//!     let _second = again;
//! }
//! ```
