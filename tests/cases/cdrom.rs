//! Booting from a CD-ROM, which an installer does first of all.

use std::{fs, path::Path};

use guest_tests::run::{Run, machine};
use rstest::rstest;

/// Bytes in a block of a CD.
const BLOCK: usize = 2048;
/// Where the volume descriptors, the boot catalogue, the boot sector and the text are, in blocks.
const DESCRIPTORS: usize = 16;
const CATALOGUE: usize = 19;
const BOOT: usize = 20;
const TEXT: usize = 21;
const SAYS: &str = "read from the CD by what was booted from it";

/// A boot sector that has the firmware read the block of the text and print it, and then halts with interrupts off.
fn boot_sector() -> Vec<u8> {
    let mut code = vec![
        0x31, 0xc0, 0x8e, 0xd8, // xor ax, ax; mov ds, ax
        0xbe, 0x20, 0x7c, // mov si, packet
        0xb4, 0x42, 0xcd, 0x13, // int 13h: read from the drive in DL
        0x72, 0x10, // jc halt
        0xbe, 0x00, 0x80, // mov si, 8000h
        0xac, 0x84, 0xc0, // next: lodsb; test al, al
        0x74, 0x08, // jz halt
        0x31, 0xdb, 0xb4, 0x0e, 0xcd, 0x10, // xor bx, bx; int 10h: print AL
        0xeb, 0xf3, // jmp next
        0xfa, 0xf4, // halt: cli; hlt
    ];
    code.resize(0x20, 0);
    // The packet: its size, one block, to 0000:8000.
    code.extend([16, 0, 1, 0, 0x00, 0x80, 0, 0]);
    code.extend((TEXT as u64).to_le_bytes());
    code
}

/// As much of ISO 9660 and El Torito as firmware looks at.
fn write_cd(path: &Path) {
    let mut cd = vec![0; 64 * BLOCK];
    let mut put = |block: usize, offset: usize, bytes: &[u8]| {
        cd[block * BLOCK + offset..][..bytes.len()].copy_from_slice(bytes);
    };
    for (kind, block) in [1, 0, 255].into_iter().zip(DESCRIPTORS..) {
        put(block, 0, &[kind]);
        put(block, 1, b"CD001\x01");
    }
    put(DESCRIPTORS + 1, 7, b"EL TORITO SPECIFICATION");
    put(DESCRIPTORS + 1, 0x47, &u32::try_from(CATALOGUE).unwrap().to_le_bytes());
    // The validation entry, whose words add up to nothing; then the default entry: bootable, no emulation, one sector.
    put(CATALOGUE, 0, &[1]);
    put(CATALOGUE, 0x1c, &[0xaa, 0x55, 0x55, 0xaa]);
    put(CATALOGUE, 0x20, &[0x88, 0, 0, 0, 0, 0, 4, 0]);
    put(CATALOGUE, 0x28, &u32::try_from(BOOT).unwrap().to_le_bytes());
    put(BOOT, 0, &boot_sector());
    // The firmware keeps the last character until there is another.
    put(TEXT, 0, format!("{SAYS}.").as_bytes());
    fs::write(path, cd).unwrap();
}

#[rstest]
#[ignore = "boots a guest in the helper VM: make e2e"]
fn a_cd_is_booted_from(#[values("7.7", "8.0")] host: &str) {
    let dir = tempfile::tempdir().unwrap();
    let cd = dir.path().join("cd.iso");
    write_cd(&cd);
    let name = format!("cdrom-{host}");
    let mut command = machine(&name, "6h");
    command.args(["--host", host, "-B", "cdrom", "--cdrom"]).arg(&cd);
    let ended = Run::start(&name, command).end().assert_status(0);
    assert!(ended.console().contains(SAYS), "{}", ended.everything());
}
