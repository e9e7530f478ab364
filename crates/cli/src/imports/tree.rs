//! The modules of one target, from the file of its root down.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};

use super::{
    scope::{Child, Scope},
    source,
};

/// A module, by its place in the tree. The root is 0.
pub type Id = usize;

/// What reads a file by its name; `None` if there is none.
pub type Read<'a> = &'a dyn Fn(&str) -> Result<Option<String>>;

/// One module.
#[derive(Debug)]
pub struct Module {
    /// The file it is in.
    pub file: String,
    /// Whether the whole file is this module's.
    pub owns_file: bool,
    /// The module it is in.
    pub parent: Option<Id>,
    /// Its name; `crate` for the root.
    pub name: String,
    /// What is written in it, its modules taken out.
    pub scope: Scope,
    /// Its modules. Of one name there can be several, under different conditions.
    pub children: BTreeMap<String, Vec<Id>>,
    /// Its modules whose macros are visible after them.
    pub macro_children: Vec<Id>,
}

/// All modules that are part of the target as it is used.
#[derive(Debug)]
pub struct Tree {
    /// Parents come before their children.
    pub modules: Vec<Module>,
}

impl Tree {
    /// Reads the file `root`, and those of the modules that it declares.
    pub fn load(root: &str, read: Read) -> Result<Self> {
        let mut tree = Tree { modules: Vec::new() };
        let text = read(root)?.with_context(|| format!("there is no {root}"))?;
        if let Some(scope) = parse(root, &text)? {
            let folder = root.rsplit_once('/').map_or("", |(folder, _)| folder);
            tree.add(module(root, true, None, "crate", scope), folder, read)?;
        }
        Ok(tree)
    }

    /// Adds a module and those below it, whose files are in `folder`.
    fn add(&mut self, mut module: Module, folder: &str, read: Read) -> Result<()> {
        let id = self.modules.len();
        let declared = std::mem::take(&mut module.scope.children);
        let (file, parent) = (module.file.clone(), module.parent);
        if let Some(parent) = parent.and_then(|parent| self.modules.get_mut(parent)) {
            parent.children.entry(module.name.clone()).or_default().push(id);
        }
        self.modules.push(module);
        for Child { name, has_macros, scope } in declared {
            let (file, owns, scope) = match scope {
                Some(scope) => (file.clone(), false, Some(scope)),
                None => {
                    let (path, text) = find(folder, &name, read)
                        .with_context(|| format!("`mod {name}` in {file}"))?;
                    let scope = parse(&path, &text)?;
                    (path, true, scope)
                }
            };
            let Some(scope) = scope else { continue };
            if has_macros {
                let child = self.modules.len();
                self.modules[id].macro_children.push(child);
            }
            let below = join(folder, &name);
            self.add(self::module(&file, owns, Some(id), &name, scope), &below, read)?;
        }
        Ok(())
    }

    /// The files, each once.
    pub fn files(&self) -> impl Iterator<Item = &str> {
        self.modules.iter().filter(|module| module.owns_file).map(|module| module.file.as_str())
    }

    /// The module, the one it is in, and so on to the root.
    pub fn ancestors(&self, id: Id) -> impl Iterator<Item = Id> {
        std::iter::successors(Some(id), |id| self.modules[*id].parent)
    }

    /// Whether `id` is `of` or is in it.
    pub fn is_within(&self, id: Id, of: Id) -> bool {
        self.ancestors(id).any(|ancestor| ancestor == of)
    }

    /// The module to which the whole file of `id` belongs.
    pub fn owner(&self, id: Id) -> Id {
        self.ancestors(id).find(|ancestor| self.modules[*ancestor].owns_file).unwrap_or(id)
    }

    /// Whether the file of this module has modules in files of their own: `lib.rs`, `mod.rs`.
    pub fn is_parent(&self, id: Id) -> bool {
        let file = &self.modules[id].file;
        let is_in_file = |id: Id| self.modules[id].file == *file;
        let mut apart = self.modules.iter().filter(|module| module.file != *file);
        self.owner(id) == 0 || apart.any(|module| module.parent.is_some_and(is_in_file))
    }

    /// The module right below the root that this file belongs to; `None` for the root's own file.
    pub fn top(&self, id: Id) -> Option<&str> {
        let top = self
            .ancestors(self.owner(id))
            .find(|ancestor| self.modules[*ancestor].parent == Some(0))?;
        Some(&self.modules[top].name)
    }

    /// `crate::a::b`.
    pub fn path(&self, id: Id) -> String {
        let mut names: Vec<&str> =
            self.ancestors(id).map(|ancestor| self.modules[ancestor].name.as_str()).collect();
        names.reverse();
        names.join("::")
    }
}

fn module(file: &str, owns_file: bool, parent: Option<Id>, name: &str, scope: Scope) -> Module {
    Module {
        file: file.to_owned(),
        owns_file,
        parent,
        name: name.to_owned(),
        scope,
        children: BTreeMap::new(),
        macro_children: Vec::new(),
    }
}

fn parse(file: &str, text: &str) -> Result<Option<Scope>> {
    source::read(text).with_context(|| format!("cannot understand {file}"))
}

fn join(folder: &str, name: &str) -> String {
    if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") }
}

/// The file of a module, and what is in it.
fn find(folder: &str, name: &str, read: Read) -> Result<(String, String)> {
    for path in [format!("{name}.rs"), format!("{name}/mod.rs")].map(|path| join(folder, &path)) {
        if let Some(text) = read(&path)? {
            return Ok((path, text));
        }
    }
    bail!("there is neither {name}.rs nor {name}/mod.rs in {}", join("src", folder))
}
