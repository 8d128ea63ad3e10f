//! Whole files: read, judged, written; and random texts.

use std::{fmt::Write as _, fs, io};

use proptest::prelude::*;
use vmd_release::Generation;

use super::*;

fn nothing(_: &str) -> io::Result<String> {
    Err(io::Error::from(io::ErrorKind::NotFound))
}

fn parse(text: &str) -> Config {
    read_text("vm.conf", text, &nothing)
}

/// What was found, in a form to compare.
fn findings(config: &Config, options: &Check) -> String {
    let mut text = String::new();
    for finding in check(config, options) {
        let severity = format!("{:?}", finding.severity).to_lowercase();
        let source = &config.sources[finding.at.source].text;
        let marked = &source[finding.at.start..finding.at.end];
        let place = finding.place(&config.sources);
        let _ = writeln!(text, "{place} {severity}: {} [{marked}] {}", finding.message, finding.label);
    }
    text
}

/// Everything that the grammar has, and the odd ways that people write it.
const WHOLE: &str = r#"
# A comment that goes on \
  here.
sets = "/var/www/sets/"
name="web"
memory_size = '1G'	# trailing

local prefix "10.0.0.0/8"
local inet6
local inet6 prefix "fd00::/64"
socket owner :vmusers
agentx context "vms" path "/var/agentx/master"
staggered start parallel 2 delay 30

switch "uplink" {
	interface veb0
	locked lladdr
	group vms
	rdomain 2
	up
}

vm $name {
	disable
	memory $memory_size
	disk $sets "web.qcow2" format qcow2
	disk /var/vmm/data.img
	local interface
	interface tap3 { switch "uplink" locked lladdr fe:e1:ba:d0:00:02 }
	interface switch uplink, lladdr 00:e1:ba:d0:00:03, up
	owner joe:users
	cdrom '/iso/debian 13.iso'
	boot device disk
	allow instance { memory, disk
		owner 1000 }
}

vm "bsd" { boot /bsd.rd
	memory 536870912
	interfaces 1
}
vm web instance "web-2" { disk "/var/vmm/web-2.qcow2" }
vm plain { disk "/a.img" }
"#;

#[test]
fn the_whole_grammar_is_read() {
    let config = parse(WHOLE);
    assert_eq!(config.findings, []);
    let text: String = config.statements.iter().map(|statement| statement.value.to_string()).collect();
    insta::assert_snapshot!(text);
    let again = parse(&text);
    assert_eq!(again.findings, []);
    assert_eq!(again.statements, config.statements);
}

#[test]
fn the_scanner_is_as_odd_as_vmds() {
    let vm = |text: &str| {
        let config = parse(text);
        assert_eq!(config.findings, [], "{text}");
        config.vms().next().unwrap().clone()
    };
    // A word may have quotes in it, and a macro is not expanded in quotes.
    assert_eq!(vm("vm a\"b { disk \"$x\" }\n").name.value, "a\"b");
    // Lines are joined by a backslash; a string may go over lines, which are then one.
    assert_eq!(vm("vm a \\\n{ disk \"/x\ny\" }").disks().next().unwrap().0.value, "/xy");
    // What begins with digits and is no number is a word.
    assert_eq!(vm("vm 9front { memory 4.5G }").options[0].value, VmOption::Memory(9 << 29));
    // A macro can be several words, and its text is read anew.
    let vm = vm("all = 'disk \"/x\" format raw'\nvm a { $all }");
    assert_eq!(vm.disks().count(), 1);
}

#[test]
fn errors_are_told_with_their_place_and_reading_goes_on() {
    let config = parse(
        "mem = 512\n\
         vm one {\n\tmemory lots\n\tdisk \"/a\" format vmdk\n\tfrobnicate\n\tinterface { lladdr 1:2:3 }\n}\n\
         vm two { }\n\
         vm three { memory 1G disk \"/b\" }\n\
         vm four { disk $nowhere }\n\
         switch five {\n\tinterface\n}\n\
         frob nicate\n\
         }\n\
         include \"/nowhere\"\n\
         vm memory { disk \"/c\" }\n\
         vm six {\n\tdisk \"/d\"\n\nvm seven { disk \"/e\" }\n\
         local prefix 10/8\n\
         vm eight { disk \"/f\n",
    );
    insta::assert_snapshot!(findings(&config, &Check::default()));
    assert_eq!(
        config.vms().map(|vm| vm.name.as_str()).collect::<Vec<_>>(),
        ["one", "two", "three", "four", "six", "seven", "eight"]
    );
}

