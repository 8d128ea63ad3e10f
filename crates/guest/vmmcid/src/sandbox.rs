//! The sandbox: capabilities, Landlock and seccomp of supervisor and worker.
//!
//! The supervisor keeps the capabilities for switching the device on, for taking the system down and for starting the
//! worker. The worker keeps one, for the clock, and a user of its own ([`WORKER_ID`]); it opens no file, reaches no socket,
//! executes nothing, and makes only the system calls that it needs. Features that the kernel lacks are reported, not
//! required.
//!
//! Sockets need the filter: Landlock knows nothing of those with a path in the file system. The worker uses the supervisor's
//! socket, and accepts clients of the status socket. It can make no socket (`socket`, `socketpair`), connect none
//! (`connect`), and send to no address (`sendto` with one, `sendmsg`).

use std::collections::BTreeMap;

use landlock::{ABI, Access, AccessFs, AccessNet, Ruleset, RulesetAttr, RulesetError, RulesetStatus, Scope};
use libc::{
    SYS_accept4, SYS_brk, SYS_clock_adjtime, SYS_clock_gettime, SYS_clock_nanosleep, SYS_clock_settime,
    SYS_close, SYS_exit, SYS_exit_group, SYS_fcntl, SYS_futex, SYS_getpid, SYS_getrandom, SYS_gettid,
    SYS_madvise, SYS_mmap, SYS_mprotect, SYS_mremap, SYS_munmap, SYS_nanosleep, SYS_poll, SYS_ppoll,
    SYS_pread64, SYS_pwrite64, SYS_read, SYS_readlinkat, SYS_recvfrom, SYS_restart_syscall, SYS_rt_sigaction,
    SYS_rt_sigprocmask, SYS_rt_sigreturn, SYS_sched_yield, SYS_sendto, SYS_shutdown, SYS_sigaltstack,
    SYS_tgkill, SYS_write, SYS_writev,
};
use rustix::{
    process::{Gid, Uid},
    thread::{
        CapabilitySet, CapabilitySets, clear_ambient_capability_set, remove_capability_from_bounding_set,
        set_capabilities, set_keep_capabilities, set_no_new_privs, set_thread_groups, set_thread_res_gid,
        set_thread_res_uid,
    },
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};

/// The supervisor's capabilities. Those after the first three are for the worker, which inherits them while it starts.
const SUPERVISOR: CapabilitySet = CapabilitySet::SYS_ADMIN
    .union(CapabilitySet::SYS_BOOT)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::SYS_TIME)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SYS_NICE)
    .union(CapabilitySet::IPC_LOCK);

/// User and group of the worker. No account has this number: Debian reserves 65000 to 65533 (Policy, 9.2.2), and of those
/// systemd leaves 65520 to 65533 unused (its page "Users, Groups, UIDs and GIDs"). So the worker shares no file, socket or
/// signal with another program, and an installation makes no account.
pub const WORKER_ID: u32 = 65_521;

/// System calls of the worker, including those of its run-time library on a panic.
const CALLS: [i64; 35] = [
    SYS_accept4,
    SYS_brk,
    SYS_clock_gettime,
    SYS_clock_nanosleep,
    SYS_close,
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
    SYS_shutdown,
    SYS_sigaltstack,
    SYS_tgkill,
    SYS_write,
    SYS_writev,
];

/// System calls that the worker may make with 0 as an argument only, and which argument that is: the clock, where 0 is
/// CLOCK_REALTIME, and the address of a datagram, where 0 is none.
const CALLS_WITH_ZERO: [(i64, u8); 3] = [(SYS_clock_adjtime, 0), (SYS_clock_settime, 0), (SYS_sendto, 4)];

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
    if let Err(error) = change_user() {
        missing.push(format!("the worker keeps its user: {error}"));
    }
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

