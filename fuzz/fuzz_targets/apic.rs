//! LAPICs, IOAPIC and 8259s of 8.0: every pending interrupt can be delivered, every vCPU with one
//! was woken, only existing vCPUs are woken, started or stopped, and no timer's deadline lies in
//! the past.
#![no_main]

use std::sync::{
    Arc,
    atomic::{AtomicU8, Ordering},
};

use arbitrary::Arbitrary;
use devices::{
    bus::{PortAccess, Width, mmio::MmioAccess},
    clock::{Clock, HostTicks},
    irqchip::{
        InterruptController,
        apic::SharedApic,
        ioapic,
        lapic::{self, StartupIpis},
    },
};
use libfuzzer_sys::fuzz_target;
use vmmlinux_fuzz::clock;

/// One random event.
#[derive(Arbitrary, Debug)]
enum Event {
    ReadLapic { offset: u16, size: u8 },
    WriteLapic { offset: u16, size: u8, value: u32 },
    ReadIoapic { offset: u8 },
    WriteIoapic { index: u8, value: u32 },
    ReadMsr { index: u8 },
    WriteMsr { index: u8, value: u64 },
    WriteApicBase { value: u64 },
    WritePic { port: u8, value: u8 },
    Line { irq: u8, up: bool },
    Message { address: u32, data: u32 },
    TaskPriority { value: u8 },
    Deliver,
    Wait { micros: u32 },
}

const VCPUS: u8 = 2;

/// Checks the returned startup IPIs.
fn told(orders: StartupIpis) {
    assert!(orders.iter().all(|(vcpu, _)| *vcpu < VCPUS));
}

fuzz_target!(|events: Vec<Event>| {
    let clock = clock();
    let woken = Arc::new(AtomicU8::new(0));
    let wake = Box::new({
        let woken = Arc::clone(&woken);
        move |vcpu: u8| {
            assert!(vcpu < VCPUS);
            woken.fetch_or(1u8 << vcpu, Ordering::Relaxed);
        }
    });
    let apic = SharedApic::new(VCPUS, Arc::clone(&clock) as _, HostTicks::default(), wake);
    let size = |size: u8| 1 << (size % 4);
    for (n, event) in events.into_iter().enumerate() {
        let vcpu = (n % usize::from(VCPUS)) as u8;
        let other = 1 - vcpu;
        let pending = apic.pending(other);
        woken.store(0, Ordering::Relaxed);
        // Refused and faulting accesses are valid outcomes.
        match event {
            Event::ReadLapic { offset, size: s } => {
                let address = lapic::BASE + u64::from(offset & 0xfff);
                drop(apic.mmio(vcpu, &mut MmioAccess::read(address, size(s))));
            }
            Event::WriteLapic { offset, size: s, value } => {
                let address = lapic::BASE + u64::from(offset & 0xfff);
                if let Some(Ok(orders)) =
                    apic.mmio(vcpu, &mut MmioAccess::write(address, size(s), value.into()))
                {
                    told(orders);
                }
            }
            Event::ReadIoapic { offset } => {
                drop(apic.mmio(vcpu, &mut MmioAccess::read(ioapic::BASE + u64::from(offset), 4)));
            }
            Event::WriteIoapic { index, value } => {
                drop(apic.mmio(vcpu, &mut MmioAccess::write(ioapic::BASE, 4, index.into())));
                drop(apic.mmio(vcpu, &mut MmioAccess::write(ioapic::BASE + 0x10, 4, value.into())));
            }
            Event::ReadMsr { index } => drop(apic.read_msr(vcpu, 0x800 + u32::from(index))),
            Event::WriteMsr { index, value } => {
                told(apic.write_msr(vcpu, 0x800 + u32::from(index), value).unwrap_or_default());
            }
            Event::WriteApicBase { value } => drop(apic.write_msr(vcpu, lapic::MSR_APICBASE, value)),
            Event::WritePic { port, value } => {
                let port = [0x20, 0x21, 0xa0, 0xa1][usize::from(port % 4)];
                apic.access(&mut PortAccess::output(port, Width::Byte, value.into()));
            }
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
        // A step of one vCPU must wake every vCPU that has a pending interrupt.
        let was_woken = woken.load(Ordering::Relaxed) >> other & 1 != 0;
        assert!(!apic.pending(other) || pending || was_woken);
        assert!(apic.deadline().is_none_or(|at| at > clock.monotonic()));
    }
});
