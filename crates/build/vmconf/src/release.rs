//! Differences between generations of vmd that matter when configuring a Linux guest.

use vmd_release::Generation;

/// The newest generation whose vm.conf(5) was read in vmd's sources; later ones are judged by it.
pub const NEWEST_GRAMMAR: Generation = Generation::V7_8;

/// What to know of one generation, each a sentence or two. Those of 7.9 and 8.0 are known from sources of the devices
/// and announcements; their vm.conf(5) and vmctl(8) were not at hand.
pub fn notes(generation: Generation) -> &'static [&'static str] {
    match generation {
        Generation::V7_7 => &[
            "The guest's devices are virtio 0.9: its kernel needs VIRTIO_PCI_LEGACY.",
            "Nothing tells a stock kernel the rate of the TSC: on AMD its clock runs at a fraction of the right speed. \
             A kernel of vmmlinux recognises vmm and is right.",
            "Linux restarts with `reboot=t` on its command line, or with a kernel of vmmlinux.",
            "`vmctl stop` lets a guest that answers 120 s to go down, before 7.7 30 s. One that does not answer is \
             killed at once if it has no driver, else after 3 s.",
            "`sev` is known from 7.6 on. A VM can have 128 GiB of memory from 7.5 on, 32 GiB before. `vmctl send` and \
             `vmctl receive` exist up to here.",
        ],
        Generation::V7_8 => &[
            "The guest's devices are virtio 1.x behind I/O ports: its kernel needs VIRTIO_PCI, and no \
             VIRTIO_PCI_LEGACY. A guest that ran on 7.7 finds other PCI devices.",
            "Stock kernels find KVM's clock. On a host whose TSC is not invariant Linux 6.12 panics of it; `no-kvmclock` \
             lets it boot.",
            "A stock Linux 7.3 takes 47 s to restart, with `reboot=t` 4.",
            "A stop that a guest has answered and not followed after 120 s ends in a crash of the VM's process.",
            "`seves` is new. `vmctl send` and `vmctl receive` are gone.",
        ],
        Generation::V7_9 => &[
            "KVM's clock is offered only where the host knows the rate of its TSC.",
            "Linux restarts without further ado.",
            "A stop that a guest has answered and not followed no longer crashes the VM's process.",
            "The announcement names no change of vm.conf(5) or vmctl(8), and neither was at hand: what is written here is \
             what 7.8 takes, and `vmd -n` tells whether 7.9 does.",
        ],
        Generation::V8_0 => &[
            "VMs have ACPI, APICs and MSI-X: kernels without them (`vmmlinux build --host 7.7,7.8,7.9`) are for older \
             hosts.",
            "A power-off ends the VM at once.",
            "An access to memory where there is none reads ones; up to 7.9 it kills the VM.",
            "vmm takes up to 64 processors for a VM. By which word of vm.conf(5) and which option of vmctl(8), if any, is \
             not known here: the announcement names none. Without it a VM has one.",
            "Neither vm.conf(5) nor vmctl(8) was at hand: what is written here is what 7.8 takes, and `vmd -n` tells \
             whether 8.0 does.",
        ],
    }
}
