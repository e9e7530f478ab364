//! Changing slots, under the slot guard.

pub mod edit;
pub mod error;
pub mod guard;
