//! Debian's `linux-source` packages.

use debian_archive::{Apt, Offer};

use crate::fetch::{
    error::{FetchError, Result},
    lock::{Locked, Origin},
    sources::Sources,
};

/// Fetches the newest package `linux-source-SERIES`, or the wanted one; `None` if the system's apt has no mirror of
/// Debian.
pub(crate) fn fetch(sources: &Sources<'_>, series: &str, wanted: Option<&Locked>) -> Result<Option<Locked>> {
    let suites = &sources.series.get(series)?.suites;
    let Some(apt) = Apt::new(sources.cache, suites, sources.progress)? else { return Ok(None) };
    sources.progress.phase(&format!("looking for linux-source-{series} in {}", suites.join(", ")));
    apt.update()?;
    let offers = apt.offers(&format!("linux-source-{series}"))?;
    let Some(newest) = offers.last() else {
        return Err(FetchError::Unavailable {
            series: series.to_owned(),
            origin: "Debian".to_owned(),
            problem: format!("no linux-source-{series} in {}", suites.join(", ")),
            help: Some(
                "check that the mirror carries these suites; `--origin kernel.org` takes the tarball instead"
                    .to_owned(),
            ),
        });
    };
    let same = wanted.and_then(|wanted| offers.iter().find(|offer| offer.sha256 == wanted.sha256));
    if let (Some(gone), None) = (wanted, same) {
        let (gone, newest) = (&gone.version, &newest.version);
        sources.progress.note(&format!("{gone} is not on the mirror any more: using {newest} instead"));
    }
    let offer = same.unwrap_or(newest);
    apt.download(sources.cache, offer, series, sources.progress)?;
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
