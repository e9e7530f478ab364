//! How a run ended: one exit status and one line.

use hypervisor::wire::{End, Inject};

use super::session::{Cut, GuestRun, Run};
use crate::guests::initramfs::{REACHED, VERDICT, Workload};

/// Exit status of the command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Status {
    /// The guest ended in order.
    Ended = 0,
    /// The guest failed.
    Failed = 1,
    /// Usage, or something is missing.
    Missing = 2,
    /// Time-out.
    TimeOut = 3,
    /// The hypervisor or the checker found a fault.
    Fault = 4,
}

/// Exit status and what to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Exit status.
    pub status: Status,
    /// One line.
    pub line: String,
    /// Last line of the memory workload, if it ran.
    pub workload: Option<String>,
}

/// What the first guest had to show on its console.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// Nothing.
    Nothing,
    /// That `init` ran, and what its workload found.
    Init(Workload),
}

/// What is wanted of a run.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Of the first guest's console.
    pub expected: Expected,
    /// Whether the first guest is a Linux kernel, which says so when something is wrong with it.
    pub is_linux: bool,
    /// Texts that the console must show.
    pub texts: Vec<String>,
    /// Exit codes of the first guest that are no failure.
    pub codes: Vec<u32>,
    /// The fault that has to be put in.
    pub inject: Option<Inject>,
}

#[cfg(test)]
impl Wanted {
    /// Of a Linux guest, nothing beside that.
    pub fn of(expected: Expected) -> Self {
        Wanted { expected, is_linux: true, texts: vec![], codes: vec![0], inject: None }
    }
}

/// What a Linux kernel prints when it has found a fault of its own, or of the machine.
const COMPLAINTS: &[&str] = &["Kernel panic - not syncing", "kernel BUG at", "BUG: ", "Oops: "];

/// The first line of a console in which Linux says Oops, BUG or panic.
pub fn complaint(console: &str) -> Option<&str> {
    let complains = |line: &&str| COMPLAINTS.iter().any(|text| line.contains(text));
    console.lines().map(str::trim).find(complains)
}

/// Why nothing was put in, if something was to be.
fn not_injected(run: &Run, inject: Option<Inject>) -> Option<String> {
    let (what, after) = match inject? {
        Inject::Flip { after } => ("flip", after),
        Inject::Entry { after } => ("entry", after),
    };
    let fixed = |guest: &GuestRun| {
        let faults = guest.stats.faults.iter().filter(|(name, _)| name == "fixed");
        faults.map(|(_, count)| *count).sum::<u64>()
    };
    let most = run.guests.iter().map(fixed).max().unwrap_or(0);
    // The hypervisor says what it has done, or why it could not.
    let note = run
        .notes
        .iter()
        .find(|note| note.contains("nothing flipped") || note.contains("no entry changed"));
    match note {
        Some(note) => Some(format!("--inject {what}@{after} did nothing: {note}")),
        None if most < after => Some(format!(
            "--inject {what}@{after} was never put in: only {most} faults mapped something; choose \
             a smaller number"
        )),
        None => None,
    }
}

/// Judges a run. The worst of what happened decides: a broken hypervisor before a time-out before
/// a failed guest.
pub fn judge(run: &Run, wanted: &Wanted) -> Outcome {
    let expected = wanted.expected;
    let text = String::from_utf8_lossy(&run.console);
    let workload = text
        .lines()
        .rev()
        .find_map(|line| line.trim().strip_prefix(VERDICT))
        .map(|verdict| verdict.trim().to_owned());
    let mut outcome = Outcome { status: Status::Ended, line: String::new(), workload };
    let mut worse = |status: Status, line: String| {
        if status > outcome.status || outcome.line.is_empty() {
            outcome.status = status;
            outcome.line = line;
        }
    };
    for (index, guest) in run.guests.iter().enumerate() {
        let (status, line) = match index {
            0 => {
                let ended = of_guest(guest, &wanted.codes);
                with_console(ended, &text, expected, outcome.workload.as_deref())
            }
            _ => of_guest(guest, &[0]),
        };
        if guest.end.is_some() {
            worse(status, line);
        }
    }
    if let Some(line) = complaint(&text).filter(|_| wanted.is_linux) {
        worse(Status::Failed, format!("Linux said: {line}"));
    }
    if run.cut == Cut::No {
        if let Some(missing) = wanted.texts.iter().find(|wanted| !text.contains(wanted.as_str())) {
            worse(Status::Failed, format!("the console never showed `{missing}` (--expect)"));
        }
        if let Some(line) = not_injected(run, wanted.inject) {
            worse(Status::Failed, line);
        }
    }
    match run.cut {
        Cut::No => {}
        Cut::TimeOut => worse(Status::TimeOut, "time-out: the guest had not ended".into()),
        Cut::Interrupt => worse(Status::Failed, "interrupted".into()),
    }
    if let Some(what) = &run.failure {
        worse(Status::Fault, format!("the hypervisor failed: {what}"));
    } else if !run.spoke && run.cut != Cut::Interrupt {
        worse(Status::Fault, "the hypervisor never spoke".into());
    } else if run.cut == Cut::No && run.guests.iter().any(|g| g.end == Some(End::Stopped)) {
        worse(Status::Fault, "the hypervisor stopped the guest though nobody asked".into());
    } else if run.cut == Cut::No && run.guests.iter().any(|guest| guest.end.is_none()) {
        worse(Status::Fault, "the hypervisor ended without a report".into());
    }
    outcome
}

