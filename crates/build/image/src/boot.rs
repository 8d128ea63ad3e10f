//! The boot partition: FAT with the kernel and syslinux, which SeaBIOS starts through the MBR's boot code.

use std::{
    fs::{self, File},
    io::{self, Seek, SeekFrom, Write},
    path::Path,
};

use fatfs::{Date, DateTime, FatType, FileSystem, FormatVolumeOptions, FsOptions, Time, TimeProvider};
use fscommon::{BufStream, StreamSlice};

use crate::{
    disk::Region,
    error::{Error, Result},
    identity::Identity,
    kernel::Kernel,
    tool::{Tools, name},
};

/// Files of the partition.
pub(crate) const KERNEL: &str = "vmlinuz";
pub(crate) const INITRD: &str = "initrd.img";
pub(crate) const CONFIG: &str = "syslinux.cfg";

/// The kernel's command line, with further parameters at its end.
///
/// The root is named by PARTUUID and not as /dev/vda2, because another disk before this one in vm.conf(5) would make
/// it vdb, and because the kernel finds a PARTUUID without an initial RAM disk, which a UUID or a label needs.
/// `reboot=t`: the triple fault is what resets a VM of vmd 7.8 at once; the other ways take up to 47 s or, before
/// 7.8, forever.
pub(crate) fn command_line<'a>(root_partuuid: &str, append: impl IntoIterator<Item = &'a str>) -> String {
    let mut line = format!(
        "console=ttyS0,115200 root=PARTUUID={root_partuuid} rootfstype=ext4 rootwait ro reboot=t quiet"
    );
    for parameters in append.into_iter().filter(|parameters| !parameters.is_empty()) {
        line.push(' ');
        line.push_str(parameters);
    }
    line
}

/// Bytes that the kernel's files take.
pub(crate) fn space_needed(kernel: &Kernel) -> Result<u64> {
    let mut sum = 0;
    for file in [Some(kernel.bzimage()), kernel.initrd()].into_iter().flatten() {
        sum += fs::metadata(file).map_err(Error::io("read", file))?.len();
    }
    Ok(sum)
}

/// Formats `region` of the disk and fills it.
pub(crate) fn write(
    disk: &Path,
    region: Region,
    kernel: &Kernel,
    command_line: &str,
    identity: &Identity,
) -> Result<()> {
    let failed = |e: io::Error| Error::io("write", disk)(e);
    let mut file = File::options().read(true).write(true).open(disk).map_err(failed)?;
    let options = FormatVolumeOptions::new()
        .fat_type(FatType::Fat16)
        .volume_id(u32::from_le_bytes(identity.bytes("boot partition")))
        .volume_label(*b"BOOT       ");
    fatfs::format_volume(slice(&mut file, region).map_err(failed)?, options).map_err(failed)?;
    // "Hidden sectors", where the volume lies on the disk: syslinux's boot sector falls back on it.
    file.seek(SeekFrom::Start(region.start + 28)).map_err(failed)?;
    let hidden = u32::try_from(region.start / 512).map_err(std::io::Error::other).map_err(failed)?;
    file.write_all(&hidden.to_le_bytes()).map_err(failed)?;

    {
        let volume = BufStream::new(slice(&mut file, region).map_err(failed)?);
        let options = FsOptions::new().time_provider(&FirstDay);
        let volume = FileSystem::new(volume, options).map_err(failed)?;
        let root = volume.root_dir();
        let put = |name: &str, content: &[u8]| {
            let mut file = root.create_file(name)?;
            file.truncate()?;
            file.write_all(content)
        };
        let copy = |name: &str, from: &Path| {
            let content = fs::read(from).map_err(Error::io("read", from))?;
            put(name, &content).map_err(failed)
        };
        copy(KERNEL, kernel.bzimage())?;
        if let Some(initrd) = kernel.initrd() {
            copy(INITRD, initrd)?;
        }
        put(CONFIG, syslinux_cfg(kernel.release(), command_line, kernel.initrd().is_some()).as_bytes())
            .map_err(failed)?;
    }
    file.sync_data().map_err(failed)
}

fn slice(file: &mut File, region: Region) -> io::Result<StreamSlice<&mut File>> {
    StreamSlice::new(file, region.start, region.start + region.length)
}

