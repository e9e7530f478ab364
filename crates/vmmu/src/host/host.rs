//! Everything an MMU needs of its host at all times.

use crate::host::cpus::Cpus;
use crate::host::observer::Observer;
use crate::host::pages::TablePages;

/// Everything an MMU needs of its host at all times. Implemented for whatever implements the three.
pub trait Host: TablePages + Cpus + Observer {}

impl<T: TablePages + Cpus + Observer> Host for T {}
