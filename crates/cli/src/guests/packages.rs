//! Debian's kernel and busybox, fetched as packages without root and without touching the
//! system's own package state; kept below the target directory and used again offline.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{project::Project, say};

/// A meta package: its dependency is the current kernel, whose own name changes with every
/// security update.
const KERNEL_META: &str = "linux-image-cloud-amd64";
const BUSYBOX: &str = "busybox-static";

/// A kernel and a static busybox.
#[derive(Debug)]
pub struct Debian {
    /// The bzImage.
    pub kernel: PathBuf,
    /// The busybox binary.
    pub busybox: PathBuf,
    /// Package name of the kernel.
    pub release: String,
}

/// What was fetched before, or what the archive has now. An error means that no package can be
/// had.
pub fn debian(project: &Project) -> Result<Debian> {
    let folder = project.downloads();
    let found = Debian {
        kernel: folder.join("vmlinuz"),
        busybox: folder.join("busybox"),
        release: fs::read_to_string(folder.join("release")).unwrap_or_default(),
    };
    // `release` is written last.
    if !found.release.is_empty() && found.kernel.exists() && found.busybox.exists() {
        return Ok(found);
    }
    say!("fetching Debian's cloud kernel and static busybox (28 MB) into {}", folder.display());
    let apt = Apt::new(folder)?;
    // A part of an index may be out of reach; only a package without a candidate counts.
    apt.run("apt-get", &["update", "-q"], folder).ok();
    let depends = apt.run("apt-cache", &["depends", KERNEL_META], folder)?;
    let release = kernel_package(&depends)
        .with_context(|| format!("no candidate for the package {KERNEL_META}"))?;
    for package in [release.as_str(), BUSYBOX] {
        apt.run("apt-get", &["download", "-q", package], folder)
            .with_context(|| format!("no candidate for the package {package}"))?;
    }
    unpack(&archive(folder, &release)?, "./boot/vmlinuz*", folder, &found.kernel)?;
    unpack(&archive(folder, BUSYBOX)?, "*bin/busybox", folder, &found.busybox)?;
    fs::write(folder.join("release"), &release)?;
    Ok(Debian { release, ..found })
}

/// apt with a state of its own. Sources and keys are the system's.
struct Apt {
    config: PathBuf,
}

impl Apt {
    fn new(folder: &Path) -> Result<Self> {
        let root = folder.join("apt");
        for part in ["lists/partial", "archives/partial", "cache"] {
            fs::create_dir_all(root.join(part))?;
        }
        fs::write(root.join("status"), "")?;
        let config = root.join("apt.conf");
        let at = root.display();
        fs::write(
            &config,
            format!(
                "APT::Architecture \"amd64\";\nAPT::Architectures {{ \"amd64\"; }};\n\
                 APT::Sandbox::User \"\";\n\
                 Dir::State \"{at}\";\nDir::State::status \"{at}/status\";\n\
                 Dir::State::lists \"{at}/lists\";\n\
                 Dir::Cache \"{at}/cache\";\nDir::Cache::archives \"{at}/archives\";\n\
                 Acquire::Languages \"none\";\nAcquire::http::Timeout \"20\";\n\
                 Acquire::IndexTargets::deb::DEP-11::DefaultEnabled \"false\";\n\
                 Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled \"false\";\n"
            ),
        )?;
        Ok(Apt { config })
    }

    /// Standard output of one command, or an error with the last line it complained with.
    fn run(&self, program: &str, arguments: &[&str], folder: &Path) -> Result<String> {
        let output = Command::new(program)
            .args(arguments)
            .env("APT_CONFIG", &self.config)
            .env("LC_ALL", "C")
            .current_dir(folder)
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("cannot run {program}"))?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "{program} {}: {}",
            arguments.join(" "),
            complaint.lines().last().unwrap_or("failed")
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// The kernel package in the output of `apt-cache depends`.
fn kernel_package(depends: &str) -> Option<String> {
    let names = depends.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    names.map(str::trim).find(|name| name.starts_with("linux-image-")).map(str::to_owned)
}

/// The downloaded archive of `package`.
fn archive(folder: &Path, package: &str) -> Result<PathBuf> {
    let prefix = format!("{package}_");
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with(&prefix) && name.ends_with(".deb") {
            return Ok(path);
        }
    }
    bail!("apt-get downloaded no {package} into {}", folder.display())
}

/// Takes the one file that matches `pattern` out of a package to `to`.
fn unpack(package: &Path, pattern: &str, folder: &Path, to: &Path) -> Result<()> {
    let scratch = tempfile::tempdir_in(folder)?;
    let mut deb = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(package)
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run dpkg-deb")?;
    let tar = Command::new("tar")
        .args(["-xf", "-", "--wildcards", "-C"])
        .arg(scratch.path())
        .arg(pattern)
        .stdin(deb.stdout.take().context("no output of dpkg-deb")?)
        .status()
        .context("cannot run tar")?;
    let unpacked = deb.wait()?;
    ensure!(tar.success() && unpacked.success(), "no {pattern} in {}", package.display());
    let file = first_file(scratch.path())?
        .with_context(|| format!("no {pattern} in {}", package.display()))?;
    fs::rename(file, to)?;
    Ok(())
}

fn first_file(folder: &Path) -> Result<Option<PathBuf>> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_file() && !path.is_symlink() {
            return Ok(Some(path));
        }
        if path.is_dir()
            && let Some(found) = first_file(&path)?
        {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_is_found_behind_its_meta_package() {
        let depends = "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-9-cloud-amd64\n";
        assert_eq!(kernel_package(depends).as_deref(), Some("linux-image-6.1.0-9-cloud-amd64"));
        assert_eq!(kernel_package("linux-image-cloud-amd64\n"), None);
    }
}
