//! The driver of the control device as a module, in a kernel that can sleep, start another kernel, and look for leaks.

use std::path::{Path, PathBuf};

use guest_tests::{
    event::Event,
    kernels::build_with,
    probes::compile,
    run::{Ended, Guest, Run},
    storm,
};
use rstest::rstest;
use vmm::ExitReason;

/// What our configuration is without, or has built in.
const SYMBOLS: [(&str, &str); 12] = [
    ("MODULES", "y"),
    ("MODULE_UNLOAD", "y"),
    ("OPENBSD_VMMCI", "m"),
    ("KUNIT", "y"),
    ("OPENBSD_VMMCI_KUNIT_TEST", "y"),
    ("KEXEC_FILE", "y"),
    ("SUSPEND", "y"),
    ("PM_DEBUG", "y"),
    ("DEBUG_KERNEL", "y"),
    ("DEBUG_KMEMLEAK", "y"),
    ("SAMPLES", "y"),
    ("SAMPLE_KMEMLEAK", "m"),
];

/// Builds the kernel, which is up to date the second time.
fn kernel() -> PathBuf {
    build_with("vmmci", &SYMBOLS, &Path::new(env!("CARGO_TARGET_TMPDIR")).join("kernels"))
}

/// A module of the kernel's.
fn module(kernel: &Path, path: &str) -> PathBuf {
    let releases = kernel.join("modules/lib/modules");
    let release = releases.read_dir().unwrap().next().unwrap().unwrap().path();
    release.join("kernel").join(path)
}

/// A guest with the kernel, the driver's module, and further files.
fn guest(kernel: &Path, files: &[(&str, &Path)]) -> Guest {
    let module = module(kernel, "drivers/virt/openbsd/vmmci.ko");
    Guest::with_files(kernel.join("bzImage"), &[module], files)
}

/// Stops the guest, which goes down in order.
fn stop(run: Run) -> Ended {
    run.obey(&["stop"]);
    let ended = run.end().assert_status(0);
    assert_eq!(ended.reason(), ExitReason::Stopped);
    ended.one(|event| if let Event::KernelRan(_) = event { Some(()) } else { None });
    for complaint in ["forcing it", "Call Trace"] {
        assert!(!ended.console().contains(complaint), "{complaint}: {}", ended.everything());
    }
    ended
}

#[rstest]
#[ignore = "compiles a kernel: make long-test"]
fn long_the_module_comes_and_goes_and_passes_its_unit_tests(
    #[values("7.7", "7.8", "7.9", "8.0")] host: &str,
) {
    let guest = guest(&kernel(), &[]);
    let parameters = "loglevel=7 kunit.enable=1 kunit.autorun=1";
    let run =
        guest.run_with(&format!("module-{host}"), "driver reload rebind wait", parameters, &["--host", host]);
    run.done("rebind");
    let ended = stop(run);
    let totals: Vec<_> = ended.console().lines().filter(|line| line.contains("# vmmci: pass:")).collect();
    println!("{host}: {totals:?}");
    // Each time that it was loaded.
    assert_eq!(totals.len(), 11, "{}", ended.everything());
    assert!(totals.iter().all(|total| total.contains("fail:0 skip:0")), "{totals:#?}");
}

#[rstest]
#[ignore = "compiles a kernel: make long-test"]
fn long_a_guest_that_sleeps_hears_the_host(#[values("7.7", "7.8", "7.9", "8.0")] host: &str) {
    let guest = guest(&kernel(), &[]);
    let parameters = "loglevel=8 no_console_suspend pm_debug_messages";
    let run = guest.run_with(&format!("nap-{host}"), "driver nap nap wait", parameters, &["--host", host]);
    run.expect_times("PM: suspend-to-idle", 1);
    run.obey(&["suspend", "--for", "3h"]);
    run.expect("vmmci 0000:00:02.0: clock set by +10");
    run.expect_times("PM: suspend-to-idle", 2);
    let ended = stop(run);
    assert_eq!(ended.console().matches("PM: suspend exit").count(), 2, "{}", ended.everything());
}

#[rstest]
#[ignore = "compiles a kernel: make long-test"]
fn long_the_next_kernel_finds_the_device_in_order(#[values("7.7", "7.8", "7.9", "8.0")] host: &str) {
    let (kernel, place) = (kernel(), tempfile::tempdir().unwrap());
    let probe = place.path().join("kexec");
    compile("kexec", &probe).unwrap();
    let next = guest(&kernel, &[]);
    let files = [
        ("kexec", probe.as_path()),
        ("boot/bzImage", &kernel.join("bzImage")),
        ("boot/initrd", &next.initrd()),
    ];
    let guest = guest(&kernel, &files);
    let words = "driver kexec / driver wait";
    let run = guest.run(&format!("kexec-{host}"), words, &["--host", host, "-m", "1G"]);
    run.done("kexec");
    run.expect_events(&Event::Done("driver".to_owned()), 2);
    stop(run);
}

#[test]
#[ignore = "compiles a kernel: make long-test"]
fn long_nothing_leaks_in_a_storm() {
    let kernel = kernel();
    // One that leaks shows that the kernel would find it.
    let leaky = module(&kernel, "samples/kmemleak/kmemleak-test.ko");
    let guest = guest(&kernel, &[("leaky.ko", &leaky)]);
    let words = "driver stay reload churn leaks leaky leaks poweroff";
    let mut run = guest.run_with("leaks", words, "vmmci.grace=0", &[]);
    run.waiting("churn");
    storm::churn(&mut run, &storm::commands(1000));
    let ended = run.end().assert_status(0);
    let counts =
        ended.one(|event| if let Event::Counts(counts) = event { Some(counts.clone()) } else { None });
    assert_eq!(counts.step_ms, 0, "{counts:?}");
    let counted = ended.all(|event| if let Event::Leaks(found) = event { Some(*found) } else { None });
    println!("{counts:?}, leaks: {counted:?}");
    assert!(matches!(counted[..], [0, found] if found >= 1), "{counted:?}: {}", ended.everything());
}
