//! Running the `vmmlinux` program as it was built, with a small guest.

use std::{
    env,
    io::{Read, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::{Arc, Condvar, Mutex},
    thread,
    time::Duration,
};

use helper_vm::Kernel;

use crate::{initramfs::Initramfs, probes};

/// The longest that a test waits for something, on a machine that has much else to do.
const PATIENCE: Duration = Duration::from_mins(8);

/// What kernels of small guests are told.
const COMMON: &str = "console=ttyS0,115200 quiet mitigations=off reboot=t panic=-1";

/// The `vmmlinux` program beside the tests' own programs.
pub fn vmmlinux() -> PathBuf {
    program("vmmlinux")
}

/// The build of ours that is to be tested, as `make e2e` names it.
pub fn build() -> PathBuf {
    env::var_os("VMMLINUX_TEST_BUILD")
        .map(PathBuf::from)
        .expect("VMMLINUX_TEST_BUILD names a build: make e2e")
}

/// One of the project's programs beside the tests' own, which is built by `make program`.
pub fn program(name: &str) -> PathBuf {
    let me = env::current_exe().expect("the test knows where it is");
    // …/target/<triple>/<profile>/deps/<test>
    let dir = me.parent().and_then(Path::parent).expect("tests are in a directory of the build's");
    let program = dir.join(name);
    assert!(program.is_file(), "{} is not there: make program", program.display());
    program
}

/// The same without debug information, which is most of a program, as the file `to`.
pub fn stripped(name: &str, to: &Path) {
    let done = Command::new("strip").arg("-o").arg(to).arg(program(name)).status();
    assert!(done.expect("strip runs").success());
}

/// The number after `name` and before the next space.
///
/// # Panics
///
/// If there is none.
#[track_caller]
pub fn number(text: &str, name: &str) -> i64 {
    let (_, rest) = text.split_once(name).unwrap_or_else(|| panic!("no `{name}` in:\n{text}"));
    rest.split_whitespace()
        .next()
        .and_then(|word| word.parse().ok())
        .unwrap_or_else(|| panic!("{name}: {rest}"))
}

/// A kernel with an init that does what its command line says; see `src/guest.rs`.
///
/// It must outlive its runs, which read its files when they start.
pub struct Guest {
    dir: tempfile::TempDir,
    kernel: PathBuf,
}

impl Guest {
    /// Packs a guest with the kernel that the helper VM has. `init` is the program of `src/guest.rs`.
    pub fn new(init: &Path) -> Self {
        let kernel = Kernel::get(&|what| support::note!("{what}")).expect("Debian's cloud kernel can be had");
        let virtio = kernel.modules.into_iter().filter(|path| path.to_string_lossy().contains("virtio"));
        Self::with_kernel(init, kernel.vmlinuz, &virtio.collect::<Vec<_>>())
    }

    /// Packs a guest with the kernel of [`build`].
    pub fn with_our_kernel(init: &Path) -> Self {
        Self::with_kernel(init, build().join("bzImage"), &[])
    }

    /// Packs a guest with another kernel, and modules that it loads in this order.
    pub fn with_kernel(init: &Path, kernel: PathBuf, modules: &[PathBuf]) -> Self {
        Self::with_files(init, kernel, modules, &[])
    }

    /// The same, and further files, by their names in the guest: in `/` or `boot/`.
    pub fn with_files(init: &Path, kernel: PathBuf, modules: &[PathBuf], files: &[(&str, &Path)]) -> Self {
        let guest = Self { dir: tempfile::tempdir().expect("a directory"), kernel };
        let mut archive = Initramfs::create(&guest.initrd(), &["boot"]).expect("an initrd");
        archive.copy("init", init).expect("an initrd");
        let probe = guest.dir.path().join("tscrate");
        probes::compile("tscrate", &probe).expect("a C compiler");
        archive.copy("tscrate", &probe).expect("an initrd");
        for module in modules {
            let name = module.file_name().expect("a name").to_string_lossy();
            archive.copy(&format!("modules/{name}"), module).expect("an initrd");
        }
        for (name, from) in files {
            archive.copy(name, from).expect("an initrd");
        }
        archive.finish().expect("an initrd");
        guest
    }

    /// Its initial RAM disk.
    pub fn initrd(&self) -> PathBuf {
        self.dir.path().join("initrd")
    }

    /// `vmmlinux run` under nested, with the guest and further arguments; the guest carries `words` out.
    pub fn run(&self, name: &str, words: &str, arguments: &[&str]) -> Run {
        self.run_with(name, words, "", arguments)
    }

    /// The same, with more on the kernel's command line.
    pub fn run_with(&self, name: &str, words: &str, kernel: &str, arguments: &[&str]) -> Run {
        self.start(name, &format!("{COMMON} {kernel} -- {words}"), arguments)
    }

    /// The same, with this for the kernel's command line.
    pub fn start(&self, name: &str, append: &str, arguments: &[&str]) -> Run {
        Run::start(name, self.command(name, append, arguments))
    }

    /// The same, read no further than to a line with `last`, as by `| sed /LAST/q`.
    pub fn run_until(&self, last: &str, name: &str, words: &str, arguments: &[&str]) -> Run {
        let run = self.command(name, &format!("{COMMON} -- {words}"), arguments);
        let mut shell = Command::new("bash");
        shell.args(["-c", r#"set -o pipefail; last=$1; shift; "$@" | sed "/$last/q""#, "-", last]);
        shell.arg(run.get_program()).args(run.get_args());
        Run::start(name, shell)
    }

    fn command(&self, name: &str, append: &str, arguments: &[&str]) -> Command {
        let mut command = machine(name, "6h");
        command.args(["--append", append]);
        command.arg("--kernel").arg(&self.kernel).arg("--initrd").arg(self.initrd()).args(arguments);
        command
    }
}

/// `vmmlinux run` of a machine under nested, for a time at most; what it runs is to be added.
pub fn machine(name: &str, timeout: &str) -> Command {
    let mut command = Command::new(vmmlinux());
    command.args(["run", "--accel", "nested", "--name", name, "--timeout", timeout]);
    command
}

/// A machine that runs.
pub struct Run {
    name: String,
    child: Child,
    stdin: Option<ChildStdin>,
    console: Arc<Output>,
    errors: Arc<Output>,
}

#[derive(Default)]
struct Output {
    text: Mutex<(String, bool)>,
    more: Condvar,
}

impl Output {
    fn collect(mut from: impl Read + Send + 'static) -> Arc<Self> {
        let output = Arc::new(Self::default());
        let into = Arc::clone(&output);
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            let mut unread = Vec::new();
            while let Ok(n @ 1..) = from.read(&mut bytes) {
                unread.extend_from_slice(&bytes[..n]);
                // A letter whose end has not come yet waits for it.
                let whole = match str::from_utf8(&unread) {
                    Err(error) if error.error_len().is_none() => error.valid_up_to(),
                    _ => unread.len(),
                };
                let text: Vec<u8> = unread.drain(..whole).collect();
                into.text.lock().unwrap().0.push_str(&String::from_utf8_lossy(&text));
                into.more.notify_all();
            }
            into.text.lock().unwrap().1 = true;
            into.more.notify_all();
        });
        output
    }

    fn wait_for(&self, found: impl Fn(&str) -> bool) -> String {
        self.wait_for_within(PATIENCE, found)
    }

    fn wait_for_within(&self, time: Duration, found: impl Fn(&str) -> bool) -> String {
        let unfinished = |(text, end): &mut (String, bool)| !found(text) && !*end;
        let (guard, _) = self.more.wait_timeout_while(self.text.lock().unwrap(), time, unfinished).unwrap();
        guard.0.clone()
    }
}

impl Run {
    /// Starts `command`, a `vmmlinux run --name NAME …`.
    pub fn start(name: &str, mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("vmmlinux starts");
        let console = Output::collect(child.stdout.take().expect("piped"));
        let errors = Output::collect(child.stderr.take().expect("piped"));
        Self { name: name.to_owned(), stdin: child.stdin.take(), child, console, errors }
    }

    /// The machine's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Waits until the guest has written a text.
    pub fn expect(&self, text: &str) {
        self.expect_within(PATIENCE, text);
    }

    /// The same, for what takes its time.
    pub fn expect_within(&self, time: Duration, text: &str) {
        let seen = self.console.wait_for_within(time, |seen| seen.contains(text));
        // A lock that is held by a panic would be poisoned for whoever collects.
        let errors = self.errors.text.lock().unwrap().0.clone();
        assert!(seen.contains(text), "no `{text}` in:\n{seen}\n{errors}");
    }

    /// Waits until the guest has written a text so many times.
    pub fn expect_times(&self, text: &str, times: usize) {
        let seen = self.console.wait_for(|seen| seen.matches(text).count() >= times);
        let found = seen.matches(text).count();
        assert!(found >= times, "`{text}` {found} times, not {times}, in:\n{seen}");
    }

    /// What the guest has written so far.
    pub fn console(&self) -> String {
        self.console.text.lock().unwrap().0.clone()
    }

    /// Types.
    pub fn send(&mut self, bytes: &[u8]) {
        self.stdin.as_mut().expect("not closed").write_all(bytes).expect("vmmlinux reads its input");
    }

    /// Ends the input.
    pub fn close_input(&mut self) {
        self.stdin = None;
    }

    /// `vmmlinux ctl NAME …`: its exit status and what it said.
    pub fn ctl(&self, words: &[&str]) -> (ExitStatus, String) {
        let output = Command::new(vmmlinux())
            .arg("ctl")
            .arg(&self.name)
            .args(words)
            .output()
            .expect("vmmlinux starts");
        let text = [output.stdout, output.stderr].concat();
        (output.status, String::from_utf8_lossy(&text).into_owned())
    }

    /// `vmmlinux ctl NAME …`, which must succeed: what it said.
    #[track_caller]
    pub fn obey(&self, words: &[&str]) -> String {
        let (status, said) = self.ctl(words);
        assert!(status.success(), "{said}");
        said
    }

    /// Waits for the end: exit status, console, errors.
    pub fn end(mut self) -> (i32, String, String) {
        let console = self.console.wait_for(|_| false);
        let errors = self.errors.wait_for(|_| false);
        let status = self.child.wait().expect("it can be waited for");
        (status.code().expect("it was not killed"), console, errors)
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
