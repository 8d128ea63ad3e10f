//! LAPIC, IOAPIC and 8259s of 8.0: whatever is pending can be delivered, and timers never ask to be looked at before
//! now.
#![no_main]

use std::sync::Arc;

use arbitrary::Arbitrary;
use devices::{
    apic::SharedApic,
    clock::{Clock, HostTicks},
    i82093aa,
    irq::InterruptController,
    lapic,
    mmio::MmioAccess,
};
use libfuzzer_sys::fuzz_target;
use vmmlinux_fuzz::clock;

/// One thing that happens.
#[derive(Arbitrary, Debug)]
enum Event {
    ReadLapic { offset: u16, size: u8 },
    WriteLapic { offset: u16, size: u8, value: u32 },
    ReadIoapic { offset: u8 },
    WriteIoapic { index: u8, value: u32 },
    ReadMsr { index: u8 },
    WriteMsr { index: u8, value: u64 },
    WriteApicBase { value: u64 },
    Line { irq: u8, up: bool },
    Message { address: u32, data: u32 },
    TaskPriority { value: u8 },
    Deliver,
    Wait { micros: u32 },
}

fuzz_target!(|events: Vec<Event>| {
    let clock = clock();
    let apic = SharedApic::new(2, Arc::clone(&clock) as _, HostTicks::default(), Box::new(|_| {}));
    let size = |size: u8| 1 << (size % 4);
    for (n, event) in events.into_iter().enumerate() {
        let vcpu = (n % 2) as u8;
        // What a device refuses and what faults is as good as what it takes.
        match event {
            Event::ReadLapic { offset, size: s } => {
                let address = lapic::BASE + u64::from(offset & 0xfff);
                drop(apic.mmio(vcpu, &mut MmioAccess::read(address, size(s))));
            }
            Event::WriteLapic { offset, size: s, value } => {
                let address = lapic::BASE + u64::from(offset & 0xfff);
                drop(apic.mmio(vcpu, &mut MmioAccess::write(address, size(s), value.into())));
            }
            Event::ReadIoapic { offset } => {
                drop(apic.mmio(vcpu, &mut MmioAccess::read(i82093aa::BASE + u64::from(offset), 4)));
            }
            Event::WriteIoapic { index, value } => {
                drop(apic.mmio(vcpu, &mut MmioAccess::write(i82093aa::BASE, 4, index.into())));
                drop(apic.mmio(vcpu, &mut MmioAccess::write(i82093aa::BASE + 0x10, 4, value.into())));
            }
            Event::ReadMsr { index } => drop(apic.read_msr(vcpu, 0x800 + u32::from(index))),
            Event::WriteMsr { index, value } => drop(apic.write_msr(vcpu, 0x800 + u32::from(index), value)),
            Event::WriteApicBase { value } => drop(apic.write_msr(vcpu, lapic::MSR_APICBASE, value)),
            Event::Line { irq, up: true } => apic.assert_irq(irq & 15),
            Event::Line { irq, up: false } => apic.deassert_irq(irq & 15),
            Event::Message { address, data } => apic.message(0xfee0_0000 | u64::from(address), data),
            Event::TaskPriority { value } => apic.set_cr8(vcpu, value & 15),
            Event::Deliver => {
                let pending = apic.pending(vcpu);
                assert_eq!(apic.acknowledge(vcpu).is_some(), pending);
            }
            Event::Wait { micros } => clock.advance(u64::from(micros) * 1000),
        }
        apic.expire();
        assert!(apic.deadline().is_none_or(|at| at > clock.monotonic()));
    }
});
