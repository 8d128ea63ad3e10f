//! The archive of the program.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::Command,
};

use clap_complete::Shell;

use crate::{
    error::{Error, Result},
    files::write,
    inputs::Inputs,
};

/// Where each shell looks for completions.
const COMPLETIONS: [(Shell, &str); 3] = [
    (Shell::Bash, "share/bash-completion/completions/vmmlinux"),
    (Shell::Zsh, "share/zsh/site-functions/_vmmlinux"),
    (Shell::Fish, "share/fish/vendor_completions.d/vmmlinux.fish"),
];

const README: &str = "\
vmmlinux: Linux as a first-class guest of OpenBSD's vmm(4)/vmd(8)

To install it, copy bin/ and share/ to /usr/local:

    cp -R bin share /usr/local/

`vmmlinux` alone says what it can do on the machine; man vmmlinux says the rest.
Kernels are built in a checkout of the source.
";

/// Makes the program's archive in the directory `to` and returns its version.
pub(crate) fn pack(inputs: &Inputs<'_>, scratch: &Path, to: &Path) -> Result<String> {
    let own = inputs.command.get_version().unwrap_or_default().to_owned();
    let said = Command::new(inputs.program)
        .arg("--version")
        .output()
        .map_err(|source| Error::Program { path: inputs.program.to_owned(), source })?;
    let said = String::from_utf8_lossy(&said.stdout);
    let found = said.trim().rsplit(' ').next().unwrap_or_default();
    if found != own {
        return Err(Error::OtherVersion { path: inputs.program.to_owned(), found: found.to_owned(), own });
    }
    let name = format!("vmmlinux-{own}");
    let root = scratch.join(&name);
    for program in std::iter::once(inputs.program).chain(inputs.companions.iter().map(AsRef::as_ref)) {
        let installed = root.join("bin").join(program.file_name().unwrap_or_default());
        write(&installed, &fs::read(program).map_err(Error::io("read", program))?)?;
        set_mode(&installed, 0o755)?;
    }
    manuals::write(inputs.command.clone(), &root.join("share/man/man1"))?;
    for (shell, path) in COMPLETIONS {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut inputs.command.clone(), "vmmlinux", &mut script);
        write(&root.join(path), &script)?;
    }
    write(&root.join("README"), README.as_bytes())?;
    for licence in ["ISC.txt", "GPL-2.0.txt"] {
        let path = inputs.checkout.join("LICENSES").join(licence);
        write(&root.join("LICENSES").join(licence), &fs::read(&path).map_err(Error::io("read", &path))?)?;
    }
    set_modes(&root)?;
    support::archive::tarball(scratch, &name, inputs.epoch, &to.join(format!("{name}-x86_64.tar.xz")))?;
    Ok(own)
}

/// Makes files that are not programs readable for everyone, whatever the umask is.
fn set_modes(root: &Path) -> Result<()> {
    for entry in fs::read_dir(root).map_err(Error::io("read", root))? {
        let path = entry.map_err(Error::io("read", root))?.path();
        if path.is_dir() {
            set_modes(&path)?;
        } else if root.file_name().is_none_or(|name| name != "bin") {
            set_mode(&path, 0o644)?;
        }
    }
    Ok(())
}

fn set_mode(path: &Path, mode: u32) -> Result<()> {
    fs::set_permissions(path, Permissions::from_mode(mode)).map_err(Error::io("set the mode of", path))
}
