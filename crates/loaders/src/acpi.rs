//! The ACPI tables a Linux guest finds: processors, power-off, reset, and nothing else.
//!
//! The hypervisor gives guests the PC's PIC, PIT, RTC, UART and local APICs. So there is no
//! I/O APIC in the MADT, no HPET, no PCI; the fixed hardware of the FADT (ACPI 6.5, section 4.8)
//! stands where QEMU's q35 machine has it.

use acpi_tables::{
    Aml,
    aml::{Name, Package},
    facs::FACS,
    fadt::{FADTBuilder, Flags},
    gas::{AccessSize, AddressSpace, GAS},
    madt::{EnabledStatus, ProcessorLocalApic},
    rsdp::Rsdp,
    sdt::Sdt,
    xsdt::XSDT,
};

const OEM: [u8; 6] = *b"VMMU  ";
const TABLE: [u8; 8] = *b"VMMUTABL";
const REVISION: u32 = 1;

/// Bytes set aside for the tables.
pub const TABLES_BYTES: u64 = 0x1000;
/// Bytes set aside for the FACS, which the operating system may write.
pub const FACS_BYTES: u64 = 0x1000;

/// First port of the PM1a event block, the PM1a control register and the PM timer.
const PM1A_EVENT: u32 = 0x600;
const PM1A_CONTROL: u32 = 0x604;
const PM_TIMER: u32 = 0x608;
/// Reset control register of PC chipsets and the value that resets.
const RESET_PORT: u64 = 0xcf9;
const RESET_VALUE: u8 = 6;
/// Guest-physical address of every local APIC.
const LOCAL_APIC: u32 = 0xfee0_0000;
/// MADT flag: the machine has a pair of 8259 controllers.
const PCAT_COMPAT: u32 = 1;
/// FADT boot architecture: legacy devices are there; no VGA.
const LEGACY_DEVICES: u16 = 1 << 0;
const VGA_NOT_PRESENT: u16 = 1 << 2;

/// All tables but the FACS, as one piece to be put at `gpa`, whose RSDP is its first byte.
/// `facs` is where [`facs`] will be; local APIC ids are 0 to `cpus` - 1.
pub fn tables(gpa: u64, facs: u64, cpus: u32) -> Vec<u8> {
    let mut bytes = vec![0; Rsdp::len().next_multiple_of(64)];
    let mut add = |table: &dyn Aml| {
        let at = gpa + bytes.len() as u64;
        table.to_aml_bytes(&mut bytes);
        bytes.resize(bytes.len().next_multiple_of(64), 0);
        at
    };
    let dsdt = add(&dsdt());
    let fadt = add(&fadt(dsdt, facs));
    let madt = add(&madt(cpus));
    let mut xsdt = XSDT::new(OEM, TABLE, REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = add(&xsdt);
    let mut rsdp = Vec::new();
    Rsdp::new(OEM, xsdt).to_aml_bytes(&mut rsdp);
    bytes[..rsdp.len()].copy_from_slice(&rsdp);
    bytes
}

/// The FACS (64-byte aligned by its place).
pub fn facs() -> Vec<u8> {
    let mut bytes = Vec::new();
    FACS::new().to_aml_bytes(&mut bytes);
    bytes
}

/// Only `\_S5`: sleep type 0 for both control registers, as q35 wants it.
fn dsdt() -> Sdt {
    let mut table = Sdt::new(*b"DSDT", 36, 6, OEM, TABLE, REVISION);
    Name::new("_S5_".into(), &Package::new(vec![&0u8, &0u8, &0u8, &0u8])).to_aml_bytes(&mut table);
    table.update_checksum();
    table
}

fn fadt(dsdt: u64, facs: u64) -> acpi_tables::fadt::FADT {
    let mut table = FADTBuilder::new(OEM, TABLE, REVISION)
        .dsdt_64(dsdt)
        .firmware_ctrl_32(facs as u32)
        .flag(Flags::Wbinvd)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless);
    table.dsdt = (dsdt as u32).into();
    table.sci_int = 9.into();
    table.pm1a_evt_blk = PM1A_EVENT.into();
    table.pm1_evt_len = 4;
    table.pm1a_cnt_blk = PM1A_CONTROL.into();
    table.pm1_cnt_len = 2;
    table.pm_tmr_blk = PM_TIMER.into();
    table.pm_tmr_len = 4;
    table.century = 0x32;
    table.iapc_boot_arch = (LEGACY_DEVICES | VGA_NOT_PRESENT).into();
    table.reset_reg = GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, RESET_PORT);
    table.reset_value = RESET_VALUE;
    table.finalize()
}

/// Built on a plain table: the crate's own MADT cannot say that there are 8259 controllers.
fn madt(cpus: u32) -> Sdt {
    let mut table = Sdt::new(*b"APIC", 36, 4, OEM, TABLE, REVISION);
    table.append_slice(&LOCAL_APIC.to_le_bytes());
    table.append_slice(&PCAT_COMPAT.to_le_bytes());
    for cpu in 0..cpus as u8 {
        ProcessorLocalApic::new(cpu, cpu, EnabledStatus::Enabled).to_aml_bytes(&mut table);
    }
    table.update_checksum();
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn u32_at(bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    fn u64_at(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    #[test]
    fn every_table_is_found_from_the_rsdp_and_sums_to_zero() {
        let gpa = 0x9_e000;
        let bytes = tables(gpa, 0x9_f000, 4);
        assert!(bytes.len() as u64 <= TABLES_BYTES);
        assert_eq!(&bytes[..8], b"RSD PTR ");
        let table = |at: u64| {
            let at = (at - gpa) as usize;
            let bytes = &bytes[at..at + u32_at(&bytes, at + 4) as usize];
            assert_eq!(bytes.iter().fold(0u8, |sum, b| sum.wrapping_add(*b)), 0);
            bytes
        };
        let xsdt = table(u64_at(&bytes, 24));
        assert_eq!(&xsdt[..4], b"XSDT");
        let fadt = table(u64_at(xsdt, 36));
        assert_eq!(&fadt[..4], b"FACP");
        assert_eq!(u32_at(fadt, 64), PM1A_CONTROL);
        assert_eq!(u32_at(fadt, 36), 0x9_f000);
        let dsdt = table(u32_at(fadt, 40).into());
        assert_eq!(&dsdt[..4], b"DSDT");
        assert!(dsdt.windows(4).any(|name| name == b"_S5_"));
        let madt = table(u64_at(xsdt, 44));
        assert_eq!(&madt[..4], b"APIC");
        assert_eq!(u32_at(madt, 40) & 1, PCAT_COMPAT);
        assert_eq!(madt.len(), 44 + 4 * 8);
    }

    #[test]
    fn the_largest_machine_fits() {
        assert!(tables(0, 0, 8).len() as u64 <= TABLES_BYTES);
        assert!(facs().len() as u64 <= FACS_BYTES);
    }
}
