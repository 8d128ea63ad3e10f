//! Packages of vmmcid, the daemon for stock kernels: a Debian package, and a tarball for other distributions.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use support::{archive, file::temp_dir, run};
use walkdir::WalkDir;

use crate::error::{Error, Result};

/// Files that both packages install, with their modes.
const FILES: [(&str, u32, &str); 4] = [
    ("etc/vmmcid.toml", 0o644, include_str!("../../../guest/vmmcid/dist/vmmcid.toml")),
    (
        "usr/lib/systemd/system/vmmcid.service",
        0o644,
        include_str!("../../../guest/vmmcid/dist/vmmcid.service"),
    ),
    (
        "usr/lib/systemd/system-shutdown/vmmcid",
        0o755,
        include_str!("../../../guest/vmmcid/dist/system-shutdown"),
    ),
    ("usr/share/man/man8/vmmcid.8", 0o644, include_str!("../../../guest/vmmcid/dist/vmmcid.8")),
];

/// OpenRC's scripts, which a Debian package may contain only as documentation.
const OPENRC: [(&str, &str); 2] = [
    ("vmmcid", include_str!("../../../guest/vmmcid/dist/openrc/vmmcid")),
    ("vmmcid-poweroff", include_str!("../../../guest/vmmcid/dist/openrc/vmmcid-poweroff")),
];

/// Where each shell looks for completions.
const COMPLETIONS: [(&str, &str); 3] = [
    ("bash", "usr/share/bash-completion/completions/vmmcid"),
    ("zsh", "usr/share/zsh/vendor-completions/_vmmcid"),
    ("fish", "usr/share/fish/vendor_completions.d/vmmcid.fish"),
];

const HOOKS: [&str; 2] = ["etc/vmmcid/before-stop.d", "etc/vmmcid/after-resume.d"];

/// The scripts that dpkg runs.
const MAINTAINER_SCRIPTS: [(&str, &str); 3] = [
    ("postinst", include_str!("../../../guest/vmmcid/dist/debian/postinst")),
    ("prerm", include_str!("../../../guest/vmmcid/dist/debian/prerm")),
    ("postrm", include_str!("../../../guest/vmmcid/dist/debian/postrm")),
];

const ISC: &str = include_str!("../../../../LICENSES/ISC.txt");

const COPYRIGHT: &str = "\
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: vmmlinux

Files: *
Copyright: 2026 vmmlinux maintainers
License: ISC
";

/// The packages of the daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DaemonPackages {
    /// For dpkg.
    pub deb: PathBuf,
    /// For other distributions, with `install.sh`.
    pub tarball: PathBuf,
}

/// Makes the daemon's packages in the directory `to`. `binary` is the program, linked statically; it is run for its
/// version and its completions. All times in the packages are `epoch`, in seconds since 1970.
pub fn package_daemon(binary: &Path, epoch: u64, to: &Path) -> Result<DaemonPackages> {
    let version = run::stdout(run::command(binary).arg("--version"))?;
    let version = version.trim().rsplit(' ').next().unwrap_or_default().to_owned();
    if !version.starts_with(|c: char| c.is_ascii_digit()) {
        return Err(Error::NotTheDaemon { path: binary.to_owned(), version });
    }
    fs::create_dir_all(to).map_err(Error::io("create", to))?;
    let scratch = temp_dir(to, ".vmmcid-")?;

    let tree = scratch.path().join(format!("vmmcid-{version}"));
    lay_out(binary, &tree)?;
    for (name, script) in OPENRC {
        write(&tree.join("openrc").join(name), 0o755, script)?;
    }
    write(&tree.join("install.sh"), 0o755, include_str!("../../../guest/vmmcid/dist/install.sh"))?;
    write(&tree.join("LICENSE"), 0o644, ISC)?;
    let tarball = scratch.path().join("tarball");
    archive::tarball(scratch.path(), format!("vmmcid-{version}"), epoch, &tarball)?;

    let root = scratch.path().join("root");
    lay_out(binary, &root)?;
    let documentation = root.join("usr/share/doc/vmmcid");
    for (name, script) in OPENRC {
        write(&documentation.join("openrc").join(name), 0o644, script)?;
    }
    let licence: Vec<_> = ISC.lines().map(|line| if line.is_empty() { "." } else { line }).collect();
    let licence = format!(" {}\n", licence.join("\n "));
    write(&documentation.join("copyright"), 0o644, &format!("{COPYRIGHT}{licence}"))?;
    run::stdout(run::command("gzip").args(["-9n"]).arg(root.join("usr/share/man/man8/vmmcid.8")))?;
    for (name, script) in MAINTAINER_SCRIPTS {
        write(&root.join("DEBIAN").join(name), 0o755, script)?;
    }
    write(&root.join("DEBIAN/conffiles"), 0o644, "/etc/vmmcid.toml\n")?;
    write(&root.join("DEBIAN/control"), 0o644, &control(&version, size_in_kib(&root)?))?;
    let deb = scratch.path().join("deb");
    archive::deb(&root, epoch, &deb)?;

    let packages = DaemonPackages {
        deb: to.join(format!("vmmcid_{version}_amd64.deb")),
        tarball: to.join(format!("vmmcid-{version}-x86_64.tar.xz")),
    };
    for (from, to) in [(&deb, &packages.deb), (&tarball, &packages.tarball)] {
        fs::rename(from, to).map_err(Error::io("create", to))?;
    }
    Ok(packages)
}