#[test]
fn what_hurts_a_linux_guest_is_found() {
    let config = parse(
        "unused = \"x\"\n\
         local prefix \"100.64.0.0/20\"\nagentx path \"master\"\n\
         vm late {\n\tdisk \"/late.img\"\n\tinterface { switch after }\n}\n\
         switch after {\n\tinterface em0\n\tlocked lladdr\n\tgroup vm1\n}\n\
         switch off {\n\tdisable\n\tinterface veb1\n}\n\
         vm small {\n\tmemory 64M\n\tdisk \"small.qcow2\" format raw\n\tinterface\n\tinterface { switch off }\n}\n\
         vm small {\n\tdisk \"/late.img\"\n\tmemory 512\n\tmemory 200G\n}\n\
         vm kernel {\n\tboot \"/var/vmm/vmlinuz-6.12\"\n\tboot device cdrom\n\tboot device net\n}\n\
         vm _odd {\n\tinterfaces 3\n\tlocal interface em0 { switch after lladdr 01:00:00:00:00:01 }\n}\n\
         vm full {\n\tdisk \"/1\"\n\tdisk \"/2\"\n\tdisk \"/3\"\n\tdisk \"/4\"\n\tdisk \"/5\"\n\tcdrom \"/cd\"\n\
         \tlocal interface\n\tlocal interface\n\tlocal interface\n\tlocal interface\n\tlocal interface\n\tseves\n\
         \tmemory 1000000000\n\tboot device cdrom\n}\n\
         vm none instance some { memory 1G }\n",
    );
    let options = Check { hosts: vec![Generation::V7_7], root: None };
    insta::assert_snapshot!(findings(&config, &options));
}

#[test]
fn an_openbsd_guest_is_left_alone() {
    let config = parse(
        "vm bsd {\n\tboot \"/bsd.rd\"\n\tdisk \"/bsd.img\"\n\tmemory 64M\n\tboot device net\n\tsev\n\tlocal interface\n}\n",
    );
    assert_eq!(findings(&config, &Check::default()), "");
}

/// The header of an empty qcow2 image of version 3, with a base unless its name is empty.
fn qcow2(base: &str) -> Vec<u8> {
    let mut header = vec![0; 112];
    let base_length = u32::try_from(base.len()).unwrap();
    for (at, value) in [(4, 3), (12, 112), (16, base_length), (20, 16), (96, 4), (100, 104)] {
        header[at..at + 4].copy_from_slice(&u32::to_be_bytes(value));
    }
    header[..4].copy_from_slice(b"QFI\xfb");
    header.extend(base.as_bytes());
    header
}

