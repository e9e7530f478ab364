//! What a check has to say: each rule, and what was seen of it.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use comfy_table::{Table, presets};

/// A rule that a host has to keep.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rule {
    /// A short name that stays: a letter for the suite, and a number.
    pub id: &'static str,
    /// What the host has to do.
    pub sentence: &'static str,
}

/// How a rule came out, with what was seen.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// The host kept it.
    Passed(String),
    /// The host broke it.
    Failed(String),
    /// It could not be looked at, and why.
    Skipped(String),
}

/// A rule and its verdict.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// The rule.
    pub rule: Rule,
    /// Its verdict.
    pub verdict: Verdict,
}

/// What one check found. `Display` makes a table of it.
#[derive(Clone, PartialEq, Eq, Debug)]
#[must_use]
pub struct Report {
    /// What was checked.
    pub subject: &'static str,
    /// Every rule of the check, in order.
    pub findings: Vec<Finding>,
}

impl Report {
    pub(crate) fn new(subject: &'static str) -> Self {
        Report { subject, findings: Vec::new() }
    }

    /// Whether no rule was broken. Rules that could not be looked at do not count; they say why.
    pub fn is_clean(&self) -> bool {
        self.failed().next().is_none()
    }

    /// The rules that were broken.
    pub fn failed(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(|finding| matches!(finding.verdict, Verdict::Failed(_)))
    }

    /// The verdict on a rule.
    pub fn verdict(&self, id: &str) -> Option<&Verdict> {
        let finding = self.findings.iter().find(|finding| finding.rule.id == id);
        finding.map(|finding| &finding.verdict)
    }

    /// Checks one rule. A panic of the host breaks it.
    pub(crate) fn rule(&mut self, rule: Rule, check: impl FnOnce() -> Verdict) {
        let verdict = catch_unwind(AssertUnwindSafe(check)).unwrap_or_else(|panic| {
            let said = panic.downcast_ref::<&str>().map(|said| (*said).to_owned());
            let said = said.or_else(|| panic.downcast_ref::<String>().cloned());
            Verdict::Failed(format!("panicked: {}", said.unwrap_or_default()))
        });
        self.findings.push(Finding { rule, verdict });
    }

    /// Rules that cannot be looked at any more.
    pub(crate) fn skip(&mut self, rules: &[Rule], why: &str) {
        self.findings.extend(
            rules.iter().map(|&rule| Finding { rule, verdict: Verdict::Skipped(why.to_owned()) }),
        );
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        for Finding { rule, verdict } in &self.findings {
            let (word, seen) = match verdict {
                Verdict::Passed(seen) => ("passed", seen),
                Verdict::Failed(seen) => ("FAILED", seen),
                Verdict::Skipped(why) => ("skipped", why),
            };
            table.add_row([rule.id, word, rule.sentence, seen]);
        }
        let failed = self.failed().count();
        writeln!(f, "{}", self.subject)?;
        writeln!(f, "{}", table.trim_fmt())?;
        let rules = self.findings.len();
        let skipped = |finding: &&Finding| matches!(finding.verdict, Verdict::Skipped(_));
        let skipped = self.findings.iter().filter(skipped).count();
        write!(f, "{rules} rules: {} kept, {failed} broken, ", rules - failed - skipped)?;
        write!(f, "{skipped} not looked at")
    }
}

/// Collects what breaks a rule: the first of it in words, and how much.
#[derive(Default)]
pub(crate) struct Breaches {
    first: Option<String>,
    count: u64,
}

impl Breaches {
    pub fn add(&mut self, what: impl FnOnce() -> String) {
        self.count += 1;
        self.first.get_or_insert_with(what);
    }

    pub fn add_if(&mut self, broken: bool, what: impl FnOnce() -> String) {
        if broken {
            self.add(what);
        }
    }

    pub fn any(&self) -> bool {
        self.count > 0
    }

    /// `seen` if there were none.
    pub fn verdict(self, seen: impl Into<String>) -> Verdict {
        match (self.first, self.count) {
            (None, _) => Verdict::Passed(seen.into()),
            (Some(first), 1) => Verdict::Failed(first),
            (Some(first), count) => Verdict::Failed(format!("{first}; and {} more", count - 1)),
        }
    }
}
