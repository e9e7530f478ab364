//! Guests: where they come from. How they are loaded is the business of `loaders`.

pub mod initramfs;
pub mod packages;

pub use loaders::{Plan, linux, multiboot, ram};
