//! Which VMs vmd 7.8 takes, and why it refuses the others: `vm_register()` and `vm_instance()`.

use std::{fs, io};

use rstest::rstest;
use vmconf::{Check, Config, Severity, check, read_text};

fn read(text: &str) -> Config {
    read_text("vm.conf", text, &|_| Err(io::ErrorKind::NotFound.into()))
}

/// What vmd refuses, with the labels of the places.
fn refused(text: &str, options: &Check) -> Vec<String> {
    let findings = check(&read(text), options).into_iter();
    let errors = findings.filter(|finding| finding.severity == Severity::Error);
    errors.map(|finding| format!("{} [{}]", finding.message, finding.label)).collect()
}

const TEMPLATE: &str = "vm t {\n\tdisable\n\tdisk \"/vm/base\"\n}\n";

/// A template with these options, and an instance.
fn instance(of: &str, options: &str) -> String {
    format!("vm t {{\n\tdisable\n\tdisk \"/vm/base\"\n{of}\n}}\nvm t instance i {{\n{options}\n}}\n")
}

#[rstest]
#[case::disk("", "disk \"/vm/i\"")]
#[case::group("memory 1G\nowner :vmusers", "disk \"/vm/i\"\nowner :vmusers")]
#[case::user("owner joe", "disk \"/vm/i\"\nowner joe")]
#[case::inherited_user("owner joe", "disk \"/vm/i\"")]
#[case::number_of_the_user("owner 1000", "disk \"/vm/i\"\nowner 1000")]
#[case::root_stands_for_the_templates_user("owner joe", "disk \"/vm/i\"\nowner root")]
#[case::wheel_stands_for_the_templates_group("owner :vmusers", "disk \"/vm/i\"\nowner :wheel")]
#[case::inherited_cdrom("cdrom \"/iso/a\"\nmemory 1G", "memory 2G")]
#[case::boot_from_an_inherited_cdrom("cdrom \"/iso/a\"", "memory 2G\nboot device cdrom")]
#[case::own_interface("interface", "disk \"/vm/i\"\ninterface")]
#[case::copied_interface("interface", "disk \"/vm/i\"")]
#[case::copied_address("interface { lladdr fe:e1:ba:d0:00:11 }", "disk \"/vm/i\"")]
#[case::same_address("interface { lladdr 2:0:0:0:0:1 }", "disk \"/vm/i\"\ninterface { lladdr 2:0:0:0:0:1 }")]
#[case::address_without_a_template_to_compare_with("", "disk \"/vm/i\"\ninterface { lladdr 2:0:0:0:0:1 }")]
#[case::address_of_zeros("interface", "disk \"/vm/i\"\ninterface { lladdr 0:0:0:0:0:0 }")]
#[case::all_interfaces_anew("interface\ninterface", "disk \"/vm/i\"\ninterface\ninterface")]
#[case::number_of_interfaces("interface\ninterface", "disk \"/vm/i\"\ninterfaces 2")]
#[case::other_tap("interface tap3", "disk \"/vm/i\"\ninterface tap4")]
#[case::an_ignored_owner_of_instances("", "disk \"/vm/i\"\nallow instance { owner joe }")]
fn an_instance_is_taken(#[case] template: &str, #[case] options: &str) {
    let refused = refused(&instance(template, options), &Check::default());

    assert_eq!(refused, [""; 0]);
}

