//! The minimal root file system: a static busybox, the scripts of `guests/minimal`, and the three programs that grow
//! the disk.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    process::Command,
};

use object::{
    Architecture, Endianness, Object, elf,
    read::elf::{ElfFile64, ProgramHeader},
};

use crate::{
    error::{Error, Result},
    identity::Identity,
    settings::{Net, Options},
    tool::Tools,
    tree::Tree,
};

use super::{closure, common};

/// What grows the disk. busybox has nothing that tells the kernel of one changed partition of a disk in use, nor a
/// resize2fs; this machine has both, since the image could not be made without e2fsprogs.
const GROW: [&str; 3] = ["sfdisk", "partx", "resize2fs"];
pub(super) const TOOLS: &[&str] = &["ldd", "sfdisk", "partx", "resize2fs"];

pub(super) fn write(
    tools: &Tools,
    options: &Options,
    identity: &Identity,
    archive: &Path,
    scratch: &Path,
) -> Result<()> {
    if options.ssh_keys.is_some() {
        return Err(Error::NoSshServer);
    }
    let busybox = match &options.busybox {
        // Without a slash, the system's one would be run.
        Some(given) => std::path::absolute(given).map_err(Error::io("read", given))?,
        None => find_busybox(tools, scratch)?,
    };
    let mut tree = common::tree(options, identity, "usr/lib")?;
    put_busybox(tools, &mut tree, &busybox)?;
    closure::copy(tools, &mut tree, &GROW)?;
    put_system(&mut tree, options, identity)?;
    tree.write_tar(archive, identity.time())
}

fn put_busybox(tools: &Tools, tree: &mut Tree, busybox: &Path) -> Result<()> {
    if !is_static(busybox)? {
        return Err(Error::NotStatic { path: busybox.to_owned() });
    }
    tree.copy("usr/bin/busybox", 0o755, busybox);
    let applets =
        tools.run(Command::new(busybox).arg("--list"), "busybox", "listing its applets", busybox)?;
    for applet in String::from_utf8_lossy(&applets.stdout).lines().filter(|a| *a != "busybox") {
        tree.symlink(Path::new("usr/bin").join(applet), "busybox");
    }
    Ok(())
}

fn put_system(tree: &mut Tree, options: &Options, identity: &Identity) -> Result<()> {
    for (link, target) in [
        ("bin", "usr/bin"),
        ("sbin", "usr/bin"),
        ("usr/sbin", "bin"),
        ("lib", "usr/lib"),
        ("lib64", "usr/lib64"),
    ] {
        tree.symlink(link, target);
    }
    for directory in ["boot", "proc", "sys", "run", "mnt", "home", "usr/lib64", "var/log"] {
        tree.directory(directory, 0o755);
    }
    tree.directory("root", 0o700);
    tree.directory("tmp", 0o1777);
    tree.symlink("var/run", "/run");
    tree.symlink("usr/bin/install-kernel", "/usr/lib/vmmlinux/install-kernel");
    // For the moment between the start of init and the mount of devtmpfs.
    tree.character_device("dev/console", 0o600, (5, 1));
    tree.character_device("dev/null", 0o666, (1, 3));

    tree.file("etc/inittab", 0o644, include_str!("../../../../../guests/minimal/inittab"));
    tree.file("etc/profile", 0o644, include_str!("../../../../../guests/minimal/profile"));
    tree.file("etc/init.d/rcS", 0o755, include_str!("../../../../../guests/minimal/rcS"));
    tree.file("etc/init.d/rcK", 0o755, include_str!("../../../../../guests/minimal/rcK"));
    tree.file("etc/init.d/network", 0o755, include_str!("../../../../../guests/minimal/network"));
    tree.file(
        "etc/udhcpc/default.script",
        0o755,
        include_str!("../../../../../guests/minimal/udhcpc-script"),
    );
    tree.file("etc/vmmlinux/network", 0o644, network(options.net.as_ref().unwrap_or(&Net::Dhcp)));
    tree.file(
        "etc/passwd",
        0o644,
        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    );
    tree.file("etc/group", 0o644, "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n");
    let password = common::shadow_field(options, identity)?;
    tree.file(
        "etc/shadow",
        0o600,
        format!("root:{password}:20000:0:99999:7:::\nnobody:*:20000:0:99999:7:::\n"),
    );
    tree.file("etc/issue", 0o644, "\\n, Linux \\r on \\l\n\n");
    Ok(())
}