/// Dates the files on the first day that FAT knows: the same in every image, and a date, which fatfs's own clockless
/// one (day zero of month zero) is not.
#[derive(Debug)]
struct FirstDay;

impl TimeProvider for FirstDay {
    fn get_current_date(&self) -> Date {
        Date { year: 1980, month: 1, day: 1 }
    }

    fn get_current_date_time(&self) -> DateTime {
        DateTime { date: self.get_current_date(), time: Time { hour: 0, min: 0, sec: 0, millis: 0 } }
    }
}

/// Half a second at the prompt, so that another command line can be typed when a guest does not come up. The menu's
/// label, which no menu shows, tells `guests/common/install-kernel` which kernel this is.
fn syslinux_cfg(release: &str, command_line: &str, initrd: bool) -> String {
    let initrd = if initrd { format!("  INITRD /{INITRD}\n") } else { String::new() };
    format!(
        "SERIAL 0 115200\nPROMPT 1\nTIMEOUT 5\nDEFAULT linux\n\nLABEL linux\n  MENU LABEL {release}\n  KERNEL /{KERNEL}\n{initrd}  APPEND {command_line}\n"
    )
}

/// Puts syslinux into the partition, through the file: its unprivileged installer works on an offset.
pub(crate) fn install_syslinux(
    tools: &Tools,
    disk: &Path,
    region: Region,
    identity: &Identity,
) -> Result<()> {
    let mut command = tools.command_beside("syslinux", disk)?;
    command
        .args(["--install", "--offset"])
        .arg(region.start.to_string())
        .arg(name(disk))
        .env("SOURCE_DATE_EPOCH", identity.time().to_string())
        // The partition ends where it should; mtools would rather it were whole tracks of a drive.
        .env("MTOOLS_SKIP_CHECK", "1");
    tools.run(&mut command, "syslinux", "installing the boot loader", disk)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;
    use crate::kernel::tests::header_only;

    #[test]
    fn the_command_line_is_for_a_serial_console() {
        assert_eq!(
            command_line("12345678-02", ["", "debug"]),
            "console=ttyS0,115200 root=PARTUUID=12345678-02 rootfstype=ext4 rootwait ro reboot=t quiet debug"
        );
    }

    #[test]
    fn the_partition_reads_back() {
        let dir = tempfile::tempdir().unwrap();
        let (bzimage, initrd) = (dir.path().join("bzImage"), dir.path().join("initrd"));
        fs::write(&bzimage, header_only("7.3.4")).unwrap();
        fs::write(&initrd, vec![7; 3_000_000]).unwrap();
        let kernel = Kernel::from_files(&bzimage, Some(&initrd), None).unwrap();
        let disk = tempfile::NamedTempFile::new().unwrap();
        disk.as_file().set_len(80 << 20).unwrap();
        let region = Region { start: 1 << 20, length: 64 << 20 };
        write(disk.path(), region, &kernel, "quiet", &Identity::reproducible(1, "x")).unwrap();

        let file = File::open(disk.path()).unwrap();
        let slice = StreamSlice::new(file, region.start, region.start + region.length).unwrap();
        // fatfs wants to write; nothing below does.
        let volume = FileSystem::new(ReadOnly(slice), FsOptions::new()).unwrap();
        let read = |name: &str| {
            let mut content = Vec::new();
            volume.root_dir().open_file(name).unwrap().read_to_end(&mut content).unwrap();
            content
        };
        let date = volume.root_dir().iter().next().unwrap().unwrap().modified().date;
        assert_eq!((date.year, date.month, date.day), (1980, 1, 1));
        assert_eq!(read(KERNEL), header_only("7.3.4"));
        assert_eq!(read(INITRD), vec![7; 3_000_000]);
        let config = String::from_utf8(read(CONFIG)).unwrap();
        assert!(config.contains("SERIAL 0 115200\n"));
        assert!(config.contains("LABEL linux\n  MENU LABEL 7.3.4\n  KERNEL /vmlinuz\n"));
        assert!(config.contains("  INITRD /initrd.img\n  APPEND quiet\n"));
    }

    struct ReadOnly<T>(T);

    impl<T: Read> Read for ReadOnly<T> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.0.read(buffer)
        }
    }

    impl<T: Seek> Seek for ReadOnly<T> {
        fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
            self.0.seek(to)
        }
    }

    impl<T> Write for ReadOnly<T> {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::ReadOnlyFilesystem.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
}
