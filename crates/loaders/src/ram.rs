//! Where a guest has RAM, and what lies in it before the guest starts.

use anyhow::{Result, bail};
use hypervisor::wire::Range;

use crate::size::{GIB, KIB, MIB, PAGE, Size};

/// End of the RAM below the hole that PCs keep for video memory and firmware.
pub const LOW_END: u64 = 640 * KIB;
/// RAM begins again here.
pub const HIGH_START: u64 = MIB;
/// RAM below 4 GiB ends here at the latest: above it PCs have the local APIC and other devices.
pub const DEVICES: u64 = 3 * GIB;
/// RAM that did not fit below [`DEVICES`] goes on here.
pub const ABOVE_4G: u64 = 4 * GIB;

/// The RAM ranges of a guest in ascending order: `memory` bytes laid out as in a PC, and
/// `sparse` ranges wherever they were asked for.
pub fn layout(memory: Size, sparse: &[Range], phys_bits: u8) -> Result<Vec<Range>> {
    let total = memory.0;
    if total < 4 * MIB || !total.is_multiple_of(PAGE) {
        bail!("--memory {memory}: at least 4 MiB and whole pages of 4 KiB");
    }
    let mut ranges = vec![
        Range { gpa: 0, bytes: LOW_END },
        Range { gpa: HIGH_START, bytes: total.min(DEVICES) - HIGH_START },
    ];
    if total > DEVICES {
        ranges.push(Range { gpa: ABOVE_4G, bytes: total - DEVICES });
    }
    let width = 1u64 << phys_bits;
    if ranges.iter().any(|range| range.gpa + range.bytes > width) {
        bail!("--memory {memory}: ends beyond the {phys_bits} bits of a physical address");
    }
    for range in sparse {
        let asked = show(range);
        if range.bytes == 0 || !range.bytes.is_multiple_of(PAGE) || !range.gpa.is_multiple_of(PAGE)
        {
            bail!("--ram {asked}: size and address must be whole pages of 4 KiB");
        }
        let Some(end) = range.gpa.checked_add(range.bytes).filter(|&end| end <= width) else {
            bail!("--ram {asked}: ends beyond the {phys_bits} bits of a physical address");
        };
        if range.gpa < ABOVE_4G && end > DEVICES {
            bail!("--ram {asked}: 0x{DEVICES:x}..0x{ABOVE_4G:x} belongs to devices");
        }
        if range.gpa < HIGH_START && end > LOW_END {
            bail!("--ram {asked}: 0x{LOW_END:x}..0x{HIGH_START:x} is the hole every PC has");
        }
        if let Some(other) = ranges.iter().find(|other| overlaps(range, other)) {
            bail!("--ram {asked} overlaps the RAM {}", show(other));
        }
        ranges.push(*range);
    }
    ranges.sort_by_key(|range| range.gpa);
    Ok(ranges)
}

fn show(range: &Range) -> String {
    format!("{}@0x{:x}", Size(range.bytes), range.gpa)
}

fn overlaps(a: &Range, b: &Range) -> bool {
    a.gpa < b.gpa + b.bytes && b.gpa < a.gpa + a.bytes
}

/// What a guest finds in its RAM: pieces that do not overlap, each inside one RAM range.
#[derive(Debug)]
pub struct Image {
    ram: Vec<Range>,
    pieces: Vec<(String, u64, Vec<u8>)>,
    reserved: Vec<(String, Range)>,
}

impl Image {
    /// Nothing in `ram` yet.
    pub fn new(ram: Vec<Range>) -> Self {
        Image { ram, pieces: Vec::new(), reserved: Vec::new() }
    }

    /// The RAM.
    pub fn ram(&self) -> &[Range] {
        &self.ram
    }

    /// Puts `data` at `gpa`; refused, naming both, if something is there or there is no RAM.
    pub fn put(&mut self, what: &str, gpa: u64, data: Vec<u8>) -> Result<()> {
        self.reserve(what, gpa, data.len() as u64)?;
        if !data.is_empty() {
            self.pieces.push((what.to_owned(), gpa, data));
        }
        Ok(())
    }

