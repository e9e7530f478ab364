//! One vCPU: its state, and the loop that runs it on its processor.

use super::machine::{INIT, Machine, Mode, NMI, START_UP, STOP};
use super::memory;
use super::nested::{self, Handle};
use super::nmi::{After, HOLD_INTERRUPTS, Nmis};
use super::svm::{self, Fpu, General};
use super::vmcb::{Segment, Vmcb};
use super::{apic, churn, exits, live, mmio, timer, traps};
use alloc::{boxed::Box, format, string::String};
use core::arch::asm;
use core::sync::atomic::Ordering;
use hypervisor::cpuid::{self, Answer};
use hypervisor::events::{self, Completion, Undelivered};
use hypervisor::exit::code;
use hypervisor::guest_walk::Paging;
use hypervisor::mtrr::Mtrr;
use hypervisor::pool::{FRAME, Size};
use hypervisor::registers::{CodeSegment, Control, Features, cr0, efer};
use hypervisor::wire::{End, Start};
use vmmu::{EnterError, Flush, LoadError};

/// Intercepts of the first word: NMI, INIT, RDPMC, CPUID, RSM, INVD, HLT, INVLPGA, ports, MSRs,
/// shutdown.
const MISC1: u32 = 1 << 1
    | 1 << 3
    | 1 << 15
    | 1 << 18
    | 1 << 19
    | 1 << 22
    | HLT
    | 1 << 26
    | 1 << 27
    | 1 << 28
    | 1 << 31;
const HLT: u32 = 1 << 24;
/// Physical interrupts; only while the guest is halted.
const INTR: u32 = 1 << 0;
/// Intercepts of the second word: the SVM instructions, MONITOR, MWAIT, XSETBV, RDPRU.
const MISC2: u32 = 0x7f | 1 << 10 | 1 << 11 | 1 << 12 | 1 << 13 | 1 << 14;
/// Writes of CR0, CR3 and CR4.
const CR: u32 = 1 << 16 | 1 << 19 | 1 << 20;

/// Vector of single steps, which come after the instruction. Every other vector that is injected is that
/// of a fault.
const DEBUG: u8 = 1;
/// Bit of the interrupt state: the instruction before holds interrupts back.
const SHADOW: u64 = 1;
/// The resume flag.
const RF: u64 = 1 << 16;

/// The register RDTSCP reads beside the counter.
const TSC_AUX: u32 = 0xc000_0103;

/// Same nested fault again and again without anything else: the tables do not take.
const STUCK: u32 = 100_000;

/// How a nested fault repeats.
#[derive(Default)]
pub struct Repetition {
    gpa: u64,
    count: u32,
}

impl Repetition {
    /// Counts a fault that was answered with "again"; true if it cannot be by chance.
    pub fn again(&mut self, gpa: u64) -> bool {
        if self.gpa == gpa {
            self.count += 1;
        } else {
            *self = Self { gpa, count: 0 };
        }
        self.count > STUCK
    }

    /// Something else happened.
    pub fn broken(&mut self) {
        self.count = 0;
    }
}

/// One vCPU, on its processor.
pub struct Vcpu<'m> {
    /// Its number, which is its processor's and its APIC id.
    pub number: usize,
    /// What it shares.
    pub machine: &'m Machine<'m>,
    /// Control block and saved state.
    pub vmcb: Box<Vmcb>,
    /// General registers.
    pub general: General,
    /// x87 and SSE registers.
    pub fpu: Box<Fpu>,
    /// What its CPUID offers.
    pub features: Features,
    /// Memory type ranges.
    pub mtrr: Mtrr,
    /// See [`Repetition`].
    pub repetition: Repetition,
    /// Where the guest executes HLT by itself, if it does.
    pub halted_at: Option<u64>,
    /// The library's side of it.
    pub nested: Handle<'m>,
    /// Whether its local APIC is on (bit 11 of the APIC base register).
    pub has_apic: bool,
    /// EFER.LME, which the control block has only while paging is on: see [`Vcpu::set_control`].
    long_mode_enabled: bool,
    nmis: Nmis,
    undelivered: Undelivered,
    flush: bool,
    host: u64,
}

