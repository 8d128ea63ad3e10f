//! What this process may do on OpenBSD: pledge(2) and unveil(2).

use std::{fs, os::unix::ffi::OsStrExt, path::Path};

use rustix::io::Errno;

/// What a process needs of the file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Access<'a> {
    /// Nothing: the standard streams alone.
    Streams,
    /// To read these files, and what is in these directories.
    Read(Vec<&'a Path>),
    /// To create files in this directory, which is created.
    Create(&'a Path),
}

/// A process that could not be restricted.
#[derive(Debug, thiserror::Error, miette::Diagnostic)]
pub enum Error {
    /// The kernel does not take a promise.
    #[error("pledge(2) failed")]
    Pledge(#[from] pledge::Error),
    /// The kernel does not take a path.
    #[error("unveil(2) failed")]
    Unveil(#[from] unveil::Error),
    /// The directory cannot be created.
    #[error(transparent)]
    #[diagnostic(transparent)]
    File(#[from] crate::file::Error),
}

/// Gives up everything but `access` and the terminal, for the rest of the process's life. A system call beyond it ends the
/// process; files beyond it do not exist for it.
pub fn enter(access: &Access<'_>) -> Result<(), Error> {
    let promises = match access {
        Access::Streams => "stdio tty",
        Access::Read(paths) => {
            for path in paths {
                unveil_existing(path, "r")?;
            }
            "stdio rpath tty"
        }
        Access::Create(dir) => {
            fs::create_dir_all(dir).map_err(|e| crate::file::Error::new("create", *dir, e))?;
            unveil_existing(dir, "rwc")?;
            "stdio rpath wpath cpath tty"
        }
    };
    // A pledge without `unveil` locks the list of paths.
    Ok(pledge::pledge(promises, None)?)
}

/// Shows a path to the process. One whose directory is missing is left out: opening it fails as it does without unveil(2).
fn unveil_existing(path: &Path, permissions: &str) -> Result<(), unveil::Error> {
    match unveil::unveil(path.as_os_str().as_bytes(), permissions) {
        Err(unveil::Error::Os(errno)) if errno == Errno::NOENT.raw_os_error() => Ok(()),
        done => done,
    }
}
