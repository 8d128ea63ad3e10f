//! The control protocol of a running VM: what vmctl(8) is to vmd(8).
//!
//! Each running VM has a Unix socket in the user's runtime directory ([`runtime_dir`]). On it, client and server exchange
//! lines of JSON ([`message`]): numbered requests, and answers with the number of their request. After the answer to
//! `console`, the connection carries the console's bytes and nothing else.
//!
//! Where the host has no KVM, the VM runs in a helper VM, and the same messages pass between the two ([`remote`]).

mod client;
pub mod console;
mod error;
pub mod escape;
mod json_lines;
pub mod message;
pub mod remote;
pub mod runtime_dir;
mod server;

pub use client::Client;
pub use error::{Error, Result};
pub use message::{Answer, Command, ExitReport, VmState, VmStatus};
pub use server::Server;

/// A VM that can be controlled.
pub trait Vm: Send + Sync {
    /// Carries out a command. An error is text for the user who sent the command.
    ///
    /// [`Command::Wait`] blocks until the VM has ended. Several threads may call this at the same time.
    /// [`Command::Console`] is never passed: the server handles it.
    fn call(&self, command: Command) -> std::result::Result<Answer, String>;
}