/// The settings that guests/minimal/network reads.
fn network(net: &Net) -> String {
    match net {
        Net::Dhcp => "NETWORK=dhcp\n".to_owned(),
        Net::None => "NETWORK=none\n".to_owned(),
        Net::Static { address, prefix, gateway, dns } => {
            let or_none =
                |address: &Option<IpAddr>| address.map_or_else(String::new, |address| address.to_string());
            format!(
                "NETWORK=static\nADDRESS={address}/{prefix}\nGATEWAY={}\nDNS={}\n",
                or_none(gateway),
                or_none(dns)
            )
        }
    }
}

/// This machine's busybox where it is static, else the one of Debian's package, fetched by apt as it is configured
/// here (which also checks the signature).
fn find_busybox(tools: &Tools, scratch: &Path) -> Result<PathBuf> {
    if let Some(installed) = tools.find("busybox")
        && is_static(&installed)?
    {
        return Ok(installed);
    }
    tools.require(&["apt-get", "dpkg-deb"])?;
    let directory = scratch.join("busybox");
    fs::create_dir(&directory).map_err(Error::io("create", &directory))?;
    let mut command = tools.command("apt-get")?;
    command.args(["download", "-q", "busybox-static"]).current_dir(&directory);
    tools.run(&mut command, "apt-get", "downloading busybox-static", &directory)?;
    let package = fs::read_dir(&directory)
        .map_err(Error::io("read", &directory))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|e| e == "deb"))
        .ok_or_else(|| Error::io("find a package in", &directory)(std::io::ErrorKind::NotFound.into()))?;
    let mut command = tools.command("dpkg-deb")?;
    command.arg("-x").args([&package, &directory]);
    tools.run(&mut command, "dpkg-deb", "unpacking busybox-static", &directory)?;
    ["bin/busybox", "usr/bin/busybox"]
        .iter()
        .map(|path| directory.join(path))
        .find(|path| path.is_file())
        .ok_or_else(|| Error::io("find busybox in", &package)(std::io::ErrorKind::NotFound.into()))
}

/// Whether the file is an x86-64 program that names no dynamic linker.
fn is_static(path: &Path) -> Result<bool> {
    let bytes = fs::read(path).map_err(Error::io("read", path))?;
    let Ok(program) = ElfFile64::<Endianness>::parse(&bytes[..]) else { return Ok(false) };
    let endian = program.endian();
    let interpreted =
        program.elf_program_headers().iter().any(|header| header.p_type(endian) == elf::PT_INTERP);
    Ok(program.architecture() == Architecture::X86_64 && !interpreted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_with_an_interpreter_is_not_static() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("script");
        fs::write(&file, "#!/bin/sh\n").unwrap();
        assert!(!is_static(&file).unwrap());
        assert!(!is_static(Path::new("/bin/sh")).unwrap());
        // The workspace links statically: .cargo/config.toml.
        assert!(
            is_static(&std::env::current_exe().unwrap()).unwrap() || cfg!(not(target_feature = "crt-static"))
        );
    }

    #[test]
    fn the_network_becomes_the_scripts_variables() {
        assert_eq!(network(&"dhcp".parse().unwrap()), "NETWORK=dhcp\n");
        assert_eq!(
            network(&"10.0.0.5/24,10.0.0.1,9.9.9.9".parse().unwrap()),
            "NETWORK=static\nADDRESS=10.0.0.5/24\nGATEWAY=10.0.0.1\nDNS=9.9.9.9\n"
        );
        assert_eq!(
            network(&"fd00::5/64".parse().unwrap()),
            "NETWORK=static\nADDRESS=fd00::5/64\nGATEWAY=\nDNS=\n"
        );
    }
}
