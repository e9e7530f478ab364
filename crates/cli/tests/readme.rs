//! The README says what is true.

const README: &str = include_str!("../../../README.md");
const LIBRARY: &str = include_str!("../../vmmu/src/lib.rs");

/// The lines a reader sees of the library's first example.
fn documented() -> Vec<&'static str> {
    let lines = LIBRARY.lines().map(|line| line.strip_prefix("//!").unwrap_or(line));
    let example = lines.skip_while(|line| !line.starts_with(" ```")).skip(1);
    example
        .take_while(|line| !line.starts_with(" ```"))
        .map(|line| line.strip_prefix(' ').unwrap_or(line))
        .filter(|line| *line != "#" && !line.starts_with("# "))
        .collect()
}

#[test]
fn the_example_is_part_of_the_one_that_is_compiled() {
    let shown: Vec<&str> = README
        .lines()
        .skip_while(|line| *line != "```rust")
        .skip(1)
        .take_while(|l| *l != "```")
        .collect();
    assert!(shown.len() > 10);
    let documented = documented();
    let found = documented.windows(shown.len()).any(|lines| lines == shown);
    assert!(found, "not in the library's example:\n{}", shown.join("\n"));
}

#[test]
fn every_file_it_names_is_there() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../../");
    let targets = README.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    for target in targets.filter(|target| !target.starts_with("http")) {
        assert!(std::path::Path::new(&format!("{root}{target}")).exists(), "{target} is not there");
    }
}
