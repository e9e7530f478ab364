//! Small planted trees.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{rules::Rules, verdict::Verdict};

/// Judges a library of these files, with this in its `[package.metadata.imports]`.
fn judge(files: &[(&str, &str)], rules: Value) -> Verdict {
    let files: BTreeMap<&str, &str> = files.iter().copied().collect();
    let rules = Rules::of_package(&json!({ "imports": rules })).unwrap();
    Verdict::of(&["lib.rs".into()], &rules, &|name| Ok(files.get(name).map(|t| t.to_string())))
        .unwrap()
}

/// The same without rules.
fn circles(files: &[(&str, &str)]) -> Verdict {
    judge(files, json!({}))
}

/// `low` below `high`, with this text in `low.rs`.
fn layered(root: &str, low: &str) -> Verdict {
    let high = "pub struct High; pub fn high() {} pub mod inner { pub const DEEP: u8 = 1; }";
    judge(
        &[("lib.rs", root), ("low.rs", low), ("high.rs", high)],
        json!({ "layers": [["low"], ["high"]] }),
    )
}

const ROOT: &str = "mod low; mod high;";

#[track_caller]
fn complains(verdict: &Verdict, parts: &[&str]) {
    let [complaint] = verdict.complaints.as_slice() else {
        panic!("not one complaint: {:#?}", verdict.complaints);
    };
    for part in parts {
        assert!(complaint.contains(part), "no `{part}` in: {complaint}");
    }
}

#[track_caller]
fn is_content(verdict: &Verdict) {
    assert_eq!(verdict.complaints, Vec::<String>::new());
}

#[test]
fn files_that_import_downwards_only_pass() {
    let verdict = layered("mod low; mod high; pub use low::Low;", "pub struct Low;");
    is_content(&verdict);
    assert_eq!((verdict.files, verdict.imports), (3, 0));
}

#[test]
fn a_circle_of_two_files_is_found() {
    let verdict = circles(&[
        ("lib.rs", "mod a; mod b;"),
        ("a.rs", "use crate::b::B;\npub struct A(B);"),
        ("b.rs", "pub struct B;\nfn f(_: super::a::A) {}"),
    ]);
    assert_eq!((verdict.circles, verdict.imports), (1, 2));
    let parts = ["2 files (a.rs, b.rs)", "a.rs -> b.rs (line 1: crate::b::B)"];
    complains(&verdict, &parts);
    complains(&verdict, &["then b.rs -> a.rs (line 2: super::a::A)"]);
}

#[test]
fn a_circle_of_three_files_is_found() {
    let verdict = circles(&[
        ("lib.rs", "mod a; mod b; mod c;"),
        ("a.rs", "use crate::b::B; pub struct A(B);"),
        ("b.rs", "use crate::c::C; pub struct B(C);"),
        ("c.rs", "use crate::a::A; pub struct C(A);"),
    ]);
    complains(&verdict, &["3 files (a.rs, b.rs, c.rs)"]);
}

#[test]
fn a_parent_with_items_is_in_a_circle_with_a_child_that_it_uses() {
    let child = "use super::Parent; pub struct Child(Parent);";
    let parent = "mod child; pub use child::Child; pub struct Parent; fn f(_: Child) {}";
    let files = [("lib.rs", "mod a;"), ("a/mod.rs", parent), ("a/child.rs", child)];
    complains(&circles(&files), &["2 files (a/child.rs, a/mod.rs)"]);
}

#[test]
fn a_parent_that_only_hands_on_is_in_no_circle() {
    let child = "use super::Parent; pub struct Child(Parent);";
    let parent = "mod child; pub use child::Child; pub struct Parent;";
    let files = [("lib.rs", "mod a;"), ("a/mod.rs", parent), ("a/child.rs", child)];
    is_content(&circles(&files));
    // Also with a module for it in the same file.
    let parent = "mod child; pub mod face { pub use super::child::Child; } pub struct Parent;";
    let files = [("lib.rs", "mod a;"), ("a/mod.rs", parent), ("a/child.rs", child)];
    is_content(&circles(&files));
}

#[test]
fn a_use_of_a_higher_layer_is_upward() {
    let verdict = layered(ROOT, "\nuse crate::{\n    high::High,\n};");
    assert_eq!(verdict.upward, 1);
    complains(&verdict, &["low.rs -> high.rs (line 3: crate::high::High)"]);
    complains(&verdict, &["layer 2 (high) stands above layer 1 (low)", "move crate::high::High"]);
}

