//! Whether a host's [`Cpus`] keep their promises.
//!
//! A kick that does not arrive cannot be seen arriving late, so a vCPU that is still in the guest
//! after [`CpusOptions::patience`] counts as not reached, and a call that hangs is given up some time
//! later. A good host passes however slow the machine is, unless it needs longer than that for one
//! interrupt.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use fastrand::Rng;
use vmmu::host::{Cpus, VcpuId, Wait, WaitFor};

use crate::report::{Report, Rule, Verdict};

const RULES: [Rule; 10] = [
    Rule { id: "C1", sentence: "a vCPU that nobody kicks stays in the guest" },
    Rule { id: "C2", sentence: "a kick makes a vCPU leave the guest" },
    Rule { id: "C3", sentence: "a kick just before entry is not lost" },
    Rule { id: "C4", sentence: "a kick does not wait, and may hit the processor it comes from" },
    Rule { id: "C5", sentence: "kicking many times at once is kicking once" },
    Rule { id: "C6", sentence: "a kick of a vCPU outside the guest does no harm" },
    Rule { id: "C7", sentence: "a kick reaches the vCPU it names" },
    Rule { id: "C8", sentence: "no kick is lost, whenever it comes" },
    Rule { id: "C9", sentence: "a call of the hook for waits returns" },
    Rule { id: "C10", sentence: "a wait returns soon, however often it was asked before" },
];

/// How to check kicks.
#[derive(Clone, Copy, Debug)]
pub struct CpusOptions {
    /// vCPUs to run at the same time.
    pub vcpus: u32,
    /// Entries and kicks of each for the rule about all moments.
    pub rounds: u32,
    /// How long a vCPU that was kicked may stay in the guest. Calls that should return are given
    /// twenty times as long.
    pub patience: Duration,
    /// How long a vCPU that was not kicked is watched.
    pub linger: Duration,
    /// Chooses the moments.
    pub seed: u64,
}

impl Default for CpusOptions {
    fn default() -> Self {
        CpusOptions {
            vcpus: 2,
            rounds: 200,
            patience: Duration::from_secs(10),
            linger: Duration::from_millis(50),
            seed: 1,
        }
    }
}

impl CpusOptions {
    /// After this a call that only has to return, however slowly, counts as hanging.
    fn hangs(&self) -> Duration {
        self.patience * 20
    }
}

/// What happened to a thread.
type Ended = Result<(), String>;

/// How one rule is looked at.
type Check<H, G> = fn(&mut Bench<H, G>) -> Ended;

/// A vCPU on its way into the guest and out of it.
struct Trip {
    inside: Receiver<()>,
    ended: Receiver<Ended>,
}

/// The check at work.
struct Bench<H, G> {
    host: Arc<H>,
    run: Arc<G>,
    options: CpusOptions,
    rng: Rng,
    /// The vCPU that nobody has kicked yet.
    unkicked: Option<Trip>,
    /// A vCPU that never left, or a kick that never returned: nothing more can be tried.
    stuck: bool,
}

/// Runs something that may never return, in a thread of its own.
fn apart(work: impl FnOnce() + Send + 'static) -> Receiver<Ended> {
    let (tell, told) = channel();
    thread::spawn(move || {
        let ended = catch_unwind(AssertUnwindSafe(work)).map_err(|_| "panicked".to_owned());
        // Nobody may be listening any more.
        let _ = tell.send(ended);
    });
    told
}

