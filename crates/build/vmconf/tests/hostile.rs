//! Configurations and names that mean harm: to the terminal, to the shell, to the time that a check takes.

use std::{fmt::Write as _, io};

use rstest::rstest;
use vmconf::{Check, Config, Disk, DiskFormat, Network, NewSwitch, Proposal, check, read_text};

fn read(text: &str) -> Config {
    read_text("vm.conf", text, &|_| Err(io::ErrorKind::NotFound.into()))
}

/// Everything that a check shows.
fn shown(config: &Config) -> String {
    let mut text = String::new();
    for finding in check(config, &Check::default()) {
        let _ = writeln!(text, "{} {:?}", finding.place(&config.sources), finding);
        let report = miette::Report::new(finding.located(&config.sources));
        miette::GraphicalReportHandler::new_themed(miette::GraphicalTheme::unicode_nocolor())
            .render_report(&mut text, report.as_ref())
            .expect("a report is written");
    }
    text
}

#[rstest]
#[case::escape("\u{1b}[2J")]
#[case::bell("\u{7}")]
#[case::carriage_return("a\rb")]
#[case::delete("\u{7f}")]
#[case::csi("\u{9b}2J")]
#[case::right_to_left("\u{202e}")]
fn control_characters_of_a_file_do_not_reach_the_terminal(#[case] harm: &str) {
    let config = read(&format!("vm \"{harm}\" {{\n\tdisk \"{harm}\" # {harm}\n\tinclude\n}}\n{harm}\n"));

    let shown = shown(&config);

    assert!(!shown.is_empty());
    let control = |c: char| c.is_control() && c != '\n' || c == '\u{202e}';
    assert!(!shown.contains(control), "{shown:?}");
}

#[test]
fn a_name_of_an_included_file_does_not_reach_the_terminal() {
    let config = read_text("vm.conf", "include \"/\u{1b}[2J\"\n", &|_| Ok("frob\n".to_owned()));

    assert!(!shown(&config).contains('\u{1b}'));
}

fn proposal(path: &str) -> Proposal {
    let disk = Disk { path: path.to_owned(), format: DiskFormat::Raw, on_host: DiskFormat::Qcow2 };
    Proposal { cdrom: Some(path.to_owned()), ..Proposal::new("linux", disk) }
}

/// The words of the printed commands that hold `part`; words for a remote shell are taken apart, too.
fn words_with(script: &str, part: &str) -> Vec<String> {
    let commands = script.lines().filter(|line| !line.starts_with(['#', '\t']));
    let words: Vec<_> = commands.filter_map(shlex::split).flatten().collect();
    let inner =
        words.iter().filter(|word| word.contains(' ')).filter_map(|word| shlex::split(word)).flatten();
    inner.chain(words.clone()).filter(|word| word.contains(part)).collect()
}

#[rstest]
#[case::command("a;touch x.img")]
#[case::substitution("$(touch x).img")]
#[case::quote("it's.img")]
#[case::blanks("a b.img")]
#[case::glob("*.img")]
fn a_file_name_is_one_word_of_a_command(#[case] name: &str) {
    let script = proposal(name).text().expect("the name can be written");

    let words = words_with(&script, name);
    assert!(words.contains(&name.to_owned()), "{script}");
    assert!(words.contains(&format!("/var/vmm/{name}")), "{script}");
    assert!(words.contains(&format!("raw:/var/vmm/{name}")), "{script}");
}

#[rstest]
#[case::option("-o", "./-o")]
#[case::host_of_scp("a:b", "./a:b")]
#[case::whole_path("/a:b", "/a:b")]
fn a_file_of_this_machine_is_taken_for_nothing_else(#[case] name: &str, #[case] word: &str) {
    let script = proposal(name).text().expect("the name can be written");

    assert!(script.contains(&format!("scp {word} ")), "{script}");
}

#[rstest]
#[case::newline("a\nreboot")]
#[case::escape("a\u{1b}[2J")]
#[case::nul("a\0")]
#[case::backslash_that_vm_conf_cannot_express("a.b\\")]
fn a_name_that_cannot_be_written_is_refused(#[case] name: &str) {
    assert!(proposal(name).text().is_err());
}

#[rstest]
#[case::veb("veb0", None)]
#[case::bridge("bridge0", None)]
#[case::veb_and_uplink("veb1", Some("em0"))]
fn no_command_takes_the_hosts_address_away(#[case] interface: &str, #[case] uplink: Option<&str>) {
    let declared = NewSwitch { interface: interface.to_owned(), uplink: uplink.map(str::to_owned) };
    let network = Network::Switch { name: "up".to_owned(), declared: Some(declared) };

    let script = Proposal { network, ..proposal("a.img") }.text().expect("a script");

    let commands: Vec<_> = script.lines().filter(|line| !line.starts_with('#')).collect();
    // An interface of the host's in a veb comes with the vport that has its address, and not before a restart.
    let adds = commands.iter().filter(|line| line.contains("add em0"));
    assert!(adds.clone().all(|line| line.contains("add vport1")), "{script}");
    let at_once = commands.iter().any(|line| line.contains("netstart") || line.contains("ifconfig"));
    assert_eq!(at_once, uplink.is_none(), "{script}");
    assert_eq!(script.contains("WARNING"), uplink.is_some(), "{script}");
}

#[test]
fn includes_that_multiply_end_at_a_limit() {
    let config = read_text("0", "include \"/1\"\ninclude \"/2\"\ninclude \"/3\"\n", &|name| {
        Ok(["1", "2", "3"].map(|digit| format!("include \"{name}{digit}\"\n")).concat())
    });

    assert!(config.sources.len() <= 256);
    assert!(config.findings.iter().any(|finding| finding.message == "the configuration is too large"));
}

#[test]
fn macros_that_multiply_end_at_a_limit() {
    let value = "a".repeat(8000);
    let config = read(&format!("m = \"{value}\"\n{}", "vm $m\n".repeat(3000)));

    // Whichever limit comes first ends the reading.
    assert!(config.findings.len() < 1100, "{}", config.findings.len());
}

#[test]
fn errors_without_end_stop_the_reading() {
    let config = read(&"frob\n".repeat(100_000));

    assert!(config.findings.len() < 1100, "{}", config.findings.len());
}

#[test]
fn a_report_reads_only_the_lines_around_its_place() {
    let text: String = (0..1000).fold(String::new(), |mut text, number| {
        let _ = writeln!(text, "vm v{number} {{\n\tdisk \"/{number}\"\n\tinterface\n}}");
        text
    });
    let config = read(&text);
    let findings = check(&config, &Check::default());
    let source: &dyn miette::SourceCode = &config.sources[0];

    let last = findings.last().expect("interfaces that lead nowhere");
    let contents = source.read_span(&(last.at.start..last.at.end).into(), 1, 1).expect("the place exists");

    assert_eq!((contents.line(), contents.line_count()), (3997, 3));
    assert_eq!(contents.data(), b"\tdisk \"/999\"\n\tinterface\n}\n");
}
