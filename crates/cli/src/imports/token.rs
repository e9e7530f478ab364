//! Paths among the tokens of a macro, which cannot be parsed without knowing the macro.

use proc_macro2::{Ident, TokenStream, TokenTree};
use syn::ItemUse;

/// What looks like a path, or like a `use` declaration.
#[derive(Default)]
pub struct Tokens {
    /// Names joined by `::`, and single names.
    pub paths: Vec<Vec<Ident>>,
    /// `use` declarations.
    pub uses: Vec<ItemUse>,
}

impl Tokens {
    /// Adds what is in `stream` and in its groups.
    pub fn add(&mut self, stream: TokenStream) {
        let tokens = without_dollars(stream);
        let mut at = 0;
        while let Some(token) = tokens.get(at) {
            at += 1;
            match token {
                TokenTree::Group(group) => self.add(group.stream()),
                TokenTree::Punct(punct) if punct.as_char() == '#' => {
                    // An attribute.
                    at += usize::from(matches!(tokens.get(at), Some(TokenTree::Group(_))));
                }
                TokenTree::Ident(ident) if ident == "use" => {
                    let rest = &tokens[at - 1..];
                    let end = rest.iter().position(|token| is(token, ';')).map(|end| end + 1);
                    let declaration = end.map(|end| rest[..end].iter().cloned().collect());
                    if let Some(Ok(found)) = declaration.map(syn::parse2::<ItemUse>) {
                        self.uses.push(found);
                        at += end.unwrap_or(1) - 1;
                    }
                }
                TokenTree::Ident(first) => {
                    let is_free = is_free(&tokens[..at - 1]);
                    let mut path = vec![first.clone()];
                    while let [colon, second, TokenTree::Ident(next), ..] = &tokens[at..]
                        && is(colon, ':')
                        && is(second, ':')
                    {
                        path.push(next.clone());
                        at += 3;
                    }
                    if is_free {
                        self.paths.push(path);
                    }
                }
                _ => {}
            }
        }
    }
}

fn is(token: &TokenTree, sign: char) -> bool {
    matches!(token, TokenTree::Punct(punct) if punct.as_char() == sign)
}

/// Whether a path can begin after these tokens. After a point stands a field or method, after two
/// colons the rest of a path, after a dollar a variable of the macro.
fn is_free(before: &[TokenTree]) -> bool {
    let Some((last, rest)) = before.split_last() else { return true };
    let is_double = |sign| rest.last().is_some_and(|token| is(token, sign));
    match last {
        TokenTree::Punct(punct) => match punct.as_char() {
            '.' => is_double('.'),
            ':' => !is_double(':'),
            '$' | '\'' => false,
            _ => true,
        },
        _ => true,
    }
}

/// The tokens with `crate` in the place of `$crate`.
fn without_dollars(stream: TokenStream) -> Vec<TokenTree> {
    let mut tokens: Vec<TokenTree> = Vec::new();
    for token in stream {
        let is_crate = matches!(&token, TokenTree::Ident(ident) if ident == "crate");
        if is_crate && tokens.last().is_some_and(|last| is(last, '$')) {
            tokens.pop();
        }
        tokens.push(token);
    }
    tokens
}
