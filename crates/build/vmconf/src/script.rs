//! A proposal as a commented script: the stanza, and the commands that lead to a running guest.

use std::{fmt::Write as _, io};

use vmd_release::Generation;

use crate::{
    model::{DiskFormat, Owner},
    network,
    parser::read_text,
    proposal::{Network, Proposal},
    release::notes,
    shell::{Unwritable, Written, quoted},
    size::show_size,
};

/// A file of this machine as a word for the shell; scp takes no part of it for a host's name or an option.
fn local(path: &str) -> Written {
    let plain = path.starts_with('/') || !path.starts_with('-') && !path.contains(':');
    if plain { quoted(path) } else { quoted(&format!("./{path}")) }
}

impl Proposal {
    /// Everything to do on this machine and on the host, as a commented script, and what differs between hosts. Names
    /// and paths are quoted for the shell; control characters in them are refused.
    pub fn text(&self) -> Written {
        self.check_words()?;
        let mut text = self.copy()?;
        text.push_str(
            "\n# Everything else on that host, as root. Once:\nfw_update vmm\nrcctl enable vmd && rcctl start vmd\n\n",
        );
        text.push_str(&self.images()?);
        text.push_str(&network::steps(&self.network)?);
        text.push_str("# In /etc/vm.conf:\n");
        text.push_str(&self.stanza()?);
        text.push_str(&self.start()?);
        if !self.is_template() {
            text.push_str(&self.alternatives()?);
        }
        text.push_str(&self.keys());
        for host in &self.hosts {
            let older = if *host == Generation::V7_7 { " and older" } else { "" };
            let _ = writeln!(text, "\n# OpenBSD {host}{older}:");
            text.extend(notes(*host).iter().map(|note| wrapped(note)));
        }
        Ok(text)
    }

    /// Refuses control characters in words that get into comments and into vm.conf.
    fn check_words(&self) -> Result<(), Unwritable> {
        let mut words: Vec<&str> = vec![&self.name, &self.home, &self.disk.path];
        words.extend(self.instances.iter().map(String::as_str));
        words.extend(self.cdrom.as_deref());
        if let Network::Switch { name, .. } = &self.network {
            words.push(name);
        }
        if let Some(Owner::Named { user, group }) = &self.owner {
            words.extend(user.iter().chain(group).map(String::as_str));
        }
        words.extend(self.ssh_keys.iter().flat_map(|keys| keys.lines()));
        words.into_iter().try_for_each(|word| quoted(word).map(drop))
    }

    /// The stanza, which vmd reads as it is meant.
    fn stanza(&self) -> Written {
        let statements = self.statements();
        let text: String = statements.iter().map(ToString::to_string).collect();
        let read = read_text("", &text, &|_| Err(io::ErrorKind::NotFound.into()));
        let as_meant = read.statements.iter().map(|statement| &statement.value).eq(&statements);
        if as_meant { Ok(text) } else { Err(Unwritable::Grammar) }
    }

    fn copy(&self) -> Written {
        let mut text = String::from("# To the OpenBSD host:\n");
        let path = local(&self.disk.path)?;
        let directory = format!("mkdir -p {}", quoted(&self.home)?);
        let target = quoted(&format!("root@openbsd:{}/", self.home))?;
        let _ = match self.disk.format {
            DiskFormat::Raw => {
                let unpack = quoted(&format!("{directory} && gunzip > {}", quoted(&self.image())?))?;
                writeln!(
                    text,
                    "# Compressed, the holes weigh nothing; it arrives in full. A qcow2 file stays small.\n\
                     gzip -c {path} | ssh root@openbsd {unpack}"
                )
            }
            DiskFormat::Qcow2 => {
                writeln!(text, "ssh root@openbsd {}\nscp {path} {target}", quoted(&directory)?)
            }
        };
        if let Some(cdrom) = &self.cdrom {
            let _ = writeln!(text, "scp {} {target}", local(cdrom)?);
        }
        Ok(text)
    }

    fn images(&self) -> Written {
        let mut text = String::new();
        if self.disk.on_host != self.disk.format {
            let _ = writeln!(
                text,
                "# The image in the format that it shall have:\nvmctl create -i {} {}\n",
                quoted(&format!("{}:{}", self.disk.format, self.image()))?,
                quoted(&format!("{}:{}", self.disk.on_host, self.image_to_run()))?
            );
        }
        if !self.instances.is_empty() {
            text.push_str(
                "# A disk for each instance, which has what the template's image has and keeps what differs. From then on\n\
                 # nothing may write to that image:\n",
            );
            for name in &self.instances {
                let disk = quoted(&format!("qcow2:{}", self.instance_disk(name)))?;
                let _ = writeln!(text, "vmctl create -b {} {disk}", quoted(&self.image_to_run())?);
            }
            text.push('\n');
        }
        if let Some(size) = self.data {
            text.push_str("# A second disk, empty; the guest sees it as /dev/vdb:\n");
            for name in self.running() {
                let disk = quoted(&format!("qcow2:{}", self.data_disk(name)))?;
                let _ = writeln!(text, "vmctl create -s {} {disk}", show_size(size));
            }
            text.push('\n');
        }
        Ok(text)
    }