#[rstest]
#[case::address("interface", "disk \"/vm/i\"\ninterface { lladdr fe:e1:ba:d0:00:11 }", "for its address")]
#[case::two_copied_interfaces("interface\ninterface", "disk \"/vm/i\"", "for its address")]
#[case::one_copied_of_two("interface\ninterface", "disk \"/vm/i\"\ninterface", "for its address")]
#[case::copied_tap("interface tap3", "disk \"/vm/i\"", "names the interface tap3, too")]
#[case::copied_word_tap("interface tap", "disk \"/vm/i\"", "names the interface tap, too")]
#[case::tap("interface tap3", "disk \"/vm/i\"\ninterface tap3", "names the interface tap3, too")]
#[case::user("owner joe", "disk \"/vm/i\"\nowner ann", "user is not the template's")]
#[case::user_of_roots_template("", "disk \"/vm/i\"\nowner ann", "user is not the template's")]
#[case::group("owner :a", "disk \"/vm/i\"\nowner :b", "group is not the template's")]
#[case::group_is_not_inherited("owner :vmusers", "disk \"/vm/i\"", "group is not the template's")]
#[case::templates_disk("", "disk \"/vm//./base\"", "is a disk of the template")]
#[case::no_disk("", "memory 2G", "disks are not inherited")]
#[case::only_boot("", "boot \"/bsd.rd\"", "disks are not inherited")]
#[case::inherited_cdrom_alone("cdrom \"/iso/a\"", "enable", "no device and no memory of its own")]
#[case::permissions("", "disk \"/vm/i\"\nallow instance { memory }", "cannot change who may make instances")]
fn an_instance_is_refused(#[case] template: &str, #[case] options: &str, #[case] why: &str) {
    let refused = refused(&instance(template, options), &Check::default());

    assert!(refused.len() == 1 && refused[0].contains(why), "{refused:?}");
}

#[rstest]
#[case::before_its_template(&format!("vm t instance i {{ disk \"/vm/i\" }}\n{TEMPLATE}"), "there is no VM \"t\"")]
#[case::of_a_refused_template(
    "vm t {\n\tmemory 1G\n}\nvm t instance i { disk \"/vm/i\" }\n",
    "there is no VM \"t\""
)]
#[case::with_a_name_that_is_taken(
    &format!("{TEMPLATE}vm i {{ disk \"/vm/a\" }}\nvm t instance i {{ disk \"/vm/i\" }}\n"),
    "there is a VM \"i\" already [vmd refuses the instance]"
)]
#[case::vm_with_only_boot("vm a {\n\tboot \"/bsd.rd\"\n\tlocal interface\n}\n", "`boot` alone")]
#[case::vm_without_devices("vm a {\n\tdisable\n}\n", "no disk, no CD-ROM")]
fn a_vm_is_refused(#[case] text: &str, #[case] why: &str) {
    let refused = refused(text, &Check::default());

    assert!(refused.iter().any(|refusal| refusal.contains(why)), "{refused:?}");
}

#[rstest]
#[case::instance_of_an_instance(&format!(
    "{TEMPLATE}vm t instance i {{ disk \"/vm/i\" }}\nvm i instance j {{ disk \"/vm/j\" }}\n"
))]
#[case::vm_with_a_name_that_is_taken(&format!("{TEMPLATE}{TEMPLATE}"))]
#[case::instance_of_a_template_with_errors_in_other_lines(
    "vm t {\n\tcdrom \"/a\"\n\tmemory 1G\n}\nvm t instance i { memory 2G\n}\n"
)]
fn a_configuration_is_taken(#[case] text: &str) {
    assert_eq!(refused(text, &Check::default()), [""; 0]);
}

#[test]
fn what_is_missing_in_an_unreadable_block_is_not_held_against_it() {
    let refused =
        refused("vm t {\n\tfrob\n\tmemory 1G\n}\nvm t instance i { disk \"/i\" }\n", &Check::default());

    assert!(refused.len() == 1 && refused[0].starts_with("expected an option of a VM"), "{refused:?}");
}

#[test]
fn a_copied_interface_is_warned_of() {
    let findings = check(&read(&instance("interface", "disk \"/vm/i\"")), &Check::default());

    assert!(
        findings.iter().any(|finding| finding.message == "\"i\" has the address of \"t\" on the network")
    );
}

#[test]
fn a_name_and_a_number_may_be_the_same_user() {
    let text = instance("owner joe", "disk \"/vm/i\"\nowner 1000");

    let findings = check(&read(&text), &Check::default());

    assert_eq!(refused(&text, &Check::default()), [""; 0]);
    assert!(findings.iter().any(|finding| finding.message.contains("unless its user is the template's")));
}

/// A host on which joe is 1000, with the images of [`TEMPLATE`] and an instance.
fn host() -> tempfile::TempDir {
    let root = tempfile::tempdir().expect("a directory");
    for folder in ["etc", "vm", "home"] {
        fs::create_dir(root.path().join(folder)).expect("a folder");
    }
    let write = |name: &str, text: &str| fs::write(root.path().join(name), text).expect("a file");
    write("etc/passwd", "root:*:0:0::/root:/bin/ksh\njoe:*:1000:1000::/home/joe:/bin/ksh\n");
    write("etc/group", "wheel:*:0:root\nvmusers:*:900:joe\n");
    write("vm/base", &"\0".repeat(1024));
    write("vm/i", &"\0".repeat(1024));
    std::os::unix::fs::symlink("/vm/base", root.path().join("vm/link")).expect("a link");
    root
}

