//! The emulated machine the hypervisor runs on.

use std::{
    fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, bail};
use hypervisor::wire::Range;
use rustix::process::{Signal, set_parent_process_death_signal};

use crate::{
    boot::options::{Accel, Pages, Threads},
    size::{GIB, MIB, Size},
};

/// The hypervisor itself, its heap, stacks, and the low megabyte of the machine.
const HYPERVISOR: u64 = 64 * MIB;
/// QEMU gives q35 this much RAM below 4 GiB when there is more.
const BELOW_4G: u64 = 2 * GIB;

/// Everything on QEMU's command line that is not the same in every run.
#[derive(Debug)]
pub struct Machine {
    /// The emulator.
    pub qemu: PathBuf,
    /// The hypervisor.
    pub kernel: PathBuf,
    /// The encoded job.
    pub job: PathBuf,
    /// Socket of the control line; somebody listens already.
    pub control: PathBuf,
    /// Processors.
    pub cpus: u32,
    /// RAM.
    pub memory: Size,
    /// What executes it.
    pub accel: Accel,
    /// How its translator executes several processors.
    pub threads: Threads,
    /// How time passes.
    pub clock: Clock,
    /// A debugger's port.
    pub gdb: Option<u16>,
}

/// How time passes in the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clock {
    /// With the host's.
    Host,
    /// One nanosecond an instruction.
    Instructions,
}

impl Machine {
    /// Arguments for QEMU.
    pub fn arguments(&self) -> Vec<String> {
        let mut line: Vec<String> = Vec::new();
        let mut add = |words: &[&str]| line.extend(words.iter().map(|word| word.to_string()));
        match (self.accel, self.clock) {
            (Accel::Kvm, _) => add(&["-accel", "kvm", "-cpu", "host"]),
            (Accel::Tcg, Clock::Host) => {
                let accel = match self.threads {
                    Threads::Single => "tcg,thread=single",
                    Threads::Multi => "tcg,thread=multi",
                };
                add(&["-accel", accel, "-cpu", "EPYC,+svm,+npt"]);
            }
            // Several threads cannot count instructions; a fixed date and seed make two runs equal.
            (Accel::Tcg, Clock::Instructions) => {
                add(&["-accel", "tcg", "-cpu", "EPYC,+svm,+npt"]);
                add(&["-icount", "shift=0,sleep=off"]);
                add(&["-rtc", "clock=vm,base=2020-01-01", "-seed", "7"]);
            }
        }
        add(&["-machine", "q35", "-smp", &self.cpus.to_string()]);
        add(&["-m", &format!("{}M", self.memory.0 / MIB)]);
        add(&["-nodefaults", "-display", "none", "-nic", "none", "-monitor", "none"]);
        add(&["-no-reboot", "-device", "isa-debug-exit,iobase=0xf4,iosize=4"]);
        add(&["-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"]);
        add(&[
            "-chardev",
            &format!("socket,id=control,path={},server=off", self.control.display()),
        ]);
        add(&["-serial", "chardev:control"]);
        add(&["-kernel", &self.kernel.display().to_string()]);
        add(&["-initrd", &self.job.display().to_string()]);
        if let Some(port) = self.gdb {
            add(&["-gdb", &format!("tcp:127.0.0.1:{port}"), "-S"]);
        }
        line
    }

    /// Starts QEMU with its console on a pipe.
    pub fn start(&self) -> Result<Child> {
        let mut command = Command::new(&self.qemu);
        command
            .args(self.arguments())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // An interrupt from the keyboard reaches this command only, which then asks the
            // hypervisor for its last report.
            .process_group(0);
        // SAFETY: the closure runs in the child between fork and exec and makes one system call;
        // it neither allocates nor takes a lock.
        unsafe {
            command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?));
        }
        command.spawn().with_context(|| format!("cannot run {}", self.qemu.display()))
    }
}

/// RAM the machine needs for guests with `ram` (the largest of them, since they run one after
/// another) and a job of `job` bytes.
pub fn memory_for(ram: &[Range], job: u64, pages: Pages) -> Size {
    let guest: u64 = ram.iter().map(|r| r.bytes).sum();
    // A leaf is 8 bytes a page, tables above them little; and each range may need a page of
    // 2 MiB more than it has bytes.
    let tables = guest / 256 + ram.len() as u64 * 4 * MIB;
    let mut total = HYPERVISOR + guest + tables + job;
    let gigabytes = match pages {
        Pages::K4 | Pages::M2 => 0,
        Pages::G1 | Pages::Auto => ram.iter().map(whole_gigabytes).sum(),
    };
    if gigabytes > 0 {
        // Frames of 1 GiB can only come from above 4 GiB: below it the hypervisor and the
        // firmware are in the way.
        total = total.max(BELOW_4G + gigabytes * GIB) + GIB;
    }
    Size(total.next_multiple_of(32 * MIB))
}

/// How many aligned pages of 1 GiB lie in a range.
fn whole_gigabytes(range: &Range) -> u64 {
    let first = range.gpa.div_ceil(GIB);
    ((range.gpa + range.bytes) / GIB).saturating_sub(first)
}

/// Refuses, with the figures, a machine larger than what the host has free.
pub fn affordable(memory: Size) -> Result<()> {
    let text = fs::read_to_string("/proc/meminfo").context("cannot read /proc/meminfo")?;
    let available = available(&text).context("no MemAvailable in /proc/meminfo")?;
    if memory > available {
        bail!(
            "the machine needs {} MiB, this host has {} MiB free; \
             give less --memory or fewer --ram",
            memory.0 / MIB,
            available.0 / MIB
        );
    }
    Ok(())
}

fn available(meminfo: &str) -> Option<Size> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(Size(kib << 10))
}

/// First line of `qemu --version`.
pub fn version(qemu: &Path) -> String {
    let output = Command::new(qemu).arg("--version").stdin(Stdio::null()).output();
    let text = output.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
    text.lines().next().unwrap_or("unknown").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(clock: Clock) -> String {
        let machine = Machine {
            qemu: "q".into(),
            kernel: "k".into(),
            job: "j".into(),
            control: "c".into(),
            cpus: 1,
            memory: Size(96 * MIB),
            accel: Accel::Tcg,
            threads: Threads::Multi,
            clock,
            gdb: None,
        };
        machine.arguments().join(" ")
    }

    #[test]
    fn exact_machines_count_instructions_on_one_thread() {
        let line = machine(Clock::Instructions);
        assert!(line.contains("-icount") && !line.contains("thread=multi"), "{line}");
        let line = machine(Clock::Host);
        assert!(!line.contains("-icount") && line.contains("thread=multi"), "{line}");
    }

    #[test]
    fn memory_holds_guest_tables_and_whole_gigabytes() {
        let ram = [Range { gpa: 0, bytes: 640 << 10 }, Range { gpa: MIB, bytes: 511 * MIB }];
        let small = memory_for(&ram, 10 * MIB, Pages::Auto);
        assert!(small.0 > 580 * MIB && small.0 < 640 * MIB, "{small}");
        let ram = [Range { gpa: 4 * GIB, bytes: 2 * GIB }];
        assert!(memory_for(&ram, 0, Pages::G1).0 >= 5 * GIB);
        assert!(memory_for(&ram, 0, Pages::M2).0 < 3 * GIB);
    }

    #[test]
    fn free_memory_is_read_in_bytes() {
        let text = "MemTotal: 9 kB\nMemAvailable:    2048 kB\n";
        assert_eq!(available(text), Some(Size(2 * MIB)));
        assert!(affordable(Size(1 << 60)).unwrap_err().to_string().contains("1099511627776 MiB"));
    }
}
