//! Who may look at the tables when, who waits for whom, and which flush belongs to whom.
//!
//! | file | answers |
//! |---|---|
//! | [`local`] | what may a participant do next? |
//! | [`section`] | what may be looked at and changed inside a section? |
//! | [`watch`] | who is told that a frame is taken back while it is being looked up? |
//! | [`debt`], [`outstanding`], [`releasing`] | who flushes what was cleared, and when is it given back? |
//! | [`waiting`] | how does a wait let others run? |
//! | [`shootdown`] | how does a flush reach every processor? |

pub mod debt;
pub mod local;
pub mod outstanding;
pub mod releasing;
pub mod section;
pub mod shootdown;
pub mod waiting;
pub mod watch;