/// What its end, and the checker, say of a guest.
fn of_guest(guest: &GuestRun, codes: &[u32]) -> (Status, String) {
    let name = &guest.name;
    if let Some((invariant, at)) = guest.verdict.as_ref().and_then(|v| v.violations.first()) {
        let count = guest.verdict.as_ref().map_or(0, |v| v.violations.len());
        let line = format!("the checker found {count} violations, first: {invariant}: {at}");
        return (Status::Fault, line);
    }
    match &guest.end {
        None => (Status::Fault, format!("{name} did not end")),
        Some(End::PowerOff) => (Status::Ended, format!("{name} powered off")),
        Some(End::Exit { code }) => {
            let status = if codes.contains(code) { Status::Ended } else { Status::Failed };
            (status, format!("{name} ended with exit code {code}"))
        }
        Some(End::Reset) => (Status::Failed, format!("{name} asked for a reset")),
        Some(End::TripleFault { vcpu, rip, .. }) => {
            (Status::Failed, format!("{name}: triple fault on vCPU {vcpu} at 0x{rip:x}"))
        }
        Some(End::Halted) => {
            (Status::Failed, format!("{name} halted every vCPU with interrupts off"))
        }
        Some(End::Refused { vcpu, what }) => {
            (Status::Failed, format!("{name}: vCPU {vcpu} did what is not carried out: {what}"))
        }
        // Said by what stopped it.
        Some(End::Stopped) => (Status::Ended, String::new()),
        Some(End::Broken { what }) => (Status::Fault, format!("the hypervisor broke: {what}")),
    }
}

