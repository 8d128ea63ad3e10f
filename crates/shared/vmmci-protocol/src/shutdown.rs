// SPDX-License-Identifier: GPL-2.0-only OR ISC

//! How a guest shuts down.

use super::Command;

/// How a guest shuts down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ShutdownKind {
    /// Power off.
    PowerOff,
    /// Reboot. Whether the VM comes back is the host's decision.
    Reboot,
}

impl ShutdownKind {
    /// The command with which the host asks for it.
    pub const fn command(self) -> Command {
        match self {
            Self::PowerOff => Command::Shutdown,
            Self::Reboot => Command::Reboot,
        }
    }
}

impl Command {
    /// The kind of shutdown that the command asks for; `None` for other commands.
    pub const fn shutdown_kind(self) -> Option<ShutdownKind> {
        match self {
            Self::Shutdown => Some(ShutdownKind::PowerOff),
            Self::Reboot => Some(ShutdownKind::Reboot),
            Self::None | Self::SyncRtc => None,
        }
    }
}
