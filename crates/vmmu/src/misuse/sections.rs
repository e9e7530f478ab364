//! A section lends out the turn until it is left, and what it lends does not leave it.
//!
//! Nested:
//! ```compile_fail,E0499
//! # use vmmu::{host::Host, protocol::*};
//! fn twice<H: Host>(turn: &mut Turn<'_, H>) {
//!     let outer = turn.section();
//!     let inner = turn.section();
//!     drop(inner);
//!     drop(outer);
//! }
//! ```
//! One after the other:
//! ```
//! # use vmmu::{host::Host, protocol::*};
//! fn twice<H: Host>(turn: &mut Turn<'_, H>) {
//!     let outer = turn.section();
//!     drop(outer);
//!     let inner = turn.section();
//!     drop(inner);
//! }
//! ```
//!
//! An exclusion begun inside: it would wait for this very section if it did not skip its own line.
//! ```compile_fail,E0499
//! # use vmmu::{host::Host, protocol::*};
//! fn wait<H: Host>(turn: &mut Turn<'_, H>) {
//!     let section = turn.section();
//!     turn.exclude();
//!     drop(section);
//! }
//! ```
//! ```
//! # use vmmu::{host::Host, protocol::*};
//! fn wait<H: Host>(turn: &mut Turn<'_, H>) {
//!     let section = turn.section();
//!     drop(section);
//!     turn.exclude();
//! }
//! ```
//!
//! A withdrawal begun inside:
//! ```compile_fail,E0499
//! # use vmmu::{host::Host, protocol::*};
//! fn withdraw<H: Host>(turn: &mut Turn<'_, H>, pages: HostPages) {
//!     let section = turn.section();
//!     let published = turn.publish(pages);
//!     drop(section);
//!     drop(published);
//! }
//! ```
//! ```
//! # use vmmu::{host::Host, protocol::*};
//! fn withdraw<H: Host>(turn: &mut Turn<'_, H>, pages: HostPages) {
//!     let section = turn.section();
//!     drop(section);
//!     let published = turn.publish(pages);
//!     drop(published);
//! }
//! ```
//!
//! The slot guard taken inside; it may wait for somebody who excludes.
//! ```compile_fail,E0499
//! # use vmmu::{host::Host, protocol::*};
//! fn lock<H: Host>(turn: &mut Turn<'_, H>) {
//!     let section = turn.section();
//!     let guard = turn.slots();
//!     drop(section);
//!     drop(guard);
//! }
//! ```
//! Held across sections:
//! ```
//! # use vmmu::{host::Host, protocol::*};
//! fn lock<H: Host>(turn: &mut Turn<'_, H>) {
//!     let guard = turn.slots();
//!     let section = turn.section();
//!     drop(section);
//!     drop(guard);
//! }
//! ```
//!
//! A watch opened inside; the fence that opens the section would not order it.
//! ```compile_fail,E0499
//! # use vmmu::{addr::*, entry::Access, host::Host, protocol::*, slot::*, tdp::*, RootName};
//! fn watch<H: Host>(turn: &mut Turn<'_, H>, root: RootName, ask: Ask) {
//!     let section = turn.section();
//!     let watch = turn.watch(AddressSpace(0), ask.gpa.gfn(), Level::M2);
//!     let _ = watch.map(|watch| section.admit(watch, root, ask));
//! }
//! ```
//! ```
//! # use vmmu::{addr::*, entry::Access, host::Host, protocol::*, slot::*, tdp::*, RootName};
//! fn watch<H: Host>(turn: &mut Turn<'_, H>, root: RootName, ask: Ask) {
//!     let watch = turn.watch(AddressSpace(0), ask.gpa.gfn(), Level::M2);
//!     let section = turn.section();
//!     let _ = watch.map(|watch| section.admit(watch, root, ask));
//! }
//! ```
//!
//! A section sent to a thread; its turn would be left by a thread that never entered.
//! ```compile_fail,E0277
//! # use vmmu::{host::Host, protocol::*};
//! fn send<H: Host>(turn: &mut Turn<'_, H>) {
//!     let section = turn.section();
//!     std::thread::scope(|scope| {
//!         scope.spawn(move || drop(section));
//!     });
//! }
//! ```
//! The turn can go, nothing of it being open:
//! ```
//! # use vmmu::{host::Host, protocol::*};
//! fn send<H: Host>(turn: &mut Turn<'_, H>) {
//!     std::thread::scope(|scope| {
//!         scope.spawn(move || drop(turn.section()));
//!     });
//! }
//! ```
//!
//! A section lent to a thread, which the section of this one does not speak for:
//! ```compile_fail,E0277
//! # use vmmu::{addr::*, host::Host, protocol::*, RootName};
//! fn lend<H: Host>(turn: &mut Turn<'_, H>, root: RootName) {
//!     let section = turn.section();
//!     std::thread::scope(|scope| {
//!         scope.spawn(|| section.entry(root, Gfn(0), Level::K4).map(|entry| entry.value()));
//!     });
//! }
//! ```
//! ```
//! # use vmmu::{addr::*, host::Host, protocol::*, RootName};
//! fn lend<H: Host>(turn: &mut Turn<'_, H>, root: RootName) {
//!     let section = turn.section();
//!     std::thread::scope(|scope| {
//!         let value = section.entry(root, Gfn(0), Level::K4).map(|entry| entry.value());
//!         scope.spawn(move || value);
//!     });
//! }
//! ```
//!
//! A table sent to a thread:
//! ```compile_fail,E0277
//! # use vmmu::protocol::*;
//! fn send(page: Page<'_, Plain>) {
//!     std::thread::scope(|scope| {
//!         scope.spawn(move || page.level());
//!     });
//! }
//! ```
//! What was read in it can go:
//! ```
//! # use vmmu::protocol::*;
//! fn send(page: Page<'_, Plain>) {
//!     let level = page.level();
//!     std::thread::scope(|scope| {
//!         scope.spawn(move || level);
//!     });
//! }
//! ```
//!
//! An entry, that is a reference into a table, kept after the section:
//! ```compile_fail,E0597
//! # use vmmu::{addr::*, host::Host, protocol::*, RootName};
//! fn read<H: Host>(turn: &mut Turn<'_, H>, root: RootName, gfn: Gfn) {
//!     let entry;
//!     {
//!         let section = turn.section();
//!         entry = section.entry(root, gfn, Level::K4);
//!     }
//!     let _state = entry.map(|entry| entry.state());
//! }
//! ```
//! ```
//! # use vmmu::{addr::*, host::Host, protocol::*, RootName};
//! fn read<H: Host>(turn: &mut Turn<'_, H>, root: RootName, gfn: Gfn) {
//!     let entry;
//!     {
//!         let section = turn.section();
//!         entry = section.entry(root, gfn, Level::K4).map(|entry| entry.state());
//!     }
//!     let _state = entry;
//! }
//! ```
//!
//! A permit kept after it: what the permit rests on may have changed.
//! ```compile_fail,E0597
//! # use vmmu::{addr::*, host::Host, protocol::*, tdp::*};
//! fn map<H: Host>(turn: &mut Turn<'_, H>, frame: &Frame<'_>, full: Full<'_>) {
//!     let permit;
//!     {
//!         let section = turn.section();
//!         permit = section.permit(frame, Level::K4);
//!     }
//!     let _mapped = permit.map(|permit| permit.map(full));
//! }
//! ```
//! ```
//! # use vmmu::{addr::*, host::Host, protocol::*, tdp::*};
//! fn map<H: Host>(turn: &mut Turn<'_, H>, frame: &Frame<'_>, full: Full<'_>) {
//!     let permit;
//!     {
//!         let section = turn.section();
//!         permit = section.permit(frame, Level::K4).map(|permit| permit.map(full));
//!     }
//!     let _mapped = permit;
//! }
//! ```
//!
//! A table carried out of a walk's closure; the walk leaves its section after each.
//! ```compile_fail,E0521
//! # use vmmu::{host::Host, protocol::*};
//! fn keep<H: Host>(withdrawn: Withdrawn<'_, H, HostPages>) {
//!     let mut kept = None;
//!     let _walked = withdrawn.walk(|page| {
//!         kept = Some(page);
//!         Then::Next
//!     });
//! }
//! ```
//! ```
//! # use vmmu::{host::Host, protocol::*};
//! fn keep<H: Host>(withdrawn: Withdrawn<'_, H, HostPages>) {
//!     let mut kept = None;
//!     let _walked = withdrawn.walk(|page| {
//!         kept = Some(page.range());
//!         Then::Next
//!     });
//! }
//! ```
//!
//! An entry of it carried out likewise:
//! ```compile_fail,E0521
//! # use vmmu::{host::Host, protocol::*};
//! fn keep<H: Host>(withdrawn: Withdrawn<'_, H, HostPages>) {
//!     let mut kept = None;
//!     let _walked = withdrawn.walk(|page| {
//!         kept = page.entries().next();
//!         Then::Next
//!     });
//! }
//! ```
//! ```
//! # use vmmu::{host::Host, protocol::*};
//! fn keep<H: Host>(withdrawn: Withdrawn<'_, H, HostPages>) {
//!     let mut kept = None;
//!     let _walked = withdrawn.walk(|page| {
//!         kept = page.entries().next().map(|entry| entry.value());
//!         Then::Next
//!     });
//! }
//! ```
