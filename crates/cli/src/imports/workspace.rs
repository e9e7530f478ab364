//! The crates of the workspace: where their sources are, and what they say about imports.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use cargo_metadata::{MetadataCommand, Package};

use super::{rules::Rules, verdict::Verdict};
use crate::project::cargo;

/// One crate.
#[derive(Debug)]
pub struct Crate {
    /// Its name.
    pub name: String,
    source: PathBuf,
    /// The files of its library and its programs, below `src`.
    roots: Vec<String>,
    rules: Rules,
}

/// All crates of the workspace at `root`.
pub fn crates(root: &Path) -> Result<Vec<Crate>> {
    let metadata = MetadataCommand::new()
        .cargo_path(cargo())
        .current_dir(root)
        .no_deps()
        .exec()
        .with_context(|| format!("cannot ask cargo about the workspace at {}", root.display()))?;
    let mut crates = Vec::new();
    for package in &metadata.packages {
        crates.push(Crate::of(package).with_context(|| format!("crate {}", package.name))?);
    }
    crates.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(crates)
}

impl Crate {
    fn of(package: &Package) -> Result<Self> {
        let folder = package.manifest_path.parent().context("its manifest is in no folder")?;
        let source = folder.join("src");
        let mut roots = Vec::new();
        for target in package.targets.iter().filter(|target| target.is_lib() || target.is_bin()) {
            let root = target.src_path.strip_prefix(&source);
            let root = root.with_context(|| format!("{} is not in src", target.src_path))?;
            roots.push(root.to_string());
        }
        let rules = Rules::of_package(&package.metadata)?;
        let name = package.name.to_string();
        Ok(Crate { name, source: source.into_std_path_buf(), roots, rules })
    }

    /// Reads its files and judges their imports.
    pub fn judge(&self) -> Result<Verdict> {
        Verdict::of(&self.roots, &self.rules, &|name| {
            let path = self.source.join(name);
            match fs::read_to_string(&path) {
                Ok(text) => Ok(Some(text)),
                Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
                Err(e) => Err(e).with_context(|| format!("cannot read {}", path.display())),
            }
        })
    }
}
