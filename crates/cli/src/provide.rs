//! Programs of the system this command needs: found, installed when that is allowed, or named
//! with the command that installs them.

use std::{
    env,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use crate::say;

/// A program and the Debian package that has it.
#[derive(Debug, Clone, Copy)]
pub struct Tool {
    /// Name in the search path.
    pub program: &'static str,
    /// Package.
    pub package: &'static str,
}

/// The emulated machine.
pub const QEMU: Tool = Tool { program: "qemu-system-x86_64", package: "qemu-system-x86" };

/// Counts instructions.
pub const VALGRIND: Tool = Tool { program: "valgrind", package: "valgrind" };

/// Compiles libFuzzer.
pub const GXX: Tool = Tool { program: "g++", package: "g++" };

/// Path of `tool`, after installing it if need be.
pub fn provide(tool: Tool) -> Result<PathBuf> {
    if let Some(path) = find(tool.program) {
        return Ok(path);
    }
    let install = format!("apt-get install --no-install-recommends -y {}", tool.package);
    if !is_root() {
        bail!("{} is missing; run: sudo apt-get update && sudo {install}", tool.program);
    }
    say!("{} is missing; installing it: apt-get update && {install}", tool.program);
    // Lists may be partly out of reach and still have the package.
    apt_get(&["update", "-q"]).ok();
    apt_get(&["install", "--no-install-recommends", "-y", "-q", tool.package])
        .with_context(|| format!("cannot install {}; run: {install}", tool.package))?;
    find(tool.program)
        .with_context(|| format!("{} has no {} in the search path", tool.package, tool.program))
}

fn apt_get(arguments: &[&str]) -> Result<()> {
    let output = Command::new("apt-get")
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .output()
        .context("cannot run apt-get")?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!("apt-get: {}", complaint.lines().last().unwrap_or("failed"));
    }
    Ok(())
}

/// `program` in the search path.
pub fn find(program: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?).map(|folder| folder.join(program)).find(|path| {
        path.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
    })
}

/// Whether this process may install packages.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
