//! Holds the imports of a crate against its rules.

use std::collections::BTreeSet;

use anyhow::Result;

use super::{
    graph::{Circle, circles},
    import::{Import, imports},
    rules::Rules,
    tree::{Read, Tree},
};

/// How one crate does.
#[derive(Debug, Default)]
pub struct Verdict {
    /// Files of its targets.
    pub files: usize,
    /// Imports between them.
    pub imports: usize,
    /// Imports of something in a higher layer.
    pub upward: usize,
    /// Imports through a module that only hands things on, where the crate forbids it.
    pub through: usize,
    /// Circles that are refused.
    pub circles: usize,
    /// Circles that are listed.
    pub known: usize,
    /// What is wrong, a line for each.
    pub complaints: Vec<String>,
}

impl Verdict {
    /// Reads the targets whose files are `roots`, and judges them together.
    pub fn of(roots: &[String], rules: &Rules, read: Read) -> Result<Self> {
        let trees = roots.iter().map(|root| Tree::load(root, read)).collect::<Result<Vec<_>>>()?;
        // A file can belong to more than one target.
        let files: BTreeSet<&str> = trees.iter().flat_map(Tree::files).collect();
        let all: BTreeSet<Import> = trees.iter().flat_map(imports).collect();
        let all: Vec<Import> = all.into_iter().collect();
        let tops = trees.iter().flat_map(|tree| {
            (0..tree.modules.len())
                .filter(|id| tree.modules[*id].owns_file)
                .filter_map(|id| tree.top(id))
        });
        let mut verdict = Verdict { files: files.len(), imports: all.len(), ..Verdict::default() };
        verdict.complaints = rules.complaints(&tops.collect());
        if !rules.layers.is_empty() {
            verdict.judge_layers(&all, rules);
        }
        if !rules.through_parent {
            verdict.judge_parents(&all);
        }
        verdict.judge_circles(&circles(&all), rules);
        Ok(verdict)
    }

    fn judge_layers(&mut self, imports: &[Import], rules: &Rules) {
        for import in imports {
            let layer = |top: &Option<String>| match top {
                Some(top) => rules.layer(top),
                None => Some(rules.layers.len() + 1),
            };
            // A module without a layer has been complained about.
            let (Some(from), Some(to)) = (layer(&import.from_top), layer(&import.to_top)) else {
                continue;
            };
            if to > from {
                let names = |layer: usize| match rules.layers.get(layer - 1) {
                    Some(names) => format!("layer {layer} ({})", names.join(", ")),
                    None => "the crate's root".to_owned(),
                };
                self.upward += 1;
                self.complaints.push(format!(
                    "{}: {} stands above {}; {}",
                    place(import),
                    names(to),
                    names(from),
                    remedy(import)
                ));
            }
        }
    }

    fn judge_parents(&mut self, imports: &[Import]) {
        for import in imports {
            if let Some(through) = &import.through {
                self.through += 1;
                self.complaints.push(format!(
                    "{}: {through} only hands it on; name {}",
                    place(import),
                    import.defined
                ));
            }
        }
    }

    fn judge_circles(&mut self, circles: &[Circle], rules: &Rules) {
        for circle in circles {
            if rules.known_circles.contains(&circle.files) {
                self.known += 1;
                continue;
            }
            self.circles += 1;
            let round: Vec<String> = circle.round.iter().map(place).collect();
            self.complaints.push(format!(
                "circle of {} files ({}), for example {}; move what they share into a file of its \
                 own, below them",
                circle.files.len(),
                list(&circle.files),
                round.join(", then ")
            ));
        }
        for known in &rules.known_circles {
            if circles.iter().all(|circle| circle.files != *known) {
                self.complaints.push(format!(
                    "known circle ({}): there is none of exactly these files; remove it from the \
                     list",
                    list(known)
                ));
            }
        }
    }
}

/// `a.rs -> b.rs (line 3: crate::b::B)`.
fn place(import: &Import) -> String {
    let Import { from, to, line, written, .. } = import;
    format!("{from} -> {to} (line {line}: {written})")
}

fn remedy(import: &Import) -> String {
    match (&import.to_top, import.defined.strip_prefix("crate")) {
        // Another crate's, for which somebody's `use` stands in.
        (_, None) => format!("name {} itself", import.defined),
        (None, _) => "move it from the root into a module below".to_owned(),
        _ => format!("move {} to a lower layer, or its user to a higher one", import.defined),
    }
}

fn list(files: &BTreeSet<String>) -> String {
    files.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
}
