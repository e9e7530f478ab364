//! What is cleared owes a flush, so it can only be cleared below a debt.
//!
//! Without a debt: entries of a plain section cannot be cleared.
//! ```compile_fail,E0599
//! # use vmmu::{addr::*, host::Host, internals::*, RootName};
//! fn clear<H: Host>(local: &mut Local<'_, H>, root: RootName, gfn: Gfn) {
//!     let section = local.section();
//!     if let Some(entry) = section.entry(root, gfn, Level::Size4K) {
//!         let _ = entry.zap();
//!     }
//! }
//! ```
//! ```
//! # use vmmu::{addr::*, host::Host, internals::*, RootName};
//! fn clear<H: Host>(local: &mut Local<'_, H>, root: RootName, gfn: Gfn) {
//!     let mut debt = local.debt(gfn.leaf(Level::Size1G));
//!     {
//!         let section = debt.section();
//!         if let Some(entry) = section.entry(root, gfn, Level::Size4K) {
//!             let _ = entry.zap();
//!         }
//!     }
//!     debt.settle();
//! }
//! ```
//!
//! A table taken away without a debt:
//! ```compile_fail,E0599
//! # use vmmu::internals::*;
//! fn detach<'s>(entry: Entry<'s, Plain>) {
//!     let _ = entry.detach();
//! }
//! ```
//! ```
//! # use vmmu::internals::*;
//! fn detach<'s>(entry: Entry<'s, Owing<'s>>) {
//!     let _ = entry.detach();
//! }
//! ```
//!
//! On another participant's debt: a participant's section takes no debt as an argument.
//! ```compile_fail,E0061
//! # use vmmu::{host::Host, internals::*};
//! fn clear<'s, H: Host>(entry: Entry<'s, Owing<'s>>, other: &mut Debt<'_, H>) {
//!     let _ = entry.zap(other);
//! }
//! ```
//! ```
//! # use vmmu::{host::Host, internals::*};
//! fn clear<'s, H: Host>(entry: Entry<'s, Owing<'s>>, other: &mut Debt<'_, H>) {
//!     let _ = entry.zap();
//! }
//! ```
//!
//! On another MMU's debt: a section that clears is opened on a debt, and belongs to the debt's MMU.
//! ```compile_fail,E0308
//! # use vmmu::{addr::*, host::Host, internals::*, RootName};
//! fn zap(section: &Clearing<'_>, root: RootName) {
//!     let _ = section.entry(root, Gfn(0), Level::Size4K).map(|entry| entry.zap());
//! }
//! fn clear<H: Host>(local: &mut Local<'_, H>, other: &mut Debt<'_, H>, root: RootName) {
//!     zap(&local.section(), root);
//! }
//! ```
//! ```
//! # use vmmu::{addr::*, host::Host, internals::*, RootName};
//! fn zap(section: &Clearing<'_>, root: RootName) {
//!     let _ = section.entry(root, Gfn(0), Level::Size4K).map(|entry| entry.zap());
//! }
//! fn clear<H: Host>(local: &mut Local<'_, H>, other: &mut Debt<'_, H>, root: RootName) {
//!     zap(&other.section(), root);
//! }
//! ```
//!
//! A debt forged for a section of one's own:
//! ```compile_fail,E0423
//! # use vmmu::internals::*;
//! fn forge<'d>(entry: Entry<'d, Owing<'d>>, owed: Owing<'d>) {
//!     let _owing = Owing(&owed);
//! }
//! ```
//! ```
//! # use vmmu::internals::*;
//! fn forge<'d>(entry: Entry<'d, Owing<'d>>, owed: Owing<'d>) {
//!     let _owing = owed;
//! }
//! ```
//!
//! Two debts at once; the ledger has room for one.
//! ```compile_fail,E0499
//! # use vmmu::{addr::*, host::Host, internals::*};
//! fn owe<H: Host>(local: &mut Local<'_, H>, a: GfnRange, b: GfnRange) {
//!     let first = local.debt(a);
//!     let second = local.debt(b);
//!     first.settle();
//!     second.settle();
//! }
//! ```
//! ```
//! # use vmmu::{addr::*, host::Host, internals::*};
//! fn owe<H: Host>(local: &mut Local<'_, H>, a: GfnRange, b: GfnRange) {
//!     let first = local.debt(a);
//!     first.settle();
//!     let second = local.debt(b);
//!     second.settle();
//! }
//! ```
//!
//! Settled inside its own section: the flush would come before the last clear.
//! ```compile_fail,E0505
//! # use vmmu::{host::Host, internals::*};
//! fn settle<H: Host>(mut debt: Debt<'_, H>) {
//!     let section = debt.section();
//!     debt.settle();
//!     drop(section);
//! }
//! ```
//! ```
//! # use vmmu::{host::Host, internals::*};
//! fn settle<H: Host>(mut debt: Debt<'_, H>) {
//!     let section = debt.section();
//!     drop(section);
//!     debt.settle();
//! }
//! ```
//!
//! Settled twice:
//! ```compile_fail,E0382
//! # use vmmu::{host::Host, internals::*};
//! fn settle<H: Host>(debt: Debt<'_, H>) {
//!     debt.settle();
//!     debt.settle();
//! }
//! ```
//! ```
//! # use vmmu::{host::Host, internals::*};
//! fn settle<H: Host>(debt: Debt<'_, H>) {
//!     debt.settle();
//! }
//! ```
//!
//! Dropped as a statement, where that lint is an error:
//! ```compile_fail
//! #![deny(unused_must_use)]
//! # use vmmu::{addr::*, host::Host, internals::*};
//! fn forget<H: Host>(local: &mut Local<'_, H>, range: GfnRange) {
//!     local.debt(range);
//! }
//! ```
//! ```
//! #![deny(unused_must_use)]
//! # use vmmu::{addr::*, host::Host, internals::*};
//! fn forget<H: Host>(local: &mut Local<'_, H>, range: GfnRange) {
//!     local.debt(range).settle();
//! }
//! ```
