//! Limits of an Ethernet frame.

/// Length of an Ethernet header in bytes, and the shortest frame that vmd sends or receives.
pub(super) const ETHERNET_HEADER: usize = 14;
/// The longest frame in bytes: the limit of OpenBSD's tap(4) (`TUNMRU`).
pub(super) const MAX_FRAME: usize = 16384;
