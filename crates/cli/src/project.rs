//! The workspace this command belongs to: where it is, and how its bare-metal parts are built.

use std::{
    env,
    ffi::OsString,
    fs,
    io::{BufReader, IsTerminal},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use cargo_metadata::{Message, MetadataCommand};

/// Root and target directory of the workspace.
#[derive(Debug)]
pub struct Project {
    root: PathBuf,
    target: PathBuf,
    downloads: PathBuf,
}

/// The cargo that runs this command, or the one in the search path.
pub fn cargo() -> OsString {
    env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

impl Project {
    /// Asks cargo.
    pub fn find() -> Result<Self> {
        let here = env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let metadata = MetadataCommand::new()
            .cargo_path(cargo())
            .current_dir(&here)
            .no_deps()
            .exec()
            .with_context(|| {
                format!("cannot ask cargo about the workspace at {}", here.display())
            })?;
        let target = metadata.target_directory.into_std_path_buf();
        let downloads = target.join("vmmu").join("debian");
        fs::create_dir_all(&downloads)
            .with_context(|| format!("cannot make {}", downloads.display()))?;
        Ok(Project { root: metadata.workspace_root.into_std_path_buf(), target, downloads })
    }

    /// Where the workspace is.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A folder below the target directory for `what`.
    pub fn scratch(&self, what: &str) -> PathBuf {
        self.target.join("vmmu").join(what)
    }

    /// What was fetched and is kept.
    pub fn downloads(&self) -> &Path {
        &self.downloads
    }

    /// The same project, keeping what it fetches in `downloads`.
    pub fn with_downloads(mut self, downloads: PathBuf) -> Result<Self> {
        fs::create_dir_all(&downloads)
            .with_context(|| format!("cannot make {}", downloads.display()))?;
        self.downloads = downloads.canonicalize()?;
        Ok(self)
    }

    /// The bare-metal hypervisor.
    pub fn build_hypervisor(&self) -> Result<PathBuf> {
        self.build_metal("hypervisor")
    }

    /// The bare-metal guest.
    pub fn build_guest(&self) -> Result<PathBuf> {
        self.build_metal("guest")
    }

    /// The memory workload, static so that it runs in an initial RAM file system. It has a target
    /// directory of its own: the flag would throw away everything else that is built.
    pub fn build_workload(&self) -> Result<PathBuf> {
        let mut command = Command::new(cargo());
        command
            .args(["build", "--release", "--package", "workload", "--bin", "workload"])
            .args(["--target", "x86_64-unknown-linux-gnu", "--target-dir"])
            .arg(self.scratch("static"))
            .env("RUSTFLAGS", "-C target-feature=+crt-static");
        self.executable(command, "workload")
    }

    /// The torture, with these features. It has a target directory of its own, so that the
    /// features of others do not make it be built again.
    pub fn build_torture(&self, features: &str) -> Result<PathBuf> {
        let mut command = Command::new(cargo());
        command
            .args(["build", "--release", "--package", "torture", "--bin", "torture"])
            .args(["--features", features, "--target-dir"])
            .arg(self.scratch("tortured"));
        self.executable(command, "torture")
    }

    fn build_metal(&self, name: &str) -> Result<PathBuf> {
        let mut command = Command::new(cargo());
        command.args(["build", "--package", name, "--bin", name]).args([
            "--features",
            "bare-metal",
            "--profile",
            "metal",
        ]);
        self.executable(command, name)
    }

    /// Runs a cargo build and takes the path of the binary from cargo itself.
    fn executable(&self, mut command: Command, name: &str) -> Result<PathBuf> {
        // Two lines on a terminal say that something is being compiled; elsewhere only failures.
        if !std::io::stderr().is_terminal() {
            command.arg("--quiet");
        }
        let mut child = command
            .arg("--message-format=json-render-diagnostics")
            .current_dir(&self.root)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot run cargo")?;
        let output = child.stdout.take().context("cargo has no output")?;
        let mut executable = None;
        for message in Message::parse_stream(BufReader::new(output)) {
            if let Message::CompilerArtifact(artifact) = message?
                && artifact.target.name == name
                && artifact.executable.is_some()
            {
                executable = artifact.executable;
            }
        }
        if !child.wait()?.success() {
            bail!("`{name}` does not build (cargo's messages are above)");
        }
        let path = executable.with_context(|| format!("cargo built no executable `{name}`"))?;
        Ok(path.into_std_path_buf())
    }
}