/// Lays out the files of both packages in `root`.
fn lay_out(binary: &Path, root: &Path) -> Result<()> {
    for (name, mode, text) in FILES {
        write(&root.join(name), mode, text)?;
    }
    let program = root.join("usr/sbin/vmmcid");
    if let Some(parent) = program.parent() {
        fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
    }
    fs::copy(binary, &program).map_err(Error::io("copy", binary))?;
    set_mode(&program, 0o755)?;
    for (shell, name) in COMPLETIONS {
        let completions = run::stdout(run::command(binary).args(["completions", shell]))?;
        write(&root.join(name), 0o644, &completions)?;
    }
    for hooks in HOOKS {
        let path = root.join(hooks);
        fs::create_dir_all(&path).map_err(Error::io("create", &path))?;
    }
    Ok(())
}

fn write(path: &Path, mode: u32, text: &str) -> Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
    }
    fs::write(path, text).map_err(Error::io("write", path))?;
    set_mode(path, mode)
}

fn set_mode(path: &Path, mode: u32) -> Result<()> {
    fs::set_permissions(path, Permissions::from_mode(mode)).map_err(Error::io("set the mode of", path))
}

fn size_in_kib(root: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in WalkDir::new(root) {
        let length = entry.and_then(|entry| Ok(entry.metadata()?.len()));
        bytes += length.map_err(|e| Error::io("read", root)(e.into()))?;
    }
    Ok(bytes.div_ceil(1024))
}