    fn start(&self) -> Written {
        // Reloading is root's (control.c).
        let owner = if self.owner.is_some() { ", as the owner if you like" } else { "" };
        let mut text = String::from("\n# Does vmd take it? Then it shall:\nvmd -n && vmctl reload\n");
        if let Some(name) = self.running().first() {
            let _ = writeln!(text, "\n# Start it{owner}:\nvmctl start -c {}", quoted(name)?);
        }
        let mut stopped = self.running().first().map_or(Ok("NAME".to_owned()), |name| quoted(name))?;
        if self.template {
            let _ = writeln!(
                text,
                "\n# A further instance{owner}, here named other:\nvmctl create -b {} qcow2:other.qcow2\n\
                 vmctl start -c -t {} -d qcow2:other.qcow2 other",
                quoted(&self.image_to_run())?,
                quoted(&self.name)?
            );
            if self.instances.is_empty() {
                "other".clone_into(&mut stopped);
            }
        }
        if !self.instances.is_empty() {
            text.push_str(
                "\n# While an instance runs, vmctl reload ends with an error: vmd has the instance already. Stop the\n\
                 # instances before.\n",
            );
        }
        let stop = if self.answers_stop {
            "To stop the guest in order:"
        } else {
            "To stop the guest in order: poweroff in the guest.\n\
             # It has neither a driver for vmmci nor vmmcid, so that this kills it:"
        };
        let _ = writeln!(text, "\n# To leave the console: ~. (~~. over SSH). {stop}\nvmctl stop {stopped}");
        Ok(text)
    }

    /// The same without the stanza, and the image in its other format.
    fn alternatives(&self) -> Written {
        let flag = match &self.network {
            Network::None => String::new(),
            Network::Local => " -L".to_owned(),
            Network::Switch { name, .. } => format!(" -n {}", quoted(name)?),
        };
        let disk = |format: DiskFormat, path: String| quoted(&format!("{format}:{path}"));
        let mut disks = format!(" -d {}", disk(self.disk.on_host, self.image_to_run())?);
        if self.data.is_some() {
            let _ = write!(disks, " -d {}", disk(DiskFormat::Qcow2, self.data_disk(&self.name))?);
        }
        if let Some(cdrom) = &self.cdrom {
            let _ = write!(disks, " -r {}", quoted(&self.on_host(cdrom))?);
        }
        let mut text = format!(
            "\n# Or without the stanza:\nvmctl start -c{flag} -m {}{disks} {}\n",
            show_size(self.memory),
            quoted(&self.name)?
        );
        if self.disk.on_host == self.disk.format {
            let other = match self.disk.format {
                DiskFormat::Raw => DiskFormat::Qcow2,
                DiskFormat::Qcow2 => DiskFormat::Raw,
            };
            let _ = writeln!(
                text,
                "\n# The other format, should it suit you better:\nvmctl create -i {} {}",
                disk(self.disk.format, self.image())?,
                disk(other, self.converted(other))?
            );
        }
        Ok(text)
    }

    fn keys(&self) -> String {
        let Some(keys) = &self.ssh_keys else { return String::new() };
        let mut text = String::from(
            "\n# An image that is made with `vmmlinux image --ssh-key` has the keys in it. In one that exists, once, on\n\
             # its console as root (the guest needs an SSH server; the minimal one has none):\n\
             install -d -m 700 /root/.ssh\ncat >> /root/.ssh/authorized_keys <<'END'\n",
        );
        for key in keys.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#')) {
            let _ = writeln!(text, "{key}");
        }
        text.push_str("END\n");
        text
    }
}

/// A note as a comment of lines that fit a terminal.
fn wrapped(note: &str) -> String {
    let mut text = String::from("# -");
    let mut column = 3;
    for word in note.split_whitespace() {
        let length = word.chars().count() + 1;
        if column + length > 110 {
            text.push_str("\n#  ");
            column = 4;
        }
        text.push(' ');
        text.push_str(word);
        column += length;
    }
    text.push('\n');
    text
}
