//! What `vmmu boot` can be told, and what of it contradicts itself.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use hypervisor::wire::{CpuidBit, Inject, PageLimit, Range};

use crate::{cpuid, guests::initramfs::Workload, guests::ram, size::Size};

/// Guest-physical address bits of QEMU's emulated processor.
pub const PHYS_BITS: u8 = 40;

/// Boot a guest on tables that vmmu builds.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
EXIT STATUS:
  0  the guest ended in order
  1  the guest failed, or the run was interrupted
  2  usage, or something is missing
  3  time-out
  4  the hypervisor or the checker found a fault")]
pub struct Options {
    /// A guest that needs nothing given
    #[arg(long, value_enum, value_name = "GUEST", help_heading = "Guest",
          conflicts_with_all = ["kernel", "multiboot"])]
    pub guest: Option<Known>,
    /// Any bzImage with a 64-bit entry point
    #[arg(long, value_name = "FILE", help_heading = "Guest", conflicts_with = "multiboot")]
    pub kernel: Option<PathBuf>,
    /// Initial RAM file system for --kernel [default: the one made for --guest linux]
    #[arg(long, value_name = "FILE", help_heading = "Guest", requires = "kernel")]
    pub initrd: Option<PathBuf>,
    /// Any multiboot 1 kernel
    #[arg(long, value_name = "FILE", help_heading = "Guest")]
    pub multiboot: Option<PathBuf>,
    /// Module for --multiboot, with arguments after a space; may be repeated
    #[arg(long, value_name = "FILE [ARGS]", help_heading = "Guest", requires = "multiboot")]
    pub module: Vec<String>,
    /// Added to the guest's command line
    #[arg(long, value_name = "STRING", help_heading = "Guest", allow_hyphen_values = true)]
    pub append: Option<String>,
    /// What Linux does once it is up [default: boot]
    #[arg(long, value_enum, help_heading = "Guest", conflicts_with_all = ["multiboot", "initrd"])]
    pub workload: Option<Workload>,
    /// Boot the built-in guest afterwards in the same hypervisor, with these arguments; may be
    /// repeated
    #[arg(long, value_name = "ARGUMENTS", help_heading = "Guest")]
    pub then: Vec<String>,

    /// Virtual processors, 1 to 8
    #[arg(long, default_value_t = 1, value_name = "N", help_heading = "Machine",
          value_parser = clap::value_parser!(u32).range(1..=8))]
    pub cpus: u32,
    /// RAM of the guest
    #[arg(long, default_value = "512M", value_name = "SIZE", help_heading = "Machine")]
    pub memory: Size,
    /// More RAM somewhere else, also far above 4 GiB; may be repeated
    #[arg(long, value_name = "SIZE@ADDRESS", help_heading = "Machine", value_parser = sparse)]
    pub ram: Vec<SparseRam>,
    /// How guest-physical memory is mapped
    #[arg(long, value_enum, default_value = "npt", help_heading = "Machine")]
    pub paging: Paging,
    /// Largest page that maps guest memory
    #[arg(long, value_enum, default_value = "auto", help_heading = "Machine")]
    pub pages: Pages,
    /// Features taken out of the guest's CPUID
    #[arg(long, value_name = "-NAME,...", help_heading = "Machine", allow_hyphen_values = true,
          value_parser = hidden)]
    pub cpuid: Option<Hidden>,
    /// Physical address bits shown to the guest, 32 to 52
    #[arg(long, value_name = "N", help_heading = "Machine",
          value_parser = clap::value_parser!(u8).range(32..=52))]
    pub phys_bits: Option<u8>,

    /// Count instructions instead of time: two runs give the same numbers (one CPU, no input)
    #[arg(long, help_heading = "Run")]
    pub exact: bool,
    /// What executes the hypervisor; kvm only where the host gives guests SVM
    #[arg(long, value_enum, default_value = "tcg", help_heading = "Run")]
    pub accel: Accel,
    /// How QEMU's translator executes several processors: in turns, or at the same time, where
    /// QEMU 7.2 loses a guest's state now and then
    #[arg(long, value_enum, default_value = "single", help_heading = "Run")]
    pub threads: Threads,
    /// Ends the run with exit status 3
    #[arg(long, default_value_t = 600, value_name = "SECONDS", help_heading = "Run",
          value_parser = clap::value_parser!(u64).range(1..))]
    pub timeout: u64,
    /// Wait for a debugger on this TCP port before the first instruction
    #[arg(long, value_name = "PORT", help_heading = "Run")]
    pub gdb: Option<u16>,
    /// Write the guest's console to a file too
    #[arg(long, value_name = "FILE", help_heading = "Run")]
    pub log: Option<PathBuf>,
    /// Write the report as JSON; fields that depend on the host begin with host_
    #[arg(long, value_name = "FILE", help_heading = "Run")]
    pub json: Option<PathBuf>,
    /// Neither console nor live line nor report, only how it ended
    #[arg(long, help_heading = "Run")]
    pub quiet: bool,
    /// Put a fault in after N nested faults, to hear the alarm: flip@N flips a byte of a mapped
    /// guest page, entry@N corrupts a table entry
    #[arg(long, value_name = "WHAT@N", help_heading = "Run", value_parser = injection)]
    pub inject: Option<Injection>,
    /// Text that the guest's console must have shown, or the run fails; may be repeated
    #[arg(long, value_name = "TEXT", help_heading = "Run", allow_hyphen_values = true)]
    pub expect: Vec<String>,
    /// Exit codes of the guest that are no failure, for kernels that end otherwise than by 0
    #[arg(
        long,
        value_name = "LIST",
        help_heading = "Run",
        value_delimiter = ',',
        default_value = "0"
    )]
    pub ok_codes: Vec<u32>,
    /// Take memory back from under the running guest: after every N exits move pages to other
    /// frames, zap mappings, or drop all tables
    #[arg(long, value_name = "N", help_heading = "Run",
          value_parser = clap::value_parser!(u64).range(1..))]
    pub churn: Option<u64>,

    /// Keep fetched guests here instead of below the target directory
    #[arg(long, value_name = "FOLDER", help_heading = "Run")]
    pub downloads: Option<PathBuf>,
}

