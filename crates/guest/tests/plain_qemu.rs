//! Every case under plain QEMU, without a hypervisor: the guest itself is right, and the column
//! [`Case::bare`] is.
//!
//! Ignored by default, because it needs `qemu-system-x86_64` and proves nothing about vmmu:
//! `cargo test -p guest --test plain_qemu -- --ignored`.

use std::error::Error;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use guest::case::{BARE_ARGUMENTS, CASES, Case};

/// Longest time a case that ends may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// After this time a case that is said to hang hangs.
const HANGS: Duration = Duration::from_secs(2);

/// Builds the guest and gives its file.
fn kernel() -> Result<PathBuf, Box<dyn Error>> {
    let output = Command::new(env!("CARGO"))
        .args(["build", "--package", "guest", "--bin", "guest", "--features", "bare-metal"])
        .args(["--profile", "metal", "--message-format", "json-render-diagnostics"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stderr(Stdio::inherit())
        .output()?;
    let text = String::from_utf8(output.stdout)?;
    let key = "\"executable\":\"";
    let line = text.lines().rev().find(|line| line.contains(key)).ok_or("no executable")?;
    let rest = &line[line.find(key).ok_or("no executable")? + key.len()..];
    Ok(PathBuf::from(rest.split('"').next().ok_or("no executable")?))
}

/// Runs a case; gives its exit status and what it wrote.
fn run(kernel: &Path, case: &Case) -> Result<(Option<u32>, String), Box<dyn Error>> {
    let mut child = Command::new("qemu-system-x86_64")
        .args(["-accel", "tcg", "-machine", "q35", "-cpu", "EPYC,-svm", "-m", "128"])
        .args(["-display", "none", "-nodefaults", "-serial", "stdio", "-no-reboot"])
        .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4", "-kernel"])
        .arg(kernel)
        .args(["-append", &format!("test={} {BARE_ARGUMENTS}", case.name)])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let start = Instant::now();
    let patience = if case.bare.status().is_some() { PATIENCE } else { HANGS };
    // The console holds less than a pipe does, so nothing blocks meanwhile.
    while child.try_wait()?.is_none() {
        if start.elapsed() > patience {
            child.kill()?;
            let output = child.wait_with_output()?;
            return Ok((None, String::from_utf8_lossy(&output.stdout).into_owned()));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let output = child.wait_with_output()?;
    let status = match output.status.signal() {
        Some(signal) => Some(128 + signal as u32),
        None => output.status.code().map(|code| code as u32),
    };
    Ok((status, String::from_utf8_lossy(&output.stdout).into_owned()))
}

#[test]
#[ignore = "needs qemu-system-x86_64"]
fn every_case_ends_as_the_table_says() -> Result<(), Box<dyn Error>> {
    let kernel = kernel()?;
    let mut wrong = Vec::new();
    for case in CASES {
        let (status, console) = run(&kernel, case)?;
        if status != case.bare.status() {
            wrong.push(format!("{}: {status:?} instead of {:?}\n{console}", case.name, case.bare));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), CASES.len(), wrong.join("\n"));
    Ok(())
}
