//! Taking permissions to map away: the chain of values, and what can be revoked.

pub mod chain;
pub mod dying_slot;
pub mod guest_frames;
pub mod host_pages;
pub mod hull;
pub mod invalidation;
pub mod progress;
pub mod roots;
pub mod zap;