#[test]
fn a_bare_path_in_an_expression_is_an_import() {
    let verdict = layered(ROOT, "fn f() {\n    let _ = |x: u8| { crate::high::high(); x };\n}");
    complains(&verdict, &["low.rs -> high.rs (line 2: crate::high::high)"]);
}

#[test]
fn a_path_in_a_type_and_in_a_pattern_is_an_import() {
    complains(&layered(ROOT, "type T = Vec<crate::high::High>;"), &["crate::high::High"]);
    let pattern = "fn f(x: u8) { match x { crate::high::inner::DEEP => {}, _ => {} } }";
    complains(&layered(ROOT, pattern), &["low.rs -> high.rs", "crate::high::inner::DEEP"]);
}

#[test]
fn a_path_in_a_macro_call_is_an_import() {
    let call = "fn f() {\n println!(\"{:?}\",\n crate::high::high());\n}";
    complains(&layered(ROOT, call), &["(line 3: crate::high::high)"]);
    // One that takes no expressions.
    let call = "mine! { a => .b, crate::high::high [0..crate::high::inner::DEEP] }";
    assert_eq!(layered(ROOT, call).upward, 2);
}

#[test]
fn a_path_in_a_macros_definition_is_an_import() {
    let macros = "macro_rules! m { ($x:ident) => { $crate::high::high() }; }";
    complains(&layered(ROOT, macros), &["crate::high::high"]);
    let macros = "macro_rules! m { () => { use $crate::high::{High, inner::*}; }; }";
    assert_eq!(layered(ROOT, macros).upward, 2);
}

#[test]
fn a_re_export_is_followed_to_the_definition() {
    let root = "mod low; mod high; pub use high::High as Renamed;";
    let verdict = layered(root, "use crate::Renamed;");
    complains(&verdict, &["low.rs -> high.rs (line 1: crate::Renamed)", "crate::high::High"]);
    // Through two, one of them of all names.
    let root = "mod low; mod high; mod face { pub use crate::high::*; } pub use face::inner;";
    complains(&layered(root, "fn f() -> u8 { crate::inner::DEEP }"), &["low.rs -> high.rs"]);
}

#[test]
fn a_path_through_super_super_is_an_import() {
    let files = [
        ("lib.rs", "mod a; mod high;"),
        ("a/mod.rs", "mod b;"),
        ("a/b.rs", "mod inline { fn f() { super::super::super::high::high() } }"),
        ("high.rs", "pub fn high() {}"),
    ];
    let verdict = judge(&files, json!({ "layers": [["a"], ["high"]] }));
    complains(&verdict, &["a/b.rs -> high.rs (line 1: super::super::super::high::high)"]);
}

#[test]
fn what_is_taken_from_an_imported_module_is_imported_from_its_own_file() {
    let files = [
        ("lib.rs", "mod a; mod b;"),
        ("a/mod.rs", "pub mod c; use crate::b::B; pub struct A(B);"),
        ("a/c.rs", "pub struct C;"),
        ("b.rs", "use crate::a; pub struct B(a::c::C);"),
    ];
    is_content(&circles(&files));
}

#[test]
fn names_brought_by_a_star_count_where_they_are_named() {
    let glob = "use crate::high::*; fn f() {\n let _ = format!(\"{}\", inner::DEEP); }";
    complains(&layered(ROOT, glob), &["(line 2: inner::DEEP)"]);
}

#[test]
fn a_macro_found_without_an_import_counts() {
    let root = "mod low; #[macro_use] mod high;";
    let files = [("lib.rs", root), ("low.rs", "m!();"), ("high.rs", "macro_rules! m { () => {} }")];
    let verdict = judge(&files, json!({ "layers": [["low"], ["high"]] }));
    complains(&verdict, &["low.rs -> high.rs (line 1: m)"]);
}

#[test]
fn what_is_compiled_for_tests_or_documentation_only_does_not_count() {
    is_content(&layered(ROOT, "#[cfg(test)] mod tests { use crate::high::High; }"));
    is_content(&layered(ROOT, "#[cfg(all(test, not(loom)))] use crate::high::High;"));
    is_content(&layered(ROOT, "#[cfg(any(doc, doctest))] fn f() { crate::high::high() }"));
    is_content(&layered(ROOT, "struct S; impl S { #[cfg(test)] fn f() { crate::high::high() } }"));
    // The file of such a module is never asked for; or it says so itself, and is no module then.
    is_content(&layered("mod low; mod high; #[cfg(test)] mod absent;", ""));
    complains(&layered(ROOT, "#![cfg(test)] use crate::high::High;"), &["no module `low`"]);
}

