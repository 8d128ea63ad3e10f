//! What the root partition holds: either kind ends as a tar archive.

mod archive;
mod closure;
mod common;
mod contents;
mod debian;
mod login;
mod minimal;
mod network;
mod stop;

use std::path::Path;

pub(crate) use common::Filled;
pub(crate) use stop::is_answered;

use crate::{
    error::{Error, Result},
    identity::Identity,
    settings::{Options, RootFs},
    tool::Tools,
};

/// Programs that making the chosen root file system runs or copies.
pub(crate) fn tools(rootfs: &RootFs) -> &'static [&'static str] {
    match rootfs {
        RootFs::Minimal => minimal::TOOLS,
        RootFs::Debian { .. } => debian::tools(),
        RootFs::Archive { .. } => archive::TOOLS,
    }
}

/// Writes the archive of the chosen root file system. `scratch` is a directory for what is needed
/// on the way and for the kernel.
pub(crate) fn write(
    tools: &Tools,
    options: &Options,
    identity: &Identity,
    archive: &Path,
    scratch: &Path,
) -> Result<Filled> {
    match (&options.rootfs, &options.kernel) {
        (RootFs::Debian { suite }, _) => {
            Ok(debian::write(tools, options, suite, identity, archive, scratch)?.into())
        }
        (_, _) if !options.packages.is_empty() => Err(Error::NeedsDebian { what: "Debian's packages" }),
        (RootFs::Archive { path }, _) => archive::write(tools, options, path, identity, archive, scratch),
        (RootFs::Minimal, Some(kernel)) => {
            minimal::write(tools, options, identity, archive, scratch)?;
            Ok(kernel.clone().into())
        }
        (RootFs::Minimal, None) => Err(Error::NeedsDebian { what: "a kernel of its own" }),
    }
}