#[test]
fn images_are_looked_at_where_they_are() {
    let root = tempfile::tempdir().unwrap();
    let write = |name: &str, start: &[u8], length: usize| {
        let mut bytes = vec![0; length];
        bytes[..start.len()].copy_from_slice(start);
        fs::write(root.path().join(name), bytes).unwrap();
    };
    let mut boots = [0; 512];
    boots[0] = 0xfa;
    boots[510..].copy_from_slice(&[0x55, 0xaa]);
    let mut linux = [0; 0x206];
    linux[0x202..].copy_from_slice(b"HdrS");
    write("boots.img", &boots, 1024);
    write("empty.img", &[], 1024);
    write("cut.img", &boots, 1000);
    write("q.qcow2", &qcow2(""), 1024);
    write("based.qcow2", &qcow2("/q.qcow2"), 1024);
    write("baseless.qcow2", &qcow2("gone.qcow2"), 1024);
    write("old.qcow2", b"QFI\xfb\0\0\0\x01", 1024);
    write("kernel", &linux, 1024);
    let config = parse(
        "vm a { disk \"/boots.img\"\n disk \"/q.qcow2\"\n disk \"/empty.img\"\n}\n\
         vm b { disk \"/empty.img\"\n}\nvm c { disk \"/cut.img\" }\n\
         vm d { disk \"/q.qcow2\" format raw\n disk \"/boots.img\" format qcow2\n disk \"/old.qcow2\"\n}\n\
         vm e { disk \"/gone.img\" }\nvm f { boot \"/kernel\" }\n\
         vm g { disk \"/boots.img\"\n disk \"/based.qcow2\"\n disk \"/baseless.qcow2\"\n}\n",
    );
    let options = Check { hosts: Vec::new(), root: Some(root.path().to_owned()) };
    insta::assert_snapshot!(findings(&config, &options));
}

#[test]
fn files_include_files() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(
        dir.path().join("vm.conf"),
        "size = 1G\ninclude \"vms.conf\"\nvm b { memory $size\ndisk \"/b\"\n}\n",
    )
    .unwrap();
    fs::write(dir.path().join("vms.conf"), "vm a { memory $size\ndisk \"/a\"\nbad\n}").unwrap();
    let config = read(&dir.path().join("vm.conf"), None).unwrap();
    assert_eq!(config.vms().map(|vm| vm.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    let places: Vec<_> = config.findings.iter().map(|finding| finding.place(&config.sources)).collect();
    assert!(
        places.iter().any(|place| (place.file.as_str(), place.line, place.column) == ("vms.conf", 3, 1)),
        "{places:?}"
    );

    // Round and round, and across each other.
    fs::write(dir.path().join("vms.conf"), "include \"vms.conf\"\n").unwrap();
    let config = read(&dir.path().join("vm.conf"), None).unwrap();
    assert!(config.findings.iter().any(|finding| finding.message.contains("circle")));
    assert!(read(&dir.path().join("none"), None).is_err());
}

#[test]
fn a_finding_is_a_diagnostic() {
    let config = parse("vm a {\n\tdisk \"/a\"\n\tmemory lots\n}\n");
    let report = miette::Report::new(config.findings[0].located(&config.sources));
    let mut text = String::new();
    miette::NarratableReportHandler::new().render_report(&mut text, report.as_ref()).unwrap();
    insta::assert_snapshot!(text);
}

fn proposal() -> Proposal {
    let disk = Disk { path: "out/7.3/minimal.img".into(), format: DiskFormat::Raw, on_host: DiskFormat::Raw };
    Proposal::new("linux", disk)
}

#[test]
fn a_plain_proposal() {
    insta::assert_snapshot!(proposal().text().unwrap());
}

#[test]
fn a_proposal_with_everything() {
    let text = Proposal {
        memory: 2 << 30,
        disk: Disk { on_host: DiskFormat::Qcow2, ..proposal().disk },
        data: Some(20 << 30),
        cdrom: Some("debian.iso".into()),
        network: Network::Switch {
            name: "uplink".into(),
            declared: Some(NewSwitch { interface: "veb0".into(), uplink: None }),
        },
        owner: Some(Owner::parse("joe:vmusers")),
        autostart: true,
        ssh_keys: Some("# mine\nssh-ed25519 AAAA me\n".into()),
        hosts: Generation::ALL.to_vec(),
        ..proposal()
    }
    .text();
    insta::assert_snapshot!(text.unwrap());
}

#[test]
fn a_template_with_instances() {
    let text = Proposal {
        data: Some(1 << 30),
        disk: Disk { on_host: DiskFormat::Qcow2, ..proposal().disk },
        network: Network::Switch {
            name: "lan".into(),
            declared: Some(NewSwitch { interface: "veb0".into(), uplink: Some("em0".into()) }),
        },
        owner: Some(Owner::parse("joe:vmusers")),
        template: true,
        instances: vec!["web".into(), "mail".into()],
        ..proposal()
    }
    .text();

    insta::assert_snapshot!(text.unwrap());
}

#[test]
fn instances_on_the_network_of_a_bridge() {
    let text = Proposal {
        network: Network::Switch {
            name: "lan".into(),
            declared: Some(NewSwitch { interface: "bridge0".into(), uplink: Some("em0".into()) }),
        },
        disk: Disk { on_host: DiskFormat::Qcow2, ..proposal().disk },
        template: true,
        ..proposal()
    }
    .text();

    insta::assert_snapshot!(text.unwrap());
}

#[test]
fn a_proposal_has_nothing_wrong() {
    let networks = [
        Network::None,
        Network::Local,
        Network::Switch {
            name: "up".into(),
            declared: Some(NewSwitch { interface: "bridge0".into(), uplink: None }),
        },
    ];
    for network in networks {
        for (on_host, instances) in
            [(DiskFormat::Raw, vec![]), (DiskFormat::Qcow2, vec!["a".into(), "b".into()])]
        {
            let proposal = Proposal {
                network: network.clone(),
                instances,
                owner: Some(Owner::parse("joe:vmusers")),
                disk: Disk { on_host, ..proposal().disk },
                data: Some(1 << 30),
                cdrom: Some("a.iso".into()),
                ..proposal()
            };
            let statements = proposal.statements();
            let text: String = statements.iter().map(ToString::to_string).collect();
            let config = parse(&text);
            let read: Vec<_> = config.statements.iter().map(|statement| statement.value.clone()).collect();
            assert_eq!(read, statements);
            let worst = check(&config, &Check::default()).into_iter().map(|finding| finding.severity).max();
            assert!(worst.is_none_or(|severity| severity == Severity::Note), "{text}");
        }
    }
}

/// Text of the sort that files are made of.
fn likely_text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        8 => prop::sample::select(vec![
            "vm", "switch", "interface", "local", "prefix", "inet6", "memory", "512M", "disk", "format", "qcow2",
            "boot", "device", "cdrom", "net", "owner", "allow", "instance", "{", "}", "\n", " ", "\t", "=", ",", "\"",
            "'", "\\", "\\\n", "#", "$a", "a", "b=\"x\"", "0", "-", "-5", "99999999999999999999", "include", "lladdr",
            "locked", "rdomain", "up", "agentx", "context", "path", "staggered", "start", "parallel", "delay",
            "socket", "enable", "sev", "group", "interfaces", "\u{1}", "\0", "é",
        ]).prop_map(str::to_owned),
        1 => any::<String>(),
    ];
    prop::collection::vec(piece, 0..60).prop_map(|pieces| pieces.join(" "))
}