#[test]
fn what_may_be_compiled_otherwise_counts() {
    for condition in ["not(test)", "any(test, feature = \"x\")", "loom", "all(unix, not(doc))"] {
        let low = format!("#[cfg({condition})] use crate::high::High;");
        assert_eq!(layered(ROOT, &low).upward, 1, "{condition}");
    }
}

#[test]
fn attributes_visibilities_and_other_crates_are_no_imports() {
    is_content(&layered(ROOT, "#[x(crate::high::High)] pub(in crate::high) struct S;"));
    is_content(&layered(ROOT, "use high::High; use ::high::high; fn f() { ::high::high() }"));
}

#[test]
fn an_item_of_the_root_is_above_all_layers() {
    let verdict = layered("mod low; mod high; pub struct Top;", "use crate::Top;");
    complains(&verdict, &["low.rs -> lib.rs", "the crate's root stands above layer 1 (low)"]);
    let verdict = layered("mod low; mod high; use other::size;", "use crate::size::Size;");
    complains(&verdict, &["low.rs -> lib.rs", "name other::size itself"]);
}

#[test]
fn importing_through_a_parent_is_refused_where_the_crate_says_so() {
    let files = [
        ("lib.rs", "mod a; mod b;"),
        ("a/mod.rs", "mod c; pub use c::C as D;"),
        ("a/c.rs", "pub struct C;"),
        ("b.rs", "use crate::a::D;"),
    ];
    is_content(&circles(&files));
    let verdict = judge(&files, json!({ "through-parent": false }));
    assert_eq!(verdict.through, 1);
    complains(&verdict, &["b.rs -> a/c.rs (line 1: crate::a::D)"]);
    complains(&verdict, &["a/mod.rs only hands it on", "name crate::a::c::C"]);
}

#[test]
fn what_a_folder_hands_on_from_other_crates_is_its_own() {
    let files = [
        ("lib.rs", "mod sync; mod b; pub use other::Other;"),
        ("sync/mod.rs", "mod c; pub use std::sync::*; pub use c::*;"),
        ("sync/c.rs", "pub use std::cell::Cell;"),
        ("b.rs", "use crate::sync::{Cell, Mutex};"),
    ];
    let verdict = judge(&files, json!({ "through-parent": false }));
    is_content(&verdict);
    assert_eq!(verdict.imports, 2);
    let files = [("lib.rs", "mod b; use other::Other;"), ("b.rs", "use crate::Other;")];
    let verdict = judge(&files, json!({ "through-parent": false }));
    complains(&verdict, &["lib.rs only hands it on", "name other::Other"]);
}

#[test]
fn layers_name_every_module_and_no_other() {
    let files = [("lib.rs", "mod a; mod b;"), ("a.rs", ""), ("b.rs", "")];
    complains(&judge(&files, json!({ "layers": [["a"]] })), &["module `b` has none"]);
    complains(&judge(&files, json!({ "layers": [["a", "b"], ["c"]] })), &["no module `c`"]);
    complains(&judge(&files, json!({ "layers": [["a", "b"], ["a"]] })), &["`a` is listed twice"]);
}

#[test]
fn a_known_circle_passes_and_one_that_is_gone_is_stale() {
    let files = [
        ("lib.rs", "mod a; mod b; mod c;"),
        ("a.rs", "use crate::b::B; pub struct A(B);"),
        ("b.rs", "use crate::a::A; pub struct B(A);"),
        ("c.rs", ""),
    ];
    let verdict = judge(&files, json!({ "known-circles": [["b.rs", "a.rs"]] }));
    is_content(&verdict);
    assert_eq!((verdict.circles, verdict.known), (0, 1));
    let verdict = judge(&files, json!({ "known-circles": [["a.rs", "b.rs"], ["b.rs", "c.rs"]] }));
    complains(&verdict, &["known circle (b.rs, c.rs)", "remove it from the list"]);
}

#[test]
fn a_rule_that_does_not_exist_is_an_error() {
    assert!(Rules::of_package(&json!({ "imports": { "layer": [] } })).is_err());
    assert!(Rules::of_package(&json!(null)).unwrap().through_parent);
}
