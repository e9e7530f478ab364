//! `vmmu torture`: builds the torture for what it is asked, and runs it.
//!
//! It is a program of its own because it wants the library built otherwise: with a scheduler that
//! is let in before each access to a shared word, and, for the tests of the tests, with defects.

use std::{
    ffi::OsString,
    fs,
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context, Result};
use clap::Args;

use crate::{boot::outcome::Status, project::Project};

/// Random operations from several threads, judged by a software x86.
#[derive(Debug, Clone, Args)]
#[command(disable_help_flag = true)]
pub struct Options {
    /// See `cargo vmmu torture --help`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

/// How the library is built for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Build {
    /// As it is shipped.
    Plain,
    /// With threads interrupted inside it.
    Step,
    /// The same, with defects that can be put back.
    Defects,
}

impl Build {
    /// The one that `arguments` want.
    fn of(arguments: &[OsString]) -> Self {
        let has = |name: &str| {
            arguments.iter().filter_map(|a| a.to_str()).any(|a| {
                a.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
            })
        };
        match (has("--defect"), has("--plain")) {
            (true, _) => Build::Defects,
            (false, true) => Build::Plain,
            (false, false) => Build::Step,
        }
    }

    fn features(self) -> &'static str {
        match self {
            Build::Plain => "",
            Build::Step => "step",
            Build::Defects => "step,defects",
        }
    }
}

/// Where failures are written.
pub fn failures(project: &Project) -> Result<PathBuf> {
    let folder = project.scratch("torture");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    Ok(folder)
}

/// Runs it, with its output and exit status.
pub fn run(options: &Options) -> Result<Status> {
    let project = Project::find()?;
    let program = project.build_torture(Build::of(&options.arguments).features())?;
    let mut command = Command::new(program);
    command.args(&options.arguments);
    let names_folder = |a: &OsString| a.to_str().is_some_and(|a| a.starts_with("--failures"));
    if !options.arguments.iter().any(names_folder) {
        command.arg("--failures").arg(failures(&project)?);
    }
    let status = command.stdin(Stdio::null()).status().context("cannot run the torture")?;
    Ok(match status.code() {
        Some(0) => Status::Ended,
        Some(2) => Status::Missing,
        _ => Status::Failed,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_build_follows_from_the_arguments() {
        let of = |line: &str| Build::of(&line.split(' ').map(OsString::from).collect::<Vec<_>>());
        assert_eq!(of("--seed 1"), Build::Step);
        assert_eq!(of("--seed 1 --plain"), Build::Plain);
        assert_eq!(of("--defect=list"), Build::Defects);
        assert_eq!(of("--defect walk --plain"), Build::Defects);
        assert_eq!(of("--defective"), Build::Step);
    }
}