/// Whether vm.conf(5) has a way to say this text: vmd drops newlines from strings, and takes a backslash at the end
/// for that of the quote.
fn quotable(text: &str) -> bool {
    !text.contains(['\n', '\0', '\u{1}', '\u{2}']) && !text.ends_with('\\') && text.len() < 8000
}

fn word() -> impl Strategy<Value = String> {
    prop_oneof![
        prop::sample::select(vec![
            "disk", "vm", "10", "a b", "x\\ y", "\"", "uplink", "9a", "up", "é", "a\\\"b", "#"
        ])
        .prop_map(str::to_owned),
        "[ -~]{1,12}",
    ]
    .prop_filter("can be said", |text| quotable(text))
}

fn spanned() -> impl Strategy<Value = Spanned<String>> {
    word().prop_map(Into::into)
}

fn owner() -> impl Strategy<Value = Owner> {
    prop_oneof![
        (0i64..).prop_map(Owner::Uid),
        (prop::option::of("[a-z0-9_]{1,8}"), prop::option::of("[a-z0-9]{1,8}"))
            .prop_filter("an owner", |(user, group)| user.is_some() || group.is_some())
            .prop_map(|(user, group)| Owner::Named { user, group }),
    ]
}

fn interface() -> impl Strategy<Value = Interface> {
    let address = prop::option::of(any::<[u8; 6]>().prop_map(|bytes| MacAddress(bytes).into()));
    let options = (prop::option::of(spanned()), prop::option::of(spanned()), address, any::<bool>());
    (any::<bool>(), prop::option::of(spanned()), options, prop::option::of(0..300i64), any::<Option<bool>>())
        .prop_map(|(local, name, (switch, group, lladdr, locked), rdomain, up)| Interface {
            local,
            name,
            switch,
            group,
            lladdr,
            locked,
            rdomain,
            up,
        })
}

