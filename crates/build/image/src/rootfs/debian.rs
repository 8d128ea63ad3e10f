//! A small Debian, made by mmdebstrap from the mirror that this machine's apt uses.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use crate::{
    error::{Error, Result},
    identity::Identity,
    kernel::Kernel,
    settings::{Mirror, Net, Options},
    tool::{Tools, name},
    tree::Tree,
};

use super::{archive, common, network::networkd};

/// Anyone but root needs newuidmap for mmdebstrap's user namespace.
pub(super) fn tools() -> &'static [&'static str] {
    let root = fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0);
    if root { &["mmdebstrap"] } else { &["mmdebstrap", "newuidmap"] }
}

/// Besides the essential ones and apt: what boots, logs in, reaches the network, keeps time and grows the disk.
const PACKAGES: [&str; 18] = [
    "ca-certificates",
    "chrony",
    "dbus",
    "e2fsprogs",
    "fdisk",
    "iproute2",
    "iputils-ping",
    "kmod",
    "less",
    "login",
    "nano",
    "passwd",
    "procps",
    "systemd",
    "systemd-resolved",
    "systemd-sysv",
    "udev",
    "util-linux",
];

/// The suite's own kernel for virtual machines, and what makes its initial RAM disk.
const STOCK_KERNEL: [&str; 2] = ["linux-image-cloud-amd64", "initramfs-tools"];

/// The archive of what is added, in the scratch directory.
const OVERLAY: &str = "overlay.tar";

/// Carries the hash of root's password into the tree; a command line is everybody's to read.
const PASSWORD: &str = "var/lib/vmmlinux/root-password";

const UNITS: [(&str, &str); 3] = [
    ("vmmlinux-grow.service", include_str!("../../../../../guests/debian/vmmlinux-grow.service")),
    ("vmmlinux-ready.service", include_str!("../../../../../guests/debian/vmmlinux-ready.service")),
    ("vmmlinux-ssh-keys.service", include_str!("../../../../../guests/debian/vmmlinux-ssh-keys.service")),
];

pub(super) fn write(
    tools: &Tools,
    options: &Options,
    suite: &str,
    identity: &Identity,
    output: &Path,
    scratch: &Path,
) -> Result<Kernel> {
    link_packages(&options.packages, scratch)?;
    let sources = sources(tools, options.mirror.as_ref(), suite)?;
    let overlay = scratch.join(OVERLAY);
    overlay_tree(options, identity)?.write_tar(&overlay, identity.time())?;

    let mut packages = PACKAGES.to_vec();
    let mut units = vec!["systemd-networkd", "systemd-resolved", "vmmlinux-grow", "vmmlinux-ready"];
    if options.ssh_keys.is_some() {
        packages.push("openssh-server");
        units.push("vmmlinux-ssh-keys");
    }
    if options.kernel.is_none() {
        packages.extend(STOCK_KERNEL);
    }
    let mut command = tools.command_beside("mmdebstrap", output)?;
    command
        .args(["--variant=apt", "--format=tar", "--architectures=amd64"])
        .arg(format!("--include={}", packages.join(",")))
        .arg("--dpkgopt=path-exclude=/usr/share/man/*")
        .arg("--dpkgopt=path-exclude=/usr/share/doc/*")
        .arg("--dpkgopt=path-include=/usr/share/doc/*/copyright")
        .arg("--dpkgopt=path-exclude=/usr/share/locale/*/LC_MESSAGES/*")
        .args(package_hooks(options.packages.len()))
        // The archive is not the machine that the hooks of kernel packages would set up, so these come after them.
        .arg(format!("--customize-hook=tar-in {OVERLAY} /"))
        .arg(format!(
            "--customize-hook=chroot \"$1\" sh -c 'chpasswd --encrypted < /{PASSWORD}; rm /{PASSWORD}'"
        ))
        .arg(format!("--customize-hook=chroot \"$1\" systemctl enable {}", units.join(" ")))
        // Every guest has its own; both are made at the first boot.
        .arg("--customize-hook=rm -f \"$1\"/etc/ssh/ssh_host_*")
        .arg("--customize-hook=: > \"$1/etc/machine-id\"")
        .arg(suite)
        .arg(name(output))
        .args(&sources)
        .env("SOURCE_DATE_EPOCH", identity.time().to_string());
    tools.run(&mut command, "mmdebstrap", "making a Debian root file system", output)?;
    match &options.kernel {
        Some(kernel) => Ok(kernel.clone()),
        None => archive::kernel(output, scratch),
    }
}

/// Links the user's packages to the scratch directory, so that their names get into no hook.
fn link_packages(packages: &[PathBuf], scratch: &Path) -> Result<()> {
    for (n, package) in packages.iter().enumerate() {
        fs::File::open(package).map_err(Error::io("read", package))?;
        let whole = std::path::absolute(package).map_err(Error::io("read", package))?;
        let link = scratch.join(package_name(n));
        std::os::unix::fs::symlink(whole, &link).map_err(Error::io("create", &link))?;
    }
    Ok(())
}

/// The name of a package in the scratch directory, where mmdebstrap runs.
fn package_name(n: usize) -> String {
    format!("vmmlinux-{n}.deb")
}

/// Installs packages, and through apt what they depend on. Nothing starts: mmdebstrap's chroot has a policy-rc.d.
fn package_hooks(count: usize) -> Vec<String> {
    let mut hooks = Vec::new();
    for name in (0..count).map(package_name) {
        let inside = format!("/var/cache/{name}");
        hooks.push(format!("--customize-hook=upload {name} {inside}"));
        hooks.push(format!(
            "--customize-hook=chroot \"$1\" env DEBIAN_FRONTEND=noninteractive apt-get install --yes -q \
             --no-install-recommends {inside} && rm \"$1\"{inside}"
        ));
    }
    hooks
}

