//! Reads one file into what it defines and names.

use proc_macro2::Ident;
use syn::{
    Attribute, Expr, ForeignItem, ImplItem, Item, ItemMacro, ItemMod, ItemUse, Macro, Result,
    Token, TraitItem, UseTree, Visibility,
    ext::IdentExt,
    punctuated::Punctuated,
    spanned::Spanned,
    visit::{self, Visit},
};

use super::{
    condition::is_left_out,
    scope::{Child, Path, Scope, Use},
    token::Tokens,
};

/// What the file holds; `None` if all of it is compiled for tests or documentation only.
pub fn read(text: &str) -> Result<Option<Scope>> {
    let file = syn::parse_file(text)?;
    Ok((!is_left_out(&file.attrs)).then(|| Reader::scope(&file.items)))
}

/// Walks over one module. Attributes are no imports, and neither is `pub(in path)`.
#[derive(Default)]
struct Reader {
    scope: Scope,
    /// Blocks around what is being read.
    depth: usize,
}

impl Reader {
    fn scope(items: &[Item]) -> Scope {
        let mut reader = Reader::default();
        for item in items {
            reader.visit_item(item);
        }
        reader.scope
    }

    fn define(&mut self, name: &Ident) {
        if self.depth == 0 {
            self.scope.items.insert(text(name));
        }
    }

    /// Adds the names of a `use` declaration, each with its whole path.
    fn add_use(&mut self, tree: &UseTree, prefix: &Path, is_public: bool) {
        let mut path = prefix.clone();
        let name = match tree {
            UseTree::Path(part) => {
                path.push(text(&part.ident));
                return self.add_use(&part.tree, &path, is_public);
            }
            UseTree::Group(group) => {
                for tree in &group.items {
                    self.add_use(tree, prefix, is_public);
                }
                return;
            }
            UseTree::Glob(_) => None,
            UseTree::Name(name) => {
                if name.ident != "self" {
                    path.push(text(&name.ident));
                }
                path.last().cloned()
            }
            UseTree::Rename(rename) => {
                if rename.ident != "self" {
                    path.push(text(&rename.ident));
                }
                Some(text(&rename.rename))
            }
        };
        let line = beginning(tree);
        self.scope.uses.push(Use { path, name, line, is_public, is_local: self.depth > 0 });
    }
}

