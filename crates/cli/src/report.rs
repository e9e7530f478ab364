//! What a run has to show for itself, for people.

use std::fmt::Write;

use comfy_table::{Table, presets};
use hypervisor::wire::{CpuState, End, Verdict};
use iced_x86::{Decoder, DecoderOptions, Formatter, NasmFormatter};
use indicatif::HumanCount;

use crate::{
    boot::session::{Cut, GuestRun, Run},
    size::{PAGE, Size},
};

/// `1234567` as `1,234,567`.
pub fn grouped(number: u64) -> String {
    HumanCount(number).to_string()
}

/// The report of a whole run.
pub fn text(run: &Run) -> String {
    let mut text = String::new();
    for guest in &run.guests {
        if guest.started.is_some() || guest.end.is_some() {
            writeln!(text, "{}\n", of_guest(guest, run.cut).trim_fmt()).ok();
            if run.cut != Cut::No && guest.end.as_ref().is_none_or(|end| *end == End::Stopped) {
                writeln!(text, "{}", whereabouts(guest, &run.rates)).ok();
            }
        }
    }
    text
}

fn table(rows: Vec<(String, String)>) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    for (name, value) in rows {
        table.add_row([name, value]);
    }
    table
}

fn of_guest(guest: &GuestRun, cut: Cut) -> Table {
    let stats = &guest.stats;
    let mut rows = vec![("guest".to_owned(), guest.name.clone())];
    let mut row = |name: &str, value: String| rows.push((name.to_owned(), value));
    row("ended", guest.end.as_ref().map_or("no word of it".into(), |end| ended(end, cut)));
    if let Some(End::TripleFault { rip, state, .. }) = &guest.end {
        for (name, value) in shutdown(*rip, state) {
            row(name, value);
        }
    }
    if let Some(reached) = guest.reached {
        row("boot time", format!("{:.2} s to user space", reached.as_secs_f64()));
    }
    if guest.ticks.1 > 0 {
        let seconds = guest.ticks.0 as f64 / guest.ticks.1 as f64 / 1000.0;
        row("ran for", format!("{seconds:.2} s"));
    }
    let faults: u64 = stats.faults.iter().map(|(_, count)| count).sum();
    let seconds = guest.ran.as_secs_f64();
    let rate = match seconds > 0.0 {
        true => format!(", {} a second", grouped((faults as f64 / seconds) as u64)),
        false => String::new(),
    };
    row("faults", format!("{}{rate}", grouped(faults)));
    for (name, count) in stats.faults.iter().filter(|(_, count)| *count > 0) {
        row(&format!("  {name}"), grouped(*count));
    }
    let [k4, m2, g1] = stats.leaves.map(grouped);
    row("leaves", format!("4K {k4}, 2M {m2}, 1G {g1}"));
    let bytes = Size(stats.table_pages * PAGE);
    row("table pages", format!("{}, {bytes}", grouped(stats.table_pages)));
    let (sent, elided) = (grouped(stats.flushes_sent), grouped(stats.flushes_elided));
    row("flushes", format!("{sent} sent, {elided} elided"));
    let exits: u64 = stats.exits.iter().map(|(_, count)| count).sum();
    row("exits", grouped(exits));
    for (name, count) in stats.exits.iter().filter(|(_, count)| *count > 0) {
        row(&format!("  {name}"), grouped(*count));
    }
    for (name, count) in stats.other.iter().filter(|(_, count)| *count > 0) {
        row(name, grouped(*count));
    }
    row("checker", guest.verdict.as_ref().map_or("did not run".into(), verdict));
    table(rows)
}

fn ended(end: &End, cut: Cut) -> String {
    match end {
        End::PowerOff => "powered off".into(),
        End::Reset => "asked for a reset".into(),
        End::Exit { code } => format!("exit code {code}"),
        End::TripleFault { vcpu, rip, .. } => format!("triple fault on vCPU {vcpu} at 0x{rip:x}"),
        End::Halted => "halted for ever".into(),
        End::Refused { vcpu, what } => format!("refused on vCPU {vcpu}: {what}"),
        End::Stopped => match cut {
            Cut::TimeOut => "not ended in time (--timeout)".into(),
            Cut::No | Cut::Interrupt => "stopped from outside".into(),
        },
        End::Broken { what } => format!("hypervisor broken: {what}"),
    }
}

