//! Boot: loads firmware or a kernel and sets vCPU 0 to its first instruction.

mod direct;
mod firmware;

use devices::{acpi::tables, memory_map::MemoryMap};
use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::{config::Boot, config::Config, error::Error};

pub(crate) use direct::{CODE_SELECTOR, write_tables};
pub(crate) use firmware::Firmware;

/// CR0: protection enable.
const CR0_PE: u64 = 1 << 0;
/// CR0: extension type, always 1.
const CR0_ET: u64 = 1 << 4;
/// CR0: not write-through.
const CR0_NW: u64 = 1 << 29;
/// CR0: cache disable.
const CR0_CD: u64 = 1 << 30;
/// CR0: paging.
const CR0_PG: u64 = 1 << 31;
/// CR4: physical address extension.
const CR4_PAE: u64 = 1 << 5;
/// EFER: long mode enabled.
const EFER_LME: u64 = 1 << 8;
/// EFER: long mode active.
const EFER_LMA: u64 = 1 << 10;
/// APIC base without the enable bit. If the bit is set, KVM shows the APIC in CPUID leaf 1 even if
/// the CPUID that was set does not.
const NO_APIC: u64 = 0xfee0_0000;
/// APIC base of 8.0: enabled. KVM uses it only to show the APIC; the guest's accesses go to the
/// device model.
const APIC: u64 = 0xfee0_0800;
/// APIC base: this is the boot processor.
const APIC_BSP: u64 = 1 << 8;
/// RFLAGS: the bit that is always set.
const RFLAGS_ONE: u64 = 1 << 1;

/// A guest loaded into memory, and the initial state of vCPU 0.
pub(crate) struct LoadedGuest {
    pub(crate) regs: kvm_regs,
    pub(crate) sregs: kvm_sregs,
    /// The firmware, if it boots through one.
    pub(crate) firmware: Option<Firmware>,
}

/// Loads firmware or kernel as `config` says into `memory`, laid out by `map`. `sregs` are vCPU 0's
/// as KVM created them.
pub(crate) fn load(
    config: &Config,
    memory: &GuestMemoryMmap,
    map: &MemoryMap,
    sregs: &kvm_sregs,
) -> Result<LoadedGuest, Error> {
    let mut loaded = match &config.boot {
        Boot::Firmware { image, .. } => {
            let firmware = firmware::load(image, memory, config.capabilities().low_memory_end)?;
            let (regs, sregs) = reset_state(sregs);
            LoadedGuest { regs, sregs, firmware: Some(firmware) }
        }
        Boot::Direct { kernel, initrd, command_line } => {
            let entry = direct::load(memory, &map.e820(), kernel, initrd.as_deref(), command_line)?;
            let (regs, sregs) = long_mode_state(entry, sregs);
            LoadedGuest { regs, sregs, firmware: None }
        }
    };
    if config.capabilities().acpi {
        loaded.sregs.apic_base = APIC | APIC_BSP;
        write_acpi_tables(config.cpus, memory)?;
    }
    Ok(loaded)
}

/// Writes the ACPI tables into memory, as vmd does; a directly booted guest finds them there.
fn write_acpi_tables(cpus: u8, memory: &GuestMemoryMmap) -> Result<(), Error> {
    for blob in tables::tables(cpus) {
        memory
            .write_slice(&blob.bytes, GuestAddress(blob.address))
            .map_err(|source| Error::AllocateMemory { source: Box::new(source) })?;
    }
    Ok(())
}

/// A segment of descriptor type `kind`.
const fn segment(selector: u16, base: u64, limit: u32, kind: u8) -> kvm_segment {
    kvm_segment {
        base,
        limit,
        selector,
        type_: kind,
        present: 1,
        dpl: 0,
        db: 0,
        s: 1,
        l: 0,
        g: 0,
        avl: 0,
        unusable: 0,
        padding: 0,
    }
}

/// Type of a code segment: readable, accessed.
const CODE: u8 = 0xb;
/// Type of a data segment: writable, accessed.
const DATA: u8 = 0x3;
/// Type of a busy TSS.
const BUSY_TSS: u8 = 0xb;
/// Type of an LDT.
const LDT: u8 = 0x2;

