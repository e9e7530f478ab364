//! What is seen while a guest runs: its console, and a live line below it on a terminal.

use std::{
    io::{IsTerminal, Write, stderr, stdout},
    time::Duration,
};

use hypervisor::wire::{Event, Stats};
use indicatif::{ProgressBar, ProgressStyle};

use crate::report::grouped;

/// Whether anything is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Show {
    /// Console and live line.
    All,
    /// A live line that counts the cases of a probe.
    Cases {
        /// Those that were run before.
        before: u64,
        /// All of them.
        of: u64,
    },
    /// Nothing.
    Nothing,
}

/// The screen of one run.
#[derive(Debug)]
pub struct Screen {
    show: Show,
    line: Option<ProgressBar>,
    /// Console bytes of a line that has not ended; only with a live line, which needs whole lines
    /// above it.
    partial: Vec<u8>,
}

impl Screen {
    /// A live line appears only if standard error is a terminal.
    pub fn new(show: Show) -> Self {
        let line = (show != Show::Nothing && stderr().is_terminal()).then(|| {
            let (line, style) = match show {
                Show::Cases { before, of } => (
                    ProgressBar::new(of).with_position(before),
                    "{spinner} {elapsed} {bar:40} {human_pos} of {human_len} cases, {per_sec}",
                ),
                Show::All | Show::Nothing => {
                    (ProgressBar::new_spinner(), "{spinner} {elapsed} {msg}")
                }
            };
            let style = ProgressStyle::with_template(style);
            line.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
            line.set_message("starting");
            line.enable_steady_tick(Duration::from_millis(200));
            line
        });
        Screen { show, line, partial: Vec::new() }
    }

    /// Bytes of the guest's console.
    pub fn console(&mut self, bytes: &[u8]) {
        if self.show == Show::Nothing {
            return;
        }
        let Some(line) = &self.line else { return write(bytes) };
        self.partial.extend_from_slice(bytes);
        if let Some(end) = self.partial.iter().rposition(|&byte| byte == b'\n') {
            let rest = self.partial.split_off(end + 1);
            line.suspend(|| write(&self.partial));
            self.partial = rest;
        }
    }

    /// Something the hypervisor said.
    pub fn event(&mut self, event: &Event) {
        if self.show == Show::Nothing {
            return;
        }
        match (event, &self.line) {
            (Event::Live { stats, .. }, Some(line)) => line.set_message(live(stats)),
            (Event::Probed { outcomes }, Some(line)) => line.inc(outcomes.len() as u64),
            (Event::Note { text }, Some(line)) => line.suspend(|| eprintln!("vmmu: {text}")),
            (Event::Note { text }, None) => eprintln!("vmmu: {text}"),
            _ => {}
        }
    }

    /// Takes the live line away.
    pub fn finish(mut self) {
        if let Some(line) = self.line.take() {
            line.finish_and_clear();
        }
        write(&self.partial);
        if self.show == Show::All {
            write(b"\n");
        }
    }
}

/// To standard output. A closed pipe there must not end the run before its report and its status.
pub fn write(bytes: &[u8]) {
    let mut out = stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).ok();
}

fn live(stats: &Stats) -> String {
    let faults: u64 = stats.faults.iter().map(|(_, count)| count).sum();
    let [k4, m2, g1] = stats.leaves.map(grouped);
    format!(
        "faults {}  4K {k4}  2M {m2}  1G {g1}  table pages {}  flushes {}",
        grouped(faults),
        grouped(stats.table_pages),
        grouped(stats.flushes_sent),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_live_line_shows_faults_leaves_tables_and_flushes() {
        let stats = Stats {
            faults: vec![("fixed".into(), 1200), ("retry".into(), 34)],
            leaves: [1200, 2, 0],
            table_pages: 9,
            flushes_sent: 5,
            ..Stats::default()
        };
        let line = live(&stats);
        assert_eq!(line, "faults 1,234  4K 1,200  2M 2  1G 0  table pages 9  flushes 5");
    }
}
