//! What the vCPUs of one guest share.

use super::alarm::Alarm;
use super::churn::Churn;
use super::guest_ram::GuestRam;
use super::nested::Nested;
use super::{apic, timer};
use alloc::{boxed::Box, format, string::String, vec::Vec};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use hypervisor::apic::{Destination, Kind, Signal};
use hypervisor::closed::Closed;
use hypervisor::exit::Record;
use hypervisor::policy;
use hypervisor::pool::Size;
use hypervisor::wire::{End, Guest, Job, PageLimit, VcpuState};
use spin::Mutex;

/// A page-aligned permission map.
#[repr(C, align(4096))]
pub struct Map<const BYTES: usize>(pub [u8; BYTES]);

/// Bits of [`Post::mail`].
pub const INIT: u32 = 1 << 0;
/// A start-up message; its page is in bits 23:16.
pub const START_UP: u32 = 1 << 1;
/// A non-maskable interrupt from another vCPU.
pub const NMI: u32 = 1 << 2;
/// The machine stops.
pub const STOP: u32 = 1 << 3;

/// Where a vCPU is, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Executes instructions, or is between two.
    Running = 0,
    /// Waits for an interrupt.
    Halted = 1,
    /// Halted with interrupts off.
    Dead = 2,
    /// Waits for a start-up message.
    Waiting = 3,
    /// Will not run again.
    Ended = 4,
}

/// What others may tell and see of a vCPU.
pub struct Post {
    /// What it has to look at.
    pub mail: AtomicU32,
    /// Its logical destination register.
    pub logical: AtomicU32,
    /// Whether its local APIC is on; nothing reaches one that is off.
    pub has_apic: AtomicBool,
    /// Instruction pointer at the last exit.
    pub rip: AtomicU64,
    /// A [`Mode`].
    pub mode: AtomicU32,
    /// Exits.
    pub record: Record,
}

/// One guest while it runs.
pub struct Machine<'a> {
    /// What it was started from.
    pub job: &'a Job<'a>,
    /// What it was started from.
    pub guest: &'a Guest<'a>,
    /// Its memory.
    pub ram: &'a GuestRam<'a>,
    /// Its nested tables.
    pub nested: &'a Nested<'a>,
    /// By vCPU.
    pub posts: Vec<Post>,
    /// Ports that exit.
    pub port_map: Box<Map<{ 3 * 4096 }>>,
    /// Registers that exit.
    pub msr_map: Box<Map<{ 2 * 4096 }>>,
    /// For faults put in on purpose.
    pub alarm: Alarm,
    /// For memory taken back.
    pub churn: Churn,
    /// ACPI's event enable register.
    pub pm_enable: AtomicU32,
    /// Accesses of what is closed.
    pub closed: Closed,
    end: Mutex<Option<End>>,
    /// Whether debug console output and line control go on at the same time.
    pub console: Mutex<()>,
    /// Time of the first instruction.
    pub started: AtomicU64,
    /// Time of the end.
    pub stopped: AtomicU64,
}

/// The largest block the job allows.
pub fn largest(pages: PageLimit) -> Size {
    match pages {
        PageLimit::K4 => Size::K4,
        PageLimit::M2 => Size::M2,
        PageLimit::G1 | PageLimit::Auto => Size::G1,
    }
}