impl<'m> Vcpu<'m> {
    /// A vCPU on this processor. `None` without memory.
    pub fn new(machine: &'m Machine<'m>, number: usize) -> Option<Self> {
        let nested = machine.nested.vcpu(number)?;
        let host = memory::take(Size::K4)?;
        // SAFETY: the frame was just taken for this processor.
        unsafe {
            memory::zero(host, Size::K4);
            svm::save_host(host * FRAME);
        }
        let mut vcpu = Self {
            number,
            machine,
            vmcb: Box::new(Vmcb::zeroed()),
            general: General::default(),
            fpu: Box::new(Fpu::reset()),
            features: Features { cr4: 0, efer: 0, phys_bits: 36, xcr0: 0 },
            mtrr: Mtrr::new(),
            repetition: Repetition::default(),
            halted_at: None,
            nested,
            has_apic: true,
            long_mode_enabled: false,
            nmis: Nmis::new(),
            undelivered: Undelivered::NONE,
            flush: true,
            host,
        };
        vcpu.features = Features::of(|leaf, subleaf| vcpu.cpuid(leaf, subleaf));
        vcpu.forget_last_guest();
        vcpu.reset();
        Some(vcpu)
    }

    /// What CPUID answers this vCPU.
    pub fn cpuid(&self, leaf: u32, subleaf: u32) -> Answer {
        let guest = cpuid::Guest {
            cr4: self.vmcb.cr4,
            cpus: self.machine.guest.cpus,
            phys_bits: self.machine.job.phys_bits,
            hide: &self.machine.job.hide,
            has_apic: self.has_apic,
        };
        cpuid::answer(leaf, subleaf, &guest, |leaf, subleaf| {
            let real = core::arch::x86_64::__cpuid_count(leaf, subleaf);
            Answer { eax: real.eax, ebx: real.ebx, ecx: real.ecx, edx: real.edx }
        })
    }

    /// Clears what a former guest may have left in registers that the world switch does not keep.
    fn forget_last_guest(&self) {
        #[repr(align(64))]
        struct Area([u8; 1024]);
        let tsc_number = self.cpuid(0x8000_0001, 0).edx >> 27 & 1 == 1;
        let mut area = Area([0; 1024]);
        // MXCSR is loaded in any case: all exceptions masked.
        area.0[24..26].copy_from_slice(&[0x80, 0x1f]);
        // SAFETY: debug registers and the TSC's number are not used by the hypervisor. Loading
        // extended state from an area whose header is zero puts every component into its first
        // state and reads nothing else; SSE's is not live across the asm (clobbers).
        unsafe {
            asm!(
                "mov dr0, {0}", "mov dr1, {0}", "mov dr2, {0}", "mov dr3, {0}",
                in(reg) 0_u64, options(nomem, nostack),
            );
            if tsc_number {
                svm::wrmsr(TSC_AUX, 0);
            }
            if self.features.xcr0 != 0 {
                self.set_xcr0(self.features.xcr0);
                asm!(
                    "xrstor64 [{}]",
                    in(reg) &raw const area, in("eax") -1, in("edx") -1,
                    clobber_abi("sysv64"),
                );
            }
        }
    }

    /// State after INIT (AMD64 APM vol. 2, table 14-1), with real-mode segments.
    pub fn reset(&mut self) {
        let vmcb = &mut *self.vmcb;
        // The time-stamp counter goes on through an INIT.
        let tsc_offset = vmcb.tsc_offset;
        *vmcb = Vmcb::zeroed();
        vmcb.tsc_offset = tsc_offset;
        vmcb.intercept_cr = CR;
        vmcb.intercept_exceptions = 1 << 17;
        vmcb.intercept_misc1 = MISC1;
        vmcb.intercept_misc2 = MISC2;
        vmcb.iopm_base = &raw const *self.machine.port_map as u64;
        vmcb.msrpm_base = &raw const *self.machine.msr_map as u64;
        vmcb.asid = 1;
        vmcb.np_enable = 1;
        let data = Segment { selector: 0, attributes: 0x93, limit: 0xffff, base: 0 };
        for segment in [&mut vmcb.es, &mut vmcb.ss, &mut vmcb.ds, &mut vmcb.fs, &mut vmcb.gs] {
            *segment = data;
        }
        vmcb.cs = Segment { attributes: 0x9b, ..data };
        vmcb.gdtr = Segment { limit: 0xffff, ..Segment::default() };
        vmcb.idtr = vmcb.gdtr;
        vmcb.ldtr = Segment { attributes: 0x82, limit: 0xffff, ..Segment::default() };
        vmcb.tr = Segment { attributes: 0x8b, limit: 0xffff, ..Segment::default() };
        vmcb.efer = svm::SVME;
        vmcb.cr0 = cr0::ET | cr0::CD | cr0::NW;
        vmcb.dr6 = 0xffff_0ff0;
        vmcb.dr7 = 0x400;
        vmcb.rflags = 2;
        vmcb.g_pat = 0x0007_0406_0007_0406;
        let family = core::arch::x86_64::__cpuid(1).eax;
        self.general = General { rdx: u64::from(family), ..General::default() };
        *self.fpu = Fpu::reset();
        self.mtrr = Mtrr::new();
        self.halted_at = None;
        self.long_mode_enabled = false;
        self.nmis = Nmis::new();
        self.undelivered = Undelivered::NONE;
        self.flush = true;
        if self.features.xcr0 != 0 {
            self.set_xcr0(1);
        }
    }

