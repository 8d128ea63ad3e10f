//! QEMU as the helper VM's CPU: finding it, judging its version, and its command line.

use std::{
    env,
    ffi::OsString,
    os::fd::RawFd,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::json;
use vmd_release::DiskFormat;

use crate::{Error, Result};

/// First major version whose emulated SVM runs a nested guest correctly: 7.2 loses bits of RFLAGS.
const OLDEST: u32 = 10;

/// QEMU of a supported version.
#[derive(Debug)]
pub(crate) struct Qemu {
    program: PathBuf,
}

impl Qemu {
    /// The program that `VMMLINUX_QEMU` names, by default `qemu-system-x86_64`.
    pub(crate) fn find() -> Result<Self> {
        let program = env::var_os("VMMLINUX_QEMU").map_or_else(|| "qemu-system-x86_64".into(), PathBuf::from);
        let qemu = Self { program };
        let output =
            Command::new(&qemu.program).arg("--version").output().map_err(|source| qemu.missing(source))?;
        // On failure, the first line of standard error replaces the version.
        let said = if output.stdout.is_empty() { output.stderr } else { output.stdout };
        check_version(&qemu.program, &String::from_utf8_lossy(&said))?;
        Ok(qemu)
    }

    /// The command that runs the helper VM.
    pub(crate) fn command(&self, machine: &Machine) -> Command {
        let mut command = Command::new(&self.program);
        command.args(machine.arguments());
        command
    }

    /// The error for a QEMU that could not be started.
    pub(crate) fn missing(&self, source: std::io::Error) -> Error {
        Error::NoQemu { program: self.program.clone(), source }
    }
}

fn check_version(program: &Path, output: &str) -> Result<()> {
    let line = output.lines().next().unwrap_or_default();
    let unknown = || Error::UnknownQemu { program: program.to_owned(), output: line.to_owned() };
    let found = line.strip_prefix("QEMU emulator version ").and_then(|rest| rest.split_whitespace().next());
    let found = found.ok_or_else(unknown)?;
    let major: u32 = found.split('.').next().and_then(|major| major.parse().ok()).ok_or_else(unknown)?;
    if major < OLDEST {
        return Err(Error::OldQemu { program: program.to_owned(), found: found.to_owned(), needed: "10.0" });
    }
    Ok(())
}

/// A disk of the helper VM.
#[derive(Debug, Clone)]
pub(crate) struct Drive {
    pub(crate) path: PathBuf,
    pub(crate) format: DiskFormat,
    pub(crate) read_only: bool,
}

/// The host's end of a network interface.
#[derive(Debug)]
pub enum Net {
    /// QEMU's user-space network: NAT to the host's, DHCP and DNS at 10.0.2.0/24.
    User,
    /// A tap interface that exists.
    Tap(String),
}

/// A virtio-serial port between the helper VM and this process or a file.
#[derive(Debug)]
pub(crate) struct Port {
    pub(crate) name: String,
    pub(crate) end: End,
}

/// The host's end of a port.
#[derive(Debug)]
pub(crate) enum End {
    /// A connected stream socket that QEMU inherits.
    Socket(RawFd),
    /// A file that QEMU writes.
    File(PathBuf),
    /// A network: frames, each after its length in four bytes (big endian), through a pair of sockets that QEMU
    /// inherits.
    Net(Net, [RawFd; 2]),
}

/// QEMU's configuration of the helper VM.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) kernel: PathBuf,
    pub(crate) initrd: PathBuf,
    /// In MiB.
    pub(crate) memory: u64,
    pub(crate) cpus: u32,
    pub(crate) drives: Vec<Drive>,
    pub(crate) ports: Vec<Port>,
}

/// The helper VM's kernel command line: no calibration loops and no mitigations, which cost time on the emulated
/// processor; error messages only; a panic ends QEMU.
const KERNEL_ARGUMENTS: &str = "console=ttyS0 quiet loglevel=4 tsc=reliable no_timer_check mitigations=off nokaslr \
                                random.trust_cpu=on nowatchdog audit=0 panic=-1 rdinit=/init";

/// QEMU's seccomp filter: no obsolete system calls, no other user, no programs, no scheduling. QEMU decodes disk images,
/// and the guest is foreign.
const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

