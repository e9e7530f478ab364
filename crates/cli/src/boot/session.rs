//! One run of the machine, from its start until everything it had to say is known.

use std::{
    fs::File,
    io::{Read, Write},
    process::Child,
    sync::mpsc::{self, Receiver, RecvTimeoutError, Sender},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use hypervisor::{
    frames::Damage,
    probe::Outcome,
    wire::{self, End, Event, Order, Stats, VcpuState, Verdict},
};
use signal_hook::{
    consts::{SIGINT, SIGTERM},
    iterator::Signals,
};

use super::screen::Screen;
use crate::{
    control::{self, Orders},
    guests::initramfs::REACHED,
    machine::{Clock, Machine},
};

/// How long the hypervisor may take to answer an order to stop, and QEMU to end by itself.
const GRACE: Duration = Duration::from_secs(5);

/// Console bytes that are kept for the verdict; older ones are forgotten first.
const KEPT: usize = 16 << 20;

/// Everything that can happen while the machine runs.
#[derive(Debug)]
pub enum Signal {
    /// QEMU has opened the control line.
    Connected(Orders),
    /// A frame.
    Event(Box<Event>),
    /// A frame that could not be read.
    Damaged(Damage),
    /// The control line ended.
    ControlClosed,
    /// Bytes of the guest's console.
    Console(Vec<u8>),
    /// QEMU closed its console: it has ended.
    ConsoleClosed,
    /// Ctrl-C, or a request to end.
    Interrupt,
}

/// What one guest of the run did.
#[derive(Debug, Default)]
pub struct GuestRun {
    /// For people.
    pub name: String,
    /// When it started.
    pub started: Option<Instant>,
    /// How long it ran on the host.
    pub ran: Duration,
    /// From its start to the line its `init` prints.
    pub reached: Option<Duration>,
    /// How it ended; `None` if nobody said.
    pub end: Option<End>,
    /// Final counters, or the last known.
    pub stats: Stats,
    /// Where its vCPUs stopped, or were last seen.
    pub vcpus: Vec<VcpuState>,
    /// Final word of the checker.
    pub verdict: Option<Verdict>,
    /// TSC ticks it ran, and ticks a millisecond.
    pub ticks: (u64, u64),
}

/// Why the run was cut short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// It was not.
    No,
    /// Time-out.
    TimeOut,
    /// Ctrl-C.
    Interrupt,
}

/// A whole run.
#[derive(Debug)]
pub struct Run {
    /// In the order of the job.
    pub guests: Vec<GuestRun>,
    /// What the hypervisor said of itself when it failed, or what was wrong on the control line.
    pub failure: Option<String>,
    /// Cut short?
    pub cut: Cut,
    /// Everything the guests printed.
    pub console: Vec<u8>,
    /// Lines the hypervisor wanted shown.
    pub notes: Vec<String>,
    /// Exits of each vCPU a second, between the last two snapshots.
    pub rates: Vec<f64>,
    /// From QEMU's start to its end.
    pub wall: Duration,
    /// What QEMU wrote on its standard error.
    pub complaints: String,
    /// Whether the hypervisor ever spoke.
    pub spoke: bool,
    /// Physical address width of the processor that was probed.
    pub phys_bits: Option<u8>,
    /// What came of the cases of a probe.
    pub outcomes: Vec<Outcome>,
}