    /// Loads XCR0, which stays the guest's while the hypervisor runs (it uses no such state).
    pub fn set_xcr0(&self, value: u64) {
        // SAFETY: the value was judged against what the processor offers, and OSXSAVE is set.
        unsafe {
            asm!("xsetbv", in("ecx") 0, in("eax") value as u32,
                in("edx") (value >> 32) as u32, options(nomem, nostack));
        }
    }

    /// Switches the local APIC on or off by its base register (APM vol. 2, section 16.3.1). While it is
    /// off, its registers and its bit of CPUID are gone, nothing reaches it, and the interrupt line of
    /// the 8259 controllers leads to the processor itself. It comes back as after a reset.
    pub fn switch_apic(&mut self, on: bool) {
        if on == self.has_apic {
            return;
        }
        self.has_apic = on;
        self.machine.posts[self.number].has_apic.store(on, Ordering::Relaxed);
        apic::reset();
        if !on && self.number == 0 {
            apic::wire_legacy();
        }
        self.nested.set_role(if on { nested::WITH_APIC } else { nested::WITHOUT_APIC });
    }

    /// The first state of the boot vCPU.
    pub fn start(&mut self, start: &Start) {
        let flat =
            |selector, attributes| Segment { selector, attributes, limit: 0xffff_ffff, base: 0 };
        let vmcb = &mut *self.vmcb;
        let (code, data) = match start {
            Start::Long { .. } => (flat(0x10, 0xa9b), flat(0x18, 0xc93)),
            Start::Protected { .. } => (flat(0x10, 0xc9b), flat(0x18, 0xc93)),
        };
        vmcb.cs = code;
        for segment in [&mut vmcb.es, &mut vmcb.ss, &mut vmcb.ds, &mut vmcb.fs, &mut vmcb.gs] {
            *segment = data;
        }
        self.general.rdx = 0;
        match *start {
            Start::Long { rip, rsp, rsi, cr3, gdt, gdt_limit } => {
                vmcb.cr0 = cr0::PG | cr0::ET | cr0::PE;
                vmcb.cr3 = cr3;
                vmcb.cr4 = hypervisor::registers::cr4::PAE;
                vmcb.efer = svm::SVME | efer::LME | efer::LMA;
                self.long_mode_enabled = true;
                vmcb.gdtr =
                    Segment { limit: u32::from(gdt_limit), base: gdt, ..Segment::default() };
                vmcb.rip = rip;
                vmcb.rsp = rsp;
                self.general.rsi = rsi;
            }
            Start::Protected { eip, eax, ebx } => {
                vmcb.cr0 = cr0::ET | cr0::PE;
                vmcb.rip = u64::from(eip);
                vmcb.rax = u64::from(eax);
                self.general.rbx = u64::from(ebx);
            }
        }
    }

    /// The control registers as the guest sees them.
    pub fn control(&self) -> Control {
        let vmcb = &self.vmcb;
        let enabled = if self.long_mode_enabled { efer::LME } else { 0 };
        let efer = vmcb.efer & !svm::SVME | enabled;
        Control { cr0: vmcb.cr0, cr3: vmcb.cr3, cr4: vmcb.cr4, efer }
    }

