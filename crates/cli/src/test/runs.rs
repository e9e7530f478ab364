//! Steps that boot guests, each through the command as a user would type it.

use std::{env, fs, path::PathBuf, process::Command, thread, time::Duration};

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::{
    context::{Context, Length, Ran},
    tally::Tally,
};
use crate::{json::without_host, provide};

/// Nothing here takes longer, even on a busy machine; in seconds.
const TIMEOUT: &str = "180";

/// One boot: its arguments and what it must end in.
#[derive(Debug, Clone)]
pub struct Boot {
    name: String,
    arguments: Vec<String>,
    status: i32,
    /// No network.
    offline: bool,
}

/// What a boot left behind.
#[derive(Debug)]
pub struct Booted {
    /// How the command ended.
    pub ran: Ran,
    /// Its JSON report, `null` if there is none.
    pub report: Value,
}

/// A boot with these options, expected to end with status 0.
pub fn boot(name: impl Into<String>, arguments: &str) -> Boot {
    let arguments = arguments.split_whitespace().map(str::to_owned).collect();
    Boot { name: name.into(), arguments, status: 0, offline: false }
}

impl Boot {
    fn ends(mut self, status: i32) -> Self {
        self.status = status;
        self
    }

    fn offline(mut self) -> Self {
        self.offline = true;
        self
    }

    /// An argument that may hold spaces.
    pub fn with(mut self, arguments: &[&str]) -> Self {
        self.arguments.extend(arguments.iter().map(|argument| argument.to_string()));
        self
    }

    fn report_file(&self, context: &Context) -> PathBuf {
        context.file(&self.name, "json")
    }

    /// Runs it, whatever it ends in.
    pub fn run(&self, context: &Context) -> Result<Booted> {
        let report = self.report_file(context);
        fs::remove_file(&report).ok();
        let vmmu = env::current_exe().context("cannot find this program")?;
        let mut command = match self.offline {
            true => {
                let mut command = Command::new("unshare");
                command.arg("-n").arg(vmmu);
                command
            }
            false => Command::new(vmmu),
        };
        command.arg("boot").arg("--json").arg(&report).args(&self.arguments);
        if !self.arguments.iter().any(|argument| argument == "--timeout") {
            command.args(["--timeout", TIMEOUT]);
        }
        command.current_dir(context.project().root());
        let ran = context.run(&self.name, command)?;
        let report = fs::read(&report).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        Ok(Booted { ran, report: report.unwrap_or_default() })
    }

    /// Runs it as one test with what more must hold.
    fn test(
        &self,
        context: &Context,
        more: impl FnOnce(&Booted) -> Result<(), String>,
    ) -> Result<Tally> {
        let booted = self.run(context)?;
        let verdict = self.verdict(&booted).and_then(|()| more(&booted));
        Ok(context.check(&self.name, verdict, booted.ran.took))
    }

    /// Whether it ended as it must, with a clean checker unless a fault was put in.
    fn verdict(&self, booted: &Booted) -> Result<(), String> {
        if booted.ran.status != Some(self.status) {
            let last = booted.ran.output.lines().last().unwrap_or_default();
            return Err(format!(
                "exit status {:?} instead of {}: {last}",
                booted.ran.status, self.status
            ));
        }
        match self.status {
            0 | 1 => booted.clean(),
            _ => Ok(()),
        }
    }
}

impl Booted {
    /// The checker looked at every guest's tables and found nothing.
    pub fn clean(&self) -> Result<(), String> {
        let guests = self.report["guests"].as_array().ok_or("no report")?;
        for guest in guests {
            let checker = &guest["checker"];
            if checker["entries"].as_u64().is_none_or(|entries| entries == 0) {
                return Err("the checker saw no entries".into());
            }
            if checker["violations"].as_array().is_none_or(|violations| !violations.is_empty()) {
                return Err(format!("the checker found {}", checker["violations"]));
            }
        }
        Ok(())
    }

    fn leaves(&self, size: &str) -> u64 {
        self.report["guests"][0]["leaves"][size].as_u64().unwrap_or(0)
    }

    fn says(&self, text: &str) -> Result<(), String> {
        match self.ran.output.contains(text) {
            true => Ok(()),
            false => Err(format!("`{text}` was not said")),
        }
    }
}

