//! A revocation is a chain of values: announce, synchronize, walk, finish. No step can be left out,
//! and only the last gives a `Revoked`, which is typed by what was revoked.
//!
//! A walk before the grace period can be overtaken by an insert.
//! ```compile_fail,E0599
//! # use vmmu::{host::Host, internals::*};
//! fn revoke<H: Host>(local: &mut Local<'_, H>, pages: HostPages) -> Revoked<HostPages> {
//!     local.announce(pages).walk(|page| page.each(|entry| entry.zap())).finish()
//! }
//! ```
//! ```
//! # use vmmu::{host::Host, internals::*};
//! fn revoke<H: Host>(local: &mut Local<'_, H>, pages: HostPages) -> Revoked<HostPages> {
//!     local.announce(pages).synchronize().walk(|page| page.each(|entry| entry.zap())).finish()
//! }
//! ```
//!
//! Finished before the walk:
//! ```compile_fail,E0599
//! # use vmmu::{host::Host, internals::*};
//! fn revoke<H: Host>(local: &mut Local<'_, H>, pages: HostPages) -> Revoked<HostPages> {
//!     local.announce(pages).synchronize().finish()
//! }
//! ```
//! ```
//! # use vmmu::{host::Host, internals::*};
//! fn revoke<H: Host>(local: &mut Local<'_, H>, pages: HostPages) -> Revoked<HostPages> {
//!     local.announce(pages).synchronize().walk(|page| page.each(|entry| entry.zap())).finish()
//! }
//! ```
//!
//! A walk that has stopped half way, finished:
//! ```compile_fail,E0599
//! # use vmmu::{host::Host, internals::*};
//! fn finish<H: Host>(local: &mut Local<'_, H>, paused: PausedWalk<HostPages>) {
//!     let _revoked = paused.finish();
//! }
//! ```
//! ```
//! # use vmmu::{host::Host, internals::*};
//! fn finish<H: Host>(local: &mut Local<'_, H>, paused: PausedWalk<HostPages>) {
//!     let walk = local.resume(paused).map(|rest| rest.walk(|page| page.each(|entry| entry.zap())));
//!     let _revoked = walk.map(|walked| walked.finish());
//! }
//! ```
//!
//! A slot removed from the set before it is known that nothing of it is mapped any more:
//! ```compile_fail,E0308
//! # use vmmu::{host::Host, internals::*, slot::*};
//! fn remove<H: Host>(guard: &mut SlotGuard<'_>, walked: Walked<'_, H, SlotDying>) {
//!     guard.remove(walked);
//! }
//! ```
//! ```
//! # use vmmu::{host::Host, internals::*, slot::*};
//! fn remove<H: Host>(guard: &mut SlotGuard<'_>, walked: Walked<'_, H, SlotDying>) {
//!     guard.remove(walked.finish());
//! }
//! ```
//!
//! A forged `Revoked`:
//! ```compile_fail,E0451
//! # use vmmu::{internals::*, slot::*};
//! fn remove(guard: &mut SlotGuard<'_>, gone: Revoked<SlotDying>, what: SlotDying) {
//!     guard.remove(Revoked { vm: 1, what });
//! }
//! ```
//! ```
//! # use vmmu::{internals::*, slot::*};
//! fn remove(guard: &mut SlotGuard<'_>, gone: Revoked<SlotDying>, what: SlotDying) {
//!     guard.remove(gone);
//! }
//! ```
//!
//! A `Revoked` of something else: that the slot's frames were zapped says nothing about new leaves.
//! ```compile_fail,E0308
//! # use vmmu::{internals::*, slot::*};
//! fn remove(guard: &mut SlotGuard<'_>, zapped: Revoked<GuestFrames>, dying: Revoked<SlotDying>) {
//!     guard.remove(zapped);
//! }
//! ```
//! ```
//! # use vmmu::{internals::*, slot::*};
//! fn remove(guard: &mut SlotGuard<'_>, zapped: Revoked<GuestFrames>, dying: Revoked<SlotDying>) {
//!     guard.remove(dying);
//! }
//! ```
//!
//! A `Revoked` used twice:
//! ```compile_fail,E0382
//! # use vmmu::{internals::*, slot::*};
//! fn remove(guard: &mut SlotGuard<'_>, gone: Revoked<SlotDying>) {
//!     guard.remove(gone);
//!     guard.remove(gone);
//! }
//! ```
//! ```
//! # use vmmu::{internals::*, slot::*};
//! fn remove(guard: &mut SlotGuard<'_>, gone: Revoked<SlotDying>) {
//!     guard.remove(gone);
//! }
//! ```
//!
//! A waived flush without `unload`: vCPUs may still run on the invalid root.
//! ```compile_fail,E0308
//! # use vmmu::{host::Host, internals::*};
//! fn unload<H: Host>(local: &mut Local<'_, H>, root: RootInvalid) -> Revoked<Unloaded> {
//!     let quiesced = local.announce(root).synchronize();
//!     quiesced.walk(|page| page.each(|entry| entry.detach())).finish()
//! }
//! ```
//! ```
//! # use vmmu::{host::Host, internals::*};
//! fn unload<H: Host>(local: &mut Local<'_, H>, root: RootInvalid) -> Revoked<Unloaded> {
//!     let quiesced = local.announce(root).synchronize().unload();
//!     quiesced.walk(|page| page.each(|entry| entry.detach())).finish()
//! }
//! ```
//!
//! The same by calling the root unloaded:
//! ```compile_fail,E0423
//! # use vmmu::{host::Host, internals::*};
//! fn unload<H: Host>(local: &mut Local<'_, H>, root: RootInvalid) {
//!     let _published = local.announce(Unloaded(root));
//! }
//! ```
//! ```
//! # use vmmu::{host::Host, internals::*};
//! fn unload<H: Host>(local: &mut Local<'_, H>, root: RootInvalid) {
//!     let _published = local.announce(root);
//! }
//! ```
//!
//! Or by a revocation of one's own that waives the flush:
//! ```compile_fail,E0277
//! # use vmmu::internals::*;
//! struct Mine(HostPages);
//! impl Revocation for Mine {
//!     const WAIVED: bool = true;
//! }
//! ```
//! ```
//! # use vmmu::internals::*;
//! struct Mine(HostPages);
//! ```
//!
//! Teardown with a request out:
//! ```compile_fail,E0505
//! # use vmmu::{host::*, *, Mmu};
//! fn teardown<H: Host>(vm: Mmu<H>, fault: PageFault) {
//!     let request = match vm.vcpu(VcpuId(0)).map(|mut vcpu| vcpu.begin_fault(fault)) {
//!         Ok(FaultStep::Resolve(request)) => request,
//!         _ => return,
//!     };
//!     let _host = vm.teardown();
//!     drop(request);
//! }
//! ```
//! ```
//! # use vmmu::{host::*, *, Mmu};
//! fn teardown<H: Host>(vm: Mmu<H>, fault: PageFault) {
//!     let request = match vm.vcpu(VcpuId(0)).map(|mut vcpu| vcpu.begin_fault(fault)) {
//!         Ok(FaultStep::Resolve(request)) => request,
//!         _ => return,
//!     };
//!     drop(request);
//!     let _host = vm.teardown();
//! }
//! ```
//!
//! Teardown with a range under invalidation:
//! ```compile_fail,E0505
//! # use vmmu::{host::*, HostRange, Mmu};
//! fn teardown<H: Host>(vm: Mmu<H>, range: HostRange) {
//!     let begun = vm.worker().map(|mut worker| worker.invalidate_range(range));
//!     let _host = vm.teardown();
//!     drop(begun);
//! }
//! ```
//! ```
//! # use vmmu::{host::*, HostRange, Mmu};
//! fn teardown<H: Host>(vm: Mmu<H>, range: HostRange) {
//!     let begun = vm.worker().map(|mut worker| worker.invalidate_range(range));
//!     drop(begun);
//!     let _host = vm.teardown();
//! }
//! ```
