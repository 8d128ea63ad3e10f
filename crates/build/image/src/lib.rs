//! Bootable disk images for vmd(8): a kernel and a root file system on a sparse disk, made without root and without
//! loop devices.
//!
//! The disk has an MBR with syslinux's boot code, a FAT partition with syslinux and the kernel, and an ext4 partition
//! with the root file system, which grows to the end of the disk at the first boot on a larger one.
//! `build` makes it beside the output path and moves it there when it is whole.
//!
//! [`adopt()`] makes a disk and a seed for cloud-init from a distribution's cloud image.

mod adopt;
mod boot;
mod disk;
mod error;
mod ext4;
mod identity;
mod kernel;
mod publish;
mod rootfs;
mod settings;
mod size;
#[cfg(test)]
mod tests;
mod tool;
mod tree;

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

pub use adopt::{Adopted, Adoption, adopt};
pub use error::{Error, Result};
pub use identity::Identity;
pub use kernel::Kernel;
pub use settings::{Hostname, Mirror, Net, Options, Parameters, RootFs};
pub use size::Size;
pub use tool::Tools;

use disk::Layout;
use publish::{SCRATCH, check_output, directory, publish};
use rootfs::Filled;
use support::file::temp_dir;
use tool::name;
use vmd_release::DiskFormat;

/// A finished image.
#[derive(Debug)]
pub struct Image {
    /// Where it is.
    pub path: PathBuf,
    /// In which format.
    pub format: DiskFormat,
    /// The size that the guest sees.
    pub size: Size,
    /// Bytes that the file takes on this machine's disk.
    pub allocated: u64,
    /// The kernel's release.
    pub release: String,
    /// The kernel's command line.
    pub command_line: String,
    /// What the user should know about the root file system.
    pub remarks: Vec<String>,
    /// The VM's name for vmd.
    vm: String,
    answers_stop: bool,
    net: Net,
}

impl Image {
    /// How to run it on OpenBSD: the stanza of vm.conf(5), the commands of vmctl(8), and how to get it there.
    pub fn instructions(&self) -> String {
        let path = self.path.display().to_string();
        let disk = vmconf::Disk { path, format: self.format, on_host: self.format };
        let network = match self.net {
            Net::Dhcp => vmconf::Network::Local,
            // Its address belongs to a network of the user's.
            Net::Static { .. } => vmconf::Network::Switch { name: "uplink".to_owned(), declared: None },
            Net::None => vmconf::Network::None,
        };
        let answers_stop = self.answers_stop;
        let proposal =
            vmconf::Proposal { network, answers_stop, ..vmconf::Proposal::new(self.vm.clone(), disk) };
        proposal.text().unwrap_or_else(|error| format!("# no instructions: {error}\n"))
    }
}

/// Makes the image. `step` is told what is being done, in a few words. SIGINT, SIGTERM and SIGHUP end it with
/// [`Error::Interrupted`]; what a killed run has left beside the output is removed.
pub fn build(options: &Options, identity: &Identity, tools: &Tools, step: &dyn Fn(&str)) -> Result<Image> {
    let output = &options.output;
    check_output(output, options.force)?;
    let mut needed = vec!["debugfs", "fakeroot", "mattrib", "mke2fs", "syslinux", "tar"];
    needed.extend(rootfs::tools(&options.rootfs));
    if options.format == DiskFormat::Qcow2 {
        needed.push("qemu-img");
    }
    tools.require(&needed)?;
    let tools = &tools.interruptible()?;
    let scratch = temp_dir(directory(output), SCRATCH)?;
    let scratch = scratch.path();

    let made = assemble(options, identity, tools, step, scratch)?;
    let allocated = fs::metadata(&made.file).map_err(Error::io("read", &made.file))?.blocks() * 512;
    tools.check()?;
    publish(&made.file, output, options.force)?;
    Ok(Image {
        path: output.clone(),
        format: options.format,
        size: options.size,
        allocated,
        release: made.kernel.release().to_owned(),
        command_line: made.command_line,
        remarks: made.remarks,
        vm: options.hostname.as_str().to_owned(),
        answers_stop: made.answers_stop,
        net: options.net.clone().unwrap_or(Net::Dhcp),
    })
}

/// A finished image in the scratch directory.
#[derive(Debug)]
struct Made {
    file: PathBuf,
    kernel: Kernel,
    command_line: String,
    remarks: Vec<String>,
    answers_stop: bool,
}

/// Makes the image in the scratch directory.
fn assemble(
    options: &Options,
    identity: &Identity,
    tools: &Tools,
    step: &dyn Fn(&str),
    scratch: &Path,
) -> Result<Made> {
    let boot_code = disk::boot_code()?;
    step(&format!("root file system {}", options.rootfs));
    let archive = scratch.join("root.tar");
    let Filled { kernel, parameters, mut remarks } =
        rootfs::write(tools, options, identity, &archive, scratch)?;
    let answers_stop = rootfs::is_answered(&kernel, &archive)?;
    if !answers_stop {
        remarks.push(format!(
            "Linux {} has no driver for vmmci, and the image no vmmcid: `vmctl stop` kills this guest, and its clock is \
             wrong after the host has slept; kernels of series 7.3 have the driver, other guests install vmmcid",
            kernel.release()
        ));
    }

    step("disk");
    let disk = scratch.join("disk.img");
    fs::File::create_new(&disk).map_err(Error::io("create", &disk))?;
    let layout = Layout::new(options.size, boot::space_needed(&kernel)?, tree::space_needed(&archive)?)?;
    disk::partition(&disk, &layout, &boot_code, identity)?;
    // The user's come last: of two with one name the kernel takes the later one.
    let append = parameters.into_iter().chain(options.append.as_ref().map(Parameters::as_str));
    let command_line = boot::command_line(&disk::root_partuuid(identity), append);
    boot::write(&disk, layout.boot, &kernel, &command_line, identity)?;
    boot::install_syslinux(tools, &disk, layout.boot, identity)?;
    ext4::write(tools, &disk, layout.root, &archive, scratch, identity)?;

    let file = match options.format {
        DiskFormat::Raw => disk,
        DiskFormat::Qcow2 => {
            step("conversion to qcow2");
            let qcow2 = scratch.join("disk.qcow2");
            let mut command = tools.command_beside("qemu-img", &disk)?;
            command.args(["convert", "-f", "raw", "-O", "qcow2"]).args([name(&disk), name(&qcow2)]);
            tools.run(&mut command, "qemu-img", "converting the disk", &options.output)?;
            qcow2
        }
    };
    Ok(Made { file, kernel, command_line, remarks, answers_stop })
}
