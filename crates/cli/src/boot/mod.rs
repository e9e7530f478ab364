//! `vmmu boot`: a guest on tables that vmmu builds, under a page walker that vmmu did not write.

pub mod options;
pub mod outcome;
pub mod screen;
pub mod session;

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use hypervisor::wire::{self, Job};

use self::{
    options::{Options, Paging},
    outcome::{Expected, Outcome, Status, Wanted},
    screen::{Screen, Show},
};
use crate::{
    guests::{
        Plan,
        initramfs::{self, Workload},
        linux::Linux,
        multiboot::Multiboot,
        packages,
    },
    json,
    machine::{self, Clock, Machine},
    project::Project,
    provide::{QEMU, provide},
    report, say,
};

/// No PCI and no I/O APIC to look for; a panic resets at once, which ends the run; the self-tests
/// of ciphers are a fifth of the boot; and nothing about the layout is random, so that two exact
/// runs agree.
const LINUX_ARGUMENTS: &str = "console=ttyS0 panic=-1 reboot=a pci=off noapic tsc=reliable no_timer_check 8250.nr_uarts=1 \
     cryptomgr.notests norandmaps nokaslr";

/// Does all of it. An error is something missing or wrong before QEMU started (exit status 2).
pub fn run(options: &Options) -> Result<Status> {
    options.check()?;
    let mut project = Project::find()?;
    if let Some(folder) = &options.downloads {
        project = project.with_downloads(folder.clone())?;
    }
    let qemu = provide(QEMU)?;
    let hypervisor = project.build_hypervisor()?;
    let (plans, expected) = prepare(options, &project)?;

    let folder = tempfile::tempdir().context("cannot make a temporary directory")?;
    let job = encode(options, &plans)?;
    let job_file = folder.path().join("job");
    fs::write(&job_file, &job).with_context(|| format!("cannot write {}", job_file.display()))?;

    let sizes = plans.iter().map(|p| machine::memory_for(&p.ram, job.len() as u64, options.pages));
    let memory = sizes.max().context("no guest")?;
    machine::affordable(memory)?;
    let clock = if options.exact { Clock::Instructions } else { Clock::Host };
    let machine = Machine {
        kernel: hypervisor,
        job: job_file,
        control: folder.path().join("control"),
        cpus: plans.iter().map(|plan| plan.cpus).max().unwrap_or(1),
        memory,
        accel: options.accel,
        threads: options.threads,
        clock,
        gdb: options.gdb,
        qemu,
    };
    let log = options.log.as_deref().map(create).transpose()?;
    let json_file = options.json.as_deref().map(create).transpose()?;
    let show = if options.quiet { Show::Nothing } else { Show::All };
    if let Some(port) = options.gdb {
        say!("QEMU waits for a debugger: target remote 127.0.0.1:{port}");
    }

    let names = plans.iter().map(|plan| plan.name.clone()).collect();
    let timeout = Duration::from_secs(options.timeout);
    let run = session::run(&machine, names, timeout, log, Screen::new(show))?;
    let wanted = Wanted {
        expected,
        is_linux: !options.builtin() && options.multiboot.is_none(),
        texts: options.expect.clone(),
        codes: options.ok_codes.clone(),
        inject: options.inject.map(|injection| injection.0),
    };
    let outcome = outcome::judge(&run, &wanted);

    if show == Show::All {
        screen::write(report::text(&run).as_bytes());
    } else if run.cut == session::Cut::TimeOut {
        eprint!("{}", report::text(&run));
    }
    if let Some(file) = json_file {
        let document = json::document(&run, &outcome, clock, &machine::version(&machine.qemu));
        serde_json::to_writer_pretty(file, &document).context("cannot write the JSON report")?;
    }
    if outcome.status >= Status::Fault && !run.complaints.is_empty() {
        eprint!("{}", run.complaints);
    }
    conclude(&outcome);
    Ok(outcome.status)
}

/// The closing line.
fn conclude(outcome: &Outcome) {
    match outcome.status {
        Status::Ended => screen::write(format!("vmmu: {}\n", outcome.line).as_bytes()),
        status => eprintln!("vmmu: {} (exit status {})", outcome.line, status as u8),
    }
}

