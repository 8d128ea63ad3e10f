//! The topics: each looks at a [`Guest`](crate::Guest) and says what it found.

pub mod clock;
pub mod configuration;
pub mod console;
pub mod control;
pub mod history;
pub mod host;
pub mod reboot;
pub mod tick;
pub mod virtio;

/// What helps against most of what stock kernels do badly.
const OUR_KERNEL: &str = "install a kernel of vmmlinux's: apt install ./linux-image-*-vmmlinux_*_amd64.deb";
/// The same for the driver of the control device, which older series of ours lack.
const DRIVER_KERNEL: &str = "install vmmlinux's kernel of series 7.3, which has the driver: apt install ./linux-image-7.3*-vmmlinux_*_amd64.deb";

/// The kernel to install for its driver of the control device; `None` if the running one is of that series.
fn driver_kernel(guest: &crate::Guest) -> Option<&'static str> {
    match (guest.kernel.ours, guest.kernel.series()) {
        (false, _) => Some(OUR_KERNEL),
        (true, Some(series)) if series < (7, 3) => Some(DRIVER_KERNEL),
        (true, _) => None,
    }
}

/// How a word gets onto the kernel's command line for good, on the boot loader that this guest has.
fn add_to_command_line(system: &crate::System, words: &str) -> String {
    if system.exists("etc/default/grub") {
        format!(
            "add {words} to GRUB_CMDLINE_LINUX in /etc/default/grub, run update-grub (or grub-mkconfig -o /boot/grub/grub.cfg), reboot"
        )
    } else if let Some(file) = [
        "etc/default/u-boot",
        "etc/update-extlinux.conf",
        "boot/extlinux/extlinux.conf",
        "boot/syslinux.cfg",
        "extlinux.conf",
        "boot/extlinux.conf",
    ]
    .into_iter()
    .find(|file| system.exists(file))
    {
        format!("add {words} to the kernel's command line in /{file}, reboot")
    } else {
        format!("add {words} to the kernel's command line in the boot loader's configuration, reboot")
    }
}