/// Runs `machine` with guests called `names`.
pub fn run(
    machine: &Machine,
    names: Vec<String>,
    timeout: Duration,
    mut log: Option<File>,
    mut screen: Screen,
) -> Result<Run> {
    let (sender, signals) = mpsc::channel();
    control::listen(&machine.control, sender.clone())?;
    catch_interrupts(sender.clone())?;
    let began = Instant::now();
    let mut qemu = machine.start()?;
    let stdout = qemu.stdout.take().context("QEMU has no output")?;
    let mut stderr = qemu.stderr.take().context("QEMU has no error output")?;
    read_console(stdout, sender);
    let complaints = thread::spawn(move || {
        let mut text = Vec::new();
        stderr.read_to_end(&mut text).ok();
        String::from_utf8_lossy(&text).into_owned()
    });

    let mut session = Session::new(names, machine.clock);
    session.deadline = Some(began + timeout);
    let mut result = Ok(());
    while let Some(signal) = session.next(&signals, &mut qemu) {
        if let Signal::Console(bytes) = &signal {
            screen.console(bytes);
            if let Some(file) = &mut log
                && let Err(e) = file.write_all(bytes)
            {
                result = Err(e);
                log = None;
            }
        }
        if let Signal::Event(event) = &signal {
            screen.event(event);
        }
        session.take(signal);
    }
    // Whatever state it is in, it does not outlive this command.
    qemu.kill().ok();
    qemu.wait().context("cannot wait for QEMU")?;
    for signal in signals.try_iter() {
        session.take(signal);
    }
    screen.finish();
    session.run.wall = began.elapsed();
    session.run.complaints = complaints.join().unwrap_or_default();
    result.context("cannot write the log")?;
    Ok(session.run)
}

fn catch_interrupts(sender: Sender<Signal>) -> Result<()> {
    let mut caught = Signals::new([SIGINT, SIGTERM]).context("cannot catch Ctrl-C")?;
    thread::spawn(move || {
        for _ in caught.forever() {
            if sender.send(Signal::Interrupt).is_err() {
                break;
            }
        }
    });
    Ok(())
}

fn read_console(mut output: impl Read + Send + 'static, sender: Sender<Signal>) {
    thread::spawn(move || {
        let mut bytes = [0; 8192];
        while let Ok(count @ 1..) = output.read(&mut bytes) {
            if sender.send(Signal::Console(bytes[..count].to_vec())).is_err() {
                return;
            }
        }
        sender.send(Signal::ConsoleClosed).ok();
    });
}

struct Session {
    run: Run,
    orders: Option<Orders>,
    clock: Clock,
    current: usize,
    last_live: Option<(Instant, Vec<u64>)>,
    deadline: Option<Instant>,
    /// Set once nothing more is expected but QEMU's end.
    closing: bool,
    /// The instant the console's `REACHED` was looked for up to.
    searched: usize,
}

impl Session {
    fn new(names: Vec<String>, clock: Clock) -> Self {
        let guests =
            names.into_iter().map(|name| GuestRun { name, ..GuestRun::default() }).collect();
        let run = Run {
            guests,
            failure: None,
            cut: Cut::No,
            console: Vec::new(),
            notes: Vec::new(),
            rates: Vec::new(),
            wall: Duration::ZERO,
            complaints: String::new(),
            spoke: false,
            phys_bits: None,
            outcomes: Vec::new(),
        };
        Session {
            run,
            orders: None,
            clock,
            current: 0,
            last_live: None,
            deadline: None,
            closing: false,
            searched: 0,
        }
    }

