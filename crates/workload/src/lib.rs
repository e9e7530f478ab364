//! What the memory workload writes and expects to read again.

pub mod pattern;
