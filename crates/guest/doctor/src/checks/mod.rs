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

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::{Measured, Rate, examine, fixture};

    /// A guest with everything wrong for which a stock kernel is told to be replaced.
    #[rstest]
    #[case("6.12.118-vmmlinux", Some(DRIVER_KERNEL))]
    #[case("7.3.4-vmmlinux", None)]
    fn the_kernel_that_runs_is_never_the_remedy(#[case] release: &str, #[case] driver: Option<&str>) {
        let mut recorded = fixture::recorded();
        recorded.write("proc/config.gz", "CONFIG_OPENBSD_GUEST=y\n");
        recorded.write("proc/sys/kernel/osrelease", release);
        recorded
            .write("sys/devices/system/clocksource/clocksource0/current_clocksource", "refined-jiffies\n");
        recorded.write(
            "dev/kmsg",
            "6,1,100,-;tsc: Marking TSC unstable due to a test\n\
             6,2,200,-;tsc: Unable to calibrate against PIT\n",
        );
        let mut guest = recorded.guest();
        let rate = Some(Rate { ppm: -500_000.0, error: 1.0, seconds: 10.0 });
        guest.measured = Some(Measured { rate, sleeps: Vec::new(), interrupts: None });

        let report = examine(&guest);

        let remedies: Vec<_> = report.findings.iter().filter_map(|found| found.remedy.as_deref()).collect();
        assert!(remedies.len() > 4, "{remedies:#?}");
        let kernels: Vec<_> = remedies
            .iter()
            .flat_map(|remedy| remedy.lines())
            .filter(|line| line.contains("linux-image"))
            .collect();
        let wanted: Vec<_> = driver.map(|driver| format!("or {driver}")).into_iter().collect();
        assert_eq!(kernels, wanted.iter().collect::<Vec<_>>());
    }
}