impl<H, G> Bench<H, G>
where
    H: Cpus + Send + 'static,
    G: Fn(VcpuId, &mut dyn FnMut()) + Send + Sync + 'static,
{
    /// Sends a vCPU into the guest; `entering` runs just before, in its thread.
    fn enter(&self, vcpu: u32, mut entering: impl FnMut() + Send + 'static) -> Trip {
        let run = Arc::clone(&self.run);
        let (tell, inside) = channel();
        let ended = apart(move || {
            run(VcpuId(vcpu), &mut || {
                entering();
                let _ = tell.send(());
            });
        });
        Trip { inside, ended }
    }

    /// Waits until a vCPU is at the door.
    fn at_the_door(&mut self, trip: &Trip) -> Ended {
        trip.inside.recv_timeout(self.options.hangs()).map_err(|_| {
            self.stuck = true;
            match trip.ended.try_recv() {
                Ok(Err(panicked)) => panicked,
                _ => "the guest was never entered".to_owned(),
            }
        })
    }

    /// Kicks, and sees that the call returns.
    fn kick(&mut self, vcpu: u32) -> Ended {
        let host = Arc::clone(&self.host);
        let kicked = apart(move || host.kick(VcpuId(vcpu)));
        match kicked.recv_timeout(self.options.hangs()) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(panicked)) => Err(format!("kick {panicked}")),
            Err(_) => {
                self.stuck = true;
                Err("kick did not return".to_owned())
            }
        }
    }

    /// Waits for a vCPU that was kicked. If it does not come it is fetched by more kicks, so that
    /// the other rules can be looked at.
    fn leaves(&mut self, vcpu: u32, trip: &Trip) -> Ended {
        match trip.ended.recv_timeout(self.options.patience) {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(panicked)) => return Err(format!("the guest's run {panicked}")),
            Err(RecvTimeoutError::Disconnected) => return Err("the guest's run died".to_owned()),
            Err(RecvTimeoutError::Timeout) => {}
        }
        self.stuck = true;
        for _ in 0..8 {
            if self.kick(vcpu).is_err() {
                break;
            }
            if trip.ended.recv_timeout(self.options.patience).is_ok() {
                self.stuck = false;
                return Err(format!("vCPU {vcpu} left only when it was kicked again"));
            }
        }
        Err(format!("vCPU {vcpu} is still in the guest"))
    }

    /// Lets some time pass, more or less of it.
    fn dawdle(&mut self) {
        match self.rng.u8(..4) {
            0 => {}
            1 => thread::yield_now(),
            2 => (0..self.rng.u32(..2000)).for_each(|_| std::hint::spin_loop()),
            _ => thread::sleep(Duration::from_micros(self.rng.u64(..300))),
        }
    }

    fn stays(&mut self) -> Ended {
        let trip = self.enter(0, || {});
        self.at_the_door(&trip)?;
        match trip.ended.recv_timeout(self.options.linger) {
            Err(RecvTimeoutError::Timeout) => {
                self.unkicked = Some(trip);
                Ok(())
            }
            Ok(Err(panicked)) => Err(format!("the guest's run {panicked}")),
            _ => Err("it left the guest by itself".to_owned()),
        }
    }

    fn in_the_guest(&mut self) -> Ended {
        if let Some(trip) = self.unkicked.take() {
            self.kick(0)?;
            self.leaves(0, &trip)?;
        }
        for _ in 0..8 {
            let trip = self.enter(0, || {});
            self.at_the_door(&trip)?;
            thread::sleep(self.options.linger / 8);
            self.kick(0)?;
            self.leaves(0, &trip)?;
        }
        Ok(())
    }

    fn before_entry(&mut self) -> Ended {
        for _ in 0..8 {
            let host = Arc::clone(&self.host);
            // One that waits is the next rule's.
            let patience = self.options.patience / 4;
            let trip = self.enter(0, move || {
                // Another processor kicks, and is done before this one enters.
                let host = Arc::clone(&host);
                let _ = apart(move || host.kick(VcpuId(0))).recv_timeout(patience);
            });
            self.at_the_door(&trip)?;
            self.leaves(0, &trip)?;
        }
        Ok(())
    }

    fn by_itself(&mut self) -> Ended {
        let host = Arc::clone(&self.host);
        let trip = self.enter(0, move || host.kick(VcpuId(0)));
        self.at_the_door(&trip).map_err(|_| "kick did not return".to_owned())?;
        self.leaves(0, &trip)
    }

    fn many_at_once(&mut self) -> Ended {
        for _ in 0..4 {
            let trip = self.enter(0, || {});
            self.at_the_door(&trip)?;
            let kicks: Vec<_> = (0..16)
                .map(|_| {
                    let host = Arc::clone(&self.host);
                    apart(move || host.kick(VcpuId(0)))
                })
                .collect();
            for kick in kicks {
                match kick.recv_timeout(self.options.hangs()) {
                    Ok(Ok(())) => {}
                    Ok(Err(panicked)) => return Err(format!("kick {panicked}")),
                    Err(_) => {
                        self.stuck = true;
                        return Err("kick did not return".to_owned());
                    }
                }
            }
            self.leaves(0, &trip)?;
        }
        // One that came after the exit may end one more entry; then it is quiet again.
        for _ in 0..3 {
            let trip = self.enter(0, || {});
            self.at_the_door(&trip)?;
            if trip.ended.recv_timeout(self.options.linger).is_err() {
                self.kick(0)?;
                return self.leaves(0, &trip);
            }
        }
        Err("entries still end at once".to_owned())
    }

    fn outside(&mut self) -> Ended {
        for _ in 0..4 {
            self.kick(0)?;
            let trip = self.enter(0, || {});
            self.at_the_door(&trip)?;
            // The kick from before may have ended this entry, or not.
            self.kick(0)?;
            self.leaves(0, &trip)?;
        }
        Ok(())
    }

    fn the_one_named(&mut self) -> Ended {
        for vcpu in 0..self.options.vcpus {
            let mut trips: Vec<_> =
                (0..self.options.vcpus).map(|id| Some(self.enter(id, || {}))).collect();
            for trip in trips.iter().flatten() {
                self.at_the_door(trip)?;
            }
            thread::sleep(self.options.linger / 8);
            self.kick(vcpu)?;
            let left = match trips[vcpu as usize].take() {
                Some(trip) => self.leaves(vcpu, &trip),
                None => Ok(()),
            };
            for (other, trip) in trips.iter().enumerate() {
                if let Some(trip) = trip {
                    self.kick(other as u32)?;
                    self.leaves(other as u32, trip).and(left.clone())?;
                }
            }
            left?;
        }
        Ok(())
    }

    fn whenever(&mut self) -> Ended {
        for _ in 0..self.options.rounds {
            let vcpu = self.rng.u32(..self.options.vcpus);
            let trip = self.enter(vcpu, || {});
            self.at_the_door(&trip)?;
            self.dawdle();
            self.kick(vcpu)?;
            self.leaves(vcpu, &trip)?;
        }
        Ok(())
    }

    /// Waits for something, so often, and gives that up after `patience`.
    fn wait(&mut self, waits: Vec<Wait>, patience: Duration) -> Ended {
        let host = Arc::clone(&self.host);
        let waited = apart(move || waits.into_iter().for_each(|wait| host.wait(wait)));
        match waited.recv_timeout(patience) {
            Ok(ended) => ended,
            Err(_) => Err("it did not".to_owned()),
        }
    }

    fn waits(&mut self) -> Ended {
        let waits = (0..100).map(|asked| Wait::new(WaitFor::GracePeriod, asked)).collect();
        self.wait(waits, self.options.hangs())
    }

    /// Nobody wakes who waits, so what has come meanwhile is seen only when the call returns.
    fn waits_longer(&mut self) -> Ended {
        let growing = (0..64).map(|n| 1 << n).chain([u64::MAX]);
        for asked in growing {
            for on in [WaitFor::GracePeriod, WaitFor::Vcpu(VcpuId(0)), WaitFor::SlotGuard] {
                let mut waits = vec![Wait::new(on, asked); 2];
                waits[1].may_sleep = false;
                // Each of the two has as long.
                self.wait(waits, 2 * self.options.patience).map_err(|why| {
                    if why == "it did not" {
                        format!("{on:?}, asked {asked} times: {why}")
                    } else {
                        why
                    }
                })?;
            }
        }
        Ok(())
    }
}

