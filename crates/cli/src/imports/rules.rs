//! What a crate says about its own imports, in its `Cargo.toml`:
//!
//! ```toml
//! [package.metadata.imports]
//! layers = [["addr", "sync"], ["entry"], ["vm"]]   # bottom to top; every module of the root
//! through-parent = false                           # `crate::a::b::X`, never `crate::a::X`
//! known-circles = [["a.rs", "b/mod.rs"]]           # to be cut later
//! ```

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::Value;

/// See the module.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Rules {
    /// Top-level modules, lowest layer first. Without layers only circles are refused.
    #[serde(default)]
    pub layers: Vec<Vec<String>>,
    /// Whether something may be imported from a module that only hands it on.
    #[serde(default = "yes")]
    pub through_parent: bool,
    /// Circles that are not refused yet, by the files of each below `src`.
    #[serde(default)]
    pub known_circles: Vec<BTreeSet<String>>,
}

fn yes() -> bool {
    true
}

impl Rules {
    /// Those in the metadata of a package.
    pub fn of_package(metadata: &Value) -> Result<Self> {
        match metadata.get("imports") {
            None => Ok(Rules { through_parent: true, ..Rules::default() }),
            Some(rules) => serde_json::from_value(rules.clone())
                .context("cannot understand [package.metadata.imports]"),
        }
    }

    /// The layer of a top-level module, counted from 1 at the bottom.
    pub fn layer(&self, module: &str) -> Option<usize> {
        let holds = |layer: &Vec<String>| layer.iter().any(|name| name == module);
        self.layers.iter().position(holds).map(|index| index + 1)
    }

    /// What is wrong with the list of layers, for a crate with these top-level modules.
    pub fn complaints(&self, modules: &BTreeSet<&str>) -> Vec<String> {
        if self.layers.is_empty() {
            return Vec::new();
        }
        let mut complaints = Vec::new();
        let mut listed = BTreeSet::new();
        for name in self.layers.iter().flatten() {
            if !modules.contains(name.as_str()) {
                complaints.push(format!("layers: there is no module `{name}`: remove it"));
            }
            if !listed.insert(name.as_str()) {
                complaints.push(format!("layers: `{name}` is listed twice: keep one"));
            }
        }
        for name in modules.difference(&listed) {
            complaints.push(format!("layers: module `{name}` has none: add it to one of them"));
        }
        complaints
    }
}
