//! Whether a BIOS can boot a disk, by its first two sectors.

use crate::finding::Finding;

/// Bytes of boot code in an MBR, before the disk signature.
const BOOT_CODE: usize = 440;
/// Offset of the first partition entry's type.
const FIRST_TYPE: usize = 450;
/// Size of a partition entry.
const ENTRY: usize = 16;
/// Type of the entry that protects a GPT.
const TYPE_PROTECTIVE: u8 = 0xee;

/// What keeps a BIOS from booting the disk with these first 1024 bytes.
pub(crate) fn judge(name: &str, sectors: &[u8; 1024], is_iso: bool) -> Option<Finding> {
    let (first, second) = sectors.split_at(512);
    if &first[510..] != b"\x55\xaa" {
        let help = if is_iso {
            "this is a CD-ROM image: name it as the CD-ROM, beside a disk to install to"
        } else {
            "`vmmlinux image` makes disks that boot; an empty one wants a CD-ROM to install from"
        };
        return Some(Finding::warning(
            format!("{name} has no boot sector"),
            "the BIOS finds nothing to boot",
            help,
        ));
    }
    if first[..BOOT_CODE].iter().any(|byte| *byte != 0) {
        return None;
    }
    let protective = (0..4).any(|entry| first[FIRST_TYPE + entry * ENTRY] == TYPE_PROTECTIVE);
    Some(if protective || second.starts_with(b"EFI PART") {
        Finding::warning(
            format!("{name} boots by UEFI only: its GPT has no boot code for a BIOS"),
            "vmd's firmware is a BIOS",
            "take the distribution's image for BIOS (`bios` instead of `uefi` in its name; Debian's `generic` has both), \
             or install a boot loader for BIOS (grub-install --target=i386-pc, with a BIOS boot partition)",
        )
    } else {
        Finding::warning(
            format!("{name} has a partition table without boot code"),
            "the BIOS finds nothing to boot",
            "install a boot loader for BIOS on it: GRUB (grub-install --target=i386-pc) or syslinux's mbr.bin",
        )
    })
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn sectors(code: u8, kind: u8, signature: bool, gpt: bool) -> [u8; 1024] {
        let mut sectors = [0; 1024];
        sectors[0] = code;
        sectors[FIRST_TYPE] = kind;
        if signature {
            sectors[510..512].copy_from_slice(&[0x55, 0xaa]);
        }
        if gpt {
            sectors[512..520].copy_from_slice(b"EFI PART");
        }
        sectors
    }

    #[rstest]
    #[case::empty(sectors(0, 0, false, false), false, "no boot sector", "to install from")]
    #[case::cdrom(sectors(0, 0, false, false), true, "no boot sector", "as the CD-ROM")]
    #[case::uefi(sectors(0, 0xee, true, true), false, "UEFI only", "`bios`")]
    #[case::hybrid_table(sectors(0, 0x83, true, true), false, "UEFI only", "`bios`")]
    #[case::no_loader(sectors(0, 0x83, true, false), false, "without boot code", "grub-install")]
    fn a_disk_that_no_bios_boots_is_told(
        #[case] sectors: [u8; 1024],
        #[case] is_iso: bool,
        #[case] message: &str,
        #[case] help: &str,
    ) {
        let finding = judge("disk", &sectors, is_iso).unwrap();

        assert!(finding.message.contains(message) && finding.help.contains(help), "{finding:?}");
    }

    #[rstest]
    #[case::mbr(sectors(0xfa, 0x83, true, false))]
    #[case::gpt_with_code(sectors(0xeb, 0xee, true, true))]
    fn a_disk_with_boot_code_is_taken(#[case] sectors: [u8; 1024]) {
        assert_eq!(judge("disk", &sectors, false), None);
    }
}
