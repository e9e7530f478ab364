//! The initial RAM file system of a Linux guest, written here (newc archive).

use std::io::Cursor;

use anyhow::Result;
use cpio::{NewcBuilder, newc::ModeFileType, write_cpio};

/// What the guest does once it is up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Workload {
    /// Reach user space, say so, power off.
    Boot,
    /// Work on memory in every way the kernel offers, checking all data, then power off.
    Memory,
}

/// The line `init` prints first.
pub const REACHED: &str = "vmmu: user space reached";
/// The memory workload's last line begins with this, followed by `ok` or `FAILED`.
pub const VERDICT: &str = "workload: verdict";
/// Names of the programs in the archive that are called by more than one name.
const APPLETS: &[&str] = &["sh", "mount", "poweroff", "cat", "echo", "uname", "dmesg"];

/// `busybox` is a static binary; `workload` another one, called with no arguments.
pub fn build(busybox: Vec<u8>, workload: Option<Vec<u8>>) -> Result<Vec<u8>> {
    let mut files = Vec::new();
    let mut add = |name: &str, kind: ModeFileType, mode: u32, data: Vec<u8>| {
        let builder = NewcBuilder::new(name).mode(mode).nlink(1).set_mode_file_type(kind);
        files.push((builder, Cursor::new(data)));
    };
    for folder in ["bin", "dev", "proc", "sys", "tmp"] {
        add(folder, ModeFileType::Directory, 0o755, Vec::new());
    }
    // The kernel's own messages must not fall into the lines of the verdict.
    let run = match &workload {
        None => "",
        Some(_) => "dmesg -n 1\n/bin/workload\n",
    };
    add("bin/busybox", ModeFileType::Regular, 0o755, busybox);
    for applet in APPLETS {
        add(&format!("bin/{applet}"), ModeFileType::Symlink, 0o777, b"busybox".to_vec());
    }
    if let Some(workload) = workload {
        add("bin/workload", ModeFileType::Regular, 0o755, workload);
    }
    let init = format!(
        "#!/bin/sh\nmount -t proc proc /proc\nmount -t devtmpfs dev /dev\nmount -t tmpfs tmp /tmp\n\
         echo '{REACHED}:' $(uname -sr), $(cat /proc/uptime | (read up idle; echo $up)) s after \
         the kernel started\n{run}poweroff -f\n"
    );
    add("init", ModeFileType::Regular, 0o755, init.into_bytes());
    // The kernel opens it before anything is mounted.
    let console = NewcBuilder::new("dev/console")
        .mode(0o600)
        .set_mode_file_type(ModeFileType::Char)
        .nlink(1)
        .rdev_major(5)
        .rdev_minor(1);
    files.push((console, Cursor::new(Vec::new())));
    Ok(write_cpio(files.into_iter(), Vec::new())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cpio::NewcReader;

    #[test]
    fn the_archive_holds_a_console_and_an_init_that_powers_off() {
        let archive = build(vec![1, 2, 3], Some(vec![4])).unwrap();
        let mut rest = Cursor::new(archive);
        let mut seen = Vec::new();
        loop {
            let mut reader = NewcReader::new(rest).unwrap();
            if reader.entry().is_trailer() {
                break;
            }
            let (name, mode) = (reader.entry().name().to_owned(), reader.entry().mode());
            if name == "dev/console" {
                assert_eq!(mode & 0o170_000, 0o020_000);
                assert_eq!((reader.entry().rdev_major(), reader.entry().rdev_minor()), (5, 1));
            }
            let mut text = Vec::new();
            std::io::Read::read_to_end(&mut reader, &mut text).unwrap();
            if name == "init" {
                let text = String::from_utf8(text).unwrap();
                assert!(text.contains("/bin/workload\npoweroff -f\n"), "{text}");
            }
            seen.push(name);
            rest = reader.finish().unwrap();
        }
        assert!(seen.contains(&"init".to_owned()) && seen.contains(&"dev/console".to_owned()));
    }
}
