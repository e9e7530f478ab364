//! One 64-bit entry of a table: what it can be ([`State`]), how each processor writes that down
//! ([`Format`]), and what changing it obliges to ([`law`]).
//!
//! ## States
//!
//! | state | present for the library | what hardware sees |
//! |---|---|---|
//! | `Empty` | no | not present |
//! | `Mmio` | no | a misconfiguration (EPT) or a reserved bit (NPT) |
//! | `Hold`, `Claim`, `Dead` (*frozen*) | no | not present |
//! | `Table` | yes | a pointer to the next table |
//! | `Leaf` | yes | a mapping; not readable while access-tracked |
//!
//! "Present" is software bit 11 and independent of what hardware may do with the entry.
//!
//! ## Frozen values
//!
//! A *hold* begins and ends inside one section. Only the owner of a detached table waits for its
//! end inside a section, and only in tables below its own, so that nobody waits in a circle. A
//! *claim* outlives its section; whoever meets one leaves the section and comes back. Whoever makes a
//! claim passes a full fence after the exchange and walks to the entry again from the root, in the
//! same section; if the walk does not end there, the table is being taken away, and the claim is
//! given back before the section ends. *Dead* entries fill a table that has been detached: nothing
//! replaces them, and the first of them links the tables that wait for one flush. No frozen value has
//! a W, D or A bit, so nothing that looks for those can take it for a leaf.
//!
//! ## Writable states
//!
//! Of the eight combinations of *host allows writing*, *library allows writing* and the hardware
//! W bit four are legal, and [`Writable`] has only these.

pub mod access;
pub mod cell;
pub mod ept;
pub mod format;
pub mod law;
pub mod leaf;
pub mod npt;
pub mod state;
// Models shrink the tables; what hardware walks is judged without them.
#[cfg(all(test, not(any(loom, shuttle))))]
mod tests;

pub use access::{Access, MemoryType};
pub use cell::{Cell, Value};
pub use format::{Format, FormatError};
pub use leaf::{Leaf, Record, Tracked, Writable, split_child};
pub use state::State;
