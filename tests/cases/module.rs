//! The driver of the control device as a module, in a kernel that can sleep, start another kernel, and look for leaks.

use std::path::{Path, PathBuf};

use guest_tests::{
    kernels::build_with,
    probes::compile,
    run::{Guest, Run, program},
    storm,
};

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

const HOSTS: [&str; 4] = ["7.7", "7.8", "7.9", "8.0"];

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
    Guest::with_files(&program("guest"), kernel.join("bzImage"), &[module], files)
}

/// Stops the guest, which goes down in order.
fn stop(run: Run) -> String {
    run.obey(&["stop"]);
    let (status, console, errors) = run.end();
    assert_eq!(status, 0, "{console}\n{errors}");
    // Where the kernel says more, the rest may stand behind that.
    assert!(console.contains("guest: the kernel says"), "{console}\n{errors}");
    assert!(!console.contains("forcing it"), "{console}");
    assert!(errors.contains("went down as asked"), "{errors}");
    assert!(!console.contains("Call Trace"), "{console}");
    console
}

#[test]
#[ignore = "compiles a kernel: make long-test"]
fn long_the_module_comes_and_goes_and_passes_its_unit_tests() {
    let guest = guest(&kernel(), &[]);
    for host in HOSTS {
        let name = format!("module-{host}");
        let parameters = "loglevel=7 kunit.enable=1 kunit.autorun=1";
        let run = guest.run_with(&name, "driver reload rebind wait", parameters, &["--host", host]);
        run.expect("guest: reloaded");
        run.expect("guest: rebound");
        let console = stop(run);
        let total = console
            .lines()
            .find(|line| line.contains("# vmmci: pass:"))
            .unwrap_or_else(|| panic!("{console}"));
        println!("{host}: {total}");
        assert!(total.contains("fail:0 skip:0"), "{console}");
        // Each time that it was loaded.
        assert_eq!(console.matches("# vmmci: pass:").count(), 11, "{console}");
    }
}

#[test]
#[ignore = "compiles a kernel: make long-test"]
fn long_a_guest_that_sleeps_hears_the_host() {
    let guest = guest(&kernel(), &[]);
    for host in HOSTS {
        let name = format!("nap-{host}");
        let parameters = "loglevel=8 no_console_suspend pm_debug_messages";
        let run = guest.run_with(&name, "driver nap nap wait", parameters, &["--host", host]);
        run.expect_times("PM: suspend-to-idle", 1);
        run.obey(&["suspend", "--for", "3h"]);
        // Lines of the kernel's, which the guest's cannot tear.
        run.expect("vmmci 0000:00:02.0: clock set by +10");
        run.expect_times("PM: suspend-to-idle", 2);
        let console = stop(run);
        assert_eq!(console.matches("PM: suspend exit").count(), 2, "{console}");
        println!("{host}: woken by SYNCRTC, and by a stop");
    }
}

#[test]
#[ignore = "compiles a kernel: make long-test"]
fn long_the_next_kernel_finds_the_device_in_order() {
    let (kernel, place) = (kernel(), tempfile::tempdir().unwrap());
    let probe = place.path().join("kexec");
    compile("kexec", &probe).unwrap();
    let next = self::guest(&kernel, &[]);
    let files = [
        ("kexec", probe.as_path()),
        ("boot/bzImage", &kernel.join("bzImage")),
        ("boot/initrd", &next.initrd()),
    ];
    let guest = self::guest(&kernel, &files);
    for host in HOSTS {
        let name = format!("kexec-{host}");
        let run = guest.run(&name, "driver kexec / driver wait", &["--host", host, "-m", "1G"]);
        run.expect("guest: goes on to the other kernel");
        run.expect_times("has a driver", 2);
        stop(run);
        println!("{host}: the next kernel was stopped in order");
    }
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
    run.expect("guest: counting");
    storm::churn(&mut run, &storm::commands(1000));
    let (status, console, errors) = run.end();
    assert_eq!(status, 0, "{console}\n{errors}");
    for line in console.lines().filter(|line| line.contains("guest: counts") || line.contains("guest: leaks"))
    {
        println!("{line}");
    }
    assert!(console.contains(" step_ms=0 "), "{console}");
    assert_eq!(console.matches("guest: leaks: ").count(), 2, "{console}");
    assert_eq!(console.matches("guest: leaks: 0").count(), 1, "{console}");
}
