//! What common work costs with our kernel, in exits that the machine counts. The bounds lie between what our kernel takes
//! and what Linux takes without our changes.

use std::fs::File;

use guest_tests::{event::Event, marks::Marks, run::Guest};
use rstest::rstest;
use support::note;

/// The marks at which the guest's work begins. Each ends at the next mark.
const COMPUTING: usize = 0;
const READING: usize = 2;

/// COM1's register that tells UARTs apart.
const UART_SCRATCH: u16 = 0x3ff;

/// Boots a guest on this release, which computes and reads from its disk. Returns what the machine counted, and the
/// interrupts while the guest computed.
fn work(host: &str, hz: u64) -> (Marks, u64) {
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk");
    File::create(&disk).unwrap().set_len(128 << 20).unwrap();
    let hz = hz.to_string();
    let arguments = ["--host", host, "--host-hz", &hz, "--disk", disk.to_str().unwrap(), "--marks"];
    let ended = Guest::ours()
        .run(&format!("exits-{host}"), "compute reads poweroff", &arguments)
        .end()
        .assert_status(0);
    assert!(ended.has(&Event::Done("reads".to_owned())), "{}", ended.everything());
    let interrupts = ended.one(|event| if let Event::Interrupts(came) = event { Some(*came) } else { None });
    (Marks::of(&ended), interrupts)
}

/// Each register of PCI configuration space is accessed once, the 8254 is read rarely, and the UART's type is known.
fn the_way_to_init_is_short(host: &str, marks: &Marks) {
    let of = |device: &str, kind: &str| marks.accesses(COMPUTING, device, kind);
    let (pci, pit) = (of("pci", "reads") + of("pci", "writes"), of("pit", "reads"));
    let scratch = marks.port(COMPUTING, UART_SCRATCH);
    let exits = marks.exits(COMPUTING);
    note!("{host}: {exits} exits to init: PCI {pci}, reads of the 8254 {pit}, scratch register {scratch}");
    assert!(pci <= 160, "{pci}");
    assert!(pit <= 24, "{pit}");
    assert_eq!(scratch, 0);
}

/// A disk request is one write of a register, and its interrupt reads none.
fn a_read_is_one_access(host: &str, marks: &Marks) {
    let of = |kind: &str| marks.accesses_from(READING, "virtio", kind);
    let (reads, writes) = (of("reads"), of("writes"));
    note!("{host}: 100 reads of the disk: {writes} writes of registers, {reads} reads");
    assert!((100..=120).contains(&writes), "{writes}");
    assert!(reads <= 20, "{reads}");
}

/// Consecutive ticks start the 8254 once, not with two writes each.
fn ticks_in_a_row_take_few_writes(host: &str, marks: &Marks, interrupts: u64) {
    let writes = marks.accesses_from(COMPUTING, "pit", "writes");
    note!("{host}: {interrupts} interrupts while computing, {writes} writes to the 8254");
    assert!(interrupts >= 60, "{interrupts}");
    assert!(writes < interrupts, "{writes} for {interrupts}");
}

/// The host ticks as often as the guest.
#[rstest]
#[ignore = "boots a guest in the helper VM: make e2e"]
fn work_takes_few_exits(#[values("7.7", "7.8")] host: &str) {
    let (marks, interrupts) = work(host, 100);
    the_way_to_init_is_short(host, &marks);
    a_read_is_one_access(host, &marks);
    ticks_in_a_row_take_few_writes(host, &marks, interrupts);
}

/// A host that ticks faster than the guest makes no more interrupts than the guest asks for.
#[test]
#[ignore = "boots a guest in the helper VM: make e2e"]
fn work_takes_few_exits_on_7_9_with_1000_ticks() {
    let (marks, interrupts) = work("7.9", 1000);
    the_way_to_init_is_short("7.9", &marks);
    a_read_is_one_access("7.9", &marks);
    note!("7.9: {interrupts} interrupts while computing");
    // Three for each of 300 jiffies; a channel that goes on by itself makes one or two for each millisecond.
    assert!(interrupts <= 1_000, "{interrupts}");
}

/// With a local APIC and ACPI the way to init is longer. PCI configuration space takes a sixth of what Linux's own probing
/// takes, and the IOAPIC nothing. Interrupts are not counted, as their number grows with the time that a boot takes.
#[test]
#[ignore = "boots a guest in the helper VM: make e2e"]
fn work_takes_few_exits_on_8_0() {
    let (marks, _) = work("8.0", 100);
    let of = |device: &str| {
        marks.accesses(COMPUTING, device, "reads") + marks.accesses(COMPUTING, device, "writes")
    };
    let (exits, pci) = (marks.exits(COMPUTING), of("pci"));
    let all: u64 = ["pci", "pci memory", "virtio", "pm", "pic", "pit", "rtc"].map(of).iter().sum();
    note!("8.0: {exits} exits to init: {all} accesses to devices, of them PCI {pci}");
    assert!(pci <= 260, "{pci}");
    assert!(all <= 600, "{all}");
    assert_eq!(of("ioapic"), 0);
    a_read_is_one_access("8.0", &marks);
}