/// Guests that need no file from the user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Known {
    /// Debian's cloud kernel and static busybox; the built-in guest if they cannot be had
    Linux,
    /// A small guest of this project, no download
    Builtin,
}

/// How guest-physical memory is mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Paging {
    /// AMD's nested page tables
    Npt,
    /// Shadow page tables (not yet)
    Shadow,
}

/// Largest page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Pages {
    /// 4 KiB
    #[value(name = "4k")]
    K4,
    /// 2 MiB
    #[value(name = "2m")]
    M2,
    /// 1 GiB
    #[value(name = "1g")]
    G1,
    /// Whatever memory allows
    Auto,
}

impl Pages {
    /// As the hypervisor is told.
    pub fn wire(self) -> PageLimit {
        match self {
            Pages::K4 => PageLimit::K4,
            Pages::M2 => PageLimit::M2,
            Pages::G1 => PageLimit::G1,
            Pages::Auto => PageLimit::Auto,
        }
    }
}

/// How QEMU's translator executes several processors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Threads {
    /// They take turns on one thread
    Single,
    /// Each on a thread of its own, at the same time
    Multi,
}

/// What executes the hypervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Accel {
    /// QEMU's translator, which emulates SVM
    Tcg,
    /// The host's own SVM, nested
    Kvm,
}

/// `SIZE@ADDRESS`.
#[derive(Debug, Clone, Copy)]
pub struct SparseRam(pub Range);

/// Features taken out of CPUID.
#[derive(Debug, Clone)]
pub struct Hidden(pub Vec<CpuidBit>);

/// `WHAT@N`.
#[derive(Debug, Clone, Copy)]
pub struct Injection(pub Inject);

fn sparse(text: &str) -> Result<SparseRam, String> {
    let (size, address) = text
        .split_once('@')
        .ok_or_else(|| format!("`{text}` is not SIZE@ADDRESS, for example 64M@0x100000000"))?;
    let (size, address): (Size, Size) = (size.parse()?, address.parse()?);
    Ok(SparseRam(Range { gpa: address.0, bytes: size.0 }))
}

fn hidden(text: &str) -> Result<Hidden, String> {
    cpuid::parse(text).map(Hidden).map_err(|e| e.to_string())
}

fn injection(text: &str) -> Result<Injection, String> {
    let wrong = || format!("`{text}` is neither flip@N nor entry@N");
    let (what, after) = text.split_once('@').ok_or_else(wrong)?;
    let after = after.parse().map_err(|_| wrong())?;
    match what {
        "flip" => Ok(Injection(Inject::Flip { after })),
        "entry" => Ok(Injection(Inject::Entry { after })),
        _ => Err(wrong()),
    }
}

