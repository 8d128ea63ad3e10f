//! Unpacking of source archives: completely or not at all.

use std::{
    fs::{self, File},
    io::{self, BufReader, Read},
    path::{Path, PathBuf},
    process::Stdio,
};

use liblzma::{read::XzDecoder, stream::MtStreamBuilder};
use support::{
    cache::Cache,
    file::{self, temp_dir},
    progress::Progress,
    run,
};

use crate::fetch::error::{FetchError, Result};

/// The pristine tree of an archive in the cache, unpacked if need be.
///
/// `archive` is a kernel.org `linux-*.tar.xz` or a Debian `linux-source-*.deb` that holds such a tarball; the caller has
/// verified it.
pub(crate) fn pristine(
    cache: &Cache,
    archive: &Path,
    sha256: &str,
    progress: &dyn Progress,
) -> Result<PathBuf> {
    let parent = cache.dir("pristine")?;
    let tree = parent.join(sha256);
    if tree.is_dir() {
        return Ok(tree);
    }
    progress.phase(&format!("unpacking {}", archive.file_name().unwrap_or_default().display()));
    let temp = temp_dir(&parent, &format!(".unpacking-{sha256}-"))?;
    if archive.extension().is_some_and(|e| e == "deb") {
        unpack_deb(archive, temp.path())?;
    } else {
        let file = File::open(archive).map_err(|e| file::Error::new("open", archive, e))?;
        unpack_tar_xz(BufReader::with_capacity(1 << 20, file), archive, temp.path())?;
    }
    let top = only_directory(temp.path(), archive)?;
    fs::rename(&top, &tree).map_err(|e| file::Error::new("create", &tree, e))?;
    Ok(tree)
}

/// Unpacks a `.tar.xz` stream into a directory. The stream is read to its end, where xz's checksum is.
pub(crate) fn unpack_tar_xz(stream: impl Read, archive: &Path, into: &Path) -> Result<()> {
    let mut xz = xz_decoder(stream).map_err(|e| file::Error::new("decompress", archive, e))?;
    let mut tar = tar::Archive::new(&mut xz);
    tar.set_preserve_permissions(true);
    tar.set_preserve_mtime(true);
    tar.unpack(into).map_err(|e| unpack_error(e, archive, into))?;
    io::copy(&mut xz, &mut io::sink()).map_err(|e| unpack_error(e, archive, into))?;
    Ok(())
}

/// An xz decoder that uses all CPUs if the archive consists of blocks.
pub(crate) fn xz_decoder<R: Read>(stream: R) -> io::Result<XzDecoder<R>> {
    let threads =
        std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX));
    let decoder = MtStreamBuilder::new()
        .threads(threads)
        .memlimit_threading(1 << 30)
        .memlimit_stop(u64::MAX)
        .decoder()
        .map_err(io::Error::other)?;
    Ok(XzDecoder::new_stream(stream, decoder))
}

fn unpack_deb(deb: &Path, into: &Path) -> Result<()> {
    let mut dpkg = run::command("dpkg-deb");
    dpkg.arg("--fsys-tarfile").arg(deb).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = dpkg.spawn().map_err(|source| run::spawn_error(&dpkg, source))?;
    let result = unpack_source_tarball(child.stdout.take().expect("stdout is piped"), deb, into);
    let output = child.wait_with_output().map_err(|source| run::spawn_error(&dpkg, source))?;
    // A damaged package is a short stream here; dpkg-deb names the damage.
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return match result {
            Err(full @ FetchError::File(_)) => Err(full),
            _ => Err(FetchError::BadArchive { path: deb.to_owned(), source: io::Error::other(said) }),
        };
    }
    result
}

/// Unpacks `usr/src/linux-source-*.tar.xz` out of the stream of a package's files.
fn unpack_source_tarball(mut files: impl Read, deb: &Path, into: &Path) -> Result<()> {
    let bad = |e| unpack_error(e, deb, into);
    let mut found = false;
    for entry in tar::Archive::new(&mut files).entries().map_err(bad)? {
        let entry = entry.map_err(bad)?;
        let path = entry.path().map_err(bad)?.into_owned();
        if path.parent().is_some_and(|p| p.ends_with("usr/src"))
            && path.extension().is_some_and(|e| e == "xz")
        {
            unpack_tar_xz(entry, deb, into)?;
            found = true;
            break;
        }
    }
    // dpkg-deb must not write into a closed pipe: its exit status says whether the package is complete.
    io::copy(&mut files, &mut io::sink()).map_err(bad)?;
    if found {
        Ok(())
    } else {
        Err(FetchError::NotAKernel {
            path: deb.to_owned(),
            problem: "no usr/src/*.tar.xz in the package".to_owned(),
        })
    }
}

/// The error of unpacking: of the disk or of the archive, by the kind of the system's error.
fn unpack_error(e: io::Error, archive: &Path, into: &Path) -> FetchError {
    match e.kind() {
        io::ErrorKind::StorageFull
        | io::ErrorKind::QuotaExceeded
        | io::ErrorKind::FileTooLarge
        | io::ErrorKind::PermissionDenied
        | io::ErrorKind::ReadOnlyFilesystem => file::Error::new("unpack the source into", into, e).into(),
        _ => FetchError::BadArchive { path: archive.to_owned(), source: e },
    }
}

fn only_directory(dir: &Path, archive: &Path) -> Result<PathBuf> {
    let not =
        |problem: &str| FetchError::NotAKernel { path: archive.to_owned(), problem: problem.to_owned() };
    let mut entries = fs::read_dir(dir).map_err(|e| file::Error::new("read", dir, e))?;
    let Some(Ok(only)) = entries.next() else { return Err(not("the archive is empty")) };
    if entries.next().is_some() {
        return Err(not("more than one entry at the top of the archive"));
    }
    let path = only.path();
    if path.join("Makefile").is_file() { Ok(path) } else { Err(not("no Makefile at the top of the tree")) }
}
