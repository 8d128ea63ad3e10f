//! A helper VM ("L1") with KVM of its own, for hosts whose `/dev/kvm` is missing or unusable.
//!
//! [`Launch`] starts QEMU with an emulated AMD CPU that has SVM, Debian's cloud kernel, and an initramfs in which the
//! running program itself is `/init`. There, [`init::is_init`] returns true, and [`init::run`] loads KVM and runs the
//! job. Console and control are two virtio-serial ports that carry unmodified bytes.
//!
//! This crate does not depend on the job's contents: a job is a JSON value.

mod archive;
mod elf;
mod error;
pub mod init;
mod kernel;
mod launch;
mod qemu;

use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use archive::Archive;
pub use elf::static_program;
pub use error::{Error, Result};
pub use kernel::Kernel;
pub use launch::{L1, Launch, kill};
pub use qemu::Net;

/// The directory of the helper VM's virtio-serial ports, by name.
const PORTS: &str = "/dev/virtio-ports";

/// The parameter on the helper VM's kernel command line for the number of ports.
const PORTS_ARGUMENT: &str = "vmmlinux.ports=";

/// The helper VM's first message, when it is up.
const GREETING: &[u8; 14] = b"vmmlinux-l1 1\n";

/// The host's reply: JSON, after its length in four bytes (big endian).
#[derive(Debug, Serialize, Deserialize)]
struct Start {
    /// The host's time since 1970.
    now: Duration,
    job: serde_json::Value,
}
