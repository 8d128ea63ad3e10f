//! The root partition: ext4, filled as it is made.

use std::{fs, io::Write as _, os::unix::ffi::OsStrExt, path::Path};

use support::file::temp_dir;

use crate::{
    disk::Region,
    error::{Error, Result},
    identity::Identity,
    tool::{Tools, name},
    tree,
};

/// Features by name, so that the result does not depend on this machine's mke2fs.conf, and only those that the
/// e2fsprogs of every guest understands: the newest (orphan_file, metadata_csum_seed) would keep an older guest from
/// growing its root.
const FEATURES: &str = "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,\
                        sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum";

/// Extracts the archive and makes the file system from it in one fakeroot session, which remembers the owners and
/// the device nodes that an ordinary user's files cannot have.
const SCRIPT: &str = "set -e\n\
    tree=$1 archive=$2; shift 2\n\
    tar --extract --file \"$archive\" --directory \"$tree\" --numeric-owner --same-owner --preserve-permissions\n\
    exec mke2fs -d \"$tree\" \"$@\"\n";

/// Makes the file system of the archive's contents in `region` of the disk. `scratch` is the directory of both, and of
/// the tree on its way from the one to the other.
pub(crate) fn write(
    tools: &Tools,
    disk: &Path,
    region: Region,
    archive: &Path,
    scratch: &Path,
    identity: &Identity,
) -> Result<()> {
    let tree = temp_dir(scratch, "tree-")?;
    let conf = scratch.join("mke2fs.conf");
    fs::write(&conf, "[fs_types]\n\text4 = {\n\t\tfeatures = has_journal\n\t}\n")
        .map_err(Error::io("write", &conf))?;

    let time = identity.time().to_string();
    let extended = format!(
        "offset={},hash_seed={},root_owner=0:0,nodiscard,assume_storage_prezeroed=1",
        region.start,
        identity.uuid("directory hashes")
    );
    let mut command = tools.command_beside("fakeroot", disk)?;
    command
        .args(["--", "sh", "-c", SCRIPT, "sh"])
        .args([name(tree.path()), name(archive)])
        .args(["-q", "-F", "-t", "ext4", "-O", FEATURES, "-b", "4096", "-I", "256", "-i", "16384", "-m", "1"])
        .args(["-L", "root", "-U", &identity.uuid("root file system"), "-E", &extended])
        .arg(name(disk))
        .arg(format!("{}k", region.length / 1024))
        .env("MKE2FS_CONFIG", name(&conf))
        .env("E2FSPROGS_FAKE_TIME", &time);
    tools.run(&mut command, "mke2fs", "making the root file system", disk)?;
    finish(tools, disk, region, archive, scratch, &time)
}

/// Sets in the file system itself what cannot be set on the tree's files: change and access times at all, and
/// extended attributes (capabilities of programs) by anyone but root; fakeroot forgets what kind of file it was that
/// it is told an attribute for.
fn finish(
    tools: &Tools,
    disk: &Path,
    region: Region,
    archive: &Path,
    scratch: &Path,
    time: &str,
) -> Result<()> {
    let mut place = name(disk).to_owned();
    place.push(format!("?offset={}", region.start));

    let mut command = tools.command_beside("debugfs", disk)?;
    command.args(["-R", "show_super_stats -h"]).arg(&place);
    let stats = tools.run(&mut command, "debugfs", "reading the root file system", disk)?;
    let stats = String::from_utf8_lossy(&stats.stdout).into_owned();
    let count = |key: &str| {
        let line = stats.lines().find(|line| line.starts_with(key))?;
        line[key.len()..].trim().parse::<u64>().ok()
    };
    // Inodes are handed out in order, from the first group on: those in use are the first ones.
    let used = match (count("Inode count:"), count("Free inodes:")) {
        (Some(all), Some(free)) => all - free,
        _ => return Err(Error::io("read the inode counts of", disk)(std::io::Error::other(stats))),
    };
    let mut script = Vec::new();
    for inode in std::iter::once(2).chain(11..=used) {
        for field in ["ctime", "atime"] {
            let _ = writeln!(script, "set_inode_field <{inode}> {field} @{time}");
        }
    }
    for (n, attribute) in tree::attributes(archive)?.into_iter().enumerate() {
        let value = scratch.join(format!("attribute-{n}"));
        fs::write(&value, &attribute.value).map_err(Error::io("write", &value))?;
        let word = |bytes: &[u8]| {
            quoted(bytes).ok_or_else(|| {
                let file = attribute.path.display();
                Error::setting(
                    "file name",
                    &file.to_string(),
                    "debugfs cannot give it its extended attributes",
                )
            })
        };
        let path = Path::new("/").join(&attribute.path);
        script.extend(b"ea_set -f");
        for argument in [name(&value).as_bytes(), path.as_os_str().as_bytes(), attribute.name.as_bytes()] {
            script.push(b' ');
            script.extend(word(argument)?);
        }
        script.push(b'\n');
    }
    let commands = scratch.join("debugfs-commands");
    fs::write(&commands, &script).map_err(Error::io("write", &commands))?;
    let mut command = tools.command_beside("debugfs", disk)?;
    command.args(["-w", "-f"]).arg(name(&commands)).arg(&place).env("E2FSPROGS_FAKE_TIME", time);
    let done = tools.run(&mut command, "debugfs", "finishing the root file system", disk)?;
    // It goes on after a command that failed and says so on its standard error only, where it also introduces itself.
    let said = String::from_utf8_lossy(&done.stderr);
    let complaints: Vec<_> = said.lines().filter(|line| !line.starts_with("debugfs ")).collect();
    if complaints.is_empty() {
        Ok(())
    } else {
        let said = complaints.join("\n");
        let doing = "finishing the root file system";
        Err(Error::ToolFailed { tool: "debugfs", doing, status: done.status, said })
    }
}

/// A word of debugfs's commands in quotes, in which a quote is doubled. `None` if no quotes can hold it: a command ends
/// with its line.
fn quoted(word: &[u8]) -> Option<Vec<u8>> {
    let lines = word.contains(&b'\n') || word.contains(&b'\r');
    let doubled =
        word.iter().flat_map(|byte| if *byte == b'"' { &b"\"\""[..] } else { std::slice::from_ref(byte) });
    (!lines).then(|| std::iter::once(&b'"').chain(doubled).chain([&b'"']).copied().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_debugfs_are_quoted() {
        assert_eq!(quoted(b"a \"b\" \xff").unwrap(), b"\"a \"\"b\"\" \xff\"");
        assert_eq!(quoted(b"a\nrm /etc/shadow"), None);
    }
}