/// Checks kicks; see [`Cpus`].
///
/// `run` runs the guest of a vCPU, in the thread it is called in, until a kick ends it; any guest
/// will do that does not exit by itself. Where a hypervisor calls
/// [`before_enter`](vmmu::VcpuMmu::before_enter), with interrupts that a kick sends held pending until
/// the entry itself, it calls its second argument, once.
///
/// A vCPU that never leaves keeps its thread for good.
pub fn check_cpus<H, G>(host: &Arc<H>, run: &Arc<G>, options: &CpusOptions) -> Report
where
    H: Cpus + Send + 'static,
    G: Fn(VcpuId, &mut dyn FnMut()) + Send + Sync + 'static,
{
    let mut report = Report::new("processors");
    let mut bench = Bench {
        host: Arc::clone(host),
        run: Arc::clone(run),
        options: *options,
        rng: Rng::with_seed(options.seed),
        unkicked: None,
        stuck: false,
    };
    let rounds = format!("{} rounds", options.rounds);
    let checks: [(Check<H, G>, &str); 10] = [
        (Bench::stays, "it did"),
        (Bench::in_the_guest, "8 times"),
        (Bench::before_entry, "8 times"),
        (Bench::by_itself, "it returned, and the guest was left"),
        (Bench::many_at_once, "16 at once, 4 times, and quiet after that"),
        (Bench::outside, "4 times"),
        (Bench::the_one_named, "each vCPU once"),
        (Bench::whenever, &rounds),
        (Bench::waits, "100 times"),
        (Bench::waits_longer, "asked up to 2^64 times"),
    ];
    for (rule, (check, seen)) in RULES.into_iter().zip(checks) {
        if bench.stuck {
            report.skip(&[rule], "something never came back from an earlier rule");
            continue;
        }
        report.rule(rule, || match check(&mut bench) {
            Ok(()) => Verdict::Passed(seen.to_owned()),
            Err(why) => Verdict::Failed(why),
        });
    }
    report
}
