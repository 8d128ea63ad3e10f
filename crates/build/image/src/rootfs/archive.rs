//! A root file system from a tar archive, with its own users, network and services.

use std::{
    fs::File,
    io,
    path::{Component, Path, PathBuf},
};

use crate::{
    error::{Error, Result},
    identity::Identity,
    kernel::Kernel,
    settings::Options,
    tool::{Tools, name},
};

use super::common;

/// libarchive's reader of all kinds of compression.
pub(super) const TOOLS: &[&str] = &["bsdcat"];

pub(super) fn write(
    tools: &Tools,
    options: &Options,
    from: &Path,
    identity: &Identity,
    output: &Path,
    scratch: &Path,
) -> Result<Kernel> {
    if options.ssh_keys.is_some() || options.root_password.is_some() {
        return Err(Error::NeedsDebian { what: "an SSH key or a password but its own" });
    }
    unpack(tools, from, output)?;
    let kernel = match &options.kernel {
        Some(kernel) => kernel.clone(),
        None => kernel(output, scratch)?,
    };
    let lib = if is_link(output, "lib")? { "usr/lib" } else { "lib" };
    let overlay = scratch.join("overlay.tar");
    common::tree(options, identity, lib)?.write_tar(&overlay, identity.time())?;
    let mut command = tools.command_beside("tar", output)?;
    command.arg("--concatenate").arg("--file").args([name(output), name(&overlay)]);
    tools.run(&mut command, "tar", "adding to the root file system", from)?;
    Ok(kernel)
}

/// Copies the archive, uncompressed, and looks whether it is one.
fn unpack(tools: &Tools, from: &Path, output: &Path) -> Result<()> {
    let source = File::open(from).map_err(Error::io("read", from))?;
    let file = File::create(output).map_err(Error::io("create", output))?;
    let mut command = tools.command("bsdcat")?;
    tools.run_into(file, command.stdin(source), "bsdcat", "decompressing the root file system", output)?;
    let mut usable = false;
    visit(output, |path, _| {
        usable |= path == Path::new("etc") || path.starts_with("etc");
        Ok(())
    })
    .map_err(|error| match error {
        Error::Io { source, .. } => {
            Error::Archive { path: from.to_owned(), why: source.to_string(), help: "give a tar archive" }
        }
        other => other,
    })?;
    if usable {
        Ok(())
    } else {
        let why = "there is no etc at its top".to_owned();
        Err(Error::Archive {
            path: from.to_owned(),
            why,
            help: "pack the root directory itself: tar -C ROOT -c .",
        })
    }
}

/// Calls `each` for everything in an archive with its path, relative and without dots.
fn visit(archive: &Path, mut each: impl FnMut(&Path, &mut tar::Entry<'_, File>) -> Result<()>) -> Result<()> {
    let read = |e: io::Error| Error::io("read", archive)(e);
    let file = File::open(archive).map_err(read)?;
    for entry in tar::Archive::new(file).entries_with_seek().map_err(read)? {
        let mut entry = entry.map_err(read)?;
        let path: PathBuf = entry
            .path()
            .map_err(read)?
            .components()
            .filter(|component| matches!(component, Component::Normal(_)))
            .collect();
        each(&path, &mut entry)?;
    }
    Ok(())
}

fn is_link(archive: &Path, name: &str) -> Result<bool> {
    let mut link = false;
    visit(archive, |path, entry| {
        if path == Path::new(name) {
            link = entry.header().entry_type().is_symlink();
        }
        Ok(())
    })?;
    Ok(link)
}

/// The kernel in an archive's /boot and its initial RAM disk, taken out into `scratch`.
pub(super) fn kernel(archive: &Path, scratch: &Path) -> Result<Kernel> {
    let (mut kernels, mut initrds) = (Vec::new(), Vec::new());
    visit(archive, |path, entry| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.parent() != Some(Path::new("boot")) || !entry.header().entry_type().is_file() {
            return Ok(());
        }
        let list = if name.starts_with("vmlinuz") {
            &mut kernels
        } else if name.starts_with("initr") {
            &mut initrds
        } else {
            return Ok(());
        };
        let to = scratch.join(&*name);
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
