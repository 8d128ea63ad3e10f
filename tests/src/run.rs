//! Running the `vmmlinux` program as it was built, with a guest in the helper VM.

use std::{
    env,
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use helper_vm::Kernel;
use serde_json::Value;
use vmm::ExitReason;

use crate::{
    event::Event,
    initramfs::Initramfs,
    output::{Output, Seen},
};

/// The OpenBSD releases whose vmd the machine emulates.
pub const HOSTS: [&str; 4] = ["7.7", "7.8", "7.9", "8.0"];

/// The longest that a test waits for something, on a machine that has much else to do.
const PATIENCE: Duration = Duration::from_mins(8);
/// The longest that a test waits for a machine's end, whose guest may have much to do before.
const PATIENCE_AT_THE_END: Duration = Duration::from_hours(1);

/// The kernel parameters of small guests.
const COMMON: &str = "console=ttyS0,115200 quiet mitigations=off reboot=t panic=-1";

/// The `vmmlinux` program beside the tests' own programs.
pub fn vmmlinux() -> PathBuf {
    program("vmmlinux")
}

/// The build of our kernel that is tested: `make e2e` names it.
pub fn build() -> PathBuf {
    env::var_os("VMMLINUX_TEST_BUILD")
        .map(PathBuf::from)
        .expect("VMMLINUX_TEST_BUILD names a build: make e2e")
}

/// A program of the workspace, beside the tests.
///
/// # Panics
///
/// If it is not built.
pub fn program(name: &str) -> PathBuf {
    let me = env::current_exe().expect("the test knows where it is");
    // …/target/<triple>/<profile>/deps/<test>
    let dir = me.parent().and_then(Path::parent).expect("tests are in a directory of the build's");
    let program = dir.join(name);
    assert!(program.is_file(), "{} is not there: make program", program.display());
    program
}

/// Writes a program without debug information, which is most of it, to the file `to`.
pub fn stripped(name: &str, to: &Path) {
    let done = Command::new("strip").arg("-o").arg(to).arg(program(name)).status();
    assert!(done.expect("strip runs").success());
}

/// A kernel and an initial RAM disk with the agent (`src/agent`), which carries out the words of the command line.
///
/// It must outlive its runs, which read its files when they start.
pub struct Guest {
    dir: tempfile::TempDir,
    kernel: PathBuf,
}

impl Guest {
    /// A guest with the kernel of the helper VM: Debian's.
    pub fn debian() -> Self {
        let kernel = Kernel::get(&|what| support::note!("{what}")).expect("Debian's cloud kernel can be had");
        let virtio = kernel.modules.into_iter().filter(|path| path.to_string_lossy().contains("virtio"));
        Self::with_kernel(kernel.vmlinuz, &virtio.collect::<Vec<_>>())
    }

    /// A guest with the kernel of [`build`].
    pub fn ours() -> Self {
        Self::with_kernel(build().join("bzImage"), &[])
    }

    /// A guest with another kernel, and modules that the agent loads in this order.
    pub fn with_kernel(kernel: PathBuf, modules: &[PathBuf]) -> Self {
        Self::with_files(kernel, modules, &[])
    }

    /// The same, and further files, by their names in the guest: in `/` or `boot/`.
    pub fn with_files(kernel: PathBuf, modules: &[PathBuf], files: &[(&str, &Path)]) -> Self {
        Self::with_init("agent", kernel, modules, files)
    }

    /// The same with another init: a program of the workspace.
    pub fn with_init(init: &str, kernel: PathBuf, modules: &[PathBuf], files: &[(&str, &Path)]) -> Self {
        let guest = Self { dir: tempfile::tempdir().expect("a directory"), kernel };
        let mut archive = Initramfs::create(&guest.initrd(), &["boot"]).expect("an initrd");
        archive.copy("init", &program(init)).expect("an initrd");
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

    /// Starts the guest with the agent's `words` and further arguments of `vmmlinux run`.
    pub fn run(&self, name: &str, words: &str, arguments: &[&str]) -> Run {
        self.run_with(name, words, "", arguments)
    }

    /// The same, with further kernel parameters.
    pub fn run_with(&self, name: &str, words: &str, parameters: &str, arguments: &[&str]) -> Run {
        self.start(name, &format!("{COMMON} {parameters} -- {words}"), arguments)
    }

    /// The same, with this for the whole kernel command line.
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
        command.args(["--append", append, "--stats"]).arg(self.dir.path().join(format!("{name}.json")));
        command.arg("--kernel").arg(&self.kernel).arg("--initrd").arg(self.initrd()).args(arguments);
        command
    }
}

/// `vmmlinux run` of a machine under nested, with a time limit. What it boots is to be added.
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
    /// The file of its `--stats`.
    report: Option<PathBuf>,
}

