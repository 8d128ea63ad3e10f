//! Tap interfaces of the host.

#![allow(unsafe_code)]

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
};

use vmm_sys_util::ioctl::ioctl_with_ref;

vmm_sys_util::ioctl_iow_nr!(TUNSETIFF, 0x54, 202, libc::c_int);

/// Opens the tap interface `name`, non-blocking, without packet information and virtio headers.
/// Creates it if this process has the right to.
pub(crate) fn open(name: &str) -> io::Result<File> {
    let file =
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
    let invalid = || io::Error::new(io::ErrorKind::InvalidInput, "not a valid interface name");
    if name.is_empty() || name.len() >= libc::IFNAMSIZ || name.contains(['\0', '/']) {
        return Err(invalid());
    }
    // SAFETY: all zeroes is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags =
        libc::c_short::try_from(libc::IFF_TAP | libc::IFF_NO_PI).map_err(|_| invalid())?;
    // SAFETY: the descriptor is the tun device's and the argument the structure that the ioctl
    // reads.
    if unsafe { ioctl_with_ref(&file, TUNSETIFF(), &request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    #[test]
    fn invalid_interface_names_are_refused() {
        for name in ["", "a/b", "an-interface-name-that-is-too-long", "a\0"] {
            assert!(super::open(name).is_err(), "{name:?}");
        }
    }
}
