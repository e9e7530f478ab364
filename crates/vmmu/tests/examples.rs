//! The examples, which the porting chapter of the handbook quotes, do what they say; and the
//! glossary of the handbook is that of the documentation.

#![allow(missing_docs, reason = "a test")]

#[allow(dead_code, reason = "its main is the example's")]
#[path = "../examples/hosted.rs"]
mod hosted;

/// A vCPU that is waited for can run only because the library's wait asks the host to pass the
/// time. Pages move under the guest, no addition to them is lost, the checker finds nothing wrong,
/// and every table page comes back.
#[test]
fn a_hosted_hypervisor_moves_pages_under_a_running_guest() {
    let report = hosted::run().unwrap();
    assert!(report.moved > 100, "{report:?}");
    assert!(report.waits > 100, "{report:?}");
    assert!(report.flushes > 100, "{report:?}");
}

/// The chapter shows what is compiled: each of its excerpts is in an example, line by line.
#[test]
fn the_porting_chapter_quotes_the_examples() {
    let chapter = include_str!("../../../docs/book/porting.md");
    let examples =
        [include_str!("../examples/hosted.rs"), include_str!("../examples/bare_metal.rs")];
    let mut excerpts = 0;
    for excerpt in chapter.split("```rust\n").skip(1) {
        let excerpt: Vec<&str> =
            excerpt.lines().take_while(|line| *line != "```").map(str::trim).collect();
        let is_in = |example: &str| {
            let lines: Vec<&str> = example.lines().map(str::trim).collect();
            lines.windows(excerpt.len()).any(|lines| lines == excerpt)
        };
        assert!(examples.into_iter().any(is_in), "in no example:\n{}", excerpt.join("\n"));
        excerpts += 1;
    }
    assert!(excerpts > 3, "{excerpts} excerpts");
}

#[test]
fn the_glossary_is_the_same_in_the_handbook_and_in_the_documentation() {
    fn rows(text: &str) -> Vec<&str> {
        let lines = text.lines().map(|line| line.strip_prefix("//! ").unwrap_or(line));
        lines.skip_while(|line| !line.starts_with("| term |")).take_while(|l| *l != "//!").collect()
    }
    let handbook = rows(include_str!("../../../docs/book/glossary.md"));
    assert!(handbook.len() > 30);
    assert_eq!(rows(include_str!("../src/lib.rs")), handbook);
}
