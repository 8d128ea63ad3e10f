//! Tarballs from kernel.org, fetched by curl and verified by the release managers' PGP signatures.

use std::{
    fs,
    path::{Path, PathBuf},
};

use support::{file, hash::hash_file, run};

use crate::fetch::{
    error::{FetchError, Result},
    lock::{Locked, Origin},
    signature::Keyring,
    sources::Sources,
};

/// Fetches the newest release of a series, or the wanted one, verifies it and keeps it in the cache.
///
/// The listing of releases is not trusted: the signature decides whether a tarball is good.
pub(crate) fn fetch(sources: &Sources<'_>, series: &str, wanted: Option<&Locked>) -> Result<Locked> {
    let unavailable = |problem: String| FetchError::Unavailable {
        series: series.to_owned(),
        origin: "kernel.org".to_owned(),
        problem,
        help: Some("check the network; `vmmlinux build --tree DIR` builds a source tree of yours".to_owned()),
    };
    let keyring = Keyring::load(
        &sources.options.kernel_dir.join("keys"),
        sources.series.keys.iter().map(|key| key.fingerprint.as_str()),
    )?;
    let major = series.split('.').next().unwrap_or_default();
    let base = format!("{}/v{major}.x", sources.series.kernel_org.trim_end_matches('/'));
    sources.progress.phase(&format!("looking for the newest {series} on kernel.org"));
    let listing = run::output(curl().arg(format!("{base}/sha256sums.asc")))?;
    if !listing.status.success() {
        return Err(unavailable(String::from_utf8_lossy(&listing.stderr).trim().to_owned()));
    }
    let releases = releases(&String::from_utf8_lossy(&listing.stdout), series);
    let newest = releases.iter().max_by_key(|release| release.point);
    let release = match wanted.and_then(|w| releases.iter().find(|r| r.version == w.version)) {
        Some(same) => same,
        None => newest.ok_or_else(|| unavailable(format!("no release of {series} is listed in {base}")))?,
    };
    let file = format!("linux-{}.tar.xz", release.version);
    let locked = |sha256: &str| Locked {
        origin: Origin::KernelOrg,
        version: release.version.clone(),
        file: file.clone(),
        sha256: sha256.to_owned(),
    };
    // The cache holds verified tarballs only.
    if sources.cache.download(&release.sha256, &file)?.is_some() {
        return Ok(locked(&release.sha256));
    }
    let incoming = sources.cache.incoming(series)?;
    let tarball = download(sources, &base, &file, incoming.path())?;
    let signature =
        download(sources, &base, &format!("linux-{}.tar.sign", release.version), incoming.path())?;
    let found = hash_file(&tarball)?;
    if found != release.sha256 {
        return Err(FetchError::WrongHash { path: tarball, expected: release.sha256.clone(), found });
    }
    sources.progress.phase(&format!("verifying the signature of {file}"));
    let signer = keyring.verify_tar_xz(&tarball, &signature)?;
    tracing::info!(file, signer, "good signature");
    sources.cache.keep_download(&tarball, &found, &file)?;
    Ok(locked(&found))
}

/// A tarball in kernel.org's listing.
#[derive(Debug, PartialEq, Eq)]
struct Release {
    version: String,
    point: u32,
    sha256: String,
}

/// The releases of a series among the lines `SHA256  linux-7.3.4.tar.xz` of a listing.
fn releases(listing: &str, series: &str) -> Vec<Release> {
    listing
        .lines()
        .filter_map(|line| {
            let (sha256, file) = line.split_once("  ")?;
            let version = file.trim().strip_prefix("linux-")?.strip_suffix(".tar.xz")?;
            let point = match version.strip_prefix(series)? {
                "" => 0,
                rest => rest.strip_prefix('.')?.parse().ok()?,
            };
            let is_hash = sha256.len() == 64 && sha256.bytes().all(|b| b.is_ascii_hexdigit());
            is_hash.then(|| Release {
                version: version.to_owned(),
                point,
                sha256: sha256.to_ascii_lowercase(),
            })
        })
        .collect()
}

fn download(sources: &Sources<'_>, base: &str, file: &str, into: &Path) -> Result<PathBuf> {
    sources.progress.phase(&format!("downloading {file}"));
    let path = into.join(file);
    let mut curl = curl();
    curl.arg("--output").arg(&path).arg(format!("{base}/{file}"));
    run::download(&mut curl, into, 0, sources.progress)?;
    fs::metadata(&path).map_err(|e| file::Error::new("find the download", &path, e))?;
    Ok(path)
}

fn curl() -> std::process::Command {
    let mut curl = run::command("curl");
    curl.args(["--silent", "--show-error", "--fail", "--location", "--retry", "3", "--proto", "=https,file"]);
    curl
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_gives_the_releases_of_one_series() {
        let sum = "a".repeat(64);
        let files = [
            "linux-7.3.tar.xz",
            "linux-7.3.9.tar.xz",
            "linux-7.3.10.tar.xz",
            "linux-7.30.1.tar.xz",
            "linux-7.3.4.tar.gz",
        ];
        let listing = files.map(|file| format!("{sum}  {file}")).join("\n");
        let found = releases(&listing, "7.3");
        let versions: Vec<&str> = found.iter().map(|r| r.version.as_str()).collect();
        assert_eq!(versions, ["7.3", "7.3.9", "7.3.10"]);
        assert_eq!(found.iter().max_by_key(|r| r.point).unwrap().version, "7.3.10");
    }
}
