//! Entries judged by three things that share no bit position with the code: the product of all
//! states, a reader of raw bits written from the manuals, and the law as the behaviour description
//! words it, over decoded states.

mod formats;
mod hardware;
mod law;
mod product;
