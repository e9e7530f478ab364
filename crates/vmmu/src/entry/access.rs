//! What an access wants or an entry allows, and the memory type of a mapping.

use bitflags::bitflags;

bitflags! {
    /// What an access wants, or what an entry allows.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
    pub struct Access: u8 {
        /// Read data.
        const READ = 1;
        /// Write data.
        const WRITE = 2;
        /// Fetch instructions.
        const EXEC = 4;
    }
}

/// Memory type of a mapping (Intel SDM volume 3, 13.3; AMD APM volume 2, 7.4).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum MemoryType {
    /// UC.
    Uncached,
    /// WC.
    WriteCombining,
    /// WT.
    WriteThrough,
    /// WP.
    WriteProtected,
    /// WB.
    WriteBack,
}

impl MemoryType {
    /// All five.
    pub const ALL: [MemoryType; 5] = [
        MemoryType::Uncached,
        MemoryType::WriteCombining,
        MemoryType::WriteThrough,
        MemoryType::WriteProtected,
        MemoryType::WriteBack,
    ];
}
