//! What a guest sees of the kernel's driver of the control device.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// The functions that the driver has.
pub const DRIVER: &str = "/sys/bus/pci/drivers/vmmci";

/// The function with the kernel's driver, whose directory is there once it is bound.
pub fn driven() -> io::Result<PathBuf> {
    for entry in fs::read_dir(DRIVER)? {
        let function = entry?.path();
        if function.join("vmmci").is_dir() {
            return Ok(function);
        }
    }
    Err(io::Error::new(io::ErrorKind::NotFound, "no function that vmmci drives"))
}

/// A number that the driver shows.
pub fn shown(function: &Path, name: &str) -> io::Result<i64> {
    let text = fs::read_to_string(function.join("vmmci").join(name))?;
    text.trim().parse().map_err(io::Error::other)
}
