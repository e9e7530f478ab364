//! Taking permissions to map away: the chain of values ([`chain`]), and what can be revoked.
//!
//! | what | by | file |
//! |---|---|---|
//! | pages that the host takes back | [`invalidation`] | [`host_pages`] |
//! | guest frames whose mappings must be made anew | [`zap`], a slot's new limit | [`guest_frames`] |
//! | a slot | its deletion, a move | [`dying_slot`] |
//! | roots | a drain | [`roots`] |

pub mod chain;
pub mod dying_slot;
pub mod guest_frames;
pub mod host_pages;
pub mod hull;
pub mod invalidation;
pub mod progress;
pub mod roots;
pub mod zap;
