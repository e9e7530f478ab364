//! Circles among the files of a crate.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::import::Import;

/// Files by the files that import them, with the first import of each pair.
type Edges<'i> = BTreeMap<&'i str, BTreeMap<&'i str, &'i Import>>;

/// Files of which each imports every other, directly or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Circle {
    /// The files.
    pub files: BTreeSet<String>,
    /// A shortest way round.
    pub round: Vec<Import>,
}

/// All circles. No two of them share a file.
pub fn circles(imports: &[Import]) -> Vec<Circle> {
    let mut edges = Edges::new();
    for import in imports {
        edges.entry(&import.from).or_default().entry(&import.to).or_insert(import);
    }
    let reached: BTreeMap<&str, BTreeSet<&str>> =
        edges.keys().map(|file| (*file, reach(&edges, file))).collect();
    let reaches = |a: &str, b: &str| reached.get(a).is_some_and(|files| files.contains(b));
    let mut circles = Vec::new();
    let mut done = BTreeSet::new();
    for file in edges.keys().filter(|file| reaches(file, file)) {
        if done.contains(file) {
            continue;
        }
        let files: BTreeSet<&str> = edges
            .keys()
            .copied()
            .filter(|other| reaches(file, other) && reaches(other, file))
            .collect();
        let rounds = files.iter().filter_map(|file| round(&edges, file));
        let round = rounds.min_by_key(Vec::len).unwrap_or_default();
        circles.push(Circle {
            files: files.iter().map(|file| file.to_string()).collect(),
            round: round.into_iter().cloned().collect(),
        });
        done.extend(files);
    }
    circles
}

/// Every file that `file` imports, directly or not.
fn reach<'i>(edges: &Edges<'i>, file: &str) -> BTreeSet<&'i str> {
    let mut reached = BTreeSet::new();
    let mut open = vec![file];
    while let Some(file) = open.pop() {
        for next in edges.get(file).into_iter().flat_map(BTreeMap::keys) {
            if reached.insert(*next) {
                open.push(next);
            }
        }
    }
    reached
}

/// A shortest way from a file back to itself.
fn round<'i>(edges: &Edges<'i>, file: &str) -> Option<Vec<&'i Import>> {
    let mut ways = VecDeque::from([(file, Vec::new())]);
    let mut seen = BTreeSet::new();
    while let Some((at, way)) = ways.pop_front() {
        for (next, import) in edges.get(at).into_iter().flatten() {
            let way = [way.as_slice(), &[*import]].concat();
            if *next == file {
                return Some(way);
            }
            if seen.insert(*next) {
                ways.push_back((next, way));
            }
        }
    }
    None
}
