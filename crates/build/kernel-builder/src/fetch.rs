//! Getting a series' source into the cache: from where, which release, and what was got last time.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use crate::{
    Forge, Origin,
    apt::{Apt, Offer},
    cache::Lock,
    error::{Error, Result},
    kernel_org,
    lock::Locked,
    progress::Progress,
    run,
};

/// Fetches a series' source, or finds it in the cache.
///
/// A release that an earlier build locked is kept until an update is asked for; the first build takes the newest.
pub(crate) fn fetch(forge: &Forge, series: &str) -> Result<Locked> {
    // Two runs do not download the same thing twice, and what a killed one left behind is nobody's.
    let _fetching = forge.cache.lock(&format!("fetch-{series}"), Lock::Exclusive, &*forge.progress)?;
    let locked = forge
        .lock_file()?
        .get(series)
        .cloned()
        .filter(|l| forge.options.origin.is_none_or(|o| o == l.origin));
    if let Some(locked) = &locked
        && !forge.options.update
        && in_cache(forge, locked)?
    {
        return Ok(locked.clone());
    }
    if forge.options.offline {
        return offline(forge, series);
    }
    let origin = forge.options.origin;
    let wanted = locked.filter(|_| !forge.options.update);
    if origin != Some(Origin::KernelOrg) {
        if let Some(got) = from_debian(forge, series, wanted.as_ref())? {
            return Ok(got);
        }
        if origin == Some(Origin::Debian) {
            return Err(Error::Unavailable {
                series: series.to_owned(),
                origin: "Debian".to_owned(),
                problem: "apt is not set up for Debian's archive on this system".to_owned(),
                help: Some("leave out --origin, or say --origin kernel.org".to_owned()),
            });
        }
    }
    kernel_org::fetch(forge, series, wanted.as_ref())
}

/// What a locked release needs is here: its tree, or the archive that becomes the tree.
fn in_cache(forge: &Forge, locked: &Locked) -> Result<bool> {
    Ok(forge.cache.root().join("pristine").join(&locked.sha256).is_dir()
        || forge.cache.download(&locked.sha256, &locked.file)?.is_some())
}

/// Without a network: the locked release or, in a fresh checkout, what any earlier build on this machine fetched.
fn offline(forge: &Forge, series: &str) -> Result<Locked> {
    for records in [forge.lock_file()?, forge.cache_records()?] {
        if let Some(record) = records.get(series)
            && forge.options.origin.is_none_or(|origin| origin == record.origin)
            && in_cache(forge, record)?
        {
            return Ok(record.clone());
        }
    }
    Err(Error::Offline { what: format!("a source of series {series}"), cache: forge.cache.root().to_owned() })
}

fn from_debian(forge: &Forge, series: &str, wanted: Option<&Locked>) -> Result<Option<Locked>> {
    let suites = &forge.series.get(series)?.suites;
    let Some(apt) = Apt::new(&forge.cache, suites)? else { return Ok(None) };
    forge.progress.phase(&format!("looking for linux-source-{series} in {}", suites.join(", ")));
    apt.update()?;
    let offers = apt.offers(&format!("linux-source-{series}"))?;
    let Some(newest) = offers.last() else {
        return Err(Error::Unavailable {
            series: series.to_owned(),
            origin: "Debian".to_owned(),
            problem: format!("no linux-source-{series} in {}", suites.join(", ")),
            help: Some(
                "does the mirror carry these suites? `--origin kernel.org` takes the tarball instead"
                    .to_owned(),
            ),
        });
    };
    let same = wanted.and_then(|wanted| offers.iter().find(|offer| offer.sha256 == wanted.sha256));
    if let (Some(gone), None) = (wanted, same) {
        let (gone, newest) = (&gone.version, &newest.version);
        forge.progress.note(&format!("{gone} is no longer on the mirror: taking {newest} instead"));
    }
    let offer = same.unwrap_or(newest);
    apt.download(&forge.cache, offer, series, &*forge.progress)?;
    Ok(Some(locked(offer)))
}

fn locked(offer: &Offer) -> Locked {
    Locked {
        origin: Origin::Debian,
        version: offer.version.clone(),
        file: offer.file.clone(),
        sha256: offer.sha256.clone(),
    }
}

/// Runs a downloader to its end, reporting how much of `size` bytes has arrived in `dir`.
pub(crate) fn watch_download(
    command: &mut Command,
    dir: &Path,
    size: u64,
    progress: &dyn Progress,
) -> Result<()> {
    tracing::debug!(?command, "download");
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    let program = run::command_line(command);
    let mut child = command.spawn().map_err(|source| Error::Spawn { program: program.clone(), source })?;
    while child.try_wait().map_err(|source| Error::Spawn { program: program.clone(), source })?.is_none() {
        progress.step(arrived(dir), size, "");
        std::thread::sleep(Duration::from_millis(100));
    }
    let output = child.wait_with_output().map_err(|source| Error::Spawn { program, source })?;
    if output.status.success() {
        return Ok(());
    }
    let help = "is the network up and the disk not full? --offline builds from what the cache holds";
    Err(run::failed(command, &output, Some(help.to_owned())))
}

fn arrived(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten();
    entries.filter_map(|e| e.ok()?.metadata().ok()).map(|m| m.len()).sum()
}

/// The archive of a locked release in the cache.
pub(crate) fn archive(forge: &Forge, locked: &Locked) -> PathBuf {
    forge.cache.root().join("downloads").join(&locked.sha256).join(&locked.file)
}