/// State in which vmd starts firmware (`vcpu_init_flat16` in x86_vm.c): real mode at f000:fff0,
/// with the code segment at 0xf0000 and not at the top of 4 GiB as after a processor's reset. All
/// general registers are 0, RDX too.
fn reset_state(created: &kvm_sregs) -> (kvm_regs, kvm_sregs) {
    let mut sregs = *created;
    let regs = kvm_regs { rip: 0xfff0, rflags: RFLAGS_ONE, ..Default::default() };
    sregs.cs = segment(0xf000, 0xf_0000, 0xffff, CODE);
    let data = segment(0, 0, 0xffff, DATA);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = kvm_segment { s: 0, ..segment(0, 0, 0xffff, BUSY_TSS) };
    sregs.ldt = kvm_segment { s: 0, ..segment(0, 0, 0xffff, LDT) };
    sregs.gdt = kvm_dtable { base: 0, limit: 0xffff, padding: [0; 3] };
    sregs.idt = sregs.gdt;
    sregs.cr0 = CR0_CD | CR0_NW | CR0_ET;
    sregs.cr3 = 0;
    sregs.cr4 = 0;
    sregs.efer = 0;
    sregs.apic_base = NO_APIC;
    (regs, sregs)
}

/// State of a vCPU of 8.0 after a SIPI with `vector`: real mode at `vector << 12`, otherwise as
/// after a reset.
pub(crate) fn sipi_state(vector: u8) -> (kvm_regs, kvm_sregs) {
    let (regs, mut sregs) = reset_state(&kvm_sregs::default());
    sregs.cs = segment(u16::from(vector) << 8, u64::from(vector) << 12, 0xffff, CODE);
    sregs.apic_base = APIC;
    (kvm_regs { rip: 0, ..regs }, sregs)
}

/// State required by Linux' 64-bit boot protocol: long mode, flat segments, interrupts disabled,
/// the lowest 4 GiB mapped one to one, RSI pointing to the zero page.
pub(crate) fn long_mode_state(entry: u64, created: &kvm_sregs) -> (kvm_regs, kvm_sregs) {
    let mut sregs = *created;
    let regs = kvm_regs {
        rip: entry,
        rsi: direct::ZERO_PAGE,
        rsp: direct::STACK_TOP,
        rflags: RFLAGS_ONE,
        ..Default::default()
    };
    sregs.cs = kvm_segment { l: 1, g: 1, ..segment(direct::CODE_SELECTOR, 0, u32::MAX, CODE) };
    let data = kvm_segment { db: 1, g: 1, ..segment(direct::DATA_SELECTOR, 0, u32::MAX, DATA) };
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = kvm_segment { s: 0, ..segment(0, 0, 0xffff, BUSY_TSS) };
    sregs.gdt = kvm_dtable { base: direct::GDT, limit: direct::GDT_LIMIT, padding: [0; 3] };
    sregs.idt = kvm_dtable { base: 0, limit: 0, padding: [0; 3] };
    sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
    sregs.cr3 = direct::PAGE_TABLES;
    sregs.cr4 = CR4_PAE;
    sregs.efer = EFER_LME | EFER_LMA;
    sregs.apic_base = NO_APIC;
    (regs, sregs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reset_state_is_vmds() {
        let (regs, sregs) = reset_state(&kvm_sregs::default());
        assert_eq!(sregs.cs.base + regs.rip, 0xf_fff0);
        assert_eq!(sregs.cr0, 0x6000_0010);
        assert_eq!((regs.rdx, regs.rflags), (0, 2));
    }

    #[test]
    fn a_sipi_starts_at_the_page_of_its_vector() {
        let (regs, sregs) = sipi_state(0x9a);
        assert_eq!((sregs.cs.selector, sregs.cs.base, regs.rip), (0x9a00, 0x9_a000, 0));
        assert_eq!((sregs.cr0 & (CR0_PE | CR0_PG), sregs.efer, sregs.cr4), (0, 0, 0));
        assert_eq!(regs.rflags, 2);
        assert_eq!(sregs.apic_base & (APIC | APIC_BSP), APIC);
    }
}
