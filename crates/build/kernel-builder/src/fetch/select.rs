//! Selection of a release and its origin.

use support::cache::Lock;

use crate::fetch::{
    debian,
    error::{FetchError, Result},
    kernel_org,
    lock::{Locked, Origin},
    sources::Sources,
};

/// Fetches the source of a series if the cache does not have it: the locked release or, without a lock or with
/// `--update`, the newest.
pub(crate) fn fetch(sources: &Sources<'_>, series: &str) -> Result<Locked> {
    // The second of two runs finds the download of the first. What a killed run left may be removed.
    let _fetching = sources.cache.lock(&format!("fetch-{series}"), Lock::Exclusive, sources.progress)?;
    let locked = sources
        .lock_file()?
        .get(series)
        .cloned()
        .filter(|l| sources.options.origin.is_none_or(|o| o == l.origin));
    if let Some(locked) = &locked
        && !sources.options.update
        && sources.has(locked)?
    {
        return Ok(locked.clone());
    }
    if sources.options.offline {
        return offline(sources, series);
    }
    let origin = sources.options.origin;
    let wanted = locked.filter(|_| !sources.options.update);
    if origin != Some(Origin::KernelOrg) {
        if let Some(got) = debian::fetch(sources, series, wanted.as_ref())? {
            return Ok(got);
        }
        if origin == Some(Origin::Debian) {
            return Err(FetchError::Unavailable {
                series: series.to_owned(),
                origin: "Debian".to_owned(),
                problem: "the system's apt has no mirror of Debian".to_owned(),
                help: Some("omit --origin, or give --origin kernel.org".to_owned()),
            });
        }
    }
    kernel_org::fetch(sources, series, wanted.as_ref())
}

/// The locked release or else the one that was fetched last on this machine, if the cache has it.
fn offline(sources: &Sources<'_>, series: &str) -> Result<Locked> {
    for records in [sources.lock_file()?, sources.cache_records()?] {
        if let Some(record) = records.get(series)
            && sources.options.origin.is_none_or(|origin| origin == record.origin)
            && sources.has(record)?
        {
            return Ok(record.clone());
        }
    }
    Err(FetchError::Offline {
        what: format!("a source of series {series}"),
        cache: sources.cache.root().to_owned(),
    })
}
