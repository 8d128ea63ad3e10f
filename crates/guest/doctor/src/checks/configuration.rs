//! The kernel's configuration, by the rules of `vmmlinux config audit`, less what the command line makes up for.

use std::collections::BTreeSet;

use kconfig::{Rules, Severity as Harm};

use crate::{Finding, Guest, Severity};

const TOPIC: &str = "kernel configuration";
/// What a rule's remedy begins with if a word on the command line is enough.
const BOOT_WITH: &str = "boot with ";
/// What is before and after the name of a module in a remedy.
const BLACKLIST: &str = "blacklist ";
const IN_MODPROBE: &str = " in modprobe.d";
/// Judged where it matters, with the processor that there is: [`super::reboot`].
const ELSEWHERE: &str = "s5-reset-status";

/// A summary, and a finding for each that does harm.
pub fn check(guest: &Guest) -> Vec<Finding> {
    let (file, config) = match &guest.config {
        Ok(found) => found,
        Err(why) => {
            return vec![
                Finding::new(TOPIC, Severity::Note, "the kernel's configuration could not be judged")
                    .seen(why)
                    .remedy("name it: --config FILE"),
            ];
        }
    };
    let rules = match Rules::builtin() {
        Ok(rules) => rules,
        Err(error) => return vec![Finding::new(TOPIC, Severity::Note, error.to_string())],
    };
    let audit = rules.audit(config, &guest.host.vmd.iter().copied().collect::<BTreeSet<_>>());
    let (made_up, standing): (Vec<_>, Vec<_>) = audit
        .findings
        .iter()
        .filter(|finding| finding.rule != ELSEWHERE)
        .partition(|finding| finding.remedy.as_deref().is_some_and(|remedy| is_done(guest, remedy)));
    let (notes, harm): (Vec<_>, Vec<_>) =
        standing.into_iter().partition(|finding| finding.severity == Harm::Note);

    let what = match harm.len() {
        0 => "nothing in the kernel's configuration does harm here".to_owned(),
        1 => "one choice of the kernel's configuration does harm here".to_owned(),
        several => format!("{several} choices of the kernel's configuration do harm here"),
    };
    let severity = if harm.is_empty() { Severity::Ok } else { Severity::Note };
    let mut summary = Finding::new(TOPIC, severity, what).seen(format!("read from {}", file.display()));
    let names = |findings: &[&kconfig::Finding]| {
        findings.iter().map(|finding| finding.what.as_str()).collect::<Vec<_>>().join("; ")
    };
    if !made_up.is_empty() {
        summary = summary.seen(format!("made up for on the command line: {}", names(&made_up)));
    }
    if !notes.is_empty() {
        summary = summary.seen(format!("{} notes: {}", notes.len(), names(&notes)));
    }
    let findings = harm.into_iter().map(|found| {
        let severity = if found.severity == Harm::Fatal { Severity::Fatal } else { Severity::Warning };
        let symbols: Vec<_> = found.symbols.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let finding = Finding::new(TOPIC, severity, &found.what)
            .seen(format!("{}: {}", found.rule, symbols.join(", ")))
            .seen(&found.why);
        match &found.remedy {
            Some(remedy) => finding.remedy(remedy),
            None if guest.kernel.ours => finding.remedy("a kernel with another configuration"),
            None => finding.remedy("a kernel with another configuration, vmmlinux's for one"),
        }
    });
    let asked_for = standing_modules(&notes).filter_map(|(module, found)| {
        let file = asked_for(guest, module)?;
        let finding =
            Finding::new(TOPIC, Severity::Warning, format!("{module} is asked for, which does harm here"))
                .seen(format!("/{file} names it"))
                .seen(&found.why);
        Some(finding.remedy(format!("take {module} out of /{file}, or {BLACKLIST}{module}{IN_MODPROBE}")))
    });
    std::iter::once(summary).chain(findings).chain(asked_for).collect()
}

/// The modules that are better not loaded.
fn standing_modules<'a>(
    notes: &'a [&'a kconfig::Finding],
) -> impl Iterator<Item = (&'a str, &'a kconfig::Finding)> {
    notes.iter().filter_map(|finding| Some((module_of(finding.remedy.as_deref()?)?, *finding)))
}

/// The module that a remedy says not to load.
fn module_of(remedy: &str) -> Option<&str> {
    remedy.strip_prefix(BLACKLIST)?.strip_suffix(IN_MODPROBE)
}

/// The file that has a module loaded at boot.
fn asked_for(guest: &Guest, module: &str) -> Option<String> {
    let names_it = |text: &str| text.lines().any(|line| line.split_whitespace().next() == Some(module));
    let list = "etc/modules".to_owned();
    let lists = guest.system.text(&list).map(|text| (list, text)).into_iter();
    let mut lists =
        lists.chain(files_in(guest, &["etc/modules-load.d", "usr/lib/modules-load.d", "lib/modules-load.d"]));
    lists.find(|(_, text)| names_it(text)).map(|(file, _)| file)
}

/// The files in directories of configuration, with what is in them.
fn files_in(guest: &Guest, directories: &[&str]) -> Vec<(String, String)> {
    let names = |directory: &str| -> Vec<String> {
        let names = guest.system.names(directory).into_iter();
        names
            .filter(|name| name.strip_suffix(".conf").is_some())
            .map(|name| format!("{directory}/{name}"))
            .collect()
    };
    let files = directories.iter().flat_map(|directory| names(directory));
    files.filter_map(|file| guest.system.text(&file).map(|text| (file, text))).collect()
}