#[rstest]
#[case::unknown_user("owner ann", "disk \"/vm/i\"\nowner ann", "the host has no user \"ann\"")]
#[case::unknown_group("owner joe:ops", "disk \"/vm/i\"\nowner joe:ops", "the host has no group \"ops\"")]
#[case::unknown_owner_of_instances("allow instance { owner ann }", "disk \"/vm/i\"", "no user \"ann\"")]
#[case::number_of_another("owner joe", "disk \"/vm/i\"\nowner 1001", "user is not the template's")]
#[case::link_to_the_templates_disk("", "disk \"/vm/link\"", "is a disk of the template")]
#[case::link_out_of_the_root("", "disk \"/vm/../../vm/base\"", "is a disk of the template")]
#[case::directory("", "disk \"/vm\"", "is not a regular file")]
#[case::home("", "disk \"~/i\"", "vmd does not expand `~`")]
fn a_hosts_files_tell_more(#[case] template: &str, #[case] options: &str, #[case] why: &str) {
    let root = host();
    let check = Check { root: Some(root.path().to_owned()), ..Check::default() };

    let refused = refused(&instance(template, options), &check);

    assert!(refused.iter().any(|refusal| refusal.contains(why)), "{refused:?}");
}

#[test]
fn a_hosts_files_tell_the_number_of_a_user() {
    let root = host();
    let check = Check { root: Some(root.path().to_owned()), ..Check::default() };

    let refused = refused(&instance("owner joe", "disk \"/vm/i\"\nowner 1000"), &check);

    assert_eq!(refused, [""; 0]);
}

#[rstest]
#[case::whole("/etc/vms.conf")]
#[case::relative("etc/vms.conf")]
#[case::through_a_link("/etc/link.conf")]
fn includes_are_files_of_the_host(#[case] path: &str) {
    let root = host();
    let etc = root.path().join("etc");
    fs::write(etc.join("vm.conf"), format!("include \"{path}\"\n")).expect("a file");
    fs::write(etc.join("vms.conf"), TEMPLATE).expect("a file");
    std::os::unix::fs::symlink("/etc/vms.conf", etc.join("link.conf")).expect("a link");

    let config = vmconf::read(&etc.join("vm.conf"), Some(root.path())).expect("the file is there");

    assert_eq!(config.vms().count(), 1);
}

#[rstest]
#[case::six(3, 3, "", false)]
#[case::seven(4, 3, "", true)]
#[case::seven_with_the_cdrom(4, 2, "cdrom \"/c\"\n", true)]
#[case::openbsd_has_no_seabios(4, 4, "boot \"/bsd.rd\"\n", false)]
fn seabios_boots_with_six_devices(
    #[case] disks: usize,
    #[case] interfaces: usize,
    #[case] more: &str,
    #[case] too_many: bool,
) {
    let disks = ["disk \"/1\"\n", "disk \"/2\"\n", "disk \"/3\"\n", "disk \"/4\"\n"][..disks].concat();
    let text = format!("vm a {{\n{disks}{}{more}}}\n", "local interface\n".repeat(interfaces));

    let findings = check(&read(&text), &Check::default());

    let warned = findings.iter().any(|finding| finding.message.contains("too many devices for SeaBIOS"));
    assert_eq!(warned, too_many, "{findings:?}");
}

#[test]
fn inherited_devices_count() {
    let template = "interface\ncdrom \"/c\"";
    let options =
        format!("{}interface", ["a", "b", "c", "d"].map(|name| format!("disk \"/{name}\"\n")).concat());

    let of_six = check(&read(&instance(template, &options)), &Check::default());
    let of_seven = check(&read(&instance(template, &format!("{options}\ninterface"))), &Check::default());

    let warned =
        |findings: &[vmconf::Finding]| findings.iter().any(|finding| finding.message.contains("SeaBIOS"));
    assert_eq!((warned(&of_six), warned(&of_seven)), (false, true));
}