/// Linux to user space and to power-off, and the memory workload, over processors and page sizes.
pub fn linux(context: &Context) -> Result<Tally> {
    // At the same time QEMU's processors lose a guest's state now and then, which is no verdict on
    // the tables; so that is for those who look on.
    let threads: &[&str] = match context.length {
        Length::Usual => &["single"],
        Length::Long => &["single", "multi"],
    };
    let mut tally = Tally::default();
    for (cpus, threads) in [1, 2, 4].into_iter().flat_map(|n| threads.iter().map(move |t| (n, t))) {
        for pages in ["4k", "2m"] {
            for workload in ["boot", "memory"] {
                let name = format!(
                    "linux, {cpus} CPUs, threads {threads}, pages {pages}, workload {workload}"
                );
                let line = format!(
                    "--cpus {cpus} --threads {threads} --pages {pages} --workload {workload} \
                     --memory 256M"
                );
                tally += boot(name, &line).test(context, |booted| {
                    booted.says("user space reached")?;
                    match pages {
                        "4k" if booted.leaves("2m") > 0 => Err("pages of 2 MiB were used".into()),
                        "2m" if booted.leaves("2m") == 0 => Err("no page of 2 MiB was used".into()),
                        _ => Ok(()),
                    }
                })?;
            }
        }
    }
    Ok(tally)
}

/// Memory is taken back and moved from under Linux while its workload checks all of it.
pub fn churn(context: &Context) -> Result<Tally> {
    let mut tally = Tally::default();
    for (cpus, pages) in [(1, "4k"), (2, "4k"), (4, "2m")] {
        let name = format!("memory taken back, {cpus} CPUs, pages {pages}");
        let load = "--workload memory --memory 192M --churn 500";
        let line = format!("--cpus {cpus} --pages {pages} {load}");
        tally += boot(name, &line).test(context, |booted| {
            let guest = &booted.report["guests"][0];
            match guest["other"]["invalidations"].as_u64() {
                None | Some(0) => Err("nothing was taken back".into()),
                Some(_) => Ok(()),
            }
        })?;
    }
    Ok(tally)
}

/// Ten power-offs with two processors in a row.
pub fn power_off(context: &Context) -> Result<Tally> {
    let mut tally = Tally::default();
    let rounds = match context.length {
        Length::Usual => 10,
        Length::Long => 50,
    };
    for round in 1..=rounds {
        let name = format!("power-off with 2 CPUs, round {round}");
        tally += boot(name, "--cpus 2").test(context, |_| Ok(()))?;
    }
    Ok(tally)
}

/// The built-in guest, also without a network, also as what Linux falls back to.
pub fn builtin(context: &Context) -> Result<Tally> {
    let mut tally = Tally::default();
    for cpus in [1, 2, 4, 8] {
        let line = format!("--guest builtin --cpus {cpus} --memory 128M");
        let name = format!("built-in guest, {cpus} CPUs");
        tally += boot(name, &line).test(context, |booted| booted.says("guest: all ok"))?;
    }
    let alone = ["built-in guest without a network", "linux without a network falls back"];
    if !provide::is_root() || provide::find("unshare").is_none() {
        for name in alone {
            tally += context.ignore(name, "needs root and unshare");
        }
        return Ok(tally);
    }
    tally += boot(alone[0], "--guest builtin").offline().test(context, |_| Ok(()))?;
    let empty = tempfile::tempdir()?;
    let downloads = empty.path().display().to_string();
    let fallback = boot(alone[1], "--guest linux").with(&["--downloads", &downloads]).offline();
    tally += fallback.test(context, |booted| {
        booted.says("booting the built-in guest instead")?;
        booted.says("guest: all ok")
    })?;
    Ok(tally)
}

/// A multiboot kernel of our own with modules, and RAM far from the rest.
pub fn multiboot(context: &Context) -> Result<Tally> {
    let guest = context.project().build_guest()?.display().to_string();
    let module = context.file("multiboot", "module");
    fs::write(&module, "a module".repeat(1000))?;
    let module = format!("{} with=arguments", module.display());
    let kernel = ["--multiboot", &guest, "--append"];
    let mut tally = Tally::default();
    let modules = ["test=multiboot", "--module", &module, "--module", &module];
    tally += boot("multiboot information with two modules", "")
        .with(&kernel)
        .with(&modules)
        .test(context, |_| Ok(()))?;
    for pages in ["4k", "2m", "1g"] {
        let ram = "--memory 64M --ram 32M@0x200000000 --ram 1M@0x7fc0001000 --ram 2M@0x40000000";
        tally += boot(format!("sparse RAM, pages {pages}"), ram)
            .with(&kernel)
            .with(&["test=sparse", "--pages", pages])
            .test(context, |_| Ok(()))?;
    }
    tally += boot("RAM of 1 GiB pages", "--pages 1g --memory 64M --ram 1G@0x200000000")
        .with(&kernel)
        .with(&["test=sparse"])
        .test(context, |booted| match booted.leaves("1g") {
            0 => Err("no page of 1 GiB was used".into()),
            _ => Ok(()),
        })?;
    Ok(tally)
}

