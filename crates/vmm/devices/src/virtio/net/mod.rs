//! Network interfaces: vmd's vionet.

mod backend;
mod checksum;
mod dhcp;
mod frame;
mod gateway;
mod local;
mod mac;
mod nic;
mod output_queue;

pub use self::{
    backend::{FrameBackend, StreamBackend, TapBackend, Unplugged},
    gateway::Gateway,
    local::{AddressError, LocalLink, LocalPrefix},
    mac::{MacAddr, ParseMacError},
    nic::{Net, NetOptions},
};
