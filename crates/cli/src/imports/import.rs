//! Which file imports from which, for one target.

use std::collections::BTreeSet;

use super::{
    name::{Found, Names, Target},
    scope::{Path, Use},
    tree::{Id, Tree},
};

/// One path in a file that names something of another file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Import {
    /// The file it is in.
    pub from: String,
    /// The file that defines what is named.
    pub to: String,
    /// Its line.
    pub line: usize,
    /// The path as it is written.
    pub written: String,
    /// The path that names the same where it is defined.
    pub defined: String,
    /// The file of a parent module through which it was reached, if there was one.
    pub through: Option<String>,
    /// Top-level module of the importing file; `None` for the root.
    pub from_top: Option<String>,
    /// Top-level module of the defining file; `None` for the root.
    pub to_top: Option<String>,
}

/// All imports of the tree, one for each path and file.
pub fn imports(tree: &Tree) -> Vec<Import> {
    let mut collector = Collector { tree, names: Names::new(tree), imports: BTreeSet::new() };
    for id in 0..tree.modules.len() {
        collector.module(id);
    }
    let mut imports: Vec<Import> = collector.imports.into_iter().collect();
    // Sorted by line: the first of each path stays.
    let mut seen = BTreeSet::new();
    imports.retain(|i| seen.insert((i.from.clone(), i.to.clone(), i.written.clone())));
    imports
}

struct Collector<'t> {
    tree: &'t Tree,
    names: Names<'t>,
    imports: BTreeSet<Import>,
}

impl Collector<'_> {
    fn module(&mut self, at: Id) {
        let scope = &self.tree.modules[at].scope;
        // Names whose `use` has been counted: naming them again is no further import.
        let mut counted = BTreeSet::new();
        for declaration in &scope.uses {
            if declaration.name.is_none() {
                self.glob(at, declaration);
            } else if self.declaration(at, declaration) {
                counted.extend(declaration.name.as_deref());
            }
        }
        for (path, line) in scope.paths.iter().chain(&scope.calls) {
            if path.first().is_some_and(|first| counted.contains(first.as_str())) {
                continue;
            }
            for found in self.names.path(at, path) {
                // A module alone is no value; what is taken from it counts.
                if !matches!(found.target, Target::Module(_)) {
                    self.add(at, path, *line, &found);
                }
            }
        }
        for (path, line) in &scope.calls {
            if let [name] = path.as_slice()
                && self.names.path(at, path).is_empty()
                && let Some(definer) = self.names.textual(at, name)
            {
                let target = Target::Item(definer, name.clone());
                self.add(at, path, *line, &Found { target, through: vec![] });
            }
        }
    }

    /// Counts what a `use` of one name brings, and says whether the name is done with by that. A
    /// module counts only where nothing is taken from it, and the re-export of something below this
    /// file only where its own code names it.
    fn declaration(&mut self, at: Id, declaration: &Use) -> bool {
        let all = self.names.path(at, &declaration.path);
        let mut counted = 0;
        for found in &all {
            let (home, is_module) = match found.target {
                Target::Item(id, _) | Target::Outside(id, _) => (id, false),
                Target::Module(id) => (id, true),
            };
            if declaration.is_public && self.tree.is_within(home, self.tree.owner(at)) {
                continue;
            }
            if declaration.is_public || !is_module || !self.takes_from(at, declaration) {
                self.add(at, &declaration.path, declaration.line, found);
            }
            counted += usize::from(!is_module);
        }
        counted > 0 && counted == all.len()
    }

    /// Whether a path of the module goes on after the name that `declaration` brings.
    fn takes_from(&self, at: Id, declaration: &Use) -> bool {
        let scope = &self.tree.modules[at].scope;
        let uses = scope.uses.iter().map(|other| &other.path);
        let mut paths = uses.chain(scope.paths.keys()).chain(scope.calls.keys());
        paths.any(|path| path.len() > 1 && path.first() == declaration.name.as_ref())
    }

    /// A `use` that ends in `*` counts by what is named because of it, which the paths show. Where
    /// nothing is, or it is handed on, the module itself counts.
    fn glob(&mut self, at: Id, glob: &Use) {
        for found in self.names.path(at, &glob.path) {
            let is_needed = match found.target {
                Target::Item(..) | Target::Outside(..) => true,
                Target::Module(of) if glob.is_public => {
                    !self.tree.is_within(of, self.tree.owner(at))
                }
                Target::Module(_) => !self.is_glob_used(at, glob),
            };
            if is_needed {
                self.add(at, &glob.path, glob.line, &found);
            }
        }
    }

    fn is_glob_used(&mut self, at: Id, glob: &Use) -> bool {
        let scope = &self.tree.modules[at].scope;
        let uses = scope.uses.iter().map(|other| &other.path);
        let paths = uses.chain(scope.paths.keys()).chain(scope.calls.keys());
        let mut firsts = paths.filter_map(|path| path.first());
        firsts.any(|name| !self.names.through_glob(at, glob, name).is_empty())
    }

    fn add(&mut self, at: Id, path: &Path, line: usize, found: &Found) {
        let (home, defined) = match &found.target {
            Target::Item(id, name) => (*id, format!("{}::{name}", self.tree.path(*id))),
            Target::Outside(id, path) => (*id, path.clone()),
            Target::Module(id) => (*id, self.tree.path(*id)),
        };
        let file = |id: Id| self.tree.modules[id].file.clone();
        let (from, to) = (file(at), file(home));
        if from == to {
            return;
        }
        // What a module hands on from other crates is its own, but for the root's.
        let is_outside = matches!(found.target, Target::Outside(..));
        let mut parents = found.through.iter().chain(is_outside.then_some(&home)).copied();
        let through = parents.find(|id| match is_outside {
            true => *id == 0 && file(*id) != from,
            false => file(*id) != from && file(*id) != to && self.tree.is_parent(*id),
        });
        let top = |id: Id| self.tree.top(id).map(str::to_owned);
        self.imports.insert(Import {
            from,
            to,
            line,
            written: path.join("::"),
            defined,
            through: through.map(file),
            from_top: top(at),
            to_top: top(home),
        });
    }
}
