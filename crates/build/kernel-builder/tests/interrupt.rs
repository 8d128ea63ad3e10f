//! An interrupted build is continued. This test has a process of its own: the signal is sent to the whole process.

#[path = "kernels/fixture.rs"]
mod fixture;

use std::fs;

use fixture::{Config, FILES, Place, tarball};
use kernel_builder::{Error, KernelBuilder, MakeError, Request};
use rustix::process::{Signal, getpid, kill_process};
use support::{cache::Cache, progress::Progress};

/// Presses Ctrl-C while the second file is being compiled.
struct Impatient;

impl Progress for Impatient {
    fn phase(&self, _: &str) {}
    fn step(&self, _: u64, _: u64, current: &str) {
        if current == "lib/sum.o" {
            kill_process(getpid(), Signal::INT).unwrap();
        }
    }
    fn note(&self, _: &str) {}
}

#[test]
fn an_interrupted_build_goes_on_where_it_stopped() {
    let place = Place::new();
    // lib/sum.o waits for the file `go`, which is made after the interrupt. Its shell does not see SIGINT, as if make had
    // started it in the moment of the signal.
    let go = place.dir.path().join("go");
    let mut files = FILES.to_vec();
    let wait = format!("while ! test -e {}; do sleep 0.1; done; $(cc) -c -o $@ $<", go.display());
    let makefile = files[0].1.replace(
        "$(O)/vmlinux:",
        &format!("$(O)/lib/sum.o: lib/sum.c $(O)/init/main.o\n\t@mkdir -p $(@D)\n\t@trap '' INT; echo '# CC      lib/sum.o'; {wait}\n\n$(O)/vmlinux:"),
    );
    files[0].1 = &makefile;
    place.offer("7.3.4", &tarball("7.3.4", &files), &place.key);
    let build = |builder: KernelBuilder| {
        builder.build(&Request {
            series: "7.3",
            name: "test",
            out: &place.out(),
            tree: None,
            configuration: &Config("A=1"),
            jobs: Some(1),
            package: None,
            patched: true,
            profile: false,
        })
    };
    let impatient =
        KernelBuilder::new(place.options(), Cache::at(place.cache()), Box::new(Impatient)).unwrap();
    let error = build(impatient).unwrap_err();
    assert!(matches!(error, Error::Make(MakeError::Interrupted { .. })), "{error}");
    assert!(!place.out().join("test").exists());
    fs::write(&go, "").unwrap();
    build(place.builder()).unwrap();
    let builds = place.cache().join("builds");
    let dir = fs::read_dir(builds).unwrap().next().unwrap().unwrap().path();
    let log = fs::read_to_string(dir.join("build.log")).unwrap();
    assert!(
        !log.contains("# CC      init/main.o"),
        "what was made before the interrupt is not made again:\n{log}"
    );
    assert!(place.out().join("test/bzImage").is_file());
}
