//! Frames on the control line: postcard, a CRC-32, COBS.
//!
//! A frame is a value in postcard, followed by the CRC-32 (ISO-HDLC) of those bytes, the whole in
//! COBS and ended by a zero byte. A reader that starts in the middle, or meets garbage, finds the
//! next frame at the next zero.

use alloc::vec::Vec;
use crc::{CRC_32_ISO_HDLC, Crc};
use postcard::ser_flavors::{AllocVec, Cobs, crc::CrcModifier};
use serde::{Serialize, de::DeserializeOwned};

static CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISO_HDLC);

/// The longest frame a [`Reader`] collects, in bytes; longer ones are dropped.
pub const LONGEST: usize = 1 << 20;

/// The bytes of one frame, ending with zero.
///
/// # Errors
/// Only what memory or the value's own `Serialize` refuses.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, postcard::Error> {
    let flavor = CrcModifier::new(Cobs::try_new(AllocVec::new())?, CRC.digest());
    postcard::serialize_with_flavor(value, flavor)
}

/// Why a frame was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damage {
    /// Not COBS.
    Framing,
    /// Wrong CRC, or bytes that are no such value.
    Content,
    /// Longer than [`LONGEST`] bytes.
    TooLong,
}

/// Collects bytes and gives out values.
#[derive(Debug, Default)]
pub struct Reader {
    bytes: Vec<u8>,
    overlong: bool,
}

impl Reader {
    /// A reader that has seen nothing.
    pub const fn new() -> Self {
        Self { bytes: Vec::new(), overlong: false }
    }

    /// Takes one byte. `None` while the frame goes on; runs of zeros are no frames.
    pub fn push<T: DeserializeOwned>(&mut self, byte: u8) -> Option<Result<T, Damage>> {
        if byte != 0 {
            if self.bytes.len() < LONGEST {
                self.bytes.push(byte);
            } else {
                self.overlong = true;
            }
            return None;
        }
        let overlong = core::mem::take(&mut self.overlong);
        if self.bytes.is_empty() {
            return None;
        }
        let value = if overlong { Err(Damage::TooLong) } else { decode(&mut self.bytes) };
        self.bytes.clear();
        Some(value)
    }
}

fn decode<T: DeserializeOwned>(frame: &mut [u8]) -> Result<T, Damage> {
    let length = cobs::decode_in_place(frame).map_err(|_| Damage::Framing)?;
    let content = frame.get(..length).ok_or(Damage::Framing)?;
    let (value, rest) =
        postcard::take_from_bytes_crc32(content, CRC.digest()).map_err(|_| Damage::Content)?;
    if rest.is_empty() { Ok(value) } else { Err(Damage::Content) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{End, Event, Order, Stats, VcpuState, Verdict};
    use alloc::{string::String, vec};

    fn sample() -> Vec<Event> {
        vec![
            Event::Hello { version: 1, cpus: 4 },
            Event::Started { guest: 0 },
            Event::Ended {
                guest: 0,
                end: End::Exit { code: 0 },
                stats: Stats {
                    faults: vec![(String::from("fixed"), 3), (String::from("spurious"), 0)],
                    leaves: [1, 0, 2],
                    ..Stats::default()
                },
                vcpus: vec![VcpuState {
                    rip: 0xffff_ffff_8000_0000,
                    mode: String::from("running"),
                    exits: 7,
                    last: vec![String::from("npf")],
                }],
                verdict: Verdict::default(),
                ticks: 0,
                ticks_per_ms: 1 << 40,
            },
        ]
    }

    fn read_all(bytes: &[u8]) -> Vec<Result<Event, Damage>> {
        let mut reader = Reader::new();
        bytes.iter().filter_map(|&byte| reader.push(byte)).collect()
    }

    #[test]
    fn what_is_written_is_read() {
        let mut line = Vec::new();
        for event in sample() {
            line.extend(encode(&event).unwrap());
        }
        let expected: Vec<_> = sample().into_iter().map(Ok).collect();
        assert_eq!(read_all(&line), expected);
    }

    #[test]
    fn every_single_changed_bit_is_noticed_and_the_next_frame_is_read() {
        let frame = encode(&sample()[2]).unwrap();
        let next = encode(&Event::Started { guest: 9 }).unwrap();
        for bit in 0..(frame.len() - 1) * 8 {
            let mut line = frame.clone();
            line[bit / 8] ^= 1 << (bit % 8);
            line.extend(&next);
            let read = read_all(&line);
            assert!(!read.contains(&Ok(sample()[2].clone())), "bit {bit} went unnoticed");
            assert_eq!(read.last(), Some(&Ok(Event::Started { guest: 9 })), "bit {bit}");
        }
    }

    #[test]
    fn a_reader_that_starts_in_the_middle_finds_the_next_frame() {
        let frame = encode(&sample()[2]).unwrap();
        let next = encode(&Order::Stop).unwrap();
        for start in 0..frame.len() {
            let mut reader = Reader::new();
            let mut orders: Vec<Result<Order, Damage>> = Vec::new();
            for &byte in frame[start..].iter().chain(&next) {
                orders.extend(reader.push(byte));
            }
            assert_eq!(orders.last(), Some(&Ok(Order::Stop)));
        }
    }

    #[test]
    fn a_frame_with_something_behind_the_value_is_damaged() {
        let mut frame = encode(&Order::Stop).unwrap();
        let length = cobs::decode_in_place(&mut frame).unwrap();
        frame.truncate(length);
        frame.push(7);
        let mut line = vec![0; 32];
        let length = cobs::encode(&frame, &mut line);
        line.truncate(length);
        line.push(0);
        let mut reader = Reader::new();
        let read: Vec<_> = line.iter().filter_map(|&byte| reader.push::<Order>(byte)).collect();
        assert_eq!(read, [Err(Damage::Content)]);
    }

    #[test]
    fn garbage_gives_errors_and_no_values() {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut garbage = Vec::new();
        for _ in 0..200_000 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            garbage.push((state >> 32) as u8);
        }
        let read = read_all(&garbage);
        assert!(read.len() > 100);
        assert!(read.iter().all(Result::is_err));
    }

    #[test]
    fn an_endless_frame_does_not_eat_memory() {
        let mut reader = Reader::new();
        for _ in 0..LONGEST + 10 {
            assert!(reader.push::<Order>(0x55).is_none());
        }
        assert!(reader.bytes.len() <= LONGEST);
        assert_eq!(reader.push::<Order>(0), Some(Err(Damage::TooLong)));
        let mut last = None;
        for byte in encode(&Order::Report).unwrap() {
            last = reader.push::<Order>(byte);
        }
        assert_eq!(last, Some(Ok(Order::Report)));
    }
}