/// Whether the remedy is a word on the command line, or a module that is not to be loaded, and that is so.
fn is_done(guest: &Guest, remedy: &str) -> bool {
    if let Some(module) = module_of(remedy) {
        return is_blacklisted(guest, module);
    }
    let Some((_, rest)) = remedy.split_once(BOOT_WITH) else { return false };
    let word = rest.split([' ', ')']).next().unwrap_or_default();
    guest.kernel.has(word)
}

fn is_blacklisted(guest: &Guest, module: &str) -> bool {
    let says_so = |line: &str| {
        let words: Vec<_> = line.split_whitespace().collect();
        match words[..] {
            ["blacklist", named] => named == module,
            ["install", named, instead, ..] => named == module && instead.ends_with("/false"),
            _ => false,
        }
    };
    files_in(guest, &["etc/modprobe.d", "usr/lib/modprobe.d", "lib/modprobe.d"])
        .iter()
        .any(|(_, text)| text.lines().any(says_so))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    #[test]
    fn harm_is_told_and_what_the_command_line_mends_is_not() {
        let mut recorded = fixture::recorded();
        assert_eq!(check(&recorded.guest())[0].severity, Severity::Note, "no configuration");
        recorded.write(
            "boot/config-7.3.4+deb13-amd64",
            "# Linux/x86 7.3.4 Kernel Configuration\nCONFIG_X86=y\nCONFIG_PCI=y\nCONFIG_VIRTIO_PCI=y\nCONFIG_VIRTIO_BLK=y\n\
             CONFIG_SERIAL_8250_CONSOLE=y\nCONFIG_EFI_PARTITION=y\nCONFIG_CPU_SUP_AMD=y\nCONFIG_KVM_GUEST=y\n\
             CONFIG_VIRTIO_NET=y\nCONFIG_SCSI_VIRTIO=y\nCONFIG_BLK_DEV_SR=y\nCONFIG_PTP_1588_CLOCK_KVM=y\nCONFIG_HZ_PERIODIC=y\n\
             CONFIG_VT_CONSOLE=y\n",
        );
        let told = |fixture: &fixture::Fixture| -> Vec<(Severity, String)> {
            check(&fixture.guest()).into_iter().map(|finding| (finding.severity, finding.what)).collect()
        };
        let findings = told(&recorded);
        assert_eq!(findings[0].1, "2 choices of the kernel's configuration do harm here");
        assert_eq!(findings[1], (Severity::Fatal, "ptp_kvm is built in".into()));
        assert_eq!(findings[2], (Severity::Warning, "the tick is periodic".into()));
        recorded.write("proc/cmdline", "console=ttyS0,115200 initcall_blacklist=a,ptp_kvm_init");
        let findings = told(&recorded);
        assert_eq!(findings.len(), 2, "{findings:?}");
        let made_up = &check(&recorded.guest())[0].evidence[1];
        assert!(made_up.contains("ptp_kvm is built in") && made_up.contains("virtual terminal"), "{made_up}");
    }

    #[test]
    fn a_module_does_harm_only_if_it_is_asked_for() {
        let mut recorded = fixture::recorded();
        recorded.write(
            "boot/config-7.3.4+deb13-amd64",
            include_str!("../../../../build/kconfig/tests/configs/debian-7.3.config"),
        );
        // The rest is a matter of the command line, and of reboots.
        let worse = |fixture: &fixture::Fixture| -> Vec<String> {
            let findings = check(&fixture.guest()).into_iter();
            findings.filter(|f| f.severity > Severity::Note).map(|f| f.what).collect()
        };
        assert_eq!(worse(&recorded), [""; 0]);
        let notes = &check(&recorded.guest())[0].evidence;
        assert!(notes.iter().any(|line| line.contains("ptp_kvm is a module")), "{notes:?}");
        for (file, text) in [("etc/modules", "# for chrony\n"), ("etc/modules-load.d/a.conf", "#ptp_kvm\n")] {
            recorded.write(file, text);
        }
        assert_eq!(worse(&recorded), [""; 0]);
        recorded.write("usr/lib/modules-load.d/chrony.conf", "# PTP\nptp_kvm\n");
        assert_eq!(worse(&recorded), ["ptp_kvm is asked for, which does harm here"]);
        recorded.write("etc/modprobe.d/vmd.conf", "blacklist ptp_kvm\n");
        assert_eq!(worse(&recorded), [""; 0]);
    }

    #[test]
    fn a_module_that_is_not_to_be_loaded_does_no_harm() {
        let mut recorded = fixture::recorded();
        let remedy = "blacklist ptp_kvm in modprobe.d";
        assert!(include_str!("../../../../../kernel/config/audit.toml").contains(remedy));
        recorded.write("etc/modprobe.d/vmd.conf", "# no\nblacklist ptp_kvm_not\n");
        assert!(!is_done(&recorded.guest(), remedy));
        for text in ["blacklist ptp_kvm\n", "install ptp_kvm /bin/false\n"] {
            recorded.write("etc/modprobe.d/vmd.conf", text);
            assert!(is_done(&recorded.guest(), remedy));
        }
    }

    /// A remedy that says `boot with` names a word that can be looked for.
    #[test]
    fn words_for_the_command_line_are_understood() {
        let mut recorded = fixture::recorded();
        let text = include_str!("../../../../../kernel/config/audit.toml");
        let mut seen = 0;
        for remedy in text.lines().filter(|line| line.starts_with("remedy") && line.contains(BOOT_WITH)) {
            let word = remedy.split_once(BOOT_WITH).unwrap().1.split([' ', ')', '"']).next().unwrap();
            assert!(word.contains('='), "{remedy}");
            recorded.write("proc/cmdline", word);
            assert!(is_done(&recorded.guest(), remedy.trim_end_matches('"')), "{remedy}");
            seen += 1;
        }
        assert!(seen >= 5, "{seen}");
    }
}
