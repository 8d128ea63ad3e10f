//! A helper VM ("L1") with KVM of its own, for hosts whose `/dev/kvm` is missing or unusable.
//!
//! [`Launch`] starts QEMU with an emulated AMD CPU that has SVM, Debian's cloud kernel, and an initramfs in which the
//! running program itself is `/init`. There, [`init::is_init`] tells the program where it is, and [`init::run`] loads
//! KVM and hands it its job. Console and control are two wires that are passed through as they are.
//!
//! Nothing here knows what the job is.

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
pub use launch::{L1, Launch};
pub use qemu::{Format, Net};

/// Where the helper VM's wires are, by name.
const PORTS: &str = "/dev/virtio-ports";

/// The argument on the helper VM's kernel command line that tells how many wires there are.
const PORTS_ARGUMENT: &str = "vmmlinux.ports=";

/// What the helper VM says when it is up.
const GREETING: &[u8; 14] = b"vmmlinux-l1 1\n";

/// What it hears then, as JSON with its length in four bytes (big endian) before it.
#[derive(Debug, Serialize, Deserialize)]
struct Start {
    /// The host's time since 1970.
    now: Duration,
    job: serde_json::Value,
}
