//! From a path as it is written to the module that defines what it names.

use super::{
    scope::Use,
    tree::{Id, Tree},
};

/// What a path leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// An item of this module.
    Item(Id, String),
    /// A module.
    Module(Id),
    /// Something of another crate, brought by a `use` of this module.
    Outside(Id, String),
}

/// A target, and the modules whose `use` declarations were followed on the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Where the path ends.
    pub target: Target,
    /// Through which modules.
    pub through: Vec<Id>,
}

/// Looks names up in a tree.
#[derive(Debug)]
pub struct Names<'t> {
    tree: &'t Tree,
    /// What is being looked up: `use` declarations can lead in circles.
    open: Vec<(Id, String)>,
}

impl<'t> Names<'t> {
    /// Names of this tree.
    pub fn new(tree: &'t Tree) -> Self {
        Names { tree, open: Vec::new() }
    }

    /// What `path`, written in the module `at`, leads to. Nothing, if it leaves the crate or begins
    /// with a local name. Several things, if a name has several meanings.
    pub fn path(&mut self, at: Id, path: &[String]) -> Vec<Found> {
        self.resolve(at, path, true)
    }

    fn resolve(&mut self, at: Id, path: &[String], with_local: bool) -> Vec<Found> {
        let mut start = None;
        let mut rest = path;
        while let Some((first, others)) = rest.split_first() {
            let here = start.unwrap_or(at);
            start = match (first.as_str(), start) {
                ("crate", None) => Some(0),
                ("self", None) => Some(at),
                ("super", _) => match self.tree.modules[here].parent {
                    Some(parent) => Some(parent),
                    None => return Vec::new(),
                },
                _ => break,
            };
            rest = others;
        }
        match (start, rest.split_first()) {
            (Some(start), None) => vec![Found { target: Target::Module(start), through: vec![] }],
            (Some(start), Some(_)) => self.below(start, rest),
            (None, Some((first, others))) => {
                let found = self.name(at, first, with_local);
                self.follow(found, others)
            }
            (None, None) => Vec::new(),
        }
    }

    /// What `path` means in a module of this crate. A name that is not found there is taken for an
    /// item which a macro defines.
    fn below(&mut self, module: Id, path: &[String]) -> Vec<Found> {
        let Some((first, rest)) = path.split_first() else { return Vec::new() };
        let found = self.name(module, first, false);
        if !found.is_empty() {
            return self.follow(found, rest);
        }
        let target = Target::Item(module, first.clone());
        vec![Found { target, through: vec![] }]
    }

    /// Goes on from modules; what follows an item is part of it.
    fn follow(&mut self, found: Vec<Found>, rest: &[String]) -> Vec<Found> {
        let mut all = Vec::new();
        for Found { target, through } in found {
            match target {
                Target::Module(module) if !rest.is_empty() => {
                    for found in self.below(module, rest) {
                        let through = [through.as_slice(), &found.through].concat();
                        all.push(Found { through, ..found });
                    }
                }
                target => all.push(Found { target, through }),
            }
        }
        all
    }

    /// What a name means in a module, also by the module's `use` declarations.
    pub fn name(&mut self, module: Id, name: &str, with_local: bool) -> Vec<Found> {
        let key = (module, name.to_owned());
        if self.open.contains(&key) {
            return Vec::new();
        }
        self.open.push(key);
        let found = self.look(module, name, with_local);
        self.open.pop();
        found
    }

    fn look(&mut self, module: Id, name: &str, with_local: bool) -> Vec<Found> {
        let here = &self.tree.modules[module];
        let mut found = Vec::new();
        let item = Target::Item(module, name.to_owned());
        if here.scope.items.contains(name) {
            found.push(Found { target: item.clone(), through: vec![] });
        }
        // The root has the exported macros of all modules.
        for (id, other) in self.tree.modules.iter().enumerate().filter(|(id, _)| *id != module) {
            if module == 0 && other.scope.exported.contains(name) {
                let target = Target::Item(id, name.to_owned());
                found.push(Found { target, through: vec![] });
            }
        }
        for child in here.children.get(name).into_iter().flatten() {
            found.push(Found { target: Target::Module(*child), through: vec![] });
        }
        let mut outside = None;
        let named = |u: &&Use| u.name.as_deref() == Some(name) && (with_local || !u.is_local);
        for declaration in here.scope.uses.iter().filter(named) {
            let led = self.resolve(module, &declaration.path, false);
            if led.is_empty() {
                outside = Some(Target::Outside(module, declaration.path.join("::")));
            }
            found.extend(led.into_iter().map(|found| behind(module, found)));
        }
        if found.is_empty() {
            found.extend(outside.map(|target| Found { target, through: vec![] }));
        }
        if found.is_empty() && here.scope.possible.contains(name) {
            found.push(Found { target: item, through: vec![] });
        }
        if found.is_empty() {
            let globs = here.scope.uses.iter().filter(|u| u.name.is_none());
            for glob in globs.filter(|u| with_local || !u.is_local) {
                found.extend(self.through_glob(module, glob, name));
            }
        }
        found
    }

    /// What `name` means in `module` by a `use` that ends in `*`.
    pub fn through_glob(&mut self, module: Id, glob: &Use, name: &str) -> Vec<Found> {
        let mut all = Vec::new();
        for found in self.resolve(module, &glob.path, false) {
            let Target::Module(of) = found.target else { continue };
            for named in self.name(of, name, false) {
                let through = [found.through.as_slice(), &named.through].concat();
                all.push(behind(module, Found { through, ..named }));
            }
        }
        all
    }

    /// The macro that a call by its name alone means where it is not imported: one of a module
    /// around the call, or of a `#[macro_use]` module in one of them.
    pub fn textual(&self, at: Id, name: &str) -> Option<Id> {
        let modules = &self.tree.modules;
        self.tree.ancestors(at).find_map(|around| {
            let here = std::iter::once(around).chain(modules[around].macro_children.clone());
            here.into_iter().find(|id| modules[*id].scope.macros.contains(name))
        })
    }
}

/// The same, reached through a `use` of `module`.
fn behind(module: Id, mut found: Found) -> Found {
    found.through.insert(0, module);
    found
}
