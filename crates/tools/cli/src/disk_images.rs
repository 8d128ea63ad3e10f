//! Disk images that a command is given, judged before they are used.

use std::path::Path;

use disk_image::{Content, Finding, Severity, Verdict};
use miette::{Report, miette};
use vmd_release::DiskFormat;

/// Judges an image and returns its content. Prints warnings; fails with the first error, which is one that vmd refuses
/// the image for or that the VM dies of.
pub(crate) fn check(path: &Path, format: Option<DiskFormat>, boots: bool) -> miette::Result<Content> {
    let Verdict { content, findings, .. } = disk_image::judge(path, format, boots)
        .map_err(|error| miette!("cannot read the disk image {}: {error}", path.display()))?;
    let mut errors = Vec::new();
    for finding in findings {
        match finding.severity {
            Severity::Error => errors.push(report(&finding)),
            Severity::Warning => support::note!("{:?}", report(&finding)),
        }
    }
    if errors.is_empty() {
        return Ok(content);
    }
    let first = errors.remove(0);
    for other in errors {
        support::note!("{other:?}");
    }
    Err(first)
}

fn report(finding: &Finding) -> Report {
    let severity = match finding.severity {
        Severity::Error => miette::Severity::Error,
        Severity::Warning => miette::Severity::Warning,
    };
    let Finding { message, effect, help, .. } = finding;
    miette!(severity = severity, help = help.clone(), "{message}: {effect}")
}