impl Run {
    /// Starts `command`, a `vmmlinux run --name NAME …`.
    pub fn start(name: &str, mut command: Command) -> Self {
        let mut arguments = command.get_args();
        let report = arguments
            .find(|word| *word == OsStr::new("--stats"))
            .and_then(|_| arguments.next())
            .map(PathBuf::from);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("vmmlinux starts");
        let console = Output::collect(child.stdout.take().expect("piped"));
        let errors = Output::collect(child.stderr.take().expect("piped"));
        Self { name: name.to_owned(), stdin: child.stdin.take(), child, console, errors, report }
    }

    /// The machine's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Waits until the agent has sent `count` events like this.
    #[track_caller]
    pub fn wait_for_events(&self, count: usize, like: impl Fn(&Event) -> bool) {
        let matching = |seen: &Seen| seen.events.iter().filter(|(_, event)| like(event)).count();
        let seen =
            self.console.wait_for(PATIENCE, |seen| matching(seen) >= count || seen.failure().is_some());
        if matching(&seen) < count {
            let why = seen.failure().unwrap_or("it did not come");
            // What runs, and who answers: the program, the helper VM, the machine.
            let (_, status) = self.ctl(&["status", "--json"]);
            let errors = self.errors.seen().text;
            panic!("event {count} of its kind: {why}, in:\n{}\n{errors}\n{status}", seen.text);
        }
    }

    /// Waits until the agent has sent this event so many times.
    #[track_caller]
    pub fn expect_events(&self, event: &Event, count: usize) {
        self.wait_for_events(count, |seen| seen == event);
    }

    /// Waits until the guest has booted.
    #[track_caller]
    pub fn ready(&self) {
        self.expect_events(&Event::Ready, 1);
    }

    /// Waits until the agent waits for the host in a word.
    #[track_caller]
    pub fn waiting(&self, word: &str) {
        self.expect_events(&Event::Waiting(word.to_owned()), 1);
    }

    /// Waits until the agent has carried out a word.
    #[track_caller]
    pub fn done(&self, word: &str) {
        self.expect_events(&Event::Done(word.to_owned()), 1);
    }

    /// Waits until the console shows a text.
    #[track_caller]
    pub fn expect(&self, text: &str) {
        self.expect_within(PATIENCE, text);
    }

    /// The same with another time limit.
    #[track_caller]
    pub fn expect_within(&self, time: Duration, text: &str) {
        let seen = self.console.wait_for(time, |seen| seen.text.contains(text)).text;
        assert!(seen.contains(text), "no `{text}` in:\n{seen}\n{}", self.errors.seen().text);
    }

    /// Waits until the console has shown a text so many times.
    #[track_caller]
    pub fn expect_times(&self, text: &str, times: usize) {
        let seen = self.console.wait_for(PATIENCE, |seen| seen.text.matches(text).count() >= times).text;
        let found = seen.matches(text).count();
        assert!(found >= times, "`{text}` {found} times, not {times}, in:\n{seen}");
    }

    /// What the console has shown so far.
    pub fn console(&self) -> String {
        self.console.seen().text
    }

