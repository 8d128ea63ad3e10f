//! The DSDT: devices, names and resources of the file `/etc/firmware/vmm.dsdt` of 8.0 (vmm-dsdt.asl
//! 1.1 in OpenBSD's firmware ports). The AML is this project's own.

use acpi_tables::{
    Aml, AmlSink,
    aml::{
        AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Method, Name, ONE, Package, Path,
        ResourceTemplate, Return, Scope, ZERO,
    },
    sdt::Sdt,
};

use super::SLEEP_TYPE_S5;
use crate::bus::mmio;

/// Interrupt lines of the PCI slots from 1 on, in the order in which vmd assigns the 8259 lines.
const SLOT_INTERRUPTS: [u8; 10] = [3, 5, 6, 7, 9, 10, 11, 12, 14, 15];

/// ASL's `IRQNoFlags`: edge-triggered lines of the 8259s, as a bit map.
struct IrqNoFlags(u16);

impl Aml for IrqNoFlags {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.byte(0x22);
        sink.word(self.0);
    }
}

/// A device with its name, hardware ID and other objects.
fn device(sink: &mut Sdt, name: &str, hid: &str, rest: &[&dyn Aml]) {
    let hid = Name::new("_HID".into(), &EISAName::new(hid));
    let mut children: Vec<&dyn Aml> = vec![&hid];
    children.extend_from_slice(rest);
    Scope::new("_SB_".into(), vec![&Device::new(name.into(), children)]).to_aml_bytes(sink);
}

fn resources(children: Vec<&dyn Aml>) -> Name {
    Name::new("_CRS".into(), &ResourceTemplate::new(children))
}

/// Appends the definition block to `table`, a DSDT with its header.
pub(super) fn append(table: &mut Sdt) {
    let entries: Vec<[u32; 4]> =
        (1u32..).zip(SLOT_INTERRUPTS).map(|(slot, gsi)| [slot << 16 | 0xffff, 0, 0, gsi.into()]).collect();
    let entries: Vec<Package<'_>> = entries
        .iter()
        .map(|entry| Package::new(entry.iter().map(|value| value as &dyn Aml).collect()))
        .collect();
    let routing = Package::new(entries.iter().map(|entry| entry as &dyn Aml).collect());

    device(
        table,
        "PCI0",
        "PNP0A08",
        &[
            &Name::new("_CID".into(), &EISAName::new("PNP0A03")),
            &Name::new("_SEG".into(), &ZERO),
            &Name::new("_BBN".into(), &ZERO),
            &Name::new("_UID".into(), &ZERO),
            &resources(vec![
                &AddressSpace::new_bus_number(0u16, 0xff),
                &IO::new(0xcf8, 0xcf8, 1, 8),
                &AddressSpace::new_io(0x1000u16, 0xffff, None),
                &AddressSpace::new_memory(
                    AddressSpaceCacheable::NotCacheable,
                    true,
                    mmio::WINDOW_BASE as u32,
                    mmio::WINDOW_END as u32,
                    None,
                ),
            ]),
            &Name::new("_PRT".into(), &routing),
        ],
    );
    device(table, "RTC_", "PNP0B00", &[&resources(vec![&IO::new(0x70, 0x70, 0, 2)])]);
    device(table, "SPKR", "PNP0800", &[&resources(vec![&IO::new(0x61, 0x61, 0, 1)])]);
    device(
        table,
        "COM1",
        "PNP0501",
        &[
            &Name::new("_UID".into(), &ONE),
            &resources(vec![&IO::new(0x3f8, 0x3f8, 1, 8), &IrqNoFlags(1 << 4)]),
        ],
    );
    // Buttons: present, enabled and functioning, but never pressed.
    let present = Return::new(&0x0bu8);
    device(table, "PWRB", "PNP0C0C", &[&Method::new("_STA".into(), 0, false, vec![&present])]);
    device(table, "SLPB", "PNP0C0E", &[&Method::new("_STA".into(), 0, false, vec![&present])]);

    Name::new(Path::new("_S5_"), &Package::new(vec![&SLEEP_TYPE_S5, &SLEEP_TYPE_S5, &ZERO, &ZERO]))
        .to_aml_bytes(table);
    Name::new(Path::new("VMSI"), &Package::new(vec![&"OpenBSD vmd Virtual Machine", &"vmd"]))
        .to_aml_bytes(table);
}