/// Adds what the console must show of a guest that ended in order.
fn with_console(
    ended: (Status, String),
    console: &str,
    expected: Expected,
    workload: Option<&str>,
) -> (Status, String) {
    let Expected::Init(what) = expected else { return ended };
    if ended.0 > Status::Failed || ended.1.is_empty() {
        return ended;
    }
    let (status, line) = ended;
    match (what, workload) {
        (_, Some(verdict)) if !verdict.starts_with("ok") => {
            (Status::Failed, format!("the workload failed: {verdict}"))
        }
        _ if status != Status::Ended => (status, line),
        _ if !console.contains(REACHED) => {
            (Status::Failed, format!("{line} without having reached user space"))
        }
        (Workload::Memory, None) => {
            (Status::Failed, format!("{line} without a verdict of the workload"))
        }
        (Workload::Memory, Some(verdict)) => (status, format!("{line}; workload {verdict}")),
        (Workload::Boot, _) => (status, line),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hypervisor::wire::Verdict;
    use std::time::Duration;

    fn run(end: Option<End>, console: &str) -> Run {
        let guest = GuestRun {
            name: "guest".into(),
            end,
            verdict: Some(Verdict::default()),
            ..GuestRun::default()
        };
        Run {
            guests: vec![guest],
            failure: None,
            cut: Cut::No,
            console: console.into(),
            notes: Vec::new(),
            rates: Vec::new(),
            wall: Duration::ZERO,
            complaints: String::new(),
            spoke: true,
            phys_bits: None,
            outcomes: Vec::new(),
        }
    }

    fn status(run: &Run, expected: Expected) -> (Status, String) {
        judged(run, &Wanted::of(expected))
    }

    fn judged(run: &Run, wanted: &Wanted) -> (Status, String) {
        let outcome = judge(run, wanted);
        assert!(!outcome.line.is_empty() && !outcome.line.contains('\n'));
        (outcome.status, outcome.line)
    }

    const MEMORY: Expected = Expected::Init(Workload::Memory);
    const GOOD: &str = "vmmu: user space reached: x\r\nworkload: verdict ok 00ff\r\n";

    #[test]
    fn every_end_has_its_status() {
        for (end, expected) in [
            (End::PowerOff, Status::Ended),
            (End::Exit { code: 0 }, Status::Ended),
            (End::Exit { code: 3 }, Status::Failed),
            (End::Reset, Status::Failed),
            (End::TripleFault { vcpu: 1, rip: 2, state: Box::default() }, Status::Failed),
            (End::Halted, Status::Failed),
            (End::Refused { vcpu: 0, what: "x".into() }, Status::Failed),
            (End::Broken { what: "x".into() }, Status::Fault),
        ] {
            assert_eq!(
                status(&run(Some(end.clone()), ""), Expected::Nothing).0,
                expected,
                "{end:?}"
            );
        }
        assert_eq!(status(&run(None, ""), Expected::Nothing).0, Status::Fault);
        assert!(status(&run(Some(End::Exit { code: 77 }), ""), Expected::Nothing).1.contains("77"));
    }

    #[test]
    fn a_power_off_without_a_verdict_is_a_failure() {
        let judged = |console| status(&run(Some(End::PowerOff), console), MEMORY);
        assert_eq!(judged(GOOD).0, Status::Ended);
        assert!(judged(GOOD).1.contains("ok 00ff"));
        assert_eq!(judged("").0, Status::Failed);
        assert_eq!(judged("vmmu: user space reached: x\n").0, Status::Failed);
        let silent = status(&run(Some(End::PowerOff), ""), Expected::Init(Workload::Boot));
        assert_eq!(silent.0, Status::Failed);
        let failed = judged("vmmu: user space reached\nworkload: verdict FAILED held 1 page\n");
        assert_eq!(failed.0, Status::Failed);
        assert!(failed.1.contains("held 1 page"));
    }

    #[test]
    fn a_complaint_of_linux_is_a_failure_whatever_the_end() {
        for line in [
            "[    1.0] BUG: unable to handle page fault for address: ffff",
            "[    1.0] Oops: 0002 [#1] PREEMPT SMP",
            "[    1.0] Kernel panic - not syncing: Attempted to kill init!",
        ] {
            let console = format!("{GOOD}{line}\r\n");
            let (status, why) = status(&run(Some(End::PowerOff), &console), MEMORY);
            assert_eq!((status, why), (Status::Failed, format!("Linux said: {line}")));
        }
        let other = Wanted { is_linux: false, ..Wanted::of(Expected::Nothing) };
        assert_eq!(judged(&run(Some(End::PowerOff), "BUG: x"), &other).0, Status::Ended);
    }

    #[test]
    fn texts_and_exit_codes_are_as_the_user_says() {
        let ended = run(Some(End::Exit { code: 33 }), "all tests passed\n");
        let with = |texts: &[&str], codes: &[u32]| {
            let texts = texts.iter().map(ToString::to_string).collect();
            let wanted = Wanted { texts, codes: codes.into(), ..Wanted::of(Expected::Nothing) };
            judged(&ended, &wanted)
        };
        assert_eq!(with(&[], &[0]).0, Status::Failed);
        assert_eq!(with(&["passed"], &[0, 33]).0, Status::Ended);
        let (status, why) = with(&["passed", "bye"], &[33]);
        assert!(status == Status::Failed && why.contains("`bye`"), "{why}");
    }

    #[test]
    fn a_fault_that_was_never_put_in_is_a_failure() {
        let mut ended = run(Some(End::PowerOff), "");
        ended.guests[0].stats.faults = vec![("fixed".into(), 316), ("retry".into(), 4000)];
        let with = |after| Wanted {
            inject: Some(Inject::Flip { after }),
            ..Wanted::of(Expected::Nothing)
        };
        let (status, why) = judged(&ended, &with(2000));
        assert!(
            status == Status::Failed && why.contains("flip@2000") && why.contains("316"),
            "{why}"
        );
        assert_eq!(judged(&ended, &with(316)).0, Status::Ended);
        ended.notes.push("nothing flipped: no memory at 0x7b".into());
        assert!(judged(&ended, &with(316)).1.contains("no memory"));
    }

    #[test]
    fn the_worst_decides() {
        let mut both = run(Some(End::Reset), "");
        both.guests[0].verdict =
            Some(Verdict { violations: vec![("I1".into(), "here".into())], ..Verdict::default() });
        assert_eq!(status(&both, MEMORY).0, Status::Fault);
        assert!(status(&both, MEMORY).1.contains("I1"));
        let mut late = run(Some(End::Stopped), "");
        assert_eq!(status(&late, MEMORY).0, Status::Fault);
        late.cut = Cut::TimeOut;
        assert_eq!(status(&late, MEMORY).0, Status::TimeOut);
        late.cut = Cut::Interrupt;
        assert_eq!(status(&late, MEMORY).0, Status::Failed);
        late.failure = Some("x".into());
        assert_eq!(status(&late, MEMORY).0, Status::Fault);
        let mut mute = run(None, "");
        mute.spoke = false;
        assert!(status(&mute, MEMORY).1.contains("never spoke"));
    }
}
