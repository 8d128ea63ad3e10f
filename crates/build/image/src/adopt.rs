//! A distribution's cloud image as a disk that vmd runs, with a seed for its cloud-init.
//!
//! The image is converted as a whole: nothing in its file systems is touched here, whichever they are. The guest does
//! the rest by itself at its first boot, by the script `guests/cloud/first-boot` of the seed: a file system of the kind
//! that cloud-init's data source NoCloud looks for.

use std::{
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
};

use disk_image::{Content, Finding};
use serde_json::json;
use support::file::temp_dir;
use vmconf::SshKeys;
use vmd_release::DiskFormat;

use crate::{
    error::{Error, Result},
    identity::Identity,
    publish::{SCRATCH, check_output, directory, publish},
    settings::Hostname,
    size::Size,
    tool::{Tools, name},
};

/// What to make of which image.
#[derive(Debug, Clone)]
pub struct Adoption {
    /// The distribution's image: raw or qcow2.
    pub image: PathBuf,
    /// Where the disk goes. The seed goes beside it.
    pub output: PathBuf,
    /// Format of the disk.
    pub format: DiskFormat,
    /// Size of the disk, at least that of the image; without one the image's.
    pub size: Option<Size>,
    /// The guest's name; also the VM's in what is printed at the end.
    pub hostname: Hostname,
    /// SSH keys of the distribution's user.
    pub ssh_keys: Option<SshKeys>,
    /// A file of user data for cloud-init.
    pub user_data: Option<PathBuf>,
    /// Packages that the guest installs: Debian packages, and tar archives with an `install.sh`.
    pub packages: Vec<PathBuf>,
    /// Replace what is there.
    pub force: bool,
}

/// A disk and its seed.
#[derive(Debug)]
pub struct Adopted {
    /// The disk.
    pub disk: PathBuf,
    /// The ISO image of the seed.
    pub seed: PathBuf,
    format: DiskFormat,
    vm: String,
    /// With packages: they are vmmcid, or a kernel with the driver.
    answers_stop: bool,
}

impl Adopted {
    /// How to run it on OpenBSD: the stanza of vm.conf(5), the commands of vmctl(8), and how to get it there.
    pub fn instructions(&self) -> String {
        let path = self.disk.display().to_string();
        let disk = vmconf::Disk { path, format: self.format, on_host: self.format };
        let cdrom = Some(self.seed.display().to_string());
        let answers_stop = self.answers_stop;
        let proposal =
            vmconf::Proposal { cdrom, answers_stop, ..vmconf::Proposal::new(self.vm.clone(), disk) };
        proposal.text().unwrap_or_else(|error| format!("# no instructions: {error}\n"))
    }
}

/// Makes the disk and the seed. `step` is told what is being done, in a few words.
pub fn adopt(options: &Adoption, identity: &Identity, tools: &Tools, step: &dyn Fn(&str)) -> Result<Adopted> {
    let seed = seed_path(&options.output);
    for output in [&options.output, &seed] {
        check_output(output, options.force)?;
    }
    tools.require(&["qemu-img", "xorriso"])?;
    let tools = &tools.interruptible()?;
    let from = source_format(&options.image)?;
    let scratch = temp_dir(directory(&options.output), SCRATCH)?;
    let scratch = scratch.path();

    step("seed");
    let made_seed = write_seed(tools, options, identity, scratch)?;
    step("disk");
    let disk = convert(tools, options, from, scratch)?;
    let verdict = disk_image::judge(&disk, Some(options.format), true).map_err(Error::io("read", &disk))?;
    if let Some(Finding { effect, help, .. }) = verdict.findings.into_iter().next() {
        // Its message names the file in the scratch directory.
        return Err(Error::Disk {
            path: options.image.clone(),
            why: format!("once converted, it does not boot: {effect}"),
            help,
        });
    }
    tools.check()?;
    publish(&made_seed, &seed, options.force)?;
    // One without the other is of no use.
    publish(&disk, &options.output, options.force).inspect_err(|_| {
        let _ = fs::remove_file(&seed);
    })?;
    Ok(Adopted {
        disk: options.output.clone(),
        seed,
        format: options.format,
        vm: options.hostname.as_str().to_owned(),
        answers_stop: !options.packages.is_empty(),
    })
}

/// The seed's path, beside the disk.
fn seed_path(output: &Path) -> PathBuf {
    let mut name = output.file_stem().unwrap_or_default().to_owned();
    name.push("-seed.iso");
    output.with_file_name(name)
}