/// What may say why a vCPU shut down.
fn shutdown(rip: u64, state: &CpuState) -> Vec<(&'static str, String)> {
    const NAMES: [&str; 16] = [
        "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12",
        "r13", "r14", "r15",
    ];
    let [cr0, cr2, cr3, cr4] = state.control;
    let event = match (state.event >> 31 & 1, state.event >> 11 & 1) {
        (0, _) => "not known".to_owned(),
        (_, 0) => format!("vector {}", state.event & 0xff),
        _ => format!("vector {}, error code 0x{:x}", state.event & 0xff, state.event >> 32),
    };
    let mut decoder = Decoder::with_ip(state.bits, &state.code, rip, DecoderOptions::NONE);
    let instruction = decoder.decode();
    let mut text = String::new();
    if instruction.is_invalid() {
        text.push_str("no instruction can be read there");
    } else {
        NasmFormatter::new().format(&instruction, &mut text);
    }
    let bytes: Vec<String> = state.code.iter().map(|byte| format!("{byte:02x}")).collect();
    let general: Vec<String> = NAMES
        .iter()
        .zip(state.general)
        .map(|(name, value)| format!("{name} 0x{value:x}"))
        .collect();
    vec![
        ("  could not be delivered", event),
        ("  instruction", format!("{text} ({}-bit code, cs 0x{:x})", state.bits, state.cs)),
        ("  bytes there", bytes.join(" ")),
        ("  control", format!("cr0 0x{cr0:x}, cr2 0x{cr2:x}, cr3 0x{cr3:x}, cr4 0x{cr4:x}")),
        ("", format!("efer 0x{:x}, rflags 0x{:x}", state.efer, state.rflags)),
        ("  registers", general[..8].join(", ")),
        ("", general[8..].join(", ")),
    ]
}

fn verdict(verdict: &Verdict) -> String {
    let seen = format!(
        "{} entries in {} table pages, {} invariants",
        grouped(verdict.entries),
        grouped(verdict.tables),
        verdict.verified.len()
    );
    match verdict.violations.as_slice() {
        [] => format!("clean ({seen})"),
        violations => {
            let mut text = format!("{} VIOLATIONS ({seen})", violations.len());
            for (invariant, at) in violations.iter().take(10) {
                write!(text, "\n{invariant}: {at}").ok();
            }
            text
        }
    }
}

/// Where each vCPU was, for people who look for a hang.
fn whereabouts(guest: &GuestRun, rates: &[f64]) -> String {
    let mut text = String::new();
    for (i, vcpu) in guest.vcpus.iter().enumerate() {
        let rate = rates.get(i).map_or("?".into(), |rate| grouped(*rate as u64));
        let (rip, mode, exits) = (vcpu.rip, &vcpu.mode, grouped(vcpu.exits));
        writeln!(text, " vCPU {i} at 0x{rip:x}, {mode}, {exits} exits, {rate} a second").ok();
        writeln!(text, "   last exits, newest last: {}", repeats(&vcpu.last)).ok();
    }
    text
}

/// `a a b` as `2 x a, b`.
fn repeats(names: &[String]) -> String {
    let runs = names.chunk_by(|a, b| a == b).map(|run| match run.len() {
        1 => run[0].clone(),
        count => format!("{count} x {}", run[0]),
    });
    runs.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use hypervisor::wire::{Stats, VcpuState};
    use std::time::{Duration, Instant};

    #[test]
    fn numbers_are_grouped() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1_234_567), "1,234,567");
    }

    fn run() -> Run {
        let guest = GuestRun {
            name: "linux".into(),
            started: Some(Instant::now()),
            ran: Duration::from_secs(2),
            reached: Some(Duration::from_millis(1500)),
            end: Some(End::PowerOff),
            stats: Stats {
                faults: vec![("fixed".into(), 30_000), ("retry".into(), 0)],
                leaves: [29_000, 3, 0],
                table_pages: 70,
                flushes_sent: 4,
                flushes_elided: 11,
                exits: vec![("npf".into(), 30_000)],
                other: vec![],
            },
            vcpus: vec![VcpuState {
                rip: 0xffff_ffff_8100_0000,
                mode: "running".into(),
                exits: 31_000,
                last: vec!["npf".into(), "npf".into(), "hlt".into()],
            }],
            verdict: Some(Verdict::default()),
            ticks: (3_000, 1),
        };
        Run {
            guests: vec![guest],
            failure: None,
            cut: Cut::No,
            console: Vec::new(),
            notes: Vec::new(),
            rates: vec![5.0],
            wall: Duration::ZERO,
            complaints: String::new(),
            spoke: true,
            phys_bits: None,
            outcomes: Vec::new(),
        }
    }

    #[test]
    fn the_report_names_everything_it_promises() {
        let text = text(&run());
        for part in [
            "powered off",
            "1.50 s to user space",
            "30,000, 15,000 a second",
            "fixed",
            "4K 29,000, 2M 3, 1G 0",
            "70, 280 KiB",
            "4 sent, 11 elided",
            "npf",
            "clean",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        assert!(!text.contains("0xffffffff81000000"));
    }

    #[test]
    fn a_time_out_shows_where_each_vcpu_was() {
        let mut run = run();
        run.cut = Cut::TimeOut;
        run.guests[0].end = Some(End::Stopped);
        let text = text(&run);
        for part in ["0xffffffff81000000", "2 x npf, hlt", "running", "31,000 exits, 5 a second"] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }
}