/// Changes user and group of this thread to the worker's. Capabilities are kept, to be dropped by [`keep`].
fn change_user() -> rustix::io::Result<()> {
    let (user, group) = (Uid::from_raw(WORKER_ID), Gid::from_raw(WORKER_ID));
    set_keep_capabilities(true)?;
    let changed = set_thread_groups(&[])
        .and_then(|()| set_thread_res_gid(group, group, group))
        .and_then(|()| set_thread_res_uid(user, user, user));
    set_keep_capabilities(false)?;
    changed
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
    let mut rules: BTreeMap<_, _> = CALLS.into_iter().map(|call| (call, Vec::new())).collect();
    for (call, argument) in CALLS_WITH_ZERO {
        let zero = SeccompCondition::new(argument, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, 0);
        let rule = zero.and_then(|zero| SeccompRule::new(vec![zero])).map_err(seccompiler::Error::Backend)?;
        rules.insert(call, vec![rule]);
    }
    let refused = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let filter = SeccompFilter::new(rules, refused, SeccompAction::Allow, TargetArch::x86_64)
        .map_err(seccompiler::Error::Backend)?;
    BpfProgram::try_from(filter).map_err(seccompiler::Error::Backend)
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        net::TcpListener,
        os::unix::{
            fs::PermissionsExt,
            net::{UnixDatagram, UnixListener, UnixStream},
        },
        process::Command,
        thread,
    };

    use super::*;
    use crate::clock::{Clock, System};

    /// Runs something locked in. A thread's user, capabilities, Landlock domain and filter are its own: other tests notice
    /// nothing.
    fn locked_in<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
        let thread = thread::spawn(|| {
            let missing = enter_worker();
            // Without root there is no user and no capability to drop.
            let expected = ["Landlock", "capabilities", "user"];
            let known = |what: &String| expected.iter().any(|word| what.contains(word));
            assert!(missing.iter().all(known), "{missing:?}");
            work()
        });
        thread.join().unwrap()
    }

    #[test]
    fn the_worker_keeps_one_capability_and_no_user_of_others() {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        let observer = thread::spawn(move || {
            let mut id = [0; 4];
            ours.recv(&mut id).unwrap();
            let status = format!("/proc/self/task/{}/status", i32::from_ne_bytes(id));
            let status = fs::read_to_string(status).unwrap();
            ours.send(b"x").unwrap();
            status
        });

        locked_in(move || {
            let thread = rustix::thread::gettid().as_raw_pid();
            theirs.send(&thread.to_ne_bytes()).unwrap();
            theirs.recv(&mut [0; 1]).unwrap();
        });

        let status = observer.join().unwrap();
        let field = |name| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim();
        assert_eq!((field("Seccomp:"), field("NoNewPrivs:")), ("2", "1"));
        let kept = u64::from_str_radix(field("CapPrm:"), 16).unwrap();
        assert_eq!(kept & !CapabilitySet::SYS_TIME.bits(), 0, "{kept:#x}");
        if rustix::process::geteuid().is_root() {
            let worker = WORKER_ID.to_string();
            assert!(field("Uid:").split_whitespace().all(|id| id == worker), "{}", field("Uid:"));
            assert!(field("Gid:").split_whitespace().all(|id| id == worker), "{}", field("Gid:"));
            assert_eq!((field("Groups:"), kept), ("", CapabilitySet::SYS_TIME.bits()));
        }
    }

    #[test]
    fn files_programs_and_ports_are_out_of_reach() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");

        let [read, written, run, bound] = locked_in(move || {
            [
                fs::read("/etc/passwd").is_ok(),
                fs::write(path, "x").is_ok(),
                Command::new("/bin/true").spawn().is_ok(),
                TcpListener::bind("127.0.0.1:0").is_ok(),
            ]
        });

        assert!(!read && !written && !run && !bound, "{read} {written} {run} {bound}");
    }

    #[test]
    fn a_socket_that_is_roots_alone_is_out_of_reach() {
        let dir = tempfile::tempdir().unwrap();
        let (stream, datagram) = (dir.path().join("stream"), dir.path().join("datagram"));
        let _listener = UnixListener::bind(&stream).unwrap();
        let _receiver = UnixDatagram::bind(&datagram).unwrap();
        for socket in [&stream, &datagram] {
            fs::set_permissions(socket, fs::Permissions::from_mode(0o600)).unwrap();
        }
        // Made before, so that only the address is left to refuse.
        let sender = UnixDatagram::unbound().unwrap();

        let [connected, made, connected_before, sent] = locked_in(move || {
            [
                UnixStream::connect(&stream).is_ok(),
                UnixDatagram::unbound().is_ok(),
                sender.connect(&datagram).is_ok(),
                sender.send_to(b"x", &datagram).is_ok(),
            ]
        });

        assert!(!connected && !made && !connected_before && !sent);
    }

    #[test]
    fn a_client_of_the_status_socket_is_answered() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("socket");
        let listener = UnixListener::bind(&socket).unwrap();
        let asking = thread::spawn(move || crate::status::ask(&socket));

        locked_in(move || crate::status::answer(&listener, crate::status::tests::status)).unwrap();

        assert_eq!(asking.join().unwrap().unwrap(), Some(crate::status::tests::status()));
    }

    #[test]
    fn the_supervisor_is_told() {
        let (ours, theirs) = UnixStream::pair().unwrap();

        locked_in(move || crate::ipc::report(&theirs, &crate::ipc::Report::Alive)).unwrap();

        let report = crate::ipc::Reports::new(ours).unwrap().take().unwrap();
        assert_eq!(report, Some(crate::ipc::Report::Alive));
    }

    #[test]
    fn the_clock_and_its_discipline_are_read() {
        let (now, state) = locked_in(|| (System.realtime(), System.ntp_state()));

        assert!(now > 0 && state.is_ok(), "{now} {state:?}");
    }

    #[test]
    fn no_call_is_named_twice() {
        let named = CALLS.iter().copied().chain(CALLS_WITH_ZERO.map(|(call, _)| call));
        let calls: std::collections::BTreeSet<_> = named.collect();

        assert_eq!(calls.len(), CALLS.len() + CALLS_WITH_ZERO.len());
    }
}
