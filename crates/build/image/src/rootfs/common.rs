//! What all kinds of root file systems have in common.

use std::path::Path;

use sha_crypt::{PasswordHasher, ShaCrypt};

use crate::{
    disk::root_partuuid,
    error::{Error, Result},
    identity::Identity,
    kernel::Kernel,
    settings::Options,
    tree::Tree,
};

/// A root file system that has been written.
pub(crate) struct Filled {
    /// What boots it.
    pub(crate) kernel: Kernel,
    /// A parameter that the kernel needs for it.
    pub(crate) parameters: Option<&'static str>,
    /// What the user should know about it.
    pub(crate) remarks: Vec<String>,
}

impl From<Kernel> for Filled {
    fn from(kernel: Kernel) -> Self {
        Self { kernel, parameters: None, remarks: Vec::new() }
    }
}

/// The tree that all kinds share: names, mounts, modules in the directory `lib`, the scripts of `guests/common`.
pub(super) fn tree(options: &Options, identity: &Identity, lib: &str) -> Result<Tree> {
    let mut tree = Tree::default();
    let hostname = &options.hostname;
    tree.file("etc/hostname", 0o644, format!("{}\n", hostname.as_str()));
    let short =
        if hostname.short() == hostname.as_str() { String::new() } else { format!(" {}", hostname.short()) };
    tree.file(
        "etc/hosts",
        0o644,
        format!(
            "127.0.0.1\tlocalhost\n127.0.1.1\t{}{short}\n::1\tlocalhost ip6-localhost ip6-loopback\n",
            hostname.as_str()
        ),
    );
    tree.file("etc/fstab", 0o644, format!("PARTUUID={}\t/\text4\tdefaults\t0 1\n", root_partuuid(identity)));
    tree.file("usr/lib/vmmlinux/grow", 0o755, include_str!("../../../../../guests/common/grow"));
    tree.file("usr/lib/vmmlinux/ready", 0o755, include_str!("../../../../../guests/common/ready"));
    let install_kernel = include_str!("../../../../../guests/common/install-kernel");
    tree.file("usr/lib/vmmlinux/install-kernel", 0o755, install_kernel);
    // The root partition ends where this disk does: only a larger one is news.
    tree.file("var/lib/vmmlinux/disk-sectors", 0o644, format!("{}\n", options.size.bytes() / 512));
    if let Some(kernel) = &options.kernel
        && let Some(modules) = kernel.modules()
    {
        let target = Path::new(lib).join("modules").join(kernel.release());
        tree.copy_directory(&target, modules)?;
    }
    Ok(tree)
}

/// The password's field of /etc/shadow: SHA-512 crypt, which busybox and every Debian check; empty for none.
pub(super) fn shadow_field(options: &Options, identity: &Identity) -> Result<String> {
    let Some(password) = &options.root_password else { return Ok(String::new()) };
    let salt: [u8; 12] = identity.bytes("root password");
    ShaCrypt::SHA512
        .hash_password_with_salt(password.as_bytes(), &salt)
        .map(|hash| hash.to_string())
        .map_err(|e| Error::setting("root password", "(not shown)", e.to_string()))
}
