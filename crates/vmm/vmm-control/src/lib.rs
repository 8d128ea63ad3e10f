//! Control of a running machine: what vmctl(8) is to vmd(8).
//!
//! Each running machine has a Unix socket in the user's runtime directory ([`place`]). On it, client and server exchange
//! lines of JSON ([`message`]): requests that carry a number, and answers that carry the same. After an answer to
//! `console`, the connection carries the console's bytes and nothing else.
//!
//! The same messages go through the wire to a helper VM, where the machine is when the host has no KVM ([`remote`]).

mod client;
pub mod console;
mod error;
pub mod escape;
pub mod message;
pub mod place;
pub mod remote;
mod server;
mod wire;

pub use client::Client;
pub use error::{Error, Result};
pub use message::{Answer, Command, Ending, State, Status};
pub use server::Server;

/// A machine that obeys commands.
pub trait Vm: Send + Sync {
    /// Carries out a command; an error is text for the person who gave it.
    ///
    /// [`Command::Wait`] blocks until the machine has ended, and may be called by several threads at once with others;
    /// [`Command::Console`] never comes here.
    fn call(&self, command: Command) -> std::result::Result<Answer, String>;
}
