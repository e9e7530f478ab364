//! Cases, outcomes and ends in words.

use std::fmt::Write as _;

use hypervisor::probe::Outcome;

use super::{
    draw::{Class, Drawn},
    judge::exit,
    stage::{self, ENTRY, bit},
};

/// What is drawn.
pub fn class(class: Class) -> &'static str {
    match class {
        Class::Nested => "nested entries drawn",
        Class::Guest => "the guest's entries drawn",
        Class::Both => "both drawn",
        Class::Flat => "nested entries drawn, a guest without paging",
    }
}

/// How a case ended, with everything that tells one kind of end from another.
pub fn end(outcome: &Outcome) -> String {
    match outcome.exit {
        exit::VMMCALL => "access done".to_owned(),
        exit::NESTED_FAULT => {
            let during = match outcome.info1 >> 32 {
                1 => "final address",
                2 => "guest's table",
                _ => "neither or both",
            };
            format!("nested fault, {during}: {}", code(outcome.info1 & 0xffff_ffff))
        }
        exit::PAGE_FAULT => format!("page fault: {}", code(outcome.info1)),
        number @ 0x40..=0x5f => format!("exception {}", number - exit::EXCEPTION),
        number => format!("exit {number:#x}"),
    }
}

/// What differs, in few words.
pub fn difference(expected: &Outcome, seen: &Outcome) -> String {
    let mut parts = Vec::new();
    if end(expected) != end(seen) {
        parts.push(format!("{}, should be {}", end(seen), end(expected)));
    } else {
        parts.push(end(seen));
        for (name, differs) in [
            ("address", expected.info2 != seen.info2),
            ("instruction", expected.rip != seen.rip),
            ("value", expected.rbx != seen.rbx),
        ] {
            if differs {
                parts.push(name.to_owned());
            }
        }
    }
    for (who, these, others) in [("not", expected, seen), ("too", seen, expected)] {
        for word in these.changed.iter().filter(|word| !others.changed.contains(word)) {
            let name = stage::name(word.index);
            let name = name.split('[').next().unwrap_or_default();
            parts.push(format!("{name} {who}"));
        }
    }
    parts.join("; ")
}

/// A page fault's error code.
fn code(code: u64) -> String {
    let names = ["present", "write", "user", "reserved", "fetch"];
    let known: Vec<&str> =
        names.iter().enumerate().filter(|(bit, _)| code >> bit & 1 == 1).map(|(_, n)| *n).collect();
    match code >> names.len() {
        0 if known.is_empty() => "none".to_owned(),
        0 => known.join(" "),
        rest => format!("{} and {:#x}", known.join(" "), rest << names.len()),
    }
}

/// An entry with its bits.
fn entry(value: u64) -> String {
    let mut text = format!("{value:#018x} ");
    for (mask, name) in [
        (bit::P, "P"),
        (bit::W, "W"),
        (bit::U, "U"),
        (bit::A, "A"),
        (bit::D, "D"),
        (bit::PS, "PS"),
        (bit::G, "G"),
        (bit::NX, "NX"),
    ] {
        if value & mask != 0 {
            write!(text, " {name}").ok();
        }
    }
    let address = value & bit::ADDRESS;
    let physical = address & !(1 << 39);
    let side = match address >> 39 & 1 {
        1 => "drawn half, ",
        _ => "",
    };
    let low = physical % (1 << 30);
    let place = stage::place(if side.is_empty() { physical } else { stage::ARENA + low });
    write!(text, " -> {address:#x} ({side}{place})").ok();
    text
}

/// Everything about a case and what came of it, with a mark at the words the walker looks at.
pub fn case(drawn: &Drawn, walked: &[usize], expected: &Outcome, seen: &Outcome) -> String {
    let registers = &drawn.case.registers;
    let mut text = String::new();
    writeln!(
        text,
        "case {}: {:?} at {:#x}; {}",
        drawn.number,
        drawn.access,
        drawn.linear,
        class(drawn.class)
    )
    .ok();
    let l = drawn.linear;
    writeln!(
        text,
        "  entries {}, {}, {}, {} of the guest's tables",
        l >> 39 & 511,
        l >> 30 & 511,
        l >> 21 & 511,
        l >> 12 & 511
    )
    .ok();
    let on = |bit: u64| if bit & 1 == 1 { "on" } else { "off" };
    writeln!(
        text,
        "  CPL {}, WP {}, NXE {}, SMEP {}, SMAP {}, AC {}; the host's NXE {}",
        registers.cpl,
        on(registers.cr0 >> 16),
        on(registers.efer >> 11),
        on(registers.cr4 >> 20),
        on(registers.cr4 >> 21),
        on(registers.rflags >> 18),
        on(registers.host_nx.into()),
    )
    .ok();
    for word in stage::whole(&drawn.case).filter(|word| usize::from(word.index) % 512 != ENTRY) {
        if !stage::name(word.index).starts_with("code") {
            let mark = if walked.contains(&word.index.into()) { '>' } else { ' ' };
            writeln!(text, "{mark} {:<24} {}", stage::name(word.index), entry(word.value)).ok();
        }
    }
    for (who, outcome) in [("the processor", seen), ("the walker", expected)] {
        writeln!(text, "  {who}: {}", end(outcome)).ok();
        let Outcome { exit, info1, info2, rip, rbx, changed } = outcome;
        writeln!(
            text,
            "    exit {exit:#x} info1 {info1:#x} info2 {info2:#x} rip {rip:#x} rbx {rbx:#x}"
        )
        .ok();
        for word in changed {
            writeln!(text, "    {:<24} {}", stage::name(word.index), entry(word.value)).ok();
        }
    }
    text
}