impl Machine {
    fn arguments(&self) -> Vec<OsString> {
        let mut args: Vec<OsString> = Vec::new();
        let mut add = |words: &[&str]| args.extend(words.iter().map(OsString::from));
        add(&["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
        add(&["-sandbox", SANDBOX]);
        add(&["-name", "vmmlinux-l1", "-machine", "pc,usb=off,vmport=off,i8042=off,hpet=off"]);
        add(&["-accel", "tcg,thread=multi", "-cpu", "EPYC,+svm,+npt,+nrip-save,+invtsc"]);
        add(&["-smp", &self.cpus.to_string(), "-m", &format!("{}M", self.memory)]);
        add(&["-chardev", "stdio,id=log,signal=off", "-serial", "chardev:log"]);
        add(&["-append", &format!("{KERNEL_ARGUMENTS} {}{}", crate::PORTS_ARGUMENT, self.ports.len())]);
        for (index, drive) in self.drives.iter().enumerate() {
            add(&["-blockdev", &blockdev(index, drive)]);
            add(&["-device", &format!("virtio-blk-pci,drive=drive{index}")]);
        }
        add(&["-device", &format!("virtio-serial-pci,max_ports={}", self.ports.len() + 1)]);
        for (index, port) in self.ports.iter().enumerate() {
            let socket = |fd| format!("socket,id=port{index},fd={fd}");
            match &port.end {
                End::Socket(fd) => add(&["-chardev", &socket(*fd)]),
                End::File(path) => add(&["-chardev", &format!("file,id=port{index},path={}", escape(path))]),
                End::Net(net, [here, there]) => {
                    add(&["-chardev", &socket(*here)]);
                    let backend = match net {
                        Net::User => format!("user,id=net{index}"),
                        Net::Tap(name) => {
                            format!(
                                "tap,id=net{index},script=no,downscript=no,ifname={}",
                                escape(Path::new(name))
                            )
                        }
                    };
                    add(&["-netdev", &backend]);
                    add(&[
                        "-netdev",
                        &format!("stream,id=wire{index},server=off,addr.type=fd,addr.str={there}"),
                    ]);
                    for end in ["net", "wire"] {
                        add(&[
                            "-netdev",
                            &format!("hubport,id=hub-{end}{index},hubid={index},netdev={end}{index}"),
                        ]);
                    }
                }
            }
            let name = &port.name;
            add(&["-device", &format!("virtserialport,nr={},chardev=port{index},name={name}", index + 1)]);
        }
        args.extend([
            "-kernel".into(),
            self.kernel.clone().into(),
            "-initrd".into(),
            self.initrd.clone().into(),
        ]);
        args
    }
}

/// The value of `-blockdev` for a drive: JSON, because a file's name may contain commas.
fn blockdev(index: usize, drive: &Drive) -> String {
    json!({
        "node-name": format!("drive{index}"),
        "driver": drive.format.as_str(),
        "read-only": drive.read_only,
        "discard": "unmap",
        "file": { "driver": "file", "filename": drive.path.to_string_lossy() },
    })
    .to_string()
}

/// Escapes a value for a comma-separated list of options.
fn escape(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_qemus_are_refused_with_what_to_do() {
        let program = Path::new("qemu-system-x86_64");
        check_version(program, "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\nCopyright\n").unwrap();
        check_version(program, "QEMU emulator version 11.1.50\n").unwrap();
        let old = check_version(program, "QEMU emulator version 7.2.17 (Debian)\n").unwrap_err();
        assert_eq!(
            old.to_string(),
            "qemu-system-x86_64 is version 7.2.17; the helper VM needs 10.0 or newer"
        );
        assert!(miette::Diagnostic::help(&old).unwrap().to_string().contains("bookworm-backports"));
        for strange in ["", "bash: no such", "QEMU emulator version x"] {
            assert!(matches!(check_version(program, strange), Err(Error::UnknownQemu { .. })));
        }
    }

    fn machine() -> Machine {
        Machine {
            kernel: "/cache/vmlinuz".into(),
            initrd: "/proc/self/fd/9".into(),
            memory: 800,
            cpus: 1,
            drives: vec![
                Drive { path: "/a,b.img".into(), format: DiskFormat::Raw, read_only: false },
                Drive { path: "/c.iso".into(), format: DiskFormat::Qcow2, read_only: true },
            ],
            ports: vec![
                Port { name: "console".to_owned(), end: End::Socket(5) },
                Port { name: "trace".to_owned(), end: End::File("/t,1".into()) },
                Port { name: "net0".to_owned(), end: End::Net(Net::User, [6, 7]) },
            ],
        }
    }

    #[test]
    fn the_command_line_has_the_number_of_ports() {
        let append = values(&machine().arguments(), "-append");
        assert!(append[0].ends_with(" vmmlinux.ports=3"), "{append:?}");
    }

    fn values(args: &[OsString], option: &str) -> Vec<String> {
        let pairs = args.windows(2).filter(|pair| pair[0] == option);
        pairs.map(|pair| pair[1].to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn qemu_is_sandboxed() {
        let sandbox = values(&machine().arguments(), "-sandbox");
        assert!(sandbox[0].starts_with("on,") && sandbox[0].contains("spawn=deny"), "{sandbox:?}");
    }

    #[test]
    fn drives_survive_odd_names() {
        let args = machine().arguments();
        let drives: Vec<serde_json::Value> =
            values(&args, "-blockdev").iter().map(|json| serde_json::from_str(json).unwrap()).collect();
        assert_eq!(drives[0]["file"]["filename"], "/a,b.img");
        assert_eq!(drives[0]["read-only"], false);
        assert_eq!(drives[1]["driver"], "qcow2");
        assert_eq!(drives[1]["read-only"], true);
    }

    #[test]
    fn each_port_has_a_chardev_and_its_name() {
        let args = machine().arguments();
        let chardevs = values(&args, "-chardev");
        assert!(chardevs.contains(&"socket,id=port0,fd=5".to_owned()));
        assert!(chardevs.contains(&"file,id=port1,path=/t,,1".to_owned()));
        assert!(chardevs.contains(&"socket,id=port2,fd=6".to_owned()));
        let devices = values(&args, "-device");
        assert!(devices.contains(&"virtserialport,nr=1,chardev=port0,name=console".to_owned()));
        assert!(devices.contains(&"virtio-serial-pci,max_ports=4".to_owned()));
    }

    #[test]
    fn a_network_is_wired_through_a_hub() {
        let netdevs = values(&machine().arguments(), "-netdev");
        assert_eq!(
            netdevs,
            [
                "user,id=net2",
                "stream,id=wire2,server=off,addr.type=fd,addr.str=7",
                "hubport,id=hub-net2,hubid=2,netdev=net2",
                "hubport,id=hub-wire2,hubid=2,netdev=wire2",
            ]
        );
    }
}