impl<'a> Machine<'a> {
    /// A guest that has not started.
    pub fn new(
        job: &'a Job<'a>,
        guest: &'a Guest<'a>,
        ram: &'a GuestRam<'a>,
        nested: &'a Nested<'a>,
    ) -> Self {
        let mut port_map = Box::new(Map([0; 3 * 4096]));
        let mut msr_map = Box::new(Map([0; 2 * 4096]));
        policy::fill_port_map(&mut port_map.0);
        policy::fill_msr_map(&mut msr_map.0);
        // The boot vCPU runs from the start: nobody may take it for one that waits.
        let mode = |number| if number == 0 { Mode::Running } else { Mode::Waiting };
        let post = |number| Post {
            mail: AtomicU32::new(0),
            logical: AtomicU32::new(0),
            has_apic: AtomicBool::new(true),
            rip: AtomicU64::new(0),
            mode: AtomicU32::new(mode(number) as u32),
            record: Record::new(),
        };
        Self {
            job,
            guest,
            ram,
            nested,
            posts: (0..guest.cpus).map(post).collect(),
            port_map,
            msr_map,
            alarm: Alarm::new(),
            churn: Churn::new(),
            pm_enable: AtomicU32::new(0),
            closed: Closed::new(),
            end: Mutex::new(None),
            console: Mutex::new(()),
            started: AtomicU64::new(0),
            stopped: AtomicU64::new(0),
        }
    }

    /// Ends the guest; the first to say so decides how.
    pub fn finish(&self, end: End) {
        {
            let mut place = self.end.lock();
            if place.is_some() {
                return;
            }
            self.stopped.store(timer::now(), Ordering::Relaxed);
            *place = Some(end);
        }
        for number in 0..self.posts.len() {
            self.tell(number, STOP);
        }
    }

    /// How it ended.
    pub fn end(&self) -> End {
        let broken = || End::Broken { what: String::from("the guest stopped without an end") };
        self.end.lock().clone().unwrap_or_else(broken)
    }

    /// Puts mail into a vCPU's box and makes it look.
    pub fn tell(&self, number: usize, mail: u32) {
        if let Some(post) = self.posts.get(number) {
            post.mail.fetch_or(mail, Ordering::SeqCst);
            apic::send_nmi(number as u32);
        }
    }

    /// Carries a message from vCPU `sender` to those it is for.
    pub fn signal(&self, sender: usize, signal: Signal) {
        for (number, post) in self.posts.iter().enumerate() {
            let logical = post.logical.load(Ordering::Relaxed);
            let has_apic = post.has_apic.load(Ordering::Relaxed);
            if !has_apic || !signal.to.includes(sender as u8, number as u8, logical) {
                continue;
            }
            match signal.kind {
                // INIT to oneself is an invalid form (APM vol. 2, table 16-3); broadcasts that
                // include the sender are too.
                Kind::Init if number == sender => {}
                Kind::Init => self.tell(number, INIT),
                Kind::StartUp(page) => {
                    // The last page sent before the receiver looks counts.
                    post.mail.fetch_and(!(0xff << 16), Ordering::SeqCst);
                    self.tell(number, START_UP | u32::from(page) << 16);
                }
                Kind::Nmi if number == sender && signal.to == Destination::Others => {}
                Kind::Nmi => self.tell(number, NMI),
            }
        }
    }

    /// The state of every vCPU.
    pub fn vcpus(&self) -> Vec<VcpuState> {
        let state = |post: &Post| VcpuState {
            rip: post.rip.load(Ordering::Relaxed),
            mode: String::from(match post.mode.load(Ordering::Relaxed) {
                0 => "running",
                1 => "halted",
                2 => "halted, interrupts off",
                3 => "waiting for SIPI",
                _ => "ended",
            }),
            exits: post.record.total(),
            last: post.record.last(),
        };
        self.posts.iter().map(state).collect()
    }

    /// Ends the guest if no vCPU can ever run again.
    pub fn end_if_dead(&self) {
        let stuck = |post: &Post| {
            let mode = post.mode.load(Ordering::SeqCst);
            (mode == Mode::Dead as u32 || mode == Mode::Waiting as u32)
                && post.mail.load(Ordering::SeqCst) == 0
        };
        if self.posts.iter().all(stuck) {
            self.finish(End::Halted);
        }
    }

    /// Ends the guest for something it did.
    pub fn refuse(&self, vcpu: usize, what: impl core::fmt::Display) {
        self.finish(End::Refused { vcpu: vcpu as u32, what: format!("{what}") });
    }
}