    /// The next signal; `None` when the run is over.
    fn next(&mut self, signals: &Receiver<Signal>, qemu: &mut Child) -> Option<Signal> {
        loop {
            let wait =
                self.deadline.map_or(GRACE, |at| at.saturating_duration_since(Instant::now()));
            match signals.recv_timeout(wait) {
                Ok(Signal::ConsoleClosed) => {
                    // What is already in the other pipe belongs to the run.
                    qemu.wait().ok();
                    thread::sleep(Duration::from_millis(20));
                    return None;
                }
                Ok(signal) => return Some(signal),
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) if self.closing => return None,
                Err(RecvTimeoutError::Timeout) => self.stop(Cut::TimeOut),
            }
        }
    }

    /// Asks the hypervisor to end the guest and report.
    fn stop(&mut self, why: Cut) {
        if self.run.cut == Cut::No {
            self.run.cut = why;
        }
        self.close();
        match (&mut self.orders, self.clock) {
            (Some(orders), Clock::Host) => orders.send(Order::Stop),
            // Nobody listens: an exact run takes no input.
            (_, Clock::Instructions) | (None, _) => self.deadline = Some(Instant::now()),
        }
    }

    /// From now on QEMU has [`GRACE`] to end.
    fn close(&mut self) {
        if !self.closing {
            self.closing = true;
            self.deadline = Some(Instant::now() + GRACE);
        }
    }

    fn take(&mut self, signal: Signal) {
        match signal {
            Signal::Connected(orders) => self.orders = Some(orders),
            Signal::Event(event) => self.event(*event),
            Signal::Damaged(damage) => {
                let damage = match damage {
                    Damage::Framing => "framing",
                    Damage::Content => "checksum or content",
                    Damage::TooLong => "length",
                };
                self.fail(format!("a frame on the control line was damaged ({damage})"));
            }
            Signal::Console(bytes) => self.console(&bytes),
            Signal::Interrupt if self.closing => self.deadline = Some(Instant::now()),
            Signal::Interrupt => self.stop(Cut::Interrupt),
            Signal::ControlClosed => self.close(),
            Signal::ConsoleClosed => {}
        }
    }

    fn fail(&mut self, what: String) {
        self.run.failure.get_or_insert(what);
    }

    fn console(&mut self, bytes: &[u8]) {
        self.run.console.extend_from_slice(bytes);
        let from = self.searched.saturating_sub(REACHED.len());
        let fresh = &self.run.console[from..];
        let seen = fresh.windows(REACHED.len()).any(|window| window == REACHED.as_bytes());
        if self.run.console.len() > 2 * KEPT {
            self.run.console.drain(..KEPT);
        }
        self.searched = self.run.console.len();
        if let Some(guest) = self.run.guests.get_mut(self.current)
            && seen
            && guest.reached.is_none()
        {
            // The console may be ahead of the control line by a moment.
            guest.reached = Some(guest.started.map_or(Duration::ZERO, |at| at.elapsed()));
        }
    }

    fn event(&mut self, event: Event) {
        self.run.spoke = true;
        match event {
            Event::Hello { version, .. } => {
                if version != wire::VERSION {
                    let ours = wire::VERSION;
                    self.fail(format!("the hypervisor speaks version {version}, not {ours}"));
                }
            }
            Event::Started { guest } => {
                self.current = guest as usize;
                self.last_live = None;
                if let Some(guest) = self.run.guests.get_mut(self.current) {
                    guest.started = Some(Instant::now());
                }
            }
            Event::Live { stats, vcpus } => {
                self.rates(&vcpus);
                if let Some(guest) = self.run.guests.get_mut(self.current)
                    && guest.end.is_none()
                {
                    guest.stats = stats;
                    guest.vcpus = vcpus;
                }
            }
            Event::Ended { guest, end, stats, vcpus, verdict, ticks, ticks_per_ms } => {
                let last = guest as usize + 1 == self.run.guests.len();
                let Some(guest) = self.run.guests.get_mut(guest as usize) else {
                    return self.fail(format!("guest {guest} ended, which the job has not"));
                };
                guest.ran = guest.started.map_or(Duration::ZERO, |at| at.elapsed());
                guest.end = Some(end);
                guest.stats = stats;
                guest.vcpus = vcpus;
                guest.verdict = Some(verdict);
                guest.ticks = (ticks, ticks_per_ms);
                if last {
                    self.close();
                }
                if self.run.cut != Cut::No {
                    // What was asked for has come; guests that would follow are not wanted.
                    self.deadline = Some(Instant::now());
                }
            }
            Event::Failed { what } => {
                // Its own words explain a frame that was cut short before them.
                self.run.failure = Some(what);
                self.close();
            }
            Event::Probing { phys_bits } => self.run.phys_bits = Some(phys_bits),
            Event::Probed { outcomes } => self.run.outcomes.extend(outcomes),
            Event::Note { text } => self.run.notes.push(text),
        }
    }

    /// Exits a second of each vCPU since the snapshot before.
    fn rates(&mut self, vcpus: &[VcpuState]) {
        let now = Instant::now();
        let exits: Vec<u64> = vcpus.iter().map(|vcpu| vcpu.exits).collect();
        if let Some((then, before)) = &self.last_live {
            let seconds = now.duration_since(*then).as_secs_f64().max(1e-3);
            let pairs = exits.iter().zip(before);
            self.run.rates = pairs.map(|(now, then)| (now - then) as f64 / seconds).collect();
        }
        self.last_live = Some((now, exits));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        boot::{
            options::{Accel, Threads},
            outcome::{self, Expected, Status, Wanted},
            screen::Show,
        },
        size::{MIB, Size},
    };
    use hypervisor::frames::{Reader, encode};
    use std::{env, fs, os::unix::fs::PermissionsExt, os::unix::net::UnixStream};

    /// Names the play and the socket when this test binary is started in QEMU's place.
    const PLAY: &str = "VMMU_TEST_PLAY";
    const SOCKET: &str = "VMMU_TEST_SOCKET";

    fn ended(end: End) -> Event {
        Event::Ended {
            guest: 0,
            end,
            stats: Stats { table_pages: 7, ..Stats::default() },
            vcpus: vec![],
            verdict: Verdict::default(),
            ticks: 1,
            ticks_per_ms: 1,
        }
    }

    /// Not a test of its own: plays the machine for the tests below, and passes when not asked to.
    #[test]
    fn plays_the_machine() {
        let (Ok(play), Ok(socket)) = (env::var(PLAY), env::var(SOCKET)) else { return };
        let mut line = UnixStream::connect(socket).unwrap();
        let mut say = |event| line.write_all(&encode(&event).unwrap()).unwrap();
        say(Event::Hello { version: wire::VERSION, cpus: 1 });
        say(Event::Started { guest: 0 });
        println!("\n{REACHED}");
        match play.as_str() {
            "ends" => say(ended(End::PowerOff)),
            "breaks" => say(Event::Failed { what: "page fault".into() }),
            "leaves" => {}
            "garbles" => line.write_all(&[1, 2, 3, 4, 0]).unwrap(),
            "obeys" => {
                let mut reader = Reader::new();
                let mut byte = [0];
                while line.read(&mut byte).unwrap() == 1 {
                    if reader.push(byte[0]) == Some(Ok(Order::Stop)) {
                        line.write_all(&encode(&ended(End::Stopped)).unwrap()).unwrap();
                        break;
                    }
                }
            }
            other => panic!("no play {other}"),
        }
    }

    fn play(play: &str, timeout: Duration) -> (Run, Status) {
        let folder = tempfile::tempdir().unwrap();
        let script = folder.path().join("qemu");
        let control = folder.path().join("control");
        let this = env::current_exe().unwrap();
        let text = format!(
            "#!/bin/sh\nexport {PLAY}={play} {SOCKET}={}\n\
             exec {} --exact --nocapture boot::session::tests::plays_the_machine\n",
            control.display(),
            this.display()
        );
        fs::write(&script, text).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        let machine = Machine {
            qemu: script,
            kernel: "k".into(),
            job: "j".into(),
            control,
            cpus: 1,
            memory: Size(64 * MIB),
            accel: Accel::Tcg,
            threads: Threads::Single,
            clock: Clock::Host,
            gdb: None,
        };
        let screen = Screen::new(Show::Nothing);
        let run = run(&machine, vec!["guest".into()], timeout, None, screen).unwrap();
        let status = outcome::judge(&run, &Wanted::of(Expected::Nothing)).status;
        (run, status)
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn an_orderly_end_is_known_with_its_numbers_and_console() {
        let (run, status) = play("ends", LONG);
        assert_eq!(status, Status::Ended);
        assert_eq!(run.guests[0].stats.table_pages, 7);
        assert!(run.guests[0].reached.is_some());
        assert!(String::from_utf8_lossy(&run.console).contains(REACHED));
    }

    #[test]
    fn a_time_out_gets_the_report_of_the_stopped_guest() {
        let (run, status) = play("obeys", Duration::from_secs(1));
        assert_eq!(status, Status::TimeOut);
        assert_eq!(run.guests[0].end, Some(End::Stopped));
        assert_eq!(run.guests[0].stats.table_pages, 7);
    }

    #[test]
    fn what_the_hypervisor_does_wrong_is_its_fault() {
        for (what, said) in
            [("breaks", "page fault"), ("leaves", "without a report"), ("garbles", "damaged")]
        {
            let (run, status) = play(what, LONG);
            assert_eq!(status, Status::Fault, "{what}");
            let line = outcome::judge(&run, &Wanted::of(Expected::Nothing)).line;
            assert!(line.contains(said), "{what}: {line}");
        }
    }
}
