//! Whether work in steps has come to its end.

/// Whether work that is done in steps has come to its end.
#[must_use]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    /// It is done.
    Done,
    /// Call again.
    More,
}

impl Progress {
    pub(crate) fn of<P>(rest: &Option<P>) -> Progress {
        if rest.is_some() { Progress::More } else { Progress::Done }
    }
}