fn control(version: &str, kib: u64) -> String {
    format!(
        "Package: vmmcid\n\
         Version: {version}\n\
         Architecture: amd64\n\
         Maintainer: vmmlinux maintainers <maintainers@vmmlinux.invalid>\n\
         Installed-Size: {kib}\n\
         Suggests: chrony\n\
         Section: admin\n\
         Priority: optional\n\
         Description: obey the host and keep its time in a guest of OpenBSD's vmd\n \
         OpenBSD's vmd(8) controls its guests through a device for which kernels but\n \
         those of vmmlinux have no driver: without one, `vmctl stop` kills the guest,\n \
         and after a suspend of the host its clock is wrong. This daemon drives the\n \
         device from user space. It does nothing where the kernel does, and on other\n \
         machines.\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A program with the daemon's version and completions.
    fn daemon(dir: &Path) -> PathBuf {
        let path = dir.join("vmmcid");
        let script =
            "#!/bin/sh\ncase $1 in --version) echo vmmcid 1.2.3;; completions) echo \"for $2\";; esac\n";
        write(&path, 0o700, script).unwrap();
        path
    }

    fn list(command: &str, arguments: &[&str], file: &Path) -> String {
        run::stdout(run::command(command).args(arguments).arg(file)).unwrap()
    }

    #[test]
    fn both_packages_hold_everything_and_come_out_the_same_twice() {
        let dir = tempfile::tempdir().unwrap();
        let binary = daemon(dir.path());
        let pack = |to: &str| package_daemon(&binary, 1_795_348_512, &dir.path().join(to)).unwrap();
        let packages = pack("one");
        assert_eq!(packages.deb, dir.path().join("one/vmmcid_1.2.3_amd64.deb"));
        let deb = list("dpkg-deb", &["--contents"], &packages.deb);
        for line in [
            "-rwxr-xr-x root/root",
            "./usr/sbin/vmmcid",
            "./usr/lib/systemd/system/vmmcid.service",
            "./usr/lib/systemd/system-shutdown/vmmcid",
            "./usr/share/man/man8/vmmcid.8.gz",
            "./etc/vmmcid/before-stop.d/",
            "./usr/share/fish/vendor_completions.d/vmmcid.fish",
        ] {
            assert!(deb.contains(line), "{line}: {deb}");
        }
        let control = list("dpkg-deb", &["--field"], &packages.deb);
        assert!(control.contains("Version: 1.2.3\n") && control.contains("\n machines."), "{control}");
        let tarball = list("tar", &["--list", "--file"], &packages.tarball);
        for line in ["vmmcid-1.2.3/install.sh", "vmmcid-1.2.3/openrc/vmmcid-poweroff", "vmmcid-1.2.3/LICENSE"]
        {
            assert!(tarball.contains(line), "{line}: {tarball}");
        }
        let again = pack("two");
        for (one, two) in [(&packages.deb, &again.deb), (&packages.tarball, &again.tarball)] {
            assert!(fs::read(one).unwrap() == fs::read(two).unwrap(), "{}", one.display());
        }
        assert_eq!(fs::read_dir(dir.path().join("one")).unwrap().count(), 2, "nothing is left behind");
    }

    #[test]
    fn the_tarball_installs_itself_and_goes_again_and_leaves_the_configuration() {
        let dir = tempfile::tempdir().unwrap();
        let packages = package_daemon(&daemon(dir.path()), 0, dir.path()).unwrap();
        run::stdout(run::command("tar").arg("-xJf").arg(&packages.tarball).arg("-C").arg(dir.path()))
            .unwrap();
        let root = dir.path().join("root");
        write(&root.join("etc/vmmcid.toml"), 0o644, "mine").unwrap();
        // As in Debian with OpenRC, whose udev brings units of systemd's.
        fs::create_dir_all(root.join("etc/runlevels/boot")).unwrap();
        fs::create_dir_all(root.join("usr/lib/systemd/system")).unwrap();
        let install = |words: &[&str]| {
            let mut command = run::command(dir.path().join("vmmcid-1.2.3/install.sh"));
            run::stdout(command.env("DESTDIR", &root).args(words))
        };
        let said = install(&[]).unwrap();
        assert!(said.contains("rc-update add vmmcid default"), "{said}");
        assert!(root.join("etc/init.d/vmmcid-poweroff").is_file());
        assert!(root.join("usr/sbin/vmmcid").is_file());
        assert_eq!(fs::read_to_string(root.join("etc/vmmcid.toml")).unwrap(), "mine");

        std::os::unix::fs::symlink("/etc/init.d/vmmcid", root.join("etc/runlevels/boot/vmmcid")).unwrap();
        let left = |root: &Path| {
            let list = run::stdout(run::command("find").arg(root).args(["!", "-type", "d"])).unwrap();
            list.lines()
                .map(|file| file.strip_prefix(root.to_str().unwrap()).unwrap().to_owned())
                .collect::<Vec<_>>()
        };
        let said = install(&["--uninstall"]).unwrap();
        assert_eq!(left(&root), ["/etc/vmmcid.toml"]);
        assert_eq!(said, "/etc/vmmcid.toml is left: it is yours\n");
        assert!(!root.join("etc/vmmcid").exists());
        // An unchanged file is removed, an added one stays.
        fs::remove_file(root.join("etc/vmmcid.toml")).unwrap();
        install(&[]).unwrap();
        write(&root.join("etc/vmmcid/before-stop.d/mine"), 0o755, "").unwrap();
        assert_eq!(install(&["--uninstall"]).unwrap(), "/etc/vmmcid is left: it is yours\n");
        assert_eq!(left(&root), ["/etc/vmmcid/before-stop.d/mine"]);
        assert!(install(&["--unistall"]).is_err());
    }

    #[test]
    fn another_program_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let error = package_daemon(Path::new("/bin/echo"), 0, dir.path()).unwrap_err();
        assert!(matches!(error, Error::NotTheDaemon { .. }) || matches!(error, Error::Run(_)), "{error}");
    }
}
