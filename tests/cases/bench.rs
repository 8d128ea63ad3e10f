//! `vmmlinux bench` as CI can run it: quick, and only what does not depend on how fast anything is.

use std::{fs, path::Path, process::Command};

use guest_tests::run::{build, vmmlinux};
use serde_json::Value;

/// Runs a quick bench of the build that `make e2e` names; gives its JSON and its page.
fn bench(what: &str, arguments: &[&str]) -> (Value, String) {
    let out = tempfile::tempdir().unwrap();
    let run = Command::new(vmmlinux())
        .args(["bench", what, "--quick", "--accel", "nested", "--out"])
        .arg(out.path())
        .arg("--kernel")
        .arg(format!("ours={}", build().display()))
        .args(arguments)
        .output()
        .unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let read = |extension: &str| {
        fs::read_to_string(Path::new(out.path()).join(what).with_extension(extension)).unwrap()
    };
    let json: Value = serde_json::from_str(&read("json")).unwrap();
    assert_eq!(json["bench"], what);
    (json, read("html"))
}

#[test]
#[ignore = "boots guests in the helper VM: make e2e"]
fn ours_boots_with_fewer_exits_and_less_memory_than_debians() {
    let (report, page) = bench("boot", &[]);
    let boot = |kernel: usize| &report["data"][kernel][1][0];
    assert_eq!((&report["data"][0][0], &report["data"][1][0]), (&"ours".into(), &"debian-7.3".into()));
    let number = |value: &Value| value.as_i64().unwrap_or_else(|| panic!("{report:#}"));
    let exits = |kernel| number(&boot(kernel)["init"]["exits"]);
    assert!(exits(0) > 0 && exits(0) < exits(1), "{report:#}");
    let used =
        |kernel| number(&boot(kernel)["memory"]["total"]) - number(&boot(kernel)["memory"]["available"]);
    assert!(used(0) > 0 && used(0) < used(1), "{report:#}");
    // To init is on the way to ready.
    assert!(number(&boot(0)["ready"]["exits"]) >= exits(0), "{report:#}");
    assert!(boot(0)["init"]["devices"]["pci"].as_i64() > Some(0), "{report:#}");
    for part in ["<svg", "debian-7.3", "Memory when ready", "</html>"] {
        assert!(page.contains(part), "{part}");
    }
}

#[test]
#[ignore = "boots guests in the helper VM: make e2e"]
fn our_clock_never_goes_back_and_knows_what_a_pause_is() {
    let (report, page) = bench("clock", &["--against", "none"]);
    let clock = &report["data"][0];
    assert_eq!(clock["failed"], Value::Null, "{report:#}");
    for steps in clock["backwards"].as_object().unwrap().values() {
        assert_eq!(steps, 0, "{report:#}");
    }
    // The worst that pvclock's multiplier makes of it is 4.74 ppm, and 15 s on an emulated processor are good to 10.
    let ppm = clock["raw_ppm"].as_f64().unwrap_or_else(|| panic!("{report:#}"));
    assert!(ppm.abs() < 15.0, "{report:#}");
    assert_eq!(clock["sleeps"].as_object().unwrap().len(), 6, "{report:#}");
    assert!(clock["exits_per_s"].as_f64() > Some(0.0), "{report:#}");
    let behind = clock["behind"]["pause"].as_i64().unwrap_or_else(|| panic!("{report:#}"));
    assert!(behind.abs() < 1_000_000_000, "{report:#}");
    assert!(clock["behind"]["suspend"].is_i64(), "{report:#}");
    assert!(page.contains("<svg"));
}

#[test]
#[ignore = "boots guests in the helper VM: make e2e"]
fn a_guest_that_dies_is_told_with_its_last_words() {
    let run = Command::new(vmmlinux())
        .args(["bench", "boot", "--quick", "--accel", "nested", "--against", "none"])
        .args(["--kernel", "tests=Makefile"])
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&run.stderr);
    assert!(!run.status.success() && said.contains("tests on 7.8 did not get to its end"), "{said}");
}
