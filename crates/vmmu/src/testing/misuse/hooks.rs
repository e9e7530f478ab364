//! [`Local::host`](crate::protocol::local::Local::host) is the only way from a participant to the
//! hooks, and nothing else can be open while it is in use.
//!
//! A hook called inside a section:
//! ```compile_fail,E0499
//! # use vmmu::{host::*, internals::*};
//! fn kick<H: Host>(local: &mut Local<'_, H>) {
//!     let section = local.section();
//!     local.host().kick(VcpuId(0));
//!     drop(section);
//! }
//! ```
//! ```
//! # use vmmu::{host::*, internals::*};
//! fn kick<H: Host>(local: &mut Local<'_, H>) {
//!     let section = local.section();
//!     drop(section);
//!     local.host().kick(VcpuId(0));
//! }
//! ```
//!
//! A hook called inside a walk, whose closure runs in sections:
//! ```compile_fail,E0500
//! # use vmmu::{host::*, internals::*};
//! fn walk<H: Host>(local: &mut Local<'_, H>, pages: HostPages) {
//!     let walked = local.announce(pages).synchronize().walk(|page| {
//!         local.host().kick(VcpuId(0));
//!         page.each(|entry| entry.zap())
//!     });
//!     let _promise = walked.finish();
//! }
//! ```
//! ```
//! # use vmmu::{host::*, internals::*};
//! fn walk<H: Host>(local: &mut Local<'_, H>, pages: HostPages) {
//!     let walked = local.announce(pages).synchronize().walk(|page| {
//!         page.each(|entry| entry.zap())
//!     });
//!     let _promise = walked.finish();
//!     local.host().kick(VcpuId(0));
//! }
//! ```
//!
//! A hook called while a debt is open: it could wait for somebody who waits for the debt.
//! ```compile_fail,E0499
//! # use vmmu::{addr::*, host::*, internals::*};
//! fn owe<H: Host>(local: &mut Local<'_, H>, range: GfnRange) {
//!     let debt = local.debt(range);
//!     local.host().kick(VcpuId(0));
//!     debt.settle();
//! }
//! ```
//! ```
//! # use vmmu::{addr::*, host::*, internals::*};
//! fn owe<H: Host>(local: &mut Local<'_, H>, range: GfnRange) {
//!     let debt = local.debt(range);
//!     debt.settle();
//!     local.host().kick(VcpuId(0));
//! }
//! ```
//!
//! A section opened while the host is held, that is before its last use:
//! ```compile_fail,E0499
//! # use vmmu::{host::*, internals::*};
//! fn open<H: Host>(local: &mut Local<'_, H>) {
//!     let host = local.host();
//!     let section = local.section();
//!     host.kick(VcpuId(0));
//!     drop(section);
//! }
//! ```
//! ```
//! # use vmmu::{host::*, internals::*};
//! fn open<H: Host>(local: &mut Local<'_, H>) {
//!     let host = local.host();
//!     host.kick(VcpuId(0));
//!     let section = local.section();
//!     drop(section);
//! }
//! ```
//!
//! A vCPU's own participant used from inside the resolving of its fault: here the backing asks for
//! table pages.
//! ```compile_fail,E0499
//! # use std::cell::RefCell;
//! # use vmmu::{host::*, *};
//! struct Stocks<'a, 'vm, H: Host>(RefCell<&'a mut VcpuMmu<&'vm Mmu<H>>>);
//! // SAFETY: it names nothing.
//! unsafe impl<H: Host> Backing for Stocks<'_, '_, H> {
//!     fn find(&self, _: &FrameQuery) -> Resolution {
//!         let _ = self.0.borrow_mut().reserve(1);
//!         Resolution::Retry
//!     }
//! }
//! fn fault<H: Host>(vcpu: &mut VcpuMmu<&Mmu<H>>, other: &mut VcpuMmu<&Mmu<H>>, fault: PageFault) {
//!     let backing = Stocks(RefCell::new(&mut *vcpu));
//!     let _outcome = vcpu.handle_fault(&backing, fault);
//! }
//! ```
//! With a participant of its own:
//! ```
//! # use std::cell::RefCell;
//! # use vmmu::{host::*, *};
//! struct Stocks<'a, 'vm, H: Host>(RefCell<&'a mut VcpuMmu<&'vm Mmu<H>>>);
//! // SAFETY: it names nothing.
//! unsafe impl<H: Host> Backing for Stocks<'_, '_, H> {
//!     fn find(&self, _: &FrameQuery) -> Resolution {
//!         let _ = self.0.borrow_mut().reserve(1);
//!         Resolution::Retry
//!     }
//! }
//! fn fault<H: Host>(vcpu: &mut VcpuMmu<&Mmu<H>>, other: &mut VcpuMmu<&Mmu<H>>, fault: PageFault) {
//!     let backing = Stocks(RefCell::new(&mut *other));
//!     let _outcome = vcpu.handle_fault(&backing, fault);
//! }
//! ```
//!
//! A vCPU that counts as being in the guest and handles a fault, which may need a flush: the flush
//! would wait for itself.
//! ```compile_fail,E0499
//! # use vmmu::{host::*, *};
//! fn enter<H: Host>(vcpu: &mut VcpuMmu<&Mmu<H>>, backing: &dyn Backing, fault: PageFault) {
//!     let Ok(inside) = vcpu.before_enter(Processor(0)) else { return };
//!     let _outcome = vcpu.handle_fault(backing, fault);
//!     inside.after_exit();
//! }
//! ```
//! ```
//! # use vmmu::{host::*, *};
//! fn enter<H: Host>(vcpu: &mut VcpuMmu<&Mmu<H>>, backing: &dyn Backing, fault: PageFault) {
//!     let Ok(inside) = vcpu.before_enter(Processor(0)) else { return };
//!     inside.after_exit();
//!     let _outcome = vcpu.handle_fault(backing, fault);
//! }
//! ```
