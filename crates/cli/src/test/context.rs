//! What every step of the tests has at hand: the project, a place for logs, and a voice.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Mutex, MutexGuard, PoisonError,
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::tally::Tally;
use crate::project::{Project, cargo};

/// Silence after which a step says that it is still at work.
const PATIENCE: Duration = Duration::from_secs(20);
/// Lines of a failed test's output that are shown.
const SHOWN: usize = 40;

/// Whether the slow steps are wanted too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Length {
    /// What every change is tested with.
    Usual,
    /// More of the same: more rounds, more combinations.
    Long,
}

/// See the module.
#[derive(Debug)]
pub struct Context {
    project: Project,
    logs: PathBuf,
    /// How much is wanted.
    pub length: Length,
    /// What has been run, and what it wrote.
    outputs: Mutex<BTreeMap<String, String>>,
}

/// What a program did.
#[derive(Debug)]
pub struct Ran {
    /// Exit status; `None` if a signal ended it.
    pub status: Option<i32>,
    /// Standard output and standard error, as they came.
    pub output: String,
    /// How long it took.
    pub took: Duration,
}

impl Context {
    /// Logs go below the target directory.
    pub fn new(project: Project, length: Length) -> Result<Self> {
        let logs = project.scratch("test");
        fs::create_dir_all(&logs).with_context(|| format!("cannot make {}", logs.display()))?;
        Ok(Context { project, logs, length, outputs: Mutex::default() })
    }

    /// The workspace.
    pub fn project(&self) -> &Project {
        &self.project
    }

    /// A file for what the test `name` writes.
    pub fn file(&self, name: &str, extension: &str) -> PathBuf {
        let name: String =
            name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        self.logs.join(format!("{name}.{extension}"))
    }

    /// cargo, in the workspace.
    pub fn cargo(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(cargo());
        command.args(arguments).current_dir(self.project.root());
        command
    }

    /// Runs a command to its end with its output in the log of `name`.
    pub fn run(&self, name: &str, mut command: Command) -> Result<Ran> {
        let path = self.file(name, "log");
        let log =
            File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        let began = Instant::now();
        let mut child =
            command
                .stdin(Stdio::null())
                .stderr(log.try_clone()?)
                .stdout(log)
                .spawn()
                .with_context(|| format!("cannot run {}", command.get_program().display()))?;
        let (ended, waiting) = mpsc::channel::<()>();
        let voice = thread::spawn({
            let name = name.to_owned();
            move || {
                while waiting.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
                    println!("     {name}: {} s so far", began.elapsed().as_secs());
                }
            }
        });
        let status = child.wait()?;
        drop(ended);
        voice.join().ok();
        let output = String::from_utf8_lossy(&fs::read(&path)?).into_owned();
        self.outputs().insert(name.to_owned(), output.clone());
        Ok(Ran { status: status.code(), output, took: began.elapsed() })
    }

    fn outputs(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        self.outputs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What `name` wrote, if it has been run.
    pub fn output(&self, name: &str) -> Option<String> {
        self.outputs().get(name).cloned()
    }

    /// One test: says how it went, with the end of its log if it failed.
    pub fn check(&self, name: &str, verdict: Result<(), String>, took: Duration) -> Tally {
        match verdict {
            Ok(()) => {
                println!("     ok      {:>6.1} s  {name}", took.as_secs_f64());
                Tally::PASSED
            }
            Err(why) => {
                println!("     FAILED  {:>6.1} s  {name}: {why}", took.as_secs_f64());
                self.show(&self.file(name, "log"));
                Tally::FAILED
            }
        }
    }

    /// One test that is not run, with the reason.
    pub fn ignore(&self, name: &str, why: &str) -> Tally {
        println!("     ignored           {name}: {why}");
        Tally::IGNORED
    }

    fn show(&self, path: &Path) {
        let Ok(bytes) = fs::read(path) else { return };
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().collect();
        for line in &lines[lines.len().saturating_sub(SHOWN)..] {
            println!("       | {}", line.trim_end());
        }
        println!("       | ({})", path.display());
    }
}
