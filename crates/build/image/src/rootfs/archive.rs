//! A root file system from a tar archive, with its own users and services. What it lacks to be used in a VM is added
//! where that is possible, and told where it is not.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

use disk_image::Content;

use crate::{
    error::{Error, Result},
    identity::Identity,
    kernel::Kernel,
    settings::Options,
    tool::{Tools, name},
};

use super::{
    common::{self, Filled},
    contents::{Contents, visit},
    login, network,
};

/// libarchive's reader of all kinds of compression.
pub(super) const TOOLS: &[&str] = &["bsdcat"];

pub(super) fn write(
    tools: &Tools,
    options: &Options,
    from: &Path,
    identity: &Identity,
    output: &Path,
    scratch: &Path,
) -> Result<Filled> {
    if options.ssh_keys.is_some() {
        return Err(Error::NeedsDebian { what: "an SSH key but its own" });
    }
    is_not_a_disk(from)?;
    unpack(tools, from, output)?;
    let contents = Contents::read(output).map_err(|error| match error {
        Error::Io { source, .. } => {
            refuse(from, &source.to_string(), "give a tar archive, compressed or not")
        }
        other => other,
    })?;
    let init = usable(&contents, options).map_err(|(why, help)| refuse(from, why, help))?;
    let kernel = match &options.kernel {
        Some(kernel) => kernel.clone(),
        None => kernel(output, scratch)?,
    };

    let lib = if contents.is_link("lib") { "usr/lib" } else { "lib" };
    let mut tree = common::tree(options, identity, lib)?;
    let mut remarks = login::console(&contents, &init, &mut tree);
    let password = options.root_password.is_some().then(|| common::shadow_field(options, identity));
    remarks.extend(login::password(&contents, password.transpose()?.as_deref(), &mut tree));
    let mut parameters = None;
    if let Some(net) = &options.net {
        let set = network::set(&contents, net, &mut tree);
        remarks.extend(set.remark);
        parameters = set.parameter;
    }
    let overlay = scratch.join("overlay.tar");
    tree.write_tar(&overlay, identity.time())?;
    let mut command = tools.command_beside("tar", output)?;
    command.arg("--concatenate").arg("--file").args([name(output), name(&overlay)]);
    tools.run(&mut command, "tar", "adding to the root file system", from)?;
    Ok(Filled { kernel, parameters, remarks })
}

fn refuse(from: &Path, why: &str, help: &'static str) -> Error {
    Error::Archive { path: from.to_owned(), why: why.to_owned(), help }
}

/// Refuses images of disks.
fn is_not_a_disk(from: &Path) -> Result<()> {
    let verdict = disk_image::judge(from, None, false).map_err(Error::io("read", from))?;
    match verdict.content {
        Content::Qcow2 | Content::Foreign { .. } => {
            let help = "`vmmlinux adopt` makes a disk for vmd of a distribution's cloud image";
            Err(refuse(from, "it is the image of a disk", help))
        }
        Content::Raw | Content::Packed { .. } => Ok(()),
    }
}

/// Copies the archive, uncompressed.
fn unpack(tools: &Tools, from: &Path, output: &Path) -> Result<()> {
    let source = File::open(from).map_err(Error::io("read", from))?;
    let file = File::create(output).map_err(Error::io("create", output))?;
    let mut command = tools.command("bsdcat")?;
    tools.run_into(file, command.stdin(source), "bsdcat", "decompressing the root file system", output)
}

/// The init of a root file system. The error says why there is no guest in the archive, and what to do.
fn usable(contents: &Contents, options: &Options) -> Result<String, (&'static str, &'static str)> {
    if !contents.leads("etc") {
        return Err(if contents.has("manifest.json") {
            (
                "it is an image of containers, whose layers are archives of their own",
                "export a container's file system: docker export CONTAINER",
            )
        } else {
            ("there is no etc at its top", "pack the root directory itself: tar -C ROOT -c .")
        });
    }
    login::init(contents, options.append.as_ref()).ok_or((
        "it has no init: neither /sbin/init, /etc/init nor /bin/init, nor what init= names",
        "install one in it, as a container's file system has none: systemd, sysvinit, OpenRC or busybox's; or name a program \
         with --append init=/PATH",
    ))
}

/// The kernel in an archive's /boot and its initial RAM disk, taken out into `scratch`.
pub(super) fn kernel(archive: &Path, scratch: &Path) -> Result<Kernel> {
    let (mut kernels, mut initrds): (Vec<PathBuf>, Vec<PathBuf>) = (Vec::new(), Vec::new());
    visit(archive, |path, entry| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.parent() != Some(Path::new("boot")) || !entry.header().entry_type().is_file() {
            return Ok(());
        }
        let (list, kind) = if name.starts_with("vmlinuz") {
            (&mut kernels, "kernel")
        } else if name.starts_with("initr") {
            (&mut initrds, "initrd")
        } else {
            return Ok(());
        };
        let to = scratch.join(format!("{kind}-{}", list.len()));
        let mut file = File::create(&to).map_err(Error::io("create", &to))?;
        io::copy(entry, &mut file).map_err(Error::io("write", &to))?;
        list.push(to);
        Ok(())
    })?;
    match (&kernels[..], &initrds[..]) {
        ([kernel], []) => Kernel::from_files(kernel, None, None),
        ([kernel], [initrd]) => Kernel::from_files(kernel, Some(initrd), None),
        _ => Err(Error::Archive {
            path: archive.to_owned(),
            why: format!(
                "its /boot has {} kernels and {} initial RAM disks, and not one of each",
                kernels.len(),
                initrds.len()
            ),
            help: "name a build, or a kernel with --kernel and --initrd",
        }),
    }
}
