//! The control line: a socket this side listens on before QEMU starts, so there is no race.

use std::{
    io::{Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    sync::mpsc::Sender,
    thread,
};

use anyhow::{Context, Result};
use hypervisor::{
    frames::{Reader, encode},
    wire::{Event, Order},
};

use crate::boot::session::Signal;

/// Listens at `path` and sends what arrives, one signal a frame.
pub fn listen(path: &Path, signals: Sender<Signal>) -> Result<()> {
    let listener =
        UnixListener::bind(path).with_context(|| format!("cannot listen at {}", path.display()))?;
    // The thread ends with the process if QEMU never connects.
    thread::spawn(move || {
        let Ok((mut stream, _)) = listener.accept() else { return };
        let Ok(writer) = stream.try_clone() else { return };
        if signals.send(Signal::Connected(Orders(writer))).is_err() {
            return;
        }
        let mut frames = Reader::new();
        let mut bytes = [0; 4096];
        loop {
            let count = match stream.read(&mut bytes) {
                Ok(0) | Err(_) => break,
                Ok(count) => count,
            };
            for &byte in &bytes[..count] {
                let signal = match frames.push::<Event>(byte) {
                    None => continue,
                    Some(Ok(event)) => Signal::Event(Box::new(event)),
                    Some(Err(damage)) => Signal::Damaged(damage),
                };
                if signals.send(signal).is_err() {
                    return;
                }
            }
        }
        signals.send(Signal::ControlClosed).ok();
    });
    Ok(())
}

/// The writing end.
#[derive(Debug)]
pub struct Orders(UnixStream);

impl Orders {
    /// Sends one order. A hypervisor that is gone is noticed elsewhere.
    pub fn send(&mut self, order: Order) {
        if let Ok(frame) = encode(&order) {
            self.0.write_all(&frame).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{sync::mpsc, time::Duration};

    #[test]
    fn events_arrive_and_damage_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control");
        let (sender, signals) = mpsc::channel();
        listen(&path, sender).unwrap();
        let mut hypervisor = UnixStream::connect(&path).unwrap();
        hypervisor.write_all(&[1, 2, 3, 0]).unwrap();
        hypervisor.write_all(&encode(&Event::Started { guest: 3 }).unwrap()).unwrap();
        let next = || signals.recv_timeout(Duration::from_secs(10)).unwrap();
        let Signal::Connected(mut orders) = next() else { panic!("connected first") };
        assert!(matches!(next(), Signal::Damaged(_)));
        let Signal::Event(event) = next() else { panic!("an event second") };
        assert_eq!(*event, Event::Started { guest: 3 });
        orders.send(Order::Report);
        let mut bytes = [0; 64];
        let count = hypervisor.read(&mut bytes).unwrap();
        let mut reader = Reader::new();
        let read: Vec<_> = bytes[..count].iter().filter_map(|&b| reader.push(b)).collect();
        assert_eq!(read, [Ok(Order::Report)]);
        drop(hypervisor);
        assert!(matches!(next(), Signal::ControlClosed));
    }
}