/// Faults put in on purpose are found.
pub fn alarms(context: &Context) -> Result<Tally> {
    let mut tally = Tally::default();
    let load = "--workload memory --pages 4k --memory 256M";
    // A boot takes some 20,000 faults; then the workload fills the memory it holds.
    for after in [30_000, 40_000] {
        let name = format!("alarm: a flipped byte after {after} faults");
        let line = format!("{load} --inject flip@{after}");
        tally += boot(name, &line).ends(1).test(context, |_| Ok(()))?;
    }
    for after in [1_000, 20_000] {
        let name = format!("alarm: a corrupted table entry after {after} faults");
        let line = format!("{load} --inject entry@{after}");
        tally +=
            boot(name, &line).ends(4).test(context, |booted| {
                match booted.report["guests"][0]["checker"]["violations"].as_array() {
                    Some(violations) if !violations.is_empty() => Ok(()),
                    _ => Err("the checker reported nothing".into()),
                }
            })?;
    }
    tally += told(context)?;
    tally += shut_down(context)?;
    Ok(tally)
}

/// A guest that shut down: what could not be delivered, and where.
fn shut_down(context: &Context) -> Result<Tally> {
    let line = "--guest builtin --memory 64M --append test=hostile-triple-fault";
    boot("a report of a triple fault", line).ends(1).test(context, |booted| {
        booted.says("could not be delivered")?;
        booted.says("vector 3")?;
        booted.says("int3 (64-bit code")
    })
}

/// What a user asks to be told of a run that ended in order.
fn told(context: &Context) -> Result<Tally> {
    let mut tally = Tally::default();
    let quick = "--guest builtin --memory 64M --append test=hostile-cpuid";
    for (name, more, status, says) in [
        ("a fault that is never put in is an error", "--inject flip@100000", 1, "never put in"),
        ("a text that the console shows", "--expect ok", 0, "exit code 0"),
        ("a text that the console does not show", "--expect quux", 1, "never showed `quux`"),
        ("an exit code that is none of the good ones", "--ok-codes 33,35", 1, "exit code 0"),
    ] {
        let line = format!("{quick} {more}");
        tally += boot(name, &line).ends(status).test(context, |booted| booted.says(says))?;
    }
    Ok(tally)
}

/// Two runs with instructions counted give the same numbers and the same console.
pub fn exact(context: &Context) -> Result<Tally> {
    let runs = ["exact run, first", "exact run, second"].map(|name| {
        let log = context.file(name, "console").display().to_string();
        boot(name, "--exact --workload memory --memory 192M").with(&["--log", &log])
    });
    // Both at once: each uses one thread, and they must not depend on each other.
    let booted: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = runs.iter().map(|run| scope.spawn(|| run.run(context))).collect();
        threads.into_iter().map(|thread| thread.join()).collect()
    });
    let mut tally = Tally::default();
    let mut seen = Vec::new();
    for (run, booted) in runs.iter().zip(booted) {
        let booted = booted.map_err(|_| anyhow::anyhow!("a thread panicked"))??;
        tally += context.check(&run.name, run.verdict(&booted), booted.ran.took);
        let console = fs::read(context.file(&run.name, "console")).unwrap_or_default();
        seen.push((without_host(&booted.report), console));
    }
    let same = match &seen[..] {
        [first, second] if first.0.is_null() || second.0.is_null() => Err("no report".to_owned()),
        [first, second] if first.0 != second.0 => Err("the reports differ".to_owned()),
        [first, second] if first.1 != second.1 => Err("the consoles differ".to_owned()),
        _ => Ok(()),
    };
    tally += context.check("two exact runs agree", same, Duration::ZERO);
    Ok(tally)
}

/// A guest that does not end in time: where each vCPU was is printed.
pub fn time_out(context: &Context) -> Result<Tally> {
    let late = boot("time-out", "--timeout 1 --cpus 2 --append initcall_debug").ends(3);
    late.test(context, |booted| {
        booted.says("time-out")?;
        booted.says("last exits")
    })
}

/// What cannot be is refused with exit status 2 before anything runs.
pub fn usage(context: &Context) -> Result<Tally> {
    let mut tally = Tally::default();
    for (line, said) in [
        ("--paging shadow", "not yet"),
        ("--exact --cpus 2", "one processor"),
        ("--cpus 9", "1..=8"),
        ("--memory 900G", "MiB free"),
        ("--ram 64M@0xfee00000", "belongs to devices"),
        ("--kernel /nonexistent", "/nonexistent"),
        ("--inject melt@1", "flip@N"),
        ("--cpuid -quux", "quux"),
    ] {
        let refused = boot(format!("refused: {line}"), line).ends(2);
        tally += refused.test(context, |booted| booted.says(said))?;
    }
    Ok(tally)
}
