//! The control line: bytes as they come, and values that passed the checksum.

use std::fmt::Debug;

use hypervisor::{
    frames::{Reader, encode},
    wire::{Event, Job, Order},
};
use serde::{Serialize, de::DeserializeOwned};

/// First byte: what the rest is taken for.
pub fn protocol(data: &[u8]) {
    let Some((kind, rest)) = data.split_first() else { return };
    match kind % 5 {
        0 => line::<Event>(rest),
        1 => line::<Order>(rest),
        2 => value::<Event>(rest),
        3 => value::<Order>(rest),
        _ => {
            if let Ok(job) = postcard::from_bytes::<Job<'_>>(rest) {
                let bytes = postcard::to_allocvec(&job).expect("what was read can be written");
                assert_eq!(postcard::from_bytes::<Job<'_>>(&bytes), Ok(job));
            }
        }
    }
}

/// Whatever comes first, a frame after a zero is read.
fn line<T: DeserializeOwned + PartialEq + Debug>(bytes: &[u8]) {
    let mut reader = Reader::new();
    for byte in bytes {
        let _ = reader.push::<T>(*byte);
    }
    let _ = reader.push::<T>(0);
    let frame = encode(&Order::Stop).expect("an order");
    let values: Vec<_> = frame.iter().filter_map(|byte| reader.push::<Order>(*byte)).collect();
    assert_eq!(values, [Ok(Order::Stop)]);
}

/// A value that is read comes back from its own frame.
fn value<T: Serialize + DeserializeOwned + PartialEq + Debug>(bytes: &[u8]) {
    let Ok(value) = postcard::from_bytes::<T>(bytes) else { return };
    let frame = encode(&value).expect("what was read can be written");
    let mut reader = Reader::new();
    let values: Vec<_> = frame.iter().filter_map(|byte| reader.push::<T>(*byte)).collect();
    assert_eq!(values, [Ok(value)]);
}
