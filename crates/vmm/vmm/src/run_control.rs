//! The run control of vCPUs of KVM: crate `run-control` with [`ExitReason`] and with KVM's way of
//! leaving KVM_RUN.

#![allow(unsafe_code)]

use std::sync::{
    Arc,
    atomic::{AtomicU8, Ordering},
};

use ::run_control::KickTarget;

use crate::exit_reason::ExitReason;

pub(crate) type VcpuRunControl = ::run_control::VcpuRunControl<ExitReason>;
pub(crate) type Registration = ::run_control::Registration<ExitReason>;

/// The signal that interrupts KVM_RUN.
fn kick_signal() -> libc::c_int {
    vmm_sys_util::signal::SIGRTMIN()
}

extern "C" fn ignore(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

/// Registers the calling thread with `run_control` as the one that runs `vcpu`.
///
/// # Safety
/// `immediate_exit` must stay valid until the registration is dropped.
pub(crate) unsafe fn register(
    run_control: &Arc<VcpuRunControl>,
    vcpu: u8,
    immediate_exit: *const AtomicU8,
) -> Registration {
    // Without a handler the signal would end the process instead of interrupting a system call.
    vmm_sys_util::signal::register_signal_handler(kick_signal(), ignore)
        .expect("a real-time signal takes a handler");
    // SAFETY: asks for the calling thread's own handle.
    let thread = unsafe { libc::pthread_self() };
    run_control.register(vcpu, KvmThread { immediate_exit, thread })
}

/// A thread that runs a vCPU of KVM, while it is registered.
struct KvmThread {
    /// KVM's `immediate_exit`, a byte that KVM only reads.
    immediate_exit: *const AtomicU8,
    thread: libc::pthread_t,
}

// SAFETY: the pointer is only used for atomic stores, and only while the thread is registered:
// dropping `Registration` removes it before the memory that the pointer points into can go away.
unsafe impl Send for KvmThread {}

impl KickTarget for KvmThread {
    fn set_immediate_exit(&self, value: bool) {
        // SAFETY: see the impl of `Send`.
        unsafe { &*self.immediate_exit }.store(value.into(), Ordering::Relaxed);
    }

    fn interrupt(&self) {
        // SAFETY: the thread is alive: it drops its registration, which no other thread can have,
        // before it ends. The signal has a handler.
        unsafe { libc::pthread_kill(self.thread, kick_signal()) };
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn a_signal_interrupts_a_blocking_call() {
        let run_control = Arc::new(VcpuRunControl::new(1));
        let (read, write) = rustix::pipe::pipe().unwrap();
        let blocked = thread::spawn({
            let run_control = Arc::clone(&run_control);
            move || {
                let flag = AtomicU8::new(0);
                // SAFETY: `flag` lives as long as the registration.
                let _registration = unsafe { register(&run_control, 0, &raw const flag) };
                rustix::io::write(&write, b"!").unwrap();
                run_control.run_guest(0, || {
                    let mut poll = [];
                    // A kick that comes before poll shows in the flag, one during poll interrupts
                    // it.
                    while flag.load(Ordering::Relaxed) == 0 {
                        if rustix::event::poll(&mut poll, None) == Err(rustix::io::Errno::INTR) {
                            break;
                        }
                    }
                });
            }
        });
        rustix::io::read(&read, &mut [0; 1]).unwrap();
        while !blocked.is_finished() {
            run_control.kick(0);
            thread::yield_now();
        }
        blocked.join().unwrap();
    }
}
