//! A section borrows its participant until it is left, and what it lends does not leave it.
//!
//! Nested:
//! ```compile_fail,E0499
//! # use vmmu::{host::Host, internals::*};
//! fn twice<H: Host>(local: &mut Local<'_, H>) {
//!     let outer = local.section();
//!     let inner = local.section();
//!     drop(inner);
//!     drop(outer);
//! }
//! ```
//! One after the other:
//! ```
//! # use vmmu::{host::Host, internals::*};
//! fn twice<H: Host>(local: &mut Local<'_, H>) {
//!     let outer = local.section();
//!     drop(outer);
//!     let inner = local.section();
//!     drop(inner);
//! }
//! ```
//!
//! A grace period begun inside: it would wait for this very section, if it did not leave out
//! its own participant.
//! ```compile_fail,E0499
//! # use vmmu::{host::Host, internals::*};
//! fn wait<H: Host>(local: &mut Local<'_, H>) {
//!     let section = local.section();
//!     local.synchronize();
//!     drop(section);
//! }
//! ```
//! ```
//! # use vmmu::{host::Host, internals::*};
//! fn wait<H: Host>(local: &mut Local<'_, H>) {
//!     let section = local.section();
//!     drop(section);
//!     local.synchronize();
//! }
//! ```
//!
//! A revocation begun inside:
//! ```compile_fail,E0499
//! # use vmmu::{host::Host, internals::*};
//! fn revoke<H: Host>(local: &mut Local<'_, H>, pages: HostPages) {
//!     let section = local.section();
//!     let announced = local.announce(pages);
//!     drop(section);
//!     drop(announced);
//! }
//! ```
//! ```
//! # use vmmu::{host::Host, internals::*};
//! fn revoke<H: Host>(local: &mut Local<'_, H>, pages: HostPages) {
//!     let section = local.section();
//!     drop(section);
//!     let announced = local.announce(pages);
//!     drop(announced);
//! }
//! ```
//!
//! The slot guard taken inside: taking it may mean to wait for somebody who waits for a grace
//! period.
//! ```compile_fail,E0499
//! # use vmmu::{host::Host, internals::*};
//! fn lock<H: Host>(local: &mut Local<'_, H>) {
//!     let section = local.section();
//!     let guard = local.slots();
//!     drop(section);
//!     drop(guard);
//! }
//! ```
//! Held across sections:
//! ```
//! # use vmmu::{host::Host, internals::*};
//! fn lock<H: Host>(local: &mut Local<'_, H>) {
//!     let guard = local.slots();
//!     let section = local.section();
//!     drop(section);
//!     drop(guard);
//! }
//! ```
//!
//! A watch opened inside; the fence that opens the section would not order it.
//! ```compile_fail,E0499
//! # use vmmu::{addr::*, entry::Access, host::Host, internals::*, slot::*, *, RootName};
//! fn watch<H: Host>(local: &mut Local<'_, H>, root: RootName, fault: PageFault) {
//!     let section = local.section();
//!     let watch = local.watch(AddressSpace::Normal, fault.gpa.gfn(), Level::Size2M);
//!     let _ = watch.map(|watch| section.admit(watch, root, fault));
//! }
//! ```
//! ```
//! # use vmmu::{addr::*, entry::Access, host::Host, internals::*, slot::*, *, RootName};
//! fn watch<H: Host>(local: &mut Local<'_, H>, root: RootName, fault: PageFault) {
//!     let watch = local.watch(AddressSpace::Normal, fault.gpa.gfn(), Level::Size2M);
//!     let section = local.section();
//!     let _ = watch.map(|watch| section.admit(watch, root, fault));
//! }
//! ```
//!
//! A section sent to a thread: it would be left by a thread that never entered it.
//! ```compile_fail,E0277
//! # use vmmu::{host::Host, internals::*};
//! fn send<H: Host>(local: &mut Local<'_, H>) {
//!     let section = local.section();
//!     std::thread::scope(|scope| {
//!         scope.spawn(move || drop(section));
//!     });
//! }
//! ```
//! The participant can be sent while nothing of it is open:
//! ```
//! # use vmmu::{host::Host, internals::*};
//! fn send<H: Host>(local: &mut Local<'_, H>) {
//!     std::thread::scope(|scope| {
//!         scope.spawn(move || drop(local.section()));
//!     });
//! }
//! ```
//!
//! A section lent to a thread: it says that this thread is inside, and nothing about the other one.
//! ```compile_fail,E0277
//! # use vmmu::{addr::*, host::Host, internals::*, RootName};
//! fn lend<H: Host>(local: &mut Local<'_, H>, root: RootName) {
//!     let section = local.section();
//!     std::thread::scope(|scope| {
//!         scope.spawn(|| section.entry(root, Gfn(0), Level::Size4K).map(|entry| entry.value()));
//!     });
//! }
//! ```
//! ```
//! # use vmmu::{addr::*, host::Host, internals::*, RootName};
//! fn lend<H: Host>(local: &mut Local<'_, H>, root: RootName) {
//!     let section = local.section();
//!     std::thread::scope(|scope| {
//!         let value = section.entry(root, Gfn(0), Level::Size4K).map(|entry| entry.value());
//!         scope.spawn(move || value);
//!     });
//! }
//! ```
//!
//! A table sent to a thread:
//! ```compile_fail,E0277
//! # use vmmu::internals::*;
//! fn send(page: Page<'_, Plain>) {
//!     std::thread::scope(|scope| {
//!         scope.spawn(move || page.level());
//!     });
//! }
//! ```
//! What was read in it can go:
//! ```
//! # use vmmu::internals::*;
//! fn send(page: Page<'_, Plain>) {
//!     let level = page.level();
//!     std::thread::scope(|scope| {
//!         scope.spawn(move || level);
//!     });
//! }
//! ```
//!
//! An entry, which is a reference into a table, kept after the section:
//! ```compile_fail,E0597
//! # use vmmu::{addr::*, host::Host, internals::*, RootName};
//! fn read<H: Host>(local: &mut Local<'_, H>, root: RootName, gfn: Gfn) {
//!     let entry;
//!     {
//!         let section = local.section();
//!         entry = section.entry(root, gfn, Level::Size4K);
//!     }
//!     let _state = entry.map(|entry| entry.state());
//! }
//! ```
//! ```
//! # use vmmu::{addr::*, host::Host, internals::*, RootName};
//! fn read<H: Host>(local: &mut Local<'_, H>, root: RootName, gfn: Gfn) {
//!     let entry;
//!     {
//!         let section = local.section();
//!         entry = section.entry(root, gfn, Level::Size4K).map(|entry| entry.state());
//!     }
//!     let _state = entry;
//! }
//! ```
//!
//! A permit kept after it: what the permit rests on may have changed.
//! ```compile_fail,E0597
//! # use vmmu::{addr::*, host::Host, internals::*, *};
//! fn map<H: Host>(local: &mut Local<'_, H>, frame: &ResolvedFault<'_>, full: ReservedPages<'_>) {
//!     let permit;
//!     {
//!         let section = local.section();
//!         permit = section.permit(frame, Level::Size4K);
//!     }
//!     let _mapped = permit.map(|permit| permit.map(full));
//! }
//! ```
//! ```
//! # use vmmu::{addr::*, host::Host, internals::*, *};
//! fn map<H: Host>(local: &mut Local<'_, H>, frame: &ResolvedFault<'_>, full: ReservedPages<'_>) {
//!     let permit;
//!     {
//!         let section = local.section();
//!         permit = section.permit(frame, Level::Size4K).map(|permit| permit.map(full));
//!     }
//!     let _mapped = permit;
//! }
//! ```
//!
//! A table carried out of a walk's closure; the walk leaves its section after each.
//! ```compile_fail,E0521
//! # use vmmu::{host::Host, internals::*};
//! fn keep<H: Host>(quiesced: Quiesced<'_, H, HostPages>) {
//!     let mut kept = None;
//!     let _walked = quiesced.walk(|page| {
//!         kept = Some(page);
//!         Then::Next
//!     });
//! }
//! ```
//! ```
//! # use vmmu::{host::Host, internals::*};
//! fn keep<H: Host>(quiesced: Quiesced<'_, H, HostPages>) {
//!     let mut kept = None;
//!     let _walked = quiesced.walk(|page| {
//!         kept = Some(page.range());
//!         Then::Next
//!     });
//! }
//! ```
//!
//! An entry of it carried out likewise:
//! ```compile_fail,E0521
//! # use vmmu::{host::Host, internals::*};
//! fn keep<H: Host>(quiesced: Quiesced<'_, H, HostPages>) {
//!     let mut kept = None;
//!     let _walked = quiesced.walk(|page| {
//!         kept = page.entries().next();
//!         Then::Next
//!     });
//! }
//! ```
//! ```
//! # use vmmu::{host::Host, internals::*};
//! fn keep<H: Host>(quiesced: Quiesced<'_, H, HostPages>) {
//!     let mut kept = None;
//!     let _walked = quiesced.walk(|page| {
//!         kept = page.entries().next().map(|entry| entry.value());
//!         Then::Next
//!     });
//! }
//! ```
