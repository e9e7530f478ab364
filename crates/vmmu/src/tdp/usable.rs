//! Whether an answer of the host can be mapped at all.

use crate::addr::Pfn;
use crate::entry::access::Access;
use crate::entry::format::Format;
use crate::host::backing::HostFrame;

/// A frame as an answer, checked for what any leaf must fulfil.
pub(crate) fn is_usable(format: &Format, found: &HostFrame) -> bool {
    let Pfn(pfn) = found.pfn;
    format.has_memory(found.memory)
        && pfn >> (format.phys_bits() - 12) == 0
        && found.level.can_be_leaf()
}

/// Whether what the host allows contains what was asked for, and can be written down: all formats
/// need R for W, and those without execute-only leaves need it for X too.
pub(crate) fn is_allowed(format: &Format, access: Access, wanted: Access) -> bool {
    let readable = access.contains(Access::READ);
    let only_fetched = format.exec_only && access == Access::EXEC;
    access.contains(wanted) && (readable || only_fetched)
}
