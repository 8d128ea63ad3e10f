//! The sandbox: capabilities, Landlock and seccomp of supervisor and worker.
//!
//! The supervisor keeps the capabilities for switching the device on, for taking the system down and for starting the
//! worker. The worker keeps one, for the clock; it opens no file, executes nothing, and makes only the system calls that
//! it needs. Features that the kernel lacks are reported, not required.

use std::collections::BTreeMap;

use landlock::{ABI, Access, AccessFs, AccessNet, Ruleset, RulesetAttr, RulesetError, RulesetStatus, Scope};
use libc::{
    SYS_accept4, SYS_brk, SYS_clock_gettime, SYS_clock_nanosleep, SYS_clock_settime, SYS_close, SYS_connect,
    SYS_exit, SYS_exit_group, SYS_fcntl, SYS_futex, SYS_getpid, SYS_getrandom, SYS_gettid, SYS_madvise,
    SYS_mmap, SYS_mprotect, SYS_mremap, SYS_munmap, SYS_nanosleep, SYS_poll, SYS_ppoll, SYS_pread64,
    SYS_pwrite64, SYS_read, SYS_readlinkat, SYS_recvfrom, SYS_restart_syscall, SYS_rt_sigaction,
    SYS_rt_sigprocmask, SYS_rt_sigreturn, SYS_sched_yield, SYS_sendto, SYS_shutdown, SYS_sigaltstack,
    SYS_socket, SYS_tgkill, SYS_write, SYS_writev,
};
use rustix::thread::{
    CapabilitySet, CapabilitySets, clear_ambient_capability_set, remove_capability_from_bounding_set,
    set_capabilities, set_no_new_privs,
};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};

/// The supervisor's capabilities. Those after the first three are for the worker, which inherits them while it starts.
const SUPERVISOR: CapabilitySet = CapabilitySet::SYS_ADMIN
    .union(CapabilitySet::SYS_BOOT)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::SYS_TIME)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::SYS_NICE)
    .union(CapabilitySet::IPC_LOCK);

/// System calls of the worker, including those of its run-time library on a panic.
const CALLS: [i64; 41] = [
    SYS_accept4,
    SYS_brk,
    SYS_clock_gettime,
    SYS_clock_nanosleep,
    SYS_clock_settime,
    SYS_close,
    SYS_connect,
    SYS_exit,
    SYS_exit_group,
    SYS_fcntl,
    SYS_futex,
    SYS_getpid,
    SYS_getrandom,
    SYS_gettid,
    SYS_madvise,
    SYS_mmap,
    SYS_mprotect,
    SYS_mremap,
    SYS_munmap,
    SYS_nanosleep,
    SYS_poll,
    SYS_ppoll,
    SYS_pread64,
    SYS_pwrite64,
    SYS_read,
    SYS_readlinkat,
    SYS_recvfrom,
    SYS_restart_syscall,
    SYS_rt_sigaction,
    SYS_rt_sigprocmask,
    SYS_rt_sigreturn,
    SYS_sched_yield,
    SYS_sendto,
    SYS_shutdown,
    SYS_sigaltstack,
    SYS_socket,
    SYS_tgkill,
    SYS_write,
    SYS_writev,
    libc::SYS_sendmsg,
    libc::SYS_recvmsg,
];

/// Drops the capabilities that the supervisor does not need. Programs that it starts regain root's.
pub fn enter_supervisor() -> Result<(), String> {
    keep(SUPERVISOR).map_err(|error| format!("capabilities could not be dropped: {error}"))
}

fn keep(kept: CapabilitySet) -> rustix::io::Result<()> {
    let _ = clear_ambient_capability_set();
    // What systemd has taken away already cannot be kept.
    let had = rustix::thread::capabilities(None)?.permitted;
    let kept = kept.intersection(had);
    set_capabilities(
        None,
        CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() },
    )
}

/// Applies the worker's sandbox. Returns the features that the kernel lacks.
pub fn enter_worker() -> Vec<String> {
    let mut missing = Vec::new();
    let bounded = (0..64)
        .map(|bit| CapabilitySet::from_bits_retain(1 << bit))
        .map_while(|one| rustix::thread::capability_is_in_bounding_set(one).ok().map(|there| (one, there)))
        .filter(|(_, there)| *there)
        .try_for_each(|(one, _)| remove_capability_from_bounding_set(one));
    if let Err(error) = bounded.and_then(|()| keep(CapabilitySet::SYS_TIME)) {
        missing.push(format!("capabilities could not be dropped: {error}"));
    }
    if let Err(error) = set_no_new_privs(true) {
        missing.push(format!("new privileges could not be ruled out: {error}"));
    }
    match landlock() {
        Ok(RulesetStatus::NotEnforced) => {
            missing.push("the kernel has no Landlock: files are not out of reach".to_owned());
        }
        Ok(_) => {}
        Err(error) => missing.push(format!("Landlock: {error}")),
    }
    if let Err(error) = filter().and_then(|filter| seccompiler::apply_filter(&filter)) {
        missing.push(format!("seccomp: {error}"));
    }
    missing
}

