//! How a run ended: one exit status and one line.

use hypervisor::wire::End;

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

/// Judges a run. The worst of what happened decides: a broken hypervisor before a time-out before
/// a failed guest.
pub fn judge(run: &Run, expected: Expected) -> Outcome {
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
            0 => with_console(of_guest(guest), &text, expected, outcome.workload.as_deref()),
            _ => of_guest(guest),
        };
        if guest.end.is_some() {
            worse(status, line);
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
fn of_guest(guest: &GuestRun) -> (Status, String) {
    let name = &guest.name;
    if let Some((invariant, at)) = guest.verdict.as_ref().and_then(|v| v.violations.first()) {
        let count = guest.verdict.as_ref().map_or(0, |v| v.violations.len());
        let line = format!("the checker found {count} violations, first: {invariant}: {at}");
        return (Status::Fault, line);
    }
    match &guest.end {
        None => (Status::Fault, format!("{name} did not end")),
        Some(End::PowerOff) => (Status::Ended, format!("{name} powered off")),
        Some(End::Exit { code: 0 }) => (Status::Ended, format!("{name} ended with exit code 0")),
        Some(End::Exit { code }) => (Status::Failed, format!("{name} ended with exit code {code}")),
        Some(End::Reset) => (Status::Failed, format!("{name} asked for a reset")),
        Some(End::TripleFault { vcpu, rip }) => {
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
        let outcome = judge(run, expected);
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
            (End::TripleFault { vcpu: 1, rip: 2 }, Status::Failed),
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