    /// Loads control registers that were judged.
    ///
    /// LME changes nothing while paging is off, and the guest's reads of EFER are answered by
    /// [`control`](Self::control). So the control block does without it then: at an exit from a guest
    /// with LME set and PAE clear, QEMU 7.2 takes the return to the hypervisor's paging for an
    /// attempt of the guest to enter long mode without PAE, and leaves paging off.
    pub fn set_control(&mut self, control: Control) {
        let vmcb = &mut *self.vmcb;
        vmcb.cr0 = control.cr0;
        vmcb.cr3 = control.cr3;
        vmcb.cr4 = control.cr4;
        self.long_mode_enabled = control.efer & efer::LME != 0;
        let has_paging = control.cr0 & cr0::PG != 0;
        let hidden = if has_paging { 0 } else { efer::LME };
        vmcb.efer = control.efer & !hidden | svm::SVME;
        self.flush = true;
    }

    /// What a walk of the guest's tables depends on.
    pub fn paging(&self) -> Paging {
        let vmcb = &self.vmcb;
        Paging {
            cr0: vmcb.cr0,
            cr3: vmcb.cr3,
            cr4: vmcb.cr4,
            efer: vmcb.efer,
            rflags: vmcb.rflags,
            cpl: vmcb.cpl,
        }
    }

    /// Kind of the code segment in use.
    pub fn code_segment(&self) -> CodeSegment {
        let long = self.control().long() && self.vmcb.cs.attributes >> 9 & 1 == 1;
        if long { CodeSegment::Long } else { CodeSegment::Short }
    }

    /// Bits of code: 16, 32 or 64.
    pub fn bits(&self) -> u32 {
        match (self.code_segment(), self.vmcb.cs.attributes >> 10 & 1) {
            (CodeSegment::Long, _) => 64,
            (CodeSegment::Short, 1) => 32,
            (CodeSegment::Short, _) => 16,
        }
    }

    /// Makes the guest take an exception at its next instruction.
    pub fn inject(&mut self, vector: u8, error: Option<u32>) {
        let real = self.vmcb.cr0 & cr0::PE == 0;
        if vector != DEBUG {
            // A fault: the flags on the handler's stack have RF set, so that a breakpoint on the
            // instruction is not met again (APM vol. 2, section 3.1.6).
            self.vmcb.rflags |= RF;
        }
        self.vmcb.event_inj = events::exception(vector, error.filter(|_| !real));
    }

    /// Goes on at `rip`, the instruction being done.
    pub fn advance_to(&mut self, rip: u64) {
        self.vmcb.rip = rip;
        self.vmcb.int_state = 0;
        self.vmcb.rflags &= !RF;
        // A single step is due after the instruction.
        if self.vmcb.rflags >> 8 & 1 == 1 && self.vmcb.event_inj & events::VALID == 0 {
            self.vmcb.dr6 |= 1 << 14;
            self.inject(DEBUG, None);
        }
    }

    /// The port, register or address that an exit is about.
    fn about(&self, exit: u64) -> u64 {
        match exit {
            code::IOIO => self.vmcb.exit_info1 >> 16 & 0xffff,
            code::MSR => self.general.rcx & 0xffff_ffff,
            code::NESTED_FAULT => self.vmcb.exit_info2,
            _ => 0,
        }
    }

    /// Runs until the machine stops.
    pub fn run(&mut self) {
        let post = &self.machine.posts[self.number];
        loop {
            let mail = post.mail.swap(0, Ordering::SeqCst);
            if mail & STOP != 0 {
                break;
            }
            if mail != 0 {
                self.open(mail);
            }
            self.deliver_nmi();
            if self.is(Mode::Waiting) || self.is(Mode::Dead) {
                self.machine.end_if_dead();
                if self.number == 0 {
                    live::tick(self.machine);
                }
                traps::sleep_while(&post.mail, 0);
                continue;
            }
            self.halt_in_shadow();
            let Some(exit) = self.enter() else { continue };
            post.rip.store(self.vmcb.rip, Ordering::Relaxed);
            post.record.add(exit, self.about(exit));
            match self.nmis.exited(&mut self.vmcb, exit) {
                After::Handle => {
                    self.finish_delivery();
                    exits::handle(self, exit);
                }
                After::Nothing => {}
                After::Exception(vector) => self.intercepted(vector),
            }
            churn::tick(self);
            if self.number == 0 && exit == code::NMI {
                live::tick(self.machine);
            }
        }
        self.set_mode(Mode::Ended);
    }