    /// Types on the console.
    pub fn send(&mut self, bytes: &[u8]) {
        use std::io::Write;
        self.stdin.as_mut().expect("not closed").write_all(bytes).expect("vmmlinux reads its input");
    }

    /// Closes the standard input of `vmmlinux run`.
    pub fn close_input(&mut self) {
        self.stdin = None;
    }

    /// Runs `vmmlinux ctl NAME …`. Returns its exit status and its output.
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

    /// Runs `vmmlinux ctl NAME …`, which must succeed. Returns its output.
    #[track_caller]
    pub fn obey(&self, words: &[&str]) -> String {
        let (status, said) = self.ctl(words);
        assert!(status.success(), "{said}");
        said
    }

    /// The state of the machine, from `vmmlinux ctl NAME status --json`.
    #[track_caller]
    pub fn status(&self) -> Value {
        let text = self.obey(&["status", "--json"]);
        let status: Value = serde_json::from_str(&text).expect("JSON");
        status[0].clone()
    }

    /// Waits for the machine's end.
    ///
    /// # Panics
    ///
    /// If the agent failed.
    #[track_caller]
    pub fn end(mut self) -> Ended {
        let seen = self.console.wait_for(PATIENCE_AT_THE_END, |_| false);
        let errors = self.errors.wait_for(PATIENCE, |_| false).text;
        assert!(seen.ended, "{} does not end:\n{}\n{errors}", self.name, seen.text);
        let status = self.child.wait().expect("it can be waited for").code().expect("it was not killed");
        if let Some(why) = seen.failure() {
            panic!("the agent failed: {why}\n{}\n{errors}", seen.text);
        }
        let report = self.report.as_ref().and_then(|path| serde_json::from_slice(&fs::read(path).ok()?).ok());
        Ended { status, seen, errors, report: report.unwrap_or_default() }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A machine that has ended.
#[derive(Debug)]
pub struct Ended {
    /// The exit status of `vmmlinux run`.
    pub status: i32,
    /// The console and the agent's events.
    pub seen: Seen,
    /// The standard error of `vmmlinux run`.
    pub errors: String,
    /// The file of its `--stats`.
    report: Value,
}

impl Ended {
    /// The console.
    pub fn console(&self) -> &str {
        &self.seen.text
    }

    /// Console and standard error, for people who look for the reason of a failure.
    pub fn everything(&self) -> String {
        format!("{}\n{}", self.seen.text, self.errors)
    }

    /// Checks the exit status of `vmmlinux run`.
    #[track_caller]
    #[expect(clippy::return_self_not_must_use, reason = "often the last assertion")]
    pub fn assert_status(self, expected: i32) -> Self {
        assert_eq!(self.status, expected, "{}", self.everything());
        self
    }

    /// The reason of the end.
    #[track_caller]
    pub fn reason(&self) -> ExitReason {
        let reason = serde_json::from_value(self.report["ended"].clone());
        reason.unwrap_or_else(|error| panic!("no reason: {error}: {}\n{}", self.report, self.everything()))
    }

    /// The statistics that the machine counted, as `--stats` writes them.
    #[track_caller]
    pub fn statistics(&self) -> &Value {
        let statistics = &self.report["statistics"];
        assert!(statistics.is_object(), "no statistics: {}", self.everything());
        statistics
    }

    /// Every event that `pick` takes something from, in order.
    pub fn all<T>(&self, pick: impl Fn(&Event) -> Option<T>) -> Vec<T> {
        self.seen.events.iter().filter_map(|(_, event)| pick(event)).collect()
    }

    /// The same where there is exactly one.
    #[track_caller]
    pub fn one<T>(&self, pick: impl Fn(&Event) -> Option<T>) -> T {
        let mut all = self.all(pick);
        assert_eq!(all.len(), 1, "not one event of its kind: {}", self.everything());
        all.remove(0)
    }

    /// Whether the agent sent this event.
    pub fn has(&self, event: &Event) -> bool {
        self.seen.events.iter().any(|(_, seen)| seen == event)
    }
}
