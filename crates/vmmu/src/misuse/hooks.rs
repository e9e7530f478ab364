//! [`Turn::host`](crate::protocol::Turn::host) is the only door to the hooks that a turn has, and
//! while it is open nothing else is.
//!
//! A hook called inside a section:
//! ```compile_fail,E0499
//! # use vmmu::{host::*, protocol::*};
//! fn kick<H: Host>(turn: &mut Turn<'_, H>) {
//!     let section = turn.section();
//!     turn.host().kick(VcpuId(0));
//!     drop(section);
//! }
//! ```
//! ```
//! # use vmmu::{host::*, protocol::*};
//! fn kick<H: Host>(turn: &mut Turn<'_, H>) {
//!     let section = turn.section();
//!     drop(section);
//!     turn.host().kick(VcpuId(0));
//! }
//! ```
//!
//! A hook called inside a walk, whose closure runs in sections:
//! ```compile_fail,E0500
//! # use vmmu::{host::*, protocol::*};
//! fn walk<H: Host>(turn: &mut Turn<'_, H>, pages: HostPages) {
//!     let walked = turn.publish(pages).exclude().walk(|page| {
//!         turn.host().kick(VcpuId(0));
//!         page.each(|entry| entry.zap())
//!     });
//!     let _promise = walked.finish();
//! }
//! ```
//! ```
//! # use vmmu::{host::*, protocol::*};
//! fn walk<H: Host>(turn: &mut Turn<'_, H>, pages: HostPages) {
//!     let walked = turn.publish(pages).exclude().walk(|page| {
//!         page.each(|entry| entry.zap())
//!     });
//!     let _promise = walked.finish();
//!     turn.host().kick(VcpuId(0));
//! }
//! ```
//!
//! A hook called while a debt is open: it could wait for somebody who waits for the debt.
//! ```compile_fail,E0499
//! # use vmmu::{addr::*, host::*, protocol::*};
//! fn owe<H: Host>(turn: &mut Turn<'_, H>, range: GfnRange) {
//!     let debt = turn.debt(range);
//!     turn.host().kick(VcpuId(0));
//!     debt.settle();
//! }
//! ```
//! ```
//! # use vmmu::{addr::*, host::*, protocol::*};
//! fn owe<H: Host>(turn: &mut Turn<'_, H>, range: GfnRange) {
//!     let debt = turn.debt(range);
//!     debt.settle();
//!     turn.host().kick(VcpuId(0));
//! }
//! ```
//!
//! A section opened while the host is held, that is before its last use:
//! ```compile_fail,E0499
//! # use vmmu::{host::*, protocol::*};
//! fn open<H: Host>(turn: &mut Turn<'_, H>) {
//!     let host = turn.host();
//!     let section = turn.section();
//!     host.kick(VcpuId(0));
//!     drop(section);
//! }
//! ```
//! ```
//! # use vmmu::{host::*, protocol::*};
//! fn open<H: Host>(turn: &mut Turn<'_, H>) {
//!     let host = turn.host();
//!     host.kick(VcpuId(0));
//!     let section = turn.section();
//!     drop(section);
//! }
//! ```
//!
//! A vCPU's own participant used from inside the resolving of its fault: here the backing makes
//! room by an invalidation.
//! ```compile_fail,E0499
//! # use std::cell::RefCell;
//! # use vmmu::{host::*, tdp::*, HostRange, Vcpu, Worker};
//! struct Reclaim<'a, 'vm, H: Host>(RefCell<&'a mut Worker<'vm, H>>, HostRange);
//! impl<H: Host> Backing for Reclaim<'_, '_, H> {
//!     fn find(&self, _: &FrameAsk) -> Found {
//!         drop(self.0.borrow_mut().invalidate_range(self.1));
//!         Found::Retry
//!     }
//! }
//! fn fault<H: Host>(vcpu: &mut Vcpu<'_, H>, worker: &mut Worker<'_, H>, cold: HostRange, ask: Ask) {
//!     let backing = Reclaim(RefCell::new(&mut **vcpu), cold);
//!     let _outcome = vcpu.fault_with(&backing, ask);
//! }
//! ```
//! With a worker of its own:
//! ```
//! # use std::cell::RefCell;
//! # use vmmu::{host::*, tdp::*, HostRange, Vcpu, Worker};
//! struct Reclaim<'a, 'vm, H: Host>(RefCell<&'a mut Worker<'vm, H>>, HostRange);
//! impl<H: Host> Backing for Reclaim<'_, '_, H> {
//!     fn find(&self, _: &FrameAsk) -> Found {
//!         drop(self.0.borrow_mut().invalidate_range(self.1));
//!         Found::Retry
//!     }
//! }
//! fn fault<H: Host>(vcpu: &mut Vcpu<'_, H>, worker: &mut Worker<'_, H>, cold: HostRange, ask: Ask) {
//!     let backing = Reclaim(RefCell::new(worker), cold);
//!     let _outcome = vcpu.fault_with(&backing, ask);
//! }
//! ```
//!
//! A vCPU that counts as being in the guest and invalidates: the flush would wait for itself.
//! ```compile_fail,E0499
//! # use vmmu::{host::*, HostRange, Processor, Vcpu};
//! fn enter<H: Host>(vcpu: &mut Vcpu<'_, H>, range: HostRange) {
//!     let Ok(inside) = vcpu.before_enter(Processor(0)) else { return };
//!     drop(vcpu.invalidate_range(range));
//!     inside.after_exit();
//! }
//! ```
//! ```
//! # use vmmu::{host::*, HostRange, Processor, Vcpu};
//! fn enter<H: Host>(vcpu: &mut Vcpu<'_, H>, range: HostRange) {
//!     let Ok(inside) = vcpu.before_enter(Processor(0)) else { return };
//!     inside.after_exit();
//!     drop(vcpu.invalidate_range(range));
//! }
//! ```
