//! Random operations on vmmu's tables from several threads, judged by a software x86 that shares
//! nothing with the library, and by a flat model of memory.
//!
//! vCPUs run guests on software [processors](machine::Processor) that keep stale translations for
//! as long as they may; threads of the host move pages, take them away, let them share a frame,
//! change slots, zap, drain roots, and read and write guest memory through the library. It is a
//! failure when
//!
//! - a guest reaches a frame that is not, or no longer, the page that is there; reads what nobody
//!   wrote; or loses what it wrote (`model`);
//! - anybody uses a table or a page after its release (`arena`);
//! - a fault, a slot change or an access by the library ends in a way that nothing explains;
//! - a table is lost, or the library's own checker finds something at the end;
//! - an operation never ran: then nothing was shown about it.
//!
//! With [`Settings::deterministic`] threads take turns by seed, and a seed repeats
//! exactly. With free threads the operations are what repeats: those that led to a failure are
//! written down, [shortened](mod@shrink) and can be run again.

mod arena;
mod guest;
mod guest_tables;
mod host;
mod keeper;
mod library;
mod model;
mod notifier;
mod notify;
mod op;
mod open;
mod places;
mod plan;
mod play;
mod protection;
mod put_off;
mod run;
pub mod shrink;
mod store;
mod thread;
mod turns;
mod vcpu;
mod walks;

pub use plan::{MOST_VCPUS, Plan, Settings, Tables};
pub use run::{Failure, Report, replay, run};

/// Something that must not be.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct Violation {
    /// What.
    pub what: String,
}

impl Violation {
    /// Says what.
    pub fn new(what: String) -> Self {
        Violation { what }
    }
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.what)
    }
}