    /// Keeps `bytes` from `gpa` free of other pieces (a `.bss`, room to unpack).
    pub fn reserve(&mut self, what: &str, gpa: u64, bytes: u64) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        let range = Range { gpa, bytes };
        let end = gpa.checked_add(bytes);
        if !self.ram.iter().any(|r| gpa >= r.gpa && end.is_some_and(|end| end <= r.gpa + r.bytes)) {
            bail!("{what} needs 0x{gpa:x}..+0x{bytes:x}, where the guest has no RAM (--memory)");
        }
        if let Some((other, there)) = self.reserved.iter().find(|(_, r)| overlaps(r, &range)) {
            bail!("{what} at {} overlaps {other} at {}", show(&range), show(there));
        }
        self.reserved.push((what.to_owned(), range));
        Ok(())
    }

    /// The lowest free page-aligned place of `bytes` inside `from..to`, or an error saying that
    /// `what` found none.
    pub fn lowest(&self, what: &str, bytes: u64, from: u64, to: u64) -> Result<u64> {
        let mut candidates: Vec<u64> = self.ram.iter().map(|r| r.gpa.max(from)).collect();
        candidates.extend(self.reserved.iter().map(|(_, r)| r.gpa + r.bytes));
        candidates.iter_mut().for_each(|c| *c = c.next_multiple_of(PAGE));
        candidates.sort_unstable();
        self.first(what, bytes, from, to, candidates)
    }

    /// The highest such place.
    pub fn highest(&self, what: &str, bytes: u64, from: u64, to: u64) -> Result<u64> {
        let starts = self.reserved.iter().map(|(_, r)| r.gpa);
        let ends = self.ram.iter().map(|r| (r.gpa + r.bytes).min(to));
        let mut candidates: Vec<u64> = starts
            .chain(ends)
            .filter_map(|end| end.checked_sub(bytes))
            .map(|start| start / PAGE * PAGE)
            .collect();
        candidates.sort_unstable_by(|a, b| b.cmp(a));
        self.first(what, bytes, from, to, candidates)
    }

    fn first(&self, what: &str, bytes: u64, from: u64, to: u64, order: Vec<u64>) -> Result<u64> {
        let fits = |&gpa: &u64| {
            let range = Range { gpa, bytes: bytes.max(1) };
            let end = gpa + range.bytes;
            gpa >= from
                && end <= to
                && self.ram.iter().any(|r| gpa >= r.gpa && end <= r.gpa + r.bytes)
                && !self.reserved.iter().any(|(_, r)| overlaps(r, &range))
        };
        match order.iter().find(|gpa| fits(gpa)) {
            Some(&gpa) => Ok(gpa),
            None => bail!(
                "no room for {what} ({}) in RAM 0x{from:x}..0x{to:x}; give more --memory",
                Size(bytes)
            ),
        }
    }

    /// RAM ranges and pieces, for the job.
    pub fn into_parts(self) -> (Vec<Range>, Vec<(u64, Vec<u8>)>) {
        (self.ram, self.pieces.into_iter().map(|(_, gpa, data)| (gpa, data)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_leaves_the_holes_of_a_pc() {
        let small = layout(Size(512 * MIB), &[], 40).unwrap();
        assert_eq!(small[0], Range { gpa: 0, bytes: 0xa0000 });
        assert_eq!(small[1], Range { gpa: 0x10_0000, bytes: 511 * MIB });
        let big = layout(Size(5 * GIB), &[], 40).unwrap();
        assert_eq!(big[1].gpa + big[1].bytes, DEVICES);
        assert_eq!(big[2], Range { gpa: ABOVE_4G, bytes: 2 * GIB });
    }

    #[test]
    fn sparse_ram_is_refused_where_it_cannot_be() {
        let refused = |gpa, bytes| {
            layout(Size(64 * MIB), &[Range { gpa, bytes }], 40).unwrap_err().to_string()
        };
        assert!(refused(0, 4 * KIB).contains("overlaps the RAM"));
        assert!(refused(DEVICES - MIB, 2 * MIB).contains("devices"));
        assert!(refused(0xf0000, 64 * KIB).contains("hole"));
        assert!(refused((1 << 40) - MIB, 2 * MIB).contains("40 bits"));
        assert!(refused(GIB + 1, MIB).contains("whole pages"));
        assert!(layout(Size(5 * GIB), &[], 32).unwrap_err().to_string().contains("32 bits"));
        assert!(layout(Size(64 * MIB), &[Range { gpa: 512 * GIB, bytes: MIB }], 40).is_ok());
    }

    #[test]
    fn pieces_never_overlap_and_never_leave_ram() {
        let mut image = Image::new(layout(Size(16 * MIB), &[], 40).unwrap());
        image.put("first", MIB, vec![1; 100]).unwrap();
        let clash = image.put("second", MIB + 50, vec![1; 100]).unwrap_err().to_string();
        assert!(clash.contains("first") && clash.contains("second"), "{clash}");
        assert!(image.put("hole", 0x9_ffff, vec![1; 2]).is_err());
        assert!(image.put("past the end", 16 * MIB - 1, vec![1; 2]).is_err());
        assert_eq!(image.lowest("x", 10, MIB, u64::MAX).unwrap(), MIB + PAGE);
        assert_eq!(image.highest("x", 10, 0, u64::MAX).unwrap(), 16 * MIB - PAGE);
        image.reserve("top", 16 * MIB - PAGE, PAGE).unwrap();
        assert_eq!(image.highest("x", PAGE + 1, 0, u64::MAX).unwrap(), 16 * MIB - 3 * PAGE);
    }
}
