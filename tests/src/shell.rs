//! A root shell on a guest's console, for guests with a login.

use crate::run::Run;

/// The shell, and how many commands it has been given.
#[derive(Debug, Default)]
pub struct Shell {
    logins: usize,
    asked: usize,
}

impl Shell {
    /// Waits for the next login prompt of `host` and logs in as root, who has no password.
    pub fn log_in(run: &mut Run, host: &str) -> Self {
        let mut shell = Self::default();
        shell.log_in_again(run, host);
        shell
    }

    /// The same after a reboot.
    pub fn log_in_again(&mut self, run: &mut Run, host: &str) {
        self.logins += 1;
        run.expect_times(&format!("\n{host} login: "), self.logins);
        run.send(b"root\n");
        run.expect_times(&format!("root@{host}:"), self.logins);
        // A shell that neither edits lines nor shows them, and a kernel that writes into no answer.
        run.send(b"stty -echo; dmesg -n 1; exec env TERM=dumb PS1= SYSTEMD_PAGER= DEBIAN_FRONTEND=noninteractive sh\n");
        self.ask(run, "export SYSTEMD_COLORS=0");
    }

    /// What a command writes, without the carriage returns.
    pub fn ask(&mut self, run: &mut Run, command: &str) -> String {
        self.asked += 1;
        let (begin, end) = (format!("<<{}:", self.asked), format!(":{}>>", self.asked));
        // The quotes keep the command itself from looking like its answer, wherever it is shown. What reads its input
        // must not read the rest.
        let line = format!("echo '<''<{n}:'; {{ {command}\n}} </dev/null; echo ':{n}''>>'\n", n = self.asked);
        run.send(line.as_bytes());
        run.expect(&end);
        let console = run.console().replace('\r', "");
        let (_, answer) = console.rsplit_once(&begin).expect("it begins before it ends");
        let (answer, _) = answer.rsplit_once(&end).expect("it was waited for");
        answer.trim().to_owned()
    }
}
