//! `vmmlinux` without a subcommand: reports what this machine can do, and suggests the next step.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use host_tools::{Purpose, Setup};
use support::{cache::Cache, progress::Quiet};
use vmm::probe;

/// Findings about this machine.
#[derive(Debug, Default)]
struct Findings {
    /// Whether this machine is a vmd guest.
    guest: bool,
    /// Why the host's KVM cannot be used.
    no_kvm: Option<&'static str>,
    /// Whether there is a checkout around the current directory.
    checkout: bool,
    /// Missing tools for running guests, and for building.
    missing_machine: Vec<&'static str>,
    missing_build: Vec<&'static str>,
    /// Kernels that were built, and images that were created from them.
    kernels: Vec<PathBuf>,
    images: Vec<PathBuf>,
}

/// Prints what this machine can do and the next steps.
pub(crate) fn run() -> miette::Result<ExitCode> {
    support::print(&text(&look()))?;
    Ok(ExitCode::SUCCESS)
}

fn look() -> Findings {
    let mut findings = Findings {
        guest: doctor::Host::recognise(&doctor::System::here()).is_vmd(),
        no_kvm: probe::probe().err().map(|error| match error {
            probe::Unusable::NoKvm { .. } => "no usable /dev/kvm",
            _ => "/dev/kvm lacks features that guests need",
        }),
        ..Findings::default()
    };
    findings.checkout =
        std::env::current_dir().is_ok_and(|here| kernel_builder::find_kernel_dir(&here).is_ok());
    if let Ok(cache) = Cache::user() {
        let setup = Setup::new(&cache, &Quiet);
        let names = |purposes: &[Purpose]| setup.missing(purposes).iter().map(|tool| tool.name).collect();
        findings.missing_machine = names(&[Purpose::Machine]);
        findings.missing_build = names(&[Purpose::Build, Purpose::Rust, Purpose::Image]);
    }
    (findings.kernels, findings.images) = built(Path::new("out"));
    findings
}

/// The kernels and images below the output directory.
pub(crate) fn built(out: &Path) -> (Vec<PathBuf>, Vec<PathBuf>) {
    let list = |dir: &Path| {
        let mut paths: Vec<_> =
            fs::read_dir(dir).into_iter().flatten().filter_map(|e| Some(e.ok()?.path())).collect();
        paths.sort();
        paths
    };
    let kernels: Vec<_> = list(out).into_iter().filter(|dir| dir.join("bzImage").is_file()).collect();
    let is_image = |path: &PathBuf| path.extension().is_some_and(|e| e == "img" || e == "qcow2");
    let images = kernels.iter().flat_map(|dir| list(dir)).filter(is_image).collect();
    (kernels, images)
}

/// The tools that are missing for guests, and for kernels and images, as text.
fn missing_tools(machine: &[&str], build: &[&str]) -> String {
    match (machine, build) {
        ([], []) => "nothing is missing".to_owned(),
        ([], build) => format!("missing for kernels and images: {}", build.join(", ")),
        (machine, []) => format!("missing for guests: {}", machine.join(", ")),
        (machine, build) => {
            format!(
                "missing for guests: {}; for kernels and images: {}",
                machine.join(", "),
                build.join(", ")
            )
        }
    }
}

fn text(findings: &Findings) -> String {
    let Findings { guest, no_kvm, checkout, missing_machine, missing_build, kernels, images } = findings;
    let names =
        |paths: &[PathBuf]| paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" ");
    let mut lines = vec![
        format!("vmmlinux {}: Linux as a guest of OpenBSD's vmm(4)/vmd(8)", env!("CARGO_PKG_VERSION")),
        String::new(),
        "This machine:".to_owned(),
    ];
    let mut next = Vec::new();
    let mut tell = |what: &str, found: String| lines.push(format!("  {what:<9} {found}"));
    if *guest {
        tell("place", "a vmd guest itself".to_owned());
        next.push(("vmmlinux doctor".to_owned(), "examine this guest"));
    }
    match no_kvm {
        None => tell("guests", "run on /dev/kvm".to_owned()),
        Some(why) => tell("guests", format!("run in a helper VM under QEMU, slower: {why}")),
    }
    tell("tools", missing_tools(missing_machine, missing_build));
    if !missing_machine.is_empty() || !missing_build.is_empty() && *checkout {
        next.push(("vmmlinux setup".to_owned(), "list what is missing and install it"));
    }
    match kernels.as_slice() {
        [] => tell("kernels", "none in out/ yet".to_owned()),
        some => tell("kernels", names(some)),
    }
    match (images.first(), kernels.first()) {
        (Some(image), _) => {
            tell("images", names(images));
            next.push((format!("vmmlinux run -i {}", image.display()), "boot it on emulated vmd hardware"));
            next.push((format!("vmmlinux vmconf {}", image.display()), "how to run it on an OpenBSD host"));
        }
        (None, Some(kernel)) => {
            next.push((format!("vmmlinux image {}", kernel.display()), "create a disk image from it"));
        }
        (None, None) if *checkout => {
            next.push(("vmmlinux build".to_owned(), "build a kernel: a few minutes, 250 MB to download"));
        }
        (None, None) => {
            tell("source", "no checkout of vmmlinux here, which building a kernel needs".to_owned());
            next.push(("vmmlinux run DISK".to_owned(), "boot a disk image on emulated vmd hardware"));
            next.push(("vmmlinux config audit FILE".to_owned(), "audit a kernel's configuration for vmd"));
        }
    }
    next.push(("vmmlinux --help".to_owned(), "all subcommands"));
    lines.extend([String::new(), "Next:".to_owned()]);
    let width = next.iter().map(|(command, _)| command.len()).max().unwrap_or_default();
    lines.extend(next.iter().map(|(command, why)| format!("  {command:<width$}  {why}")));
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_step_follows_from_what_there_is() {
        let fresh = Findings { checkout: true, missing_build: vec!["bison"], ..Findings::default() };
        let said = text(&fresh);
        assert!(
            said.contains("missing for kernels and images: bison") && said.contains("vmmlinux setup"),
            "{said}"
        );
        assert!(said.contains("vmmlinux build") && !said.contains("doctor"), "{said}");

        let built = Findings { kernels: vec!["out/7.3".into()], checkout: true, ..Findings::default() };
        assert!(text(&built).contains("vmmlinux image out/7.3 "));
        let ready = Findings { images: vec!["out/7.3/minimal.img".into()], ..built };
        let said = text(&ready);
        assert!(
            said.contains("vmmlinux run -i out/7.3/minimal.img") && said.contains("vmmlinux vmconf"),
            "{said}"
        );

        let guest = Findings { guest: true, no_kvm: Some("no"), ..Findings::default() };
        let said = text(&guest);
        assert!(
            said.contains("vmmlinux doctor") && said.contains("helper VM under QEMU, slower: no"),
            "{said}"
        );
        assert!(said.contains("no checkout"), "{said}");
    }

    #[test]
    fn what_was_built_is_found() {
        let dir = tempfile::tempdir().unwrap();
        for file in ["a/bzImage", "a/minimal.img", "b/manifest.json"] {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        let (kernels, images) = built(dir.path());
        assert_eq!((kernels, images), (vec![dir.path().join("a")], vec![dir.path().join("a/minimal.img")]));
    }
}
