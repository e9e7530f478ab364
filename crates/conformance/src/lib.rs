//! Checks a hypervisor author's implementations of the traits in [`vmmu::host`], rule by rule,
//! before they meet a guest.
//!
//! | check | of | rules |
//! |---|---|---|
//! | [`check_table_pages`] | [`TablePages`](vmmu::host::TablePages) | P1 to P12 |
//! | [`check_cpus`] | [`Cpus`](vmmu::host::Cpus), with the author's way of running a guest | C1 to C10 |
//! | [`check_backing`] | [`Backing`](vmmu::host::Backing), left alone | B1 to B12 |
//! | [`check_together`] | all of them in a VM, with the author's invalidations, judged by a software processor that walks the tables | V0 to V11 |
//!
//! Each gives a [`Report`]: every rule with its verdict and what was seen.
//!
//! ```
//! use std::alloc::{Layout, alloc, dealloc};
//!
//! use conformance::{PagesOptions, check_table_pages};
//! use vmmu::addr::Pfn;
//! use vmmu::host::{Contents, Placement, TablePage, TablePages};
//!
//! # fn main() {
//! struct MyHost;
//!
//! // SAFETY: whole pages of the allocator, mapped at their own addresses, used by nobody else.
//! unsafe impl TablePages for MyHost {
//!     fn window(&self) -> u64 {
//!         0
//!     }
//!     fn take(&self, placement: Placement) -> Option<TablePage> {
//!         # if placement.below.is_some() { return None; }
//!         let page = unsafe { alloc(Layout::from_size_align(4096, 4096).ok()?) };
//!         let pfn = Pfn(page.expose_provenance() as u64 >> 12);
//!         Some(TablePage { pfn, contents: Contents::Unknown })
//!     }
//!     fn release(&self, page: Pfn) {
//!         let Ok(layout) = Layout::from_size_align(4096, 4096) else { return };
//!         let page = std::ptr::with_exposed_provenance_mut((page.0 << 12) as usize);
//!         unsafe { dealloc(page, layout) }
//!     }
//! }
//!
//! let report = check_table_pages(&MyHost, &PagesOptions::default());
//! println!("{report}");
//! assert!(report.is_clean());
//! # }
//! ```

mod backing;
mod cpus;
mod pages;
mod report;
mod together;

pub use backing::{BackingOptions, check_backing};
pub use cpus::{CpusOptions, check_cpus};
pub use pages::{PagesOptions, check_table_pages};
pub use report::{Finding, Report, Rule, Verdict};
pub use together::check_together;
pub use together::judged::Judged;
pub use together::options::{Tables, TogetherOptions};
