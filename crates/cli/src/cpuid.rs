//! Names of processor features and where CPUID shows them.

use anyhow::{Result, bail};
use hypervisor::wire::CpuidBit;

const EAX: u8 = 0;
const EBX: u8 = 1;
const ECX: u8 = 2;
const EDX: u8 = 3;

/// Name, leaf, subleaf, register, bit (AMD APM vol. 3, appendix E; Intel SDM vol. 2A, CPUID).
/// Only features that Linux or a guest's own memory management may use.
const NAMES: &[(&str, u32, u32, u8, u8)] = &[
    ("pse", 1, 0, EDX, 3),
    ("tsc", 1, 0, EDX, 4),
    ("pae", 1, 0, EDX, 6),
    ("mtrr", 1, 0, EDX, 12),
    ("pge", 1, 0, EDX, 13),
    ("pat", 1, 0, EDX, 16),
    ("pse36", 1, 0, EDX, 17),
    ("monitor", 1, 0, ECX, 3),
    ("pcid", 1, 0, ECX, 17),
    ("x2apic", 1, 0, ECX, 21),
    ("xsave", 1, 0, ECX, 26),
    ("avx", 1, 0, ECX, 28),
    ("rdrand", 1, 0, ECX, 30),
    ("fsgsbase", 7, 0, EBX, 0),
    ("avx2", 7, 0, EBX, 5),
    ("smep", 7, 0, EBX, 7),
    ("erms", 7, 0, EBX, 9),
    ("invpcid", 7, 0, EBX, 10),
    ("rdseed", 7, 0, EBX, 18),
    ("smap", 7, 0, EBX, 20),
    ("sha", 7, 0, EBX, 29),
    ("umip", 7, 0, ECX, 2),
    ("pku", 7, 0, ECX, 3),
    ("la57", 7, 0, ECX, 16),
    ("rdpid", 7, 0, ECX, 22),
    ("xsaveopt", 0xd, 1, EAX, 0),
    ("xsavec", 0xd, 1, EAX, 1),
    ("syscall", 0x8000_0001, 0, EDX, 11),
    ("nx", 0x8000_0001, 0, EDX, 20),
    ("pdpe1gb", 0x8000_0001, 0, EDX, 26),
    ("rdtscp", 0x8000_0001, 0, EDX, 27),
    ("sse4a", 0x8000_0001, 0, ECX, 6),
];

/// Reads `-pku,-la57`: the features to take out of the guest's CPUID.
pub fn parse(list: &str) -> Result<Vec<CpuidBit>> {
    let mut hidden = Vec::new();
    for item in list.split(',').map(str::trim).filter(|item| !item.is_empty()) {
        let Some(name) = item.strip_prefix('-') else {
            bail!("`{item}`: features can only be taken away; write `-{item}`");
        };
        let Some(&(_, leaf, subleaf, register, bit)) = NAMES.iter().find(|row| row.0 == name)
        else {
            let known: Vec<_> = NAMES.iter().map(|row| row.0).collect();
            bail!("no feature `{name}`; known are {}", known.join(", "));
        };
        hidden.push(CpuidBit { leaf, subleaf, register, bit });
    }
    Ok(hidden)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_found_by_name() {
        let hidden = parse("-pku,-la57,-smap").unwrap();
        assert_eq!(hidden[1], CpuidBit { leaf: 7, subleaf: 0, register: ECX, bit: 16 });
        assert_eq!(hidden.len(), 3);
    }

    #[test]
    fn an_unknown_or_added_feature_is_refused_by_name() {
        assert!(parse("-quux").unwrap_err().to_string().contains("`quux`"));
        assert!(parse("pku").unwrap_err().to_string().contains("`-pku`"));
    }

    #[test]
    fn no_two_names_share_a_bit() {
        for (i, a) in NAMES.iter().enumerate() {
            for b in &NAMES[i + 1..] {
                assert!((a.1, a.2, a.3, a.4) != (b.1, b.2, b.3, b.4), "{} {}", a.0, b.0);
            }
        }
    }
}