/// QEMU's name of the image's format. Refuses what is neither raw nor qcow2, and an image that names another file: its
/// maker would decide which file of this machine the guest reads.
fn source_format(image: &Path) -> Result<&'static str> {
    let verdict = disk_image::judge(image, None, false).map_err(Error::io("read", image))?;
    let refuse = |why: &str, help: String| Error::Disk { path: image.to_owned(), why: why.to_owned(), help };
    if verdict.names_other_files {
        let help =
            "convert it to an image without a base, if you trust the one who made it: qemu-img convert";
        return Err(refuse("it has a base image or a data file", help.to_owned()));
    }
    match verdict.content {
        Content::Raw => Ok("raw"),
        Content::Qcow2 => Ok("qcow2"),
        Content::Foreign { .. } | Content::Packed { .. } => {
            let help = verdict.findings.into_iter().next().map(|finding| finding.help);
            Err(refuse("it is neither raw nor qcow2", help.unwrap_or_default()))
        }
    }
}

/// Converts the image, which removes compression and whatever else vmd does not take. Returns the disk's path.
fn convert(tools: &Tools, options: &Adoption, from: &str, scratch: &Path) -> Result<PathBuf> {
    let disk = scratch.join("disk");
    let image = std::path::absolute(&options.image).map_err(Error::io("read", &options.image))?;
    let format = options.format.to_string();
    let mut command = tools.command_beside("qemu-img", &disk)?;
    command.args(["convert", "-f", from, "-O", &format]).args([image.as_os_str(), name(&disk)]);
    tools.run(&mut command, "qemu-img", "converting the image", &options.output)?;
    if let Some(size) = options.size {
        let mut command = tools.command_beside("qemu-img", &disk)?;
        command.args(["resize", "-f", &format]).arg(name(&disk)).arg(size.bytes().to_string());
        tools.run(&mut command, "qemu-img", "resizing the disk", &options.output)?;
    }
    Ok(disk)
}

/// Makes the seed's ISO image and returns its path.
fn write_seed(tools: &Tools, options: &Adoption, identity: &Identity, scratch: &Path) -> Result<PathBuf> {
    let root = scratch.join("seed");
    let packages = root.join("packages");
    fs::create_dir_all(&packages).map_err(Error::io("create", &packages))?;
    let write = |name: &str, content: &[u8]| {
        let path = root.join(name);
        fs::write(&path, content).map_err(Error::io("write", &path))
    };
    write("meta-data", meta_data(options, identity).as_bytes())?;
    write("user-data", &user_data(options.user_data.as_deref())?)?;
    write("vendor-data", include_bytes!("../../../../guests/cloud/first-boot"))?;
    for (number, package) in options.packages.iter().enumerate() {
        let to = packages.join(format!("package-{number}.{}", kind(package)?));
        fs::copy(package, &to).map_err(Error::io("copy", package))?;
    }
    let iso = scratch.join("seed.iso");
    let mut command = tools.command_beside("xorriso", &iso)?;
    command
        .args(["-as", "mkisofs", "-quiet", "-volid", "CIDATA", "-joliet", "-rock", "-output"])
        .args([name(&iso), name(&root)])
        .env("SOURCE_DATE_EPOCH", identity.time().to_string());
    tools.run(&mut command, "xorriso", "making the seed", &options.output)?;
    Ok(iso)
}

/// The metadata in JSON, which is YAML. A new instance makes cloud-init run anew.
fn meta_data(options: &Adoption, identity: &Identity) -> String {
    let keys: Vec<_> =
        options.ssh_keys.iter().flat_map(|keys| keys.as_str().lines()).map(str::trim).collect();
    let keys: Vec<_> = keys.into_iter().filter(|key| !key.is_empty() && !key.starts_with('#')).collect();
    let data = json!({
        "instance-id": format!("vmmlinux-{}", identity.uuid("instance")),
        "local-hostname": options.hostname.as_str(),
        "public-keys": keys,
    });
    format!("{data:#}\n")
}

/// The user data: the user's file, or none.
fn user_data(file: Option<&Path>) -> Result<Vec<u8>> {
    let Some(file) = file else { return Ok(b"#cloud-config\n{}\n".to_vec()) };
    let data = fs::read(file).map_err(Error::io("read", file))?;
    // What cloud-init tells kinds of user data by; a comment of the kind's name begins most of them.
    let known = [&b"#"[..], b"Content-Type:", b"MIME-Version:", b"\x1f\x8b"];
    if known.iter().any(|start| data.starts_with(start)) {
        Ok(data)
    } else {
        let why = "cloud-init ignores it: its first line is the kind, such as #cloud-config or #!/bin/sh";
        Err(Error::setting("file of user data", &file.display().to_string(), why))
    }
}

/// The extension by which the script knows a package: that of Debian's, or of tar archives.
fn kind(package: &Path) -> Result<&'static str> {
    let mut start = [0; 8];
    let read = File::open(package).and_then(|mut file| file.read(&mut start));
    let read = read.map_err(Error::io("read", package))?;
    match &start[..read] {
        b"!<arch>\n" => Ok("deb"),
        [0x1f, 0x8b, ..] | [0xfd, b'7', b'z', b'X', ..] | [0x28, 0xb5, 0x2f, 0xfd, ..] => Ok("tar"),
        _ => {
            let why = "it is neither a Debian package nor a compressed tar archive with install.sh";
            Err(Error::setting("package", &package.display().to_string(), why))
        }
    }
}