impl<'a> Visit<'a> for Reader {
    fn visit_attribute(&mut self, _: &'a Attribute) {}

    fn visit_visibility(&mut self, _: &'a Visibility) {}

    fn visit_item(&mut self, item: &'a Item) {
        let (attributes, name) = parts(item);
        if is_left_out(attributes) {
            return;
        }
        if let Some(name) = name {
            self.define(name);
        }
        visit::visit_item(self, item);
    }

    fn visit_item_mod(&mut self, item: &'a ItemMod) {
        let has_macros = item.attrs.iter().any(|a| a.path().is_ident("macro_use"));
        let scope = item.content.as_ref().map(|(_, items)| Reader::scope(items));
        self.scope.children.push(Child { name: text(&item.ident), has_macros, scope });
    }

    fn visit_item_use(&mut self, item: &'a ItemUse) {
        let is_public = !matches!(item.vis, Visibility::Inherited);
        // A path that begins with `::` leaves the crate.
        let prefix = item.leading_colon.map(|_| "::".to_owned()).into_iter().collect();
        self.add_use(&item.tree, &prefix, is_public);
    }

    fn visit_item_macro(&mut self, item: &'a ItemMacro) {
        match &item.ident {
            Some(name) if self.depth == 0 => {
                self.define(name);
                self.scope.macros.insert(text(name));
                if item.attrs.iter().any(|a| a.path().is_ident("macro_export")) {
                    self.scope.exported.insert(text(name));
                }
            }
            Some(_) => {}
            None => {
                let mut tokens = Tokens::default();
                tokens.add(item.mac.tokens.clone());
                let single = tokens.paths.iter().filter(|path| path.len() == 1);
                self.scope.possible.extend(single.flatten().map(text));
            }
        }
        self.visit_macro(&item.mac);
    }

    fn visit_foreign_item(&mut self, item: &'a ForeignItem) {
        match item {
            ForeignItem::Fn(function) => self.define(&function.sig.ident),
            ForeignItem::Static(place) => self.define(&place.ident),
            _ => {}
        }
        visit::visit_foreign_item(self, item);
    }

    fn visit_impl_item(&mut self, item: &'a ImplItem) {
        let attributes = match item {
            ImplItem::Const(item) => item.attrs.as_slice(),
            ImplItem::Fn(item) => &item.attrs,
            ImplItem::Type(item) => &item.attrs,
            ImplItem::Macro(item) => &item.attrs,
            _ => &[],
        };
        if !is_left_out(attributes) {
            visit::visit_impl_item(self, item);
        }
    }

    fn visit_trait_item(&mut self, item: &'a TraitItem) {
        let attributes = match item {
            TraitItem::Const(item) => item.attrs.as_slice(),
            TraitItem::Fn(item) => &item.attrs,
            TraitItem::Type(item) => &item.attrs,
            TraitItem::Macro(item) => &item.attrs,
            _ => &[],
        };
        if !is_left_out(attributes) {
            visit::visit_trait_item(self, item);
        }
    }

    fn visit_field(&mut self, field: &'a syn::Field) {
        if !is_left_out(&field.attrs) {
            visit::visit_field(self, field);
        }
    }

    fn visit_variant(&mut self, variant: &'a syn::Variant) {
        if !is_left_out(&variant.attrs) {
            visit::visit_variant(self, variant);
        }
    }

    fn visit_arm(&mut self, arm: &'a syn::Arm) {
        if !is_left_out(&arm.attrs) {
            visit::visit_arm(self, arm);
        }
    }

    fn visit_local(&mut self, local: &'a syn::Local) {
        if !is_left_out(&local.attrs) {
            visit::visit_local(self, local);
        }
    }

    fn visit_expr_block(&mut self, block: &'a syn::ExprBlock) {
        if !is_left_out(&block.attrs) {
            visit::visit_expr_block(self, block);
        }
    }

    fn visit_block(&mut self, block: &'a syn::Block) {
        self.depth += 1;
        visit::visit_block(self, block);
        self.depth -= 1;
    }

    fn visit_path(&mut self, path: &'a syn::Path) {
        // One that begins with `::` leaves the crate, or is the rest of `<Type>::`.
        if path.leading_colon.is_none()
            && let Some(first) = path.segments.first()
        {
            let segments = path.segments.iter().map(|segment| text(&segment.ident)).collect();
            self.scope.paths.entry(segments).or_insert_with(|| line(&first.ident));
        }
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'a Macro) {
        if let Some(first) = call.path.segments.first() {
            let segments = call.path.segments.iter().map(|segment| text(&segment.ident)).collect();
            self.scope.calls.entry(segments).or_insert_with(|| line(&first.ident));
        }
        // Most macros take expressions, like functions.
        if let Ok(list) = call.parse_body_with(Punctuated::<Expr, Token![,]>::parse_terminated) {
            for expression in &list {
                self.visit_expr(expression);
            }
            return;
        }
        let mut tokens = Tokens::default();
        tokens.add(call.tokens.clone());
        for item in &tokens.uses {
            self.visit_item_use(item);
        }
        for path in tokens.paths {
            if let Some(first) = path.first() {
                let segments = path.iter().map(text).collect();
                self.scope.paths.entry(segments).or_insert_with(|| line(first));
            }
        }
    }
}

/// A name without the `r#` of a raw one.
fn text(ident: &Ident) -> String {
    ident.unraw().to_string()
}

fn line(ident: &Ident) -> usize {
    ident.span().start().line
}

/// The line where this part of a `use` declaration begins.
fn beginning(tree: &UseTree) -> usize {
    match tree {
        UseTree::Path(part) => line(&part.ident),
        UseTree::Name(name) => line(&name.ident),
        UseTree::Rename(rename) => line(&rename.ident),
        UseTree::Glob(glob) => glob.star_token.span().start().line,
        UseTree::Group(group) => group.brace_token.span.open().start().line,
    }
}

/// The attributes of an item, and its name where it is defined by it.
fn parts(item: &Item) -> (&[Attribute], Option<&Ident>) {
    match item {
        Item::Const(item) => (&item.attrs, Some(&item.ident)),
        Item::Enum(item) => (&item.attrs, Some(&item.ident)),
        Item::Fn(item) => (&item.attrs, Some(&item.sig.ident)),
        Item::Static(item) => (&item.attrs, Some(&item.ident)),
        Item::Struct(item) => (&item.attrs, Some(&item.ident)),
        Item::Trait(item) => (&item.attrs, Some(&item.ident)),
        Item::TraitAlias(item) => (&item.attrs, Some(&item.ident)),
        Item::Type(item) => (&item.attrs, Some(&item.ident)),
        Item::Union(item) => (&item.attrs, Some(&item.ident)),
        Item::ExternCrate(item) => (&item.attrs, None),
        Item::ForeignMod(item) => (&item.attrs, None),
        Item::Impl(item) => (&item.attrs, None),
        Item::Macro(item) => (&item.attrs, None),
        Item::Mod(item) => (&item.attrs, None),
        Item::Use(item) => (&item.attrs, None),
        _ => (&[], None),
    }
}
