//! A kernel file: refused with a reason, or laid out inside the guest's RAM.

use loaders::{
    Plan,
    linux::Linux,
    multiboot::Multiboot,
    ram::layout,
    size::{MIB, Size},
};

use super::Input;

/// Puts the right checksum into the multiboot header, if there is one: it is not what is looked for.
fn mend(file: &mut [u8]) {
    const MAGIC: u32 = 0x1bad_b002;
    let word = |file: &[u8], at: usize| {
        file.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_le_bytes)
    };
    for at in (0..file.len().min(8192)).step_by(4) {
        if word(file, at) == Some(MAGIC)
            && let Some(flags) = word(file, at + 4)
            && let Some(sum) = file.get_mut(at + 8..at + 12)
        {
            sum.copy_from_slice(&0u32.wrapping_sub(MAGIC).wrapping_sub(flags).to_le_bytes());
        }
    }
}

/// Layout: loader, memory, length of the initial RAM file system or module, length of the command
/// line, and the file.
pub fn loaders(data: &[u8]) {
    let mut input = Input(data);
    let is_linux = input.flag();
    let memory = Size(input.pick(&[4, 16, 64, 5120]) * MIB);
    let second = vec![0; usize::from(input.byte()) * 97];
    let command_line = "x".repeat(usize::from(input.byte()) * 9);
    let mut kernel = input.rest().to_vec();
    mend(&mut kernel);
    let ram = layout(memory, &[], 40).expect("a layout");
    let plan = if is_linux {
        Linux { name: "k".into(), kernel, initrd: second, command_line }.plan(ram, 1)
    } else {
        let modules = vec![("m".into(), second)];
        Multiboot { name: "k".into(), kernel, command_line, modules }.plan(ram, 1)
    };
    if let Ok(plan) = plan {
        lies_in_ram(&plan);
    }
}

fn lies_in_ram(plan: &Plan) {
    let mut pieces: Vec<(u64, u64)> =
        plan.segments.iter().map(|(gpa, data)| (*gpa, *gpa + data.len() as u64)).collect();
    pieces.sort_unstable();
    for (from, to) in &pieces {
        let is_around = |r: &hypervisor::wire::Range| *from >= r.gpa && *to <= r.gpa + r.bytes;
        assert!(plan.ram.iter().any(is_around), "{from:#x}..{to:#x} is no RAM");
    }
    for pair in pieces.windows(2) {
        assert!(pair[0].1 <= pair[1].0, "{pair:x?} overlap");
    }
}
