//! Imports between the source files of a crate: which layers they cross, and where they go in
//! circles.
//!
//! A file imports from another if a path in it, in a `use` or anywhere in code, names what the
//! other defines. The path is followed through re-exports to the definition. Not counted are
//! `mod x;`, re-exports of what is below the module that has them, attributes, and whatever is
//! compiled for tests or documentation only. Types are not inferred: a method that is called on a
//! value, without its type or trait being named, is no import.

mod condition;
mod graph;
mod import;
mod name;
pub mod report;
pub mod rules;
mod scope;
mod source;
mod token;
mod tree;
pub mod verdict;
pub mod workspace;

#[cfg(test)]
mod tests;
