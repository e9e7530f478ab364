//! What is wanted of the nested tables.

use crate::Allows;

/// Which address the nested tables translate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Part {
    /// The guest's final one.
    Final,
    /// That of an entry in one of the guest's tables.
    Table,
}

/// What is wanted of the nested tables.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wants {
    pub part: Part,
    /// What has to be allowed; also what a fault reports.
    pub needs: Allows,
    /// Whether the leaf's dirty flag is to be set.
    pub dirties: bool,
}