impl Options {
    /// Refuses what cannot be, before anything is built or fetched.
    pub fn check(&self) -> Result<()> {
        if self.paging == Paging::Shadow {
            bail!("--paging shadow: not yet; this version maps guests with --paging npt only");
        }
        if self.exact {
            if self.cpus != 1 {
                bail!(
                    "--exact with --cpus {}: QEMU counts instructions on one processor only; \
                     use --cpus 1",
                    self.cpus
                );
            }
            if self.accel == Accel::Kvm {
                bail!("--exact with --accel kvm: only QEMU's translator counts instructions");
            }
            if self.gdb.is_some() {
                bail!("--exact with --gdb: a debugger's stops are not the same twice");
            }
        }
        if self.accel == Accel::Kvm {
            nested_svm()?;
        }
        if self.builtin() && self.workload.is_some() {
            bail!("--workload is for Linux; the built-in guest has its own checks");
        }
        self.ram_ranges().map(drop)
    }

    /// Whether the built-in guest was asked for by name.
    pub fn builtin(&self) -> bool {
        self.guest == Some(Known::Builtin)
    }

    /// RAM ranges of the guest.
    pub fn ram_ranges(&self) -> Result<Vec<Range>> {
        let sparse: Vec<Range> = self.ram.iter().map(|ram| ram.0).collect();
        ram::layout(self.memory, &sparse, self.phys_bits.unwrap_or(PHYS_BITS).min(PHYS_BITS))
    }
}

/// The host's KVM can run a hypervisor as its guest.
fn nested_svm() -> Result<()> {
    const SWITCH: &str = "/sys/module/kvm_amd/parameters/nested";
    let value = fs::read_to_string(SWITCH)
        .with_context(|| format!("--accel kvm: no AMD KVM on this host ({SWITCH})"))?;
    if !matches!(value.trim(), "1" | "Y") {
        bail!("--accel kvm: this host gives guests no SVM ({SWITCH} is {})", value.trim());
    }
    fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .context("--accel kvm: /dev/kvm cannot be opened")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    fn parse(line: &str) -> Result<Options, String> {
        let line = Line::try_parse_from(std::iter::once("boot").chain(line.split_whitespace()));
        line.map(|line| line.options).map_err(|e| e.to_string())
    }

    #[test]
    fn every_option_is_understood() {
        let options = parse(
            "--guest linux --cpus 4 --memory 1G --ram 64M@0x200000000 --ram 1M@512G --paging npt \
             --pages 2m --cpuid -pku,-la57 --phys-bits 39 --workload memory --accel tcg \
             --threads multi --timeout 9 --gdb 1234 --log l --json j --quiet --inject flip@77 --append a=b \
             --expect done --ok-codes 0,33",
        )
        .unwrap();
        assert_eq!(options.ram[1].0, Range { gpa: 512 << 30, bytes: 1 << 20 });
        assert_eq!(options.inject.unwrap().0, Inject::Flip { after: 77 });
        assert_eq!(options.cpuid.as_ref().unwrap().0.len(), 2);
        assert_eq!(
            (&options.expect[..], &options.ok_codes[..]),
            (&["done".to_owned()][..], &[0, 33][..])
        );
        // 512 GiB does not fit below 39 bits.
        assert!(options.check().unwrap_err().to_string().contains("39 bits"));
        assert!(parse("--multiboot k --module m --module n").is_ok());
        assert!(parse("--kernel k --initrd i --then test=builtin --then a=b").is_ok());
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        for line in [
            "--cpus 9",
            "--cpus 0",
            "--inject flip",
            "--inject melt@3",
            "--ram 64M",
            "--cpuid -quux",
            "--guest linux --kernel k",
            "--initrd i",
            "--module m",
            "--multiboot k --workload memory",
            "--phys-bits 31",
            "--timeout 0",
            "--ok-codes x",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn refusals_say_why() {
        let why = |line: &str| parse(line).unwrap().check().unwrap_err().to_string();
        assert!(why("--paging shadow").contains("not yet"));
        assert!(why("--exact --cpus 2").contains("one processor"));
        assert!(why("--exact --gdb 1").contains("debugger"));
        assert!(why("--guest builtin --workload memory").contains("Linux"));
        assert!(why("--memory 1000").contains("--memory"));
    }
}
