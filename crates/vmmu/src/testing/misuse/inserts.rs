//! Only a permit puts a mapping where there was none, and the way to one starts with a watch.
//!
//! Without a permit: an entry can be modified, not filled.
//! ```compile_fail,E0599
//! # use vmmu::{addr::*, host::Host, internals::*, *, RootName};
//! fn map(section: &Section<'_>, root: RootName, frame: &ResolvedFault<'_>, full: ReservedPages<'_>) {
//!     if let Some(place) = section.entry(root, Gfn(0), Level::Size4K) {
//!         let _mapped = place.map(full);
//!     }
//! }
//! ```
//! ```
//! # use vmmu::{addr::*, host::Host, internals::*, *, RootName};
//! fn map(section: &Section<'_>, root: RootName, frame: &ResolvedFault<'_>, full: ReservedPages<'_>) {
//!     if let Ok(place) = section.permit(frame, Level::Size4K) {
//!         let _mapped = place.map(full);
//!     }
//! }
//! ```
//!
//! A forged permit:
//! ```compile_fail,E0451
//! # use vmmu::{addr::*, internals::*};
//! fn forge<'s>(permit: Insert<'s, Plain>) -> Insert<'s, Plain> {
//!     Insert { gfn: Gfn(0), ..permit }
//! }
//! ```
//! ```
//! # use vmmu::{addr::*, internals::*};
//! fn forge<'s>(permit: Insert<'s, Plain>) -> Insert<'s, Plain> {
//!     permit
//! }
//! ```
//!
//! Populating in the walk that drains an invalid root: the walk lends entries and no section, and
//! it has borrowed the participant.
//! ```compile_fail,E0500
//! # use vmmu::{addr::*, host::Host, internals::*, *};
//! fn drain<H: Host>(local: &mut Local<'_, H>, root: RootInvalid, frame: ResolvedFault<'_>, cache: &mut Cache) {
//!     let walk = local.announce(root).synchronize().unload().walk_some(1, |page| {
//!         let section = local.section();
//!         if let (Ok(permit), Ok(full)) = (section.permit(&frame, Level::Size4K), cache.reserved()) {
//!             let _mapped = permit.map(full);
//!         }
//!         page.each(|entry| entry.detach())
//!     });
//! }
//! ```
//! Between the steps of a drain it can be tried, and is refused for the invalid root:
//! ```
//! # use vmmu::{addr::*, host::Host, internals::*, *};
//! fn drain<H: Host>(local: &mut Local<'_, H>, root: RootInvalid, frame: ResolvedFault<'_>, cache: &mut Cache) {
//!     let walk = local.announce(root).synchronize().unload().walk_some(1, |page| {
//!         page.each(|entry| entry.detach())
//!     });
//!     if let Walk::More(paused) = walk {
//!         let section = local.section();
//!         if let (Ok(permit), Ok(full)) = (section.permit(&frame, Level::Size4K), cache.reserved()) {
//!             let _mapped = permit.map(full);
//!         }
//!     }
//! }
//! ```
//!
//! A cache that may lack a table in the middle of a section, where nothing can be allocated:
//! ```compile_fail,E0308
//! # use vmmu::{MissingPages, internals::*};
//! fn map(permit: Insert<'_, Plain>, cache: &mut Cache) -> Result<Mapped, MissingPages> {
//!     Ok(permit.map(cache))
//! }
//! ```
//! ```
//! # use vmmu::{MissingPages, internals::*};
//! fn map(permit: Insert<'_, Plain>, cache: &mut Cache) -> Result<Mapped, MissingPages> {
//!     Ok(permit.map(cache.reserved()?))
//! }
//! ```
//!
//! A host frame that was found without a watch:
//! ```compile_fail,E0308
//! # use vmmu::{addr::*, host::HostFrame, internals::*, *};
//! fn permit(section: &Section<'_>, request: Request<'_>, found: HostFrame) {
//!     let _permit = section.permit(&found, Level::Size4K);
//! }
//! ```
//! ```
//! # use vmmu::{addr::*, host::HostFrame, internals::*, *};
//! fn permit(section: &Section<'_>, request: Request<'_>, found: HostFrame) {
//!     let answer = request.query().answer(found);
//!     let _permit = request.resolve(answer).map(|frame| section.permit(&frame, Level::Size4K).is_ok());
//! }
//! ```
//!
//! A host frame of which nobody can say for which query it was found:
//! ```compile_fail,E0308
//! # use vmmu::{host::HostFrame, *};
//! fn resolve(request: Request<'_>, found: HostFrame) {
//!     let _frame = request.resolve(found);
//! }
//! ```
//! ```
//! # use vmmu::{host::HostFrame, *};
//! fn resolve(request: Request<'_>, found: HostFrame) {
//!     let query = request.query();
//!     let _frame = request.resolve(query.answer(found));
//! }
//! ```
//!
//! A watch resolved before a section has admitted it: nobody has looked yet whether its
//! range is under invalidation.
//! ```compile_fail,E0599
//! # use vmmu::{host::*, internals::*, *, RootName};
//! fn find<H: Host>(local: &mut Local<'_, H>, watch: Watch<'_>, root: RootName, fault: PageFault, found: Answer) {
//!     let _frame = watch.resolve(found);
//! }
//! ```
//! ```
//! # use vmmu::{host::*, internals::*, *, RootName};
//! fn find<H: Host>(local: &mut Local<'_, H>, watch: Watch<'_>, root: RootName, fault: PageFault, found: Answer) {
//!     let request = local.section().admit(watch, root, fault);
//!     let _frame = request.map(|request| request.resolve(found));
//! }
//! ```
//!
//! A watch closed before the leaf is there: the permit borrows the frame, which has the watch.
//! ```compile_fail,E0505
//! # use vmmu::{addr::*, internals::*, *};
//! fn map(section: &Section<'_>, frame: ResolvedFault<'_>, full: ReservedPages<'_>) {
//!     if let Ok(permit) = section.permit(&frame, Level::Size4K) {
//!         drop(frame);
//!         let _mapped = permit.map(full);
//!     }
//! }
//! ```
//! ```
//! # use vmmu::{addr::*, internals::*, *};
//! fn map(section: &Section<'_>, frame: ResolvedFault<'_>, full: ReservedPages<'_>) {
//!     if let Ok(permit) = section.permit(&frame, Level::Size4K) {
//!         let _mapped = permit.map(full);
//!         drop(frame);
//!     }
//! }
//! ```
//!
//! A frame used twice:
//! ```compile_fail,E0382
//! # use vmmu::{host::Host, *, Worker};
//! fn complete<'vm, H: Host>(worker: &mut Worker<&'vm Mmu<H>>, frame: ResolvedFault<'vm>) {
//!     let _first = worker.complete(frame);
//!     let _second = worker.complete(frame);
//! }
//! ```
//! What comes back for want of table pages can be used:
//! ```
//! # use vmmu::{host::Host, *, Worker};
//! fn complete<'vm, H: Host>(worker: &mut Worker<&'vm Mmu<H>>, frame: ResolvedFault<'vm>) {
//!     let _first = worker.complete(frame);
//!     let _second = _first.map_err(|short| worker.complete(short.resolved));
//! }
//! ```
//!
//! A request answered twice:
//! ```compile_fail,E0382
//! # use vmmu::{host::Answer, *};
//! fn answer(request: Request<'_>, found: Answer) {
//!     let _first = request.resolve(found);
//!     let _second = request.resolve(found);
//! }
//! ```
//! ```
//! # use vmmu::{host::Answer, *};
//! fn answer(request: Request<'_>, found: Answer) {
//!     let _first = request.resolve(found);
//! }
//! ```
