//! A thread that does what it is told when it is told, and says that it has: so what two threads do
//! comes in one order, whatever the scheduler does.

use std::sync::mpsc::{Receiver, Sender, channel};

/// Moves the thread.
#[derive(Debug)]
pub struct Puppet<Cue = (), Done = ()> {
    cues: Sender<Cue>,
    done: Receiver<Done>,
}

/// What moves it, as the thread has it.
#[derive(Debug)]
pub struct Strings<Cue = (), Done = ()> {
    cues: Receiver<Cue>,
    done: Sender<Done>,
}

/// Both ends.
pub fn puppet<Cue, Done>() -> (Puppet<Cue, Done>, Strings<Cue, Done>) {
    let ((cues, cued), (doing, done)) = (channel(), channel());
    (Puppet { cues, done }, Strings { cues: cued, done: doing })
}

impl<Cue, Done> Puppet<Cue, Done> {
    /// Tells the thread what to do, and waits until it has.
    pub fn step(&self, cue: Cue) -> Done {
        self.try_step(cue).expect("the thread is there")
    }

    /// The same; `None` if the thread has gone.
    pub fn try_step(&self, cue: Cue) -> Option<Done> {
        self.cues.send(cue).ok()?;
        self.done.recv().ok()
    }

    /// Tells it, and does not wait.
    pub fn tell(&self, cue: Cue) {
        let _gone = self.cues.send(cue);
    }

    /// Waits for what it does without being told.
    pub fn done(&self) -> Done {
        self.done.recv().expect("the thread is there")
    }
}

impl<Cue, Done> Strings<Cue, Done> {
    /// Waits for what to do; `None` if nobody is left to tell.
    pub fn cue(&self) -> Option<Cue> {
        self.cues.recv().ok()
    }

    /// Says that it is done. Nobody may be left to hear it.
    pub fn done(&self, done: Done) {
        let _gone = self.done.send(done);
    }
}
