//! What one module defines and names, as it is written.

use std::collections::{BTreeMap, BTreeSet};

/// The segments of a path. `crate`, `self` and `super` are segments like others.
pub type Path = Vec<String>;

/// One module: a file, or a `mod x { .. }` in it.
#[derive(Debug, Default)]
pub struct Scope {
    /// Names of the items it defines.
    pub items: BTreeSet<String>,
    /// Names that stand in macro calls in the place of items: the macro may define them.
    pub possible: BTreeSet<String>,
    /// Macros defined here by `macro_rules!`.
    pub macros: BTreeSet<String>,
    /// Those of them that `#[macro_export]` puts into the crate's root.
    pub exported: BTreeSet<String>,
    /// Its `use` declarations, one for each name.
    pub uses: Vec<Use>,
    /// Every other path, with the line where it stands first.
    pub paths: BTreeMap<Path, usize>,
    /// Names of the macros it calls, likewise.
    pub calls: BTreeMap<Path, usize>,
    /// Its modules.
    pub children: Vec<Child>,
}

/// One name that a `use` declaration brings, or all names of a module.
#[derive(Debug)]
pub struct Use {
    /// From where.
    pub path: Path,
    /// What it is called here; `None` if the path ends in `*`.
    pub name: Option<String>,
    /// Where it stands.
    pub line: usize,
    /// Whether it says `pub` of any kind.
    pub is_public: bool,
    /// Whether it stands in a function.
    pub is_local: bool,
}

/// A module in a module.
#[derive(Debug)]
pub struct Child {
    /// Its name.
    pub name: String,
    /// Whether `#[macro_use]` makes its macros visible after it.
    pub has_macros: bool,
    /// What it holds; `None` if it has a file of its own.
    pub scope: Option<Scope>,
}