    /// Runs the guest until its next exit; `None` if something has to be looked at first.
    fn enter(&mut self) -> Option<u64> {
        match self.nested.load_root() {
            Ok(()) => {}
            // The drains of other vCPUs end soon.
            Err(LoadError::RootsBusy) => return None,
            Err(error) => {
                self.machine.finish(End::Broken { what: format!("no root: {error}") });
                return None;
            }
        }
        svm::close_gate();
        // From here on an NMI waits, and ends the guest's run at once.
        if self.machine.posts[self.number].mail.load(Ordering::SeqCst) != 0 {
            svm::open_gate();
            return None;
        }
        let can_interrupt = self.can_interrupt();
        let entry = match self.nested.before_enter(nested::processor(self.number)) {
            Ok(entry) => entry,
            // The root has gone since it was loaded.
            Err(EnterError::LoadRoot) => {
                svm::open_gate();
                return None;
            }
            Err(error) => {
                svm::open_gate();
                self.machine.finish(End::Broken { what: format!("cannot enter: {error}") });
                return None;
            }
        };
        let flush = self.flush || entry.flush() == Flush::Needed;
        self.vmcb.n_cr3 = entry.root().0;
        self.vmcb.tlb_control = u32::from(flush);
        self.flush = false;
        self.vmcb.int_ctl = if self.nmis.is_stepping() { HOLD_INTERRUPTS } else { 0 };
        if can_interrupt && let Some(event) = self.undelivered.take() {
            self.vmcb.event_inj = event;
            // It ends the run behind the delivery: see `events`.
            apic::send_nmi(self.number as u32);
        }
        let own = svm::own_cr0();
        // SAFETY: the control block is this vCPU's own; the nested tables are the library's, the
        // permission maps the machine's; `host` was filled on this processor.
        unsafe {
            svm::enter(
                &raw mut self.general,
                &raw mut *self.fpu,
                &raw mut *self.vmcb as u64,
                self.host * FRAME,
            );
        }
        entry.after_exit();
        let exit = self.vmcb.exit_code;
        self.vmcb.event_inj = 0;
        svm::open_gate();
        if svm::own_cr0() != own {
            let what = format!(
                "the processor came back from the guest with CR0 {:#x} instead of {own:#x} (QEMU \
                 does so for some guests that leave long mode)",
                svm::own_cr0()
            );
            self.machine.finish(End::Broken { what });
            return None;
        }
        if self.vmcb.is_lost() {
            let what = "the processor stored the hypervisor's state as the guest's (QEMU does so, \
                        very seldom, with several CPUs); nothing of it is the guest's fault";
            self.machine.finish(End::Broken { what: String::from(what) });
            return None;
        }
        Some(exit)
    }

    /// Whether an interrupt can be injected at the next entry.
    fn can_interrupt(&self) -> bool {
        let vmcb = &self.vmcb;
        let is_on = vmcb.rflags >> 9 & 1 == 1 && vmcb.int_state & SHADOW == 0;
        is_on && vmcb.event_inj & events::VALID == 0 && !self.nmis.is_stepping()
    }

    /// Completes an event whose delivery the exit interrupted.
    fn finish_delivery(&mut self) {
        let mode =
            if self.vmcb.cr0 & cr0::PE == 0 { events::Mode::Real } else { events::Mode::Protected };
        match events::complete(self.vmcb.exit_int_info, mode) {
            Completion::Nothing | Completion::ExecuteAgain => {}
            Completion::Inject(event) => self.vmcb.event_inj = event,
            Completion::Interrupt(vector) => {
                if !self.undelivered.add(vector) {
                    let what = String::from("more interrupts in service than there are priorities");
                    self.machine.finish(End::Broken { what });
                }
            }
        }
    }

    /// Whether the exit came while an event was being delivered.
    pub fn delivering(&self) -> bool {
        self.vmcb.exit_int_info & events::VALID != 0
    }

    /// Looks at what others have sent.
    fn open(&mut self, mail: u32) {
        if mail & INIT != 0 {
            if self.number == 0 {
                // The boot processor starts over at its reset vector, as after a reset.
                self.machine.finish(End::Reset);
                return;
            }
            apic::reset();
            self.reset();
            self.set_mode(Mode::Waiting);
        }
        if mail & START_UP != 0 && self.is(Mode::Waiting) {
            let page = u64::from(mail >> 16 & 0xff);
            self.vmcb.cs.selector = (page << 8) as u16;
            self.vmcb.cs.base = page << 12;
            self.vmcb.rip = 0;
            self.set_mode(Mode::Running);
        }
        if mail & NMI != 0 && !self.is(Mode::Waiting) {
            self.nmis.post();
        }
    }

