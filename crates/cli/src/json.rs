//! The report for programs. Two exact runs give the same file but for fields that begin with
//! `host_`.

use hypervisor::wire::{CpuState, End, Stats, Verdict};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::{
    boot::{
        outcome::Outcome,
        session::{GuestRun, Run},
    },
    machine::Clock,
    size::PAGE,
};

/// The file's content.
pub fn document(run: &Run, outcome: &Outcome, clock: Clock, qemu: &str) -> Value {
    let mut document = Map::new();
    let mut add = |name: &str, value: Value| document.insert(name.to_owned(), value);
    add("format", json!(1));
    add("status", json!(outcome.status as u8));
    add("outcome", json!(outcome.line));
    add("workload", json!(outcome.workload));
    add("guests", run.guests.iter().map(|g| guest(g, clock)).collect());
    add("notes", json!(run.notes));
    add("host_seconds", json!(run.wall.as_secs_f64()));
    add("host_qemu", json!(qemu));
    Value::Object(document)
}

fn guest(guest: &GuestRun, clock: Clock) -> Value {
    let Stats { faults, leaves, table_pages, flushes_sent, flushes_elided, exits, other } =
        &guest.stats;
    let mut fields = Map::new();
    let mut add = |name: &str, value: Value| fields.insert(name.to_owned(), value);
    add("name", json!(guest.name));
    add("end", guest.end.as_ref().map_or(Value::Null, end));
    add("faults", counts(faults));
    add("leaves", json!({"4k": leaves[0], "2m": leaves[1], "1g": leaves[2]}));
    add("table_pages", json!(table_pages));
    add("table_bytes", json!(table_pages * PAGE));
    add("flushes_sent", json!(flushes_sent));
    add("flushes_elided", json!(flushes_elided));
    add("exits", counts(exits));
    add("other", counts(other));
    add("checker", guest.verdict.as_ref().map_or(Value::Null, verdict));
    add("vcpus", guest.vcpus.iter().map(|v| json!({"rip": v.rip, "exits": v.exits})).collect());
    // With instructions counted, the machine's clock is not the host's.
    let (ticks, per_ms) = match clock {
        Clock::Instructions => ("ticks", "ticks_per_ms"),
        Clock::Host => ("host_ticks", "host_ticks_per_ms"),
    };
    add(ticks, json!(guest.ticks.0));
    add(per_ms, json!(guest.ticks.1));
    add("host_run_seconds", json!(guest.ran.as_secs_f64()));
    add("host_boot_seconds", json!(guest.reached.map(|reached| reached.as_secs_f64())));
    Value::Object(fields)
}

fn counts(pairs: &[(String, u64)]) -> Value {
    pairs.iter().map(|(name, count)| (name.clone(), json!(count))).collect()
}

fn end(end: &End) -> Value {
    match end {
        End::PowerOff => json!({"how": "power-off"}),
        End::Reset => json!({"how": "reset"}),
        End::Exit { code } => json!({"how": "exit", "code": code}),
        End::TripleFault { vcpu, rip, state } => {
            let CpuState { general, rflags, control, efer, cs, bits, event, code } = &**state;
            json!({
                "how": "triple-fault", "vcpu": vcpu, "rip": rip, "general": general,
                "rflags": rflags, "control": control, "efer": efer, "cs": cs, "bits": bits,
                "event": event, "code": code,
            })
        }
        End::Halted => json!({"how": "halted"}),
        End::Refused { vcpu, what } => json!({"how": "refused", "vcpu": vcpu, "what": what}),
        End::Stopped => json!({"how": "stopped"}),
        End::Broken { what } => json!({"how": "broken", "what": what}),
    }
}

fn verdict(verdict: &Verdict) -> Value {
    #[derive(Serialize)]
    struct Violation<'a> {
        invariant: &'a str,
        at: &'a str,
    }
    let violations: Vec<_> =
        verdict.violations.iter().map(|(invariant, at)| Violation { invariant, at }).collect();
    json!({
        "entries": verdict.entries,
        "tables": verdict.tables,
        "verified": counts(&verdict.verified),
        "violations": violations,
    })
}

/// The document without what depends on the host.
pub fn without_host(value: &Value) -> Value {
    match value {
        Value::Object(fields) => fields
            .iter()
            .filter(|(name, _)| !name.starts_with("host_"))
            .map(|(name, value)| (name.clone(), without_host(value)))
            .collect(),
        Value::Array(values) => values.iter().map(without_host).collect(),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_depends_on_the_host_can_be_told_apart() {
        let value = json!({"a": 1, "host_b": 2, "c": [{"host_d": 3, "e": 4}]});
        assert_eq!(without_host(&value), json!({"a": 1, "c": [{"e": 4}]}));
    }
}