fn overlay_tree(options: &Options, identity: &Identity) -> Result<Tree> {
    let mut tree = common::tree(options, identity, "usr/lib")?;
    tree.symlink("etc/kernel/postinst.d/zz-vmmlinux", "/usr/lib/vmmlinux/install-kernel");
    tree.file(
        "etc/kernel/postrm.d/zz-vmmlinux",
        0o755,
        include_str!("../../../../../guests/debian/kernel-postrm"),
    );
    tree.file(
        "etc/initramfs/post-update.d/zz-vmmlinux",
        0o755,
        include_str!("../../../../../guests/debian/initramfs-post-update"),
    );
    // pam_env(8) wants the latter; since trixie systemd-tmpfiles makes it this link.
    tree.file("etc/locale.conf", 0o644, "LANG=C.UTF-8\n");
    tree.symlink("etc/default/locale", "../locale.conf");
    tree.symlink("usr/local/sbin/install-kernel", "/usr/lib/vmmlinux/install-kernel");
    tree.file(PASSWORD, 0o600, format!("root:{}\n", common::shadow_field(options, identity)?));
    for (name, unit) in UNITS {
        tree.file(&format!("etc/systemd/system/{name}"), 0o644, unit);
    }
    tree.file(
        "etc/systemd/system.conf.d/vmmlinux.conf",
        0o644,
        include_str!("../../../../../guests/debian/system.conf"),
    );
    tree.file(
        "usr/lib/vmmlinux/chrony-refclock",
        0o755,
        include_str!("../../../../../guests/debian/chrony-refclock"),
    );
    tree.file(
        "etc/chrony/conf.d/vmmlinux.conf",
        0o644,
        include_str!("../../../../../guests/debian/chrony.conf"),
    );
    tree.file(
        "etc/systemd/system/chrony.service.d/vmmlinux.conf",
        0o644,
        include_str!("../../../../../guests/debian/chrony.service.conf"),
    );
    if let Some(network) = networkd(options.net.as_ref().unwrap_or(&Net::Dhcp)) {
        tree.file("etc/systemd/network/20-wired.network", 0o644, network);
    }
    if let Some(keys) = &options.ssh_keys {
        tree.directory("root", 0o700);
        tree.directory("root/.ssh", 0o700);
        tree.file("root/.ssh/authorized_keys", 0o600, keys.as_str());
    }
    Ok(tree)
}

/// The lines of sources.list for the suite: its archive, and where this machine has them also the updates and the
/// security archive.
fn sources(tools: &Tools, mirror: Option<&Mirror>, suite: &str) -> Result<Vec<String>> {
    if let Some(mirror) = mirror {
        return Ok(vec![format!("deb {} {suite} main", mirror.as_str())]);
    }
    let mut command = tools.command("apt-get").map_err(|_| Error::NoMirror)?;
    command.args(["indextargets", "--format", "$(ORIGIN) $(CODENAME) $(COMPONENT) $(REPO_URI)"]);
    let targets = tools.run(
        command.arg("Created-By: Packages"),
        "apt-get",
        "reading the mirror from apt",
        Path::new(suite),
    )?;
    sources_from(&String::from_utf8_lossy(&targets.stdout), suite).ok_or(Error::NoMirror)
}

fn sources_from(targets: &str, suite: &str) -> Option<Vec<String>> {
    let uri = |wanted: fn(&str) -> bool| {
        targets.lines().find_map(|line| match line.split(' ').collect::<Vec<_>>()[..] {
            ["Debian", codename, "main", uri] if wanted(codename) => Some(uri.trim_end_matches('/')),
            _ => None,
        })
    };
    let archive = uri(|codename| !codename.contains('-'))?;
    let mut sources = vec![format!("deb {archive} {suite} main")];
    // Unstable has neither.
    if !matches!(suite, "sid" | "unstable") {
        sources.push(format!("deb {archive} {suite}-updates main"));
        if let Some(security) = uri(|codename| codename.ends_with("-security")) {
            sources.push(format!("deb {security} {suite}-security main"));
        }
    }
    Some(sources)
}

#[cfg(test)]
mod tests {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt};

    use super::*;

    const TARGETS: &str = "Docker bookworm main https://docker.example/\n\
                           Debian bookworm-updates main http://mirror.example/debian/\n\
                           Debian bookworm contrib http://mirror.example/other/\n\
                           Debian bookworm main http://mirror.example/debian/\n\
                           Debian bookworm-security main http://mirror.example/debian-security/\n";

    #[test]
    fn the_mirror_is_the_systems_own() {
        assert_eq!(
            sources_from(TARGETS, "trixie").unwrap(),
            [
                "deb http://mirror.example/debian trixie main",
                "deb http://mirror.example/debian trixie-updates main",
                "deb http://mirror.example/debian-security trixie-security main",
            ]
        );
        assert_eq!(sources_from(TARGETS, "sid").unwrap(), ["deb http://mirror.example/debian sid main"]);
        assert_eq!(sources_from("Ubuntu noble main http://mirror.example/ubuntu/\n", "trixie"), None);
    }

    #[test]
    fn names_of_packages_get_into_no_hook() {
        let dir = tempfile::tempdir().unwrap();
        let package = dir.path().join(OsStr::from_bytes(b"a' b; touch x \xff\n.deb"));
        fs::write(&package, "package").unwrap();
        let scratch = tempfile::tempdir().unwrap();

        link_packages(&[package], scratch.path()).unwrap();

        assert_eq!(fs::read_to_string(scratch.path().join(package_name(0))).unwrap(), "package");
        assert_eq!(package_hooks(1)[0], "--customize-hook=upload vmmlinux-0.deb /var/cache/vmmlinux-0.deb");
    }
}