fn vm_option() -> impl Strategy<Value = VmOption> {
    let format = prop::sample::select(vec![DiskFormat::Raw, DiskFormat::Qcow2]);
    let instance = prop_oneof![
        prop::sample::select(vec![InstanceOption::Boot, InstanceOption::Disk, InstanceOption::Instance]),
        owner().prop_map(InstanceOption::Owner),
    ];
    prop_oneof![
        any::<bool>().prop_map(VmOption::Enable),
        Just(VmOption::Sev),
        (spanned(), prop::option::of(format.prop_map(Into::into)))
            .prop_map(|(path, format)| VmOption::Disk { path, format }),
        interface().prop_map(VmOption::Interface),
        spanned().prop_map(VmOption::Boot),
        prop::sample::select(vec![BootDevice::Cdrom, BootDevice::Disk, BootDevice::Net])
            .prop_map(VmOption::BootDevice),
        spanned().prop_map(VmOption::Cdrom),
        any::<i64>().prop_map(VmOption::Interfaces),
        any::<i64>().prop_map(VmOption::Memory),
        owner().prop_map(VmOption::Owner),
        prop::collection::vec(instance, 1..4).prop_map(VmOption::AllowInstance),
    ]
}

fn statement() -> impl Strategy<Value = Statement> {
    let switch_option = prop_oneof![
        any::<bool>().prop_map(SwitchOption::Enable),
        spanned().prop_map(SwitchOption::Interface),
        spanned().prop_map(SwitchOption::Group),
        Just(SwitchOption::LockedLladdr),
        any::<i64>().prop_map(SwitchOption::Rdomain),
    ];
    let options = |option| prop::collection::vec(option, 1..5);
    prop_oneof![
        spanned().prop_map(Statement::LocalPrefix),
        prop::option::of(spanned()).prop_map(Statement::LocalInet6),
        owner().prop_map(Statement::SocketOwner),
        (prop::option::of(spanned()), prop::option::of(spanned()))
            .prop_map(|(context, path)| Statement::Agentx { context, path }),
        (any::<i64>(), any::<i64>())
            .prop_map(|(parallel, delay)| Statement::StaggeredStart { parallel, delay }),
        (spanned(), options(switch_option.prop_map(Into::into).boxed()))
            .prop_map(|(name, options)| Statement::Switch(Switch { name, options })),
        (
            spanned(),
            prop::option::of(spanned()),
            prop::collection::vec(vm_option().prop_map(Into::into), 1..5)
        )
            .prop_map(|(name, parent, options)| Statement::Vm(Vm { name, parent, options })),
    ]
}

proptest! {
    #[test]
    fn whatever_the_text_reading_and_judging_it_ends(text in likely_text()) {
        let include = |_: &str| Ok("vm x {".to_owned());
        let config = read_text("x", &text, &include);
        for finding in check(&config, &Check { hosts: Generation::ALL.to_vec(), root: None }) {
            let source = &config.sources[finding.at.source].text;
            prop_assert!(source.get(finding.at.start..finding.at.end).is_some(), "{finding:?}");
            finding.located(&config.sources);
        }
    }

    #[test]
    fn what_is_written_is_read(statements in prop::collection::vec(statement(), 0..4)) {
        let text: String = statements.iter().map(ToString::to_string).collect();
        let config = parse(&text);
        prop_assert_eq!(&config.findings, &[], "{}", text);
        let read: Vec<_> = config.statements.into_iter().map(|statement| statement.value).collect();
        prop_assert_eq!(read, statements, "{}", text);
    }
}
