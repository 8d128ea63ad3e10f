//! What common work costs with our kernel, in exits that the machine counts. The bounds lie between what it takes and what
//! it took before the patches that are named here.

use std::fs::File;

use guest_tests::{
    marks::Marks,
    run::{Guest, number, program},
};
use support::note;

/// Where the guest writes its marks: its work begins at the even ones.
const COMPUTING: usize = 0;
const READING: usize = 2;

/// COM1's register that tells UARTs apart.
const UART_SCRATCH: u16 = 0x3ff;

/// What a guest of this release did, and how many interrupts came while it computed.
fn work(host: &str, hz: u64) -> (Marks, u64) {
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk");
    File::create(&disk).unwrap().set_len(128 << 20).unwrap();
    let statistics = dir.path().join("statistics");
    let guest = Guest::with_our_kernel(&program("guest"));
    let hz = hz.to_string();
    let [disk, file] = [&disk, &statistics].map(|path| path.to_str().unwrap());
    let arguments = ["--host", host, "--host-hz", &hz, "--disk", disk, "--marks", "--stats", file];
    let (status, console, errors) =
        guest.run(&format!("exits-{host}"), "compute reads poweroff", &arguments).end();
    assert_eq!(status, 0, "{console}\n{errors}");
    assert!(console.contains("guest: 100 reads"), "{console}");
    (Marks::read(&statistics), number(&console, "computed for 3 s, ").try_into().unwrap())
}

/// Patches 0031, 0032 and 0038: each register of configuration space once, few looks at the 8253, none at the UART's type.
fn the_way_to_init_is_short(host: &str, marks: &Marks) {
    let of = |device: &str, kind: &str| marks.accesses(COMPUTING, device, kind);
    let (pci, pit) = (of("pci", "reads") + of("pci", "writes"), of("pit", "reads"));
    let scratch = marks.port(COMPUTING, UART_SCRATCH);
    let exits = marks.exits(COMPUTING);
    note!("{host}: {exits} exits to init: PCI {pci}, reads of the 8253 {pit}, scratch register {scratch}");
    assert!(pci <= 160, "{pci}");
    assert!(pit <= 24, "{pit}");
    assert_eq!(scratch, 0);
}

/// Patch 0037: a request is one write, and its interrupt reads nothing.
fn a_read_is_one_access(host: &str, marks: &Marks) {
    let of = |kind: &str| marks.accesses_from(READING, "virtio", kind);
    let (reads, writes) = (of("reads"), of("writes"));
    note!("{host}: 100 reads of the disk: {writes} writes of registers, {reads} reads");
    assert!((100..=120).contains(&writes), "{writes}");
    assert!(reads <= 20, "{reads}");
}

/// Patch 0036: a row of ticks starts the 8253 once. Before, it took two writes for each.
fn ticks_in_a_row_take_few_writes(host: &str, marks: &Marks, interrupts: u64) {
    let writes = marks.accesses_from(COMPUTING, "pit", "writes");
    note!("{host}: {interrupts} interrupts while computing, {writes} writes to the 8253");
    assert!(interrupts >= 60, "{interrupts}");
    assert!(writes < interrupts, "{writes} for {interrupts}");
}

/// All of it, on a host that ticks as often as the guest.
fn work_takes_few_exits(host: &str) {
    let (marks, interrupts) = work(host, 100);
    the_way_to_init_is_short(host, &marks);
    a_read_is_one_access(host, &marks);
    ticks_in_a_row_take_few_writes(host, &marks, interrupts);
}

#[test]
#[ignore = "boots a guest in the helper VM: make e2e"]
fn work_takes_few_exits_on_7_7() {
    work_takes_few_exits("7.7");
}

#[test]
#[ignore = "boots a guest in the helper VM: make e2e"]
fn work_takes_few_exits_on_7_8() {
    work_takes_few_exits("7.8");
}

/// A host that ticks faster than the guest is not left to make more interrupts than there have to be.
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
