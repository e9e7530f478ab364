//! What exists for the tests of this crate only.

#[cfg(all(any(doc, doctest), feature = "protocol"))]
pub mod misuse;
#[cfg(feature = "protocol")]
pub mod models;
#[cfg(feature = "record")]
pub mod record;
