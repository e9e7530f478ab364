//! Whether something is part of a crate as it is used, judged by its `#[cfg(...)]`.

use syn::{Attribute, Meta, Token, punctuated::Punctuated};

/// Whether this is compiled only for tests or for documentation. What depends on anything else, a
/// feature or a model checker, may be compiled and counts.
pub fn is_left_out(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("test")
            || attribute.path().is_ident("cfg")
                && attribute.parse_args::<Meta>().is_ok_and(|meta| value(&meta) == Some(false))
    })
}

/// What the condition is outside of tests and documentation; `None`: either.
fn value(condition: &Meta) -> Option<bool> {
    let path = condition.path();
    let Meta::List(list) = condition else {
        let absent = ["test", "doc", "doctest"].iter().any(|name| path.is_ident(name));
        return absent.then_some(false);
    };
    let parts = list.parse_args_with(Punctuated::<Meta, Token![,]>::parse_terminated).ok()?;
    let values: Vec<Option<bool>> = parts.iter().map(value).collect();
    if path.is_ident("not") {
        values.first().copied().flatten().map(|value| !value)
    } else if path.is_ident("all") {
        joined(&values, false)
    } else if path.is_ident("any") {
        joined(&values, true)
    } else {
        None
    }
}

/// One part that is `decisive` decides; without one all have to be known.
fn joined(values: &[Option<bool>], decisive: bool) -> Option<bool> {
    if values.contains(&Some(decisive)) {
        Some(decisive)
    } else {
        values.iter().all(Option::is_some).then_some(!decisive)
    }
}