    /// Delivers an NMI that waits, if the guest can take it.
    fn deliver_nmi(&mut self) {
        if self.vmcb.event_inj & events::VALID != 0 {
            if self.nmis.waits(&self.vmcb) {
                // Another event goes first; the signal ends the guest's run right behind it.
                apic::send_nmi(self.number as u32);
            }
            return;
        }
        if !self.nmis.take(&mut self.vmcb) {
            return;
        }
        self.vmcb.event_inj = events::VALID | events::NMI | 2;
        if let Some(rip) = self.halted_at {
            // It ends the halt.
            self.woken(code::NMI);
            self.vmcb.rip = rip + 1;
        }
        self.set_mode(Mode::Running);
    }

    /// The guest is about to execute IRET while NMIs are masked: the mask ends with it.
    pub fn end_nmi(&mut self) {
        self.nmis.ends(&mut self.vmcb);
    }

    /// An exception of the guest's that was intercepted goes to the guest.
    fn intercepted(&mut self, vector: u8) {
        const PAGE_FAULT: u8 = 14;
        if vector == PAGE_FAULT {
            self.vmcb.cr2 = self.vmcb.exit_info2;
        }
        let has_error = matches!(vector, 8 | 10..=14 | 17);
        let error = self.vmcb.exit_info1 as u32;
        self.inject(vector, has_error.then_some(error));
    }

    /// STI and HLT belong together: no interrupt comes between them, so that one which has come already
    /// ends the halt. A signal may end the guest's run between the two, and QEMU 7.2 forgets at the next
    /// entry what it said of that at the exit. The interrupt would come in front of HLT, and the guest
    /// would wait for one that it has had. So the HLT is done here, as if it had been met.
    fn halt_in_shadow(&mut self) {
        const HLT_CODE: u8 = 0xf4;
        let is_held = self.vmcb.int_state & SHADOW != 0 && self.vmcb.event_inj & events::VALID == 0;
        if is_held && self.halted_at.is_none() && mmio::first_byte(self) == Some(HLT_CODE) {
            self.vmcb.int_state = 0;
            self.halt();
        }
    }

    /// HLT: waits for an interrupt by executing it, or, with interrupts off, for ever.
    pub fn halt(&mut self) {
        if !self.undelivered.is_empty() && self.vmcb.rflags >> 9 & 1 == 1 {
            // It ends the halt before it begins: see `woken`.
            let next = self.vmcb.rip + 1;
            self.advance_to(next);
            return;
        }
        if self.vmcb.rflags >> 9 & 1 == 0 {
            let next = self.vmcb.rip + 1;
            self.advance_to(next);
            self.set_mode(Mode::Dead);
            return;
        }
        // The processor executes it, and exits for the interrupt, which the next entry delivers.
        self.vmcb.intercept_misc1 = self.vmcb.intercept_misc1 & !HLT | INTR;
        self.halted_at = Some(self.vmcb.rip);
        self.set_mode(Mode::Halted);
    }

    /// Something other than a signal from the hypervisor ended the guest's run.
    pub fn woken(&mut self, exit: u64) {
        let Some(rip) = self.halted_at.take() else { return };
        self.vmcb.intercept_misc1 = self.vmcb.intercept_misc1 & !INTR | HLT;
        self.set_mode(Mode::Running);
        if exit == code::INTERRUPT && self.vmcb.rip == rip {
            // It was there already and ends the halt before it begins. Delivered in front of HLT,
            // as it would be now, it would be the one the guest then waits for.
            self.advance_to(rip + 1);
        }
    }

    /// A signal ended the guest's run. If it was halted it halts again.
    pub fn signalled(&mut self) {
        if let Some(rip) = self.halted_at {
            self.vmcb.rip = rip;
        }
    }

    fn set_mode(&self, mode: Mode) {
        self.machine.posts[self.number].mode.store(mode as u32, Ordering::SeqCst);
    }

    fn is(&self, mode: Mode) -> bool {
        self.machine.posts[self.number].mode.load(Ordering::SeqCst) == mode as u32
    }

    /// Time for the guest: its counter now.
    pub fn tsc(&self) -> u64 {
        timer::now().wrapping_add(self.vmcb.tsc_offset)
    }
}

impl Drop for Vcpu<'_> {
    fn drop(&mut self) {
        memory::put(self.host, Size::K4);
    }
}