/// No file may be opened, no TCP used, no process outside signalled. Files that are open already stay usable.
fn landlock() -> Result<RulesetStatus, RulesetError> {
    let abi = ABI::V6;
    let status = Ruleset::default()
        .handle_access(AccessFs::from_all(abi))?
        .handle_access(AccessNet::from_all(abi))?
        .scope(Scope::from_all(abi))?
        .create()?
        .restrict_self()?;
    Ok(status.ruleset)
}

fn filter() -> seccompiler::Result<BpfProgram> {
    let rules: BTreeMap<_, _> = CALLS.into_iter().map(|call| (call, Vec::new())).collect();
    let refused = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let filter = SeccompFilter::new(rules, refused, SeccompAction::Allow, TargetArch::x86_64)
        .map_err(seccompiler::Error::Backend)?;
    BpfProgram::try_from(filter).map_err(seccompiler::Error::Backend)
}

#[cfg(test)]
mod tests {
    use vmmci_protocol::GuestMinusHost;

    use std::{
        fs,
        net::TcpListener,
        os::unix::net::{UnixDatagram, UnixListener},
        process::Command,
        thread,
    };

    use super::*;

    /// A thread's capabilities, Landlock domain and filter are its own: the other tests notice nothing.
    #[test]
    fn a_thread_that_is_locked_in_can_do_its_work_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_owned();
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        let socket = dir.path().join("socket");
        let listener = UnixListener::bind(&socket).unwrap();
        let chronyd = dir.path().join("chrony");
        let _chronyd = UnixDatagram::bind(&chronyd).unwrap();
        let chrony = crate::config::Chrony { socket: chronyd, interval: crate::config::Chrony::INTERVAL };
        let mut feed = crate::chrony::Feed::new(chrony).unwrap();
        let asking = thread::spawn(move || crate::status::ask(&socket));
        let thread = thread::spawn(move || {
            let thread = rustix::thread::gettid().as_raw_pid();
            let missing = enter_worker();
            assert!(fs::read("/etc/passwd").is_err());
            assert!(fs::write(path.join("file"), "x").is_err());
            assert!(Command::new("/bin/true").spawn().is_err());
            assert!(TcpListener::bind("127.0.0.1:0").is_err());
            // What it is there for.
            crate::status::answer(&listener, crate::status::tests::status).unwrap();
            let offset =
                vmmci_sysfs::Offset { guest_minus_host: GuestMinusHost::default(), uncertainty: 0, at: 0 };
            assert!(feed.send(std::time::Instant::now(), Some(offset)).unwrap().is_ok());
            let now = crate::clock::Clock::realtime(&crate::clock::System);
            assert!(now > 0);
            theirs.send(&thread.to_ne_bytes()).unwrap();
            theirs.recv(&mut [0; 1]).unwrap();
            missing
        });
        let mut id = [0; 4];
        assert_eq!(ours.recv(&mut id).unwrap(), 4);
        let status = format!("/proc/self/task/{}/status", i32::from_ne_bytes(id));
        let status = fs::read_to_string(status).unwrap();
        let field = |name| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim();
        assert_eq!((field("Seccomp:"), field("NoNewPrivs:")), ("2", "1"));
        let kept = u64::from_str_radix(field("CapPrm:"), 16).unwrap();
        assert_eq!(kept & !CapabilitySet::SYS_TIME.bits(), 0, "{kept:#x}");
        assert_eq!(asking.join().unwrap().unwrap(), Some(crate::status::tests::status()));
        ours.send(b"x").unwrap();
        let missing = thread.join().unwrap();
        // Without root there is no capability to drop.
        let expected = ["Landlock", "capabilities"];
        assert!(missing.iter().all(|what| expected.iter().any(|word| what.contains(word))), "{missing:?}");
    }

    #[test]
    fn no_call_is_named_twice() {
        let calls: std::collections::BTreeSet<_> = CALLS.iter().collect();
        assert_eq!(calls.len(), CALLS.len());
    }
}
