//! Changing slots and dropping roots, under the slot guard.

pub mod change;
pub mod deletion;
pub mod drain;
pub mod edit;
pub mod error;
pub mod guard;