fn create(path: &Path) -> Result<File> {
    File::create(path).with_context(|| format!("cannot write {}", path.display()))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// The job in the form the hypervisor reads.
fn encode(options: &Options, plans: &[Plan]) -> Result<Vec<u8>> {
    let job = Job {
        version: wire::VERSION,
        paging: match options.paging {
            Paging::Npt => wire::Paging::Npt,
            Paging::Shadow => bail!("--paging shadow: not yet"),
        },
        pages: options.pages.wire(),
        phys_bits: options.phys_bits,
        hide: options.cpuid.as_ref().map(|hidden| hidden.0.clone()).unwrap_or_default(),
        exact: options.exact,
        inject: options.inject.map(|injection| injection.0),
        churn: options.churn,
        guests: plans.iter().map(Plan::wire).collect(),
        probe: None,
    };
    postcard::to_stdvec(&job).context("cannot encode the job")
}

/// Everything that will be booted, and what the first guest's console has to show.
fn prepare(options: &Options, project: &Project) -> Result<(Vec<Plan>, Expected)> {
    let append = options.append.as_deref().unwrap_or_default();
    let (first, expected) = if let Some(kernel) = &options.multiboot {
        (multiboot(options, kernel)?, Expected::Nothing)
    } else if options.builtin() {
        (builtin(options, project, append)?, Expected::Nothing)
    } else {
        linux(options, project)?
    };
    let mut plans = vec![first];
    for arguments in &options.then {
        plans.push(builtin(options, project, arguments)?);
    }
    Ok((plans, expected))
}

fn builtin(options: &Options, project: &Project, arguments: &str) -> Result<Plan> {
    let kernel = read(&project.build_guest()?)?;
    let command_line = format!("guest cpus={} {arguments}", options.cpus);
    let name = match arguments {
        "" => "the built-in guest".to_owned(),
        arguments => format!("the built-in guest ({arguments})"),
    };
    let guest = Multiboot { name: name.clone(), kernel, command_line, modules: Vec::new() };
    guest.plan(options.ram_ranges()?, options.cpus).context(name)
}

fn multiboot(options: &Options, file: &Path) -> Result<Plan> {
    let mut modules = Vec::new();
    for line in &options.module {
        let path = line.split_whitespace().next().unwrap_or_default();
        modules.push((line.clone(), read(Path::new(path))?));
    }
    let guest = Multiboot {
        name: name(file),
        kernel: read(file)?,
        command_line: format!("{} {}", file.display(), options.append.as_deref().unwrap_or("")),
        modules,
    };
    guest
        .plan(options.ram_ranges()?, options.cpus)
        .with_context(|| format!("--multiboot {}", file.display()))
}

fn linux(options: &Options, project: &Project) -> Result<(Plan, Expected)> {
    let workload = options.workload.unwrap_or(Workload::Boot);
    let command_line = match &options.append {
        None => LINUX_ARGUMENTS.to_owned(),
        Some(more) => format!("{LINUX_ARGUMENTS} {more}"),
    };
    let (guest, expected) = match (&options.kernel, &options.initrd) {
        (Some(kernel), Some(initrd)) => {
            let (kernel_bytes, initrd) = (read(kernel)?, read(initrd)?);
            let name = name(kernel);
            (Linux { name, kernel: kernel_bytes, initrd, command_line }, Expected::Nothing)
        }
        (kernel, _) => {
            let debian = match packages::debian(project) {
                Ok(debian) => debian,
                // Only a plain boot has something equal to fall back to.
                Err(e)
                    if kernel.is_none()
                        && options.workload.is_none()
                        && options.append.is_none() =>
                {
                    say!("no Linux can be had ({e:#}); booting the built-in guest instead");
                    return Ok((builtin(options, project, "")?, Expected::Nothing));
                }
                Err(e) => return Err(e.context("no Linux can be had")),
            };
            let program = match workload {
                Workload::Boot => None,
                Workload::Memory => Some(read(&project.build_workload()?)?),
            };
            let initrd = initramfs::build(read(&debian.busybox)?, program)?;
            let file: PathBuf = kernel.clone().unwrap_or(debian.kernel);
            let name = kernel.as_deref().map_or(debian.release, name);
            let linux = Linux { name, kernel: read(&file)?, initrd, command_line };
            (linux, Expected::Init(workload))
        }
    };
    let name = guest.name.clone();
    Ok((guest.plan(options.ram_ranges()?, options.cpus).context(name)?, expected))
}

fn name(file: &Path) -> String {
    file.file_name().unwrap_or(file.as_os_str()).to_string_lossy().into_owned()
}
