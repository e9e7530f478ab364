//! A registered place among the participants, kept together with a hold of the MMU.

use core::fmt;

use crate::api::hold::Hold;
use crate::api::mmu::Mmu;
use crate::host::host::Host;
use crate::protocol::local::Local;
use crate::state::core::Core;
use crate::state::participant::ParticipantWords;

/// A place and a hold of the MMU. Dropping it gives the place back.
pub(crate) struct Seat<M: Hold> {
    mmu: M,
    place: u32,
}

impl<M: Hold> Seat<M> {
    /// Takes a free place.
    pub(crate) fn take(mmu: M) -> Option<Self> {
        let place = mmu.mmu().core.participants.register()?;
        Some(Seat { mmu, place })
    }

    /// The MMU.
    pub(crate) fn mmu(&self) -> &Mmu<M::Host> {
        self.mmu.mmu()
    }

    /// What is shared.
    #[inline]
    pub(crate) fn core(&self) -> &Core {
        &self.mmu.mmu().core
    }

    /// The host's hooks.
    pub(crate) fn host(&self) -> &M::Host {
        self.mmu.mmu().host()
    }

    /// The participant's words.
    fn words<H: Host>(mmu: &Mmu<H>, place: u32) -> &ParticipantWords {
        mmu.core.participants.at(place)
    }

    /// The exclusive right to the place, for as long as the seat is borrowed.
    #[inline]
    pub(crate) fn local(&mut self) -> Local<'_, M::Host> {
        let mmu = self.mmu.mmu();
        Local::at(&mmu.core, mmu.host(), self.place, Self::words(mmu, self.place))
    }
}

impl<'m, H: Host> Seat<&'m Mmu<H>> {
    /// The same right with the lifetime of the MMU, so that requests made with it may outlive the
    /// call. The caller uses it only as long as it has the seat borrowed, because there must be one
    /// such right at a time.
    #[inline]
    pub(crate) fn lasting(&mut self) -> Local<'m, H> {
        let mmu = self.mmu;
        Local::at(&mmu.core, mmu.host(), self.place, Self::words(mmu, self.place))
    }
}

impl<M: Hold> Drop for Seat<M> {
    #[inline]
    fn drop(&mut self) {
        self.core().participants.unregister(self.place);
    }
}

impl<M: Hold> fmt::Debug for Seat<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seat").field("place", &self.place).finish_non_exhaustive()
    }
}
