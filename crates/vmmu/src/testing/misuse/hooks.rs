//! [`Local::host`](crate::protocol::Local::host) is the only door to the hooks that a turn has, and
//! while it is open nothing else is.
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
//! A vCPU's own participant used from inside the resolving of its fault: here the backing makes
//! room by an invalidation.
//! ```compile_fail,E0499
//! # use std::cell::RefCell;
//! # use vmmu::{host::*, *, HostRange, VcpuMmu, Worker};
//! struct Reclaim<'a, 'vm, H: Host>(RefCell<&'a mut Worker<'vm, H>>, HostRange);
//! impl<H: Host> Backing for Reclaim<'_, '_, H> {
//!     fn find(&self, _: &FrameQuery) -> Resolution {
//!         drop(self.0.borrow_mut().invalidate_range(self.1));
//!         Resolution::Retry
//!     }
//! }
//! fn fault<H: Host>(vcpu: &mut VcpuMmu<'_, H>, worker: &mut Worker<'_, H>, cold: HostRange, fault: PageFault) {
//!     let backing = Reclaim(RefCell::new(&mut **vcpu), cold);
//!     let _outcome = vcpu.handle_fault(&backing, fault);
//! }
//! ```
//! With a worker of its own:
//! ```
//! # use std::cell::RefCell;
//! # use vmmu::{host::*, *, HostRange, VcpuMmu, Worker};
//! struct Reclaim<'a, 'vm, H: Host>(RefCell<&'a mut Worker<'vm, H>>, HostRange);
//! impl<H: Host> Backing for Reclaim<'_, '_, H> {
//!     fn find(&self, _: &FrameQuery) -> Resolution {
//!         drop(self.0.borrow_mut().invalidate_range(self.1));
//!         Resolution::Retry
//!     }
//! }
//! fn fault<H: Host>(vcpu: &mut VcpuMmu<'_, H>, worker: &mut Worker<'_, H>, cold: HostRange, fault: PageFault) {
//!     let backing = Reclaim(RefCell::new(worker), cold);
//!     let _outcome = vcpu.handle_fault(&backing, fault);
//! }
//! ```
//!
//! A vCPU that counts as being in the guest and invalidates: the flush would wait for itself.
//! ```compile_fail,E0499
//! # use vmmu::{host::*, HostRange, Processor, VcpuMmu};
//! fn enter<H: Host>(vcpu: &mut VcpuMmu<'_, H>, range: HostRange) {
//!     let Ok(inside) = vcpu.before_enter(Processor(0)) else { return };
//!     drop(vcpu.invalidate_range(range));
//!     inside.after_exit();
//! }
//! ```
//! ```
//! # use vmmu::{host::*, HostRange, Processor, VcpuMmu};
//! fn enter<H: Host>(vcpu: &mut VcpuMmu<'_, H>, range: HostRange) {
//!     let Ok(inside) = vcpu.before_enter(Processor(0)) else { return };
//!     inside.after_exit();
//!     drop(vcpu.invalidate_range(range));
//! }
//! ```
