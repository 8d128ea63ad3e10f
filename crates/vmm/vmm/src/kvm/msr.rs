//! MSRs of a guest of vmm(4).
//!
//! The guest accesses directly the MSRs that vmm passes through and KVM switches. All other RDMSRs
//! and WRMSRs exit and are answered here. vmm answers an unknown RDMSR with #GP and drops an
//! unknown WRMSR (vmm_machdep.c, `svm_handle_msr`, `vmx_handle_rdmsr`, `vmx_handle_wrmsr`;
//! `golden/msr`).

use std::{fs::File, os::unix::fs::FileExt};

use kvm_ioctls::{MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VmFd};

use devices::pvclock::{MSR_SYSTEM_TIME as SYSTEM_TIME, MSR_WALL_CLOCK as WALL_CLOCK};
use vmd_release::Capabilities;

use crate::error::Error;

const TSC: u32 = 0x10;
const PLATFORM_ID: u32 = 0x17;
const FEATURE_CONTROL: u32 = 0x3a;
const MICROCODE: u32 = 0x8b;
const SMM_MONITOR_CONTROL: u32 = 0x9b;
const SYSENTER_CS: u32 = 0x174;
const MISC_ENABLE: u32 = 0x1a0;
const PAT: u32 = 0x277;
const EFER: u32 = 0xc000_0080;
const STAR: u32 = 0xc000_0081;
const FS_BASE: u32 = 0xc000_0100;
const SYSCFG: u32 = 0xc001_0010;
const HWCR: u32 = 0xc001_0015;
const INTERRUPT_PENDING: u32 = 0xc001_0055;
const PSTATE_0: u32 = 0xc001_0064;
const SEV_STATUS: u32 = 0xc001_0131;
const DE_CFG: u32 = 0xc001_1029;

/// EFER: SVM enable. Always set for guests on AMD, and visible to them (`golden/msr`: EFER reads
/// 0x1d01).
pub(crate) const EFER_SVME: u64 = 1 << 12;
/// DE_CFG: LFENCE is serialising. The only bit of the register that a guest sees.
const DE_CFG_LFENCE: u64 = 1 << 1;
/// The PAT that OpenBSD programs and that guests start with: WB, WC, UC-, UC, twice.
const OPENBSD_PAT: u64 = 0x0007_0106_0007_0106;

/// MISC_ENABLE as vmm shows it: hides thermal control circuit, performance monitoring, SpeedStep,
/// MONITOR and xTPR, adds "BTS unavailable" and "PEBS unavailable".
const fn guest_misc_enable(host: u64) -> u64 {
    const HIDDEN: u64 = 1 << 3 | 1 << 7 | 1 << 16 | 1 << 18 | 1 << 23;
    const ADDED: u64 = 1 << 11 | 1 << 12;
    host & !HIDDEN | ADDED
}

/// The bits of MISC_ENABLE that a guest cannot set: thermal control circuit, SpeedStep, xTPR.
const MISC_ENABLE_UNWRITABLE: u64 = 1 << 3 | 1 << 16 | 1 << 23;

/// The host's virtualisation extensions. vmm's two halves treat MSRs differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extensions {
    /// AMD's SVM.
    Svm,
    /// Intel's VMX.
    Vmx,
}

impl Extensions {
    /// By the vendor string of CPUID leaf 0 (EBX, EDX, ECX): Intel, Zhaoxin and Centaur have VMX,
    /// all others SVM.
    pub(crate) fn of_vendor(vendor: &[u8; 12]) -> Self {
        match vendor {
            b"GenuineIntel" | b"  Shanghai  " | b"CentaurHauls" => Self::Vmx,
            _ => Self::Svm,
        }
    }
}

/// Result of an RDMSR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Read {
    /// The value.
    Value(u64),
    /// The guest's EFER with SVME set.
    Efer,
    /// #GP.
    GeneralProtection,
}

/// Result of a WRMSR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Write {
    /// Accepted; the caller has nothing to do.
    Done,
    /// The caller sets EFER to this value, which lacks SVME.
    Efer(u64),
    /// The caller registers the pvclock page.
    SystemTime(u64),
    /// The caller writes the pvclock wall clock.
    WallClock(u64),
    /// #GP.
    GeneralProtection,
}

/// The MSRs of a vCPU that are emulated here.
#[derive(Debug)]
pub(crate) struct Msrs {
    extensions: Extensions,
    syscfg_reads_zero: bool,
    pat: u64,
    misc_enable: u64,
    host: HostMsrs,
}

impl Msrs {
    /// The MSRs at power-on of a vmm with `capabilities` on a host with `extensions`.
    pub(crate) fn new(capabilities: &Capabilities, extensions: Extensions, host: HostMsrs) -> Self {
        Self {
            extensions,
            syscfg_reads_zero: capabilities.syscfg_reads_zero,
            pat: OPENBSD_PAT,
            misc_enable: guest_misc_enable(host.read(MISC_ENABLE).unwrap_or(0)),
            host,
        }
    }

    /// RDMSR of `index`.
    pub(crate) fn read(&self, index: u32) -> Read {
        let svm = self.extensions == Extensions::Svm;
        match index {
            PLATFORM_ID | MICROCODE => Read::Value(0),
            PAT => Read::Value(self.pat),
            EFER if svm => Read::Efer,
            INTERRUPT_PENDING if svm => Read::Value(0),
            SYSCFG if svm && self.syscfg_reads_zero => Read::Value(0),
            DE_CFG if svm => Read::Value(DE_CFG_LFENCE),
            MISC_ENABLE if !svm => Read::Value(self.misc_enable),
            // vmm reads these from the processor.
            FEATURE_CONTROL => self.host.read(index).map_or(Read::GeneralProtection, Read::Value),
            HWCR | PSTATE_0 | SEV_STATUS if svm => {
                self.host.read(index).map_or(Read::GeneralProtection, Read::Value)
            }
            _ => Read::GeneralProtection,
        }
    }

    /// WRMSR of `value` to `index`.
    pub(crate) fn write(&mut self, index: u32, value: u64) -> Write {
        let svm = self.extensions == Extensions::Svm;
        match index {
            PAT if !pat_is_valid(value) => return Write::GeneralProtection,
            PAT => self.pat = value,
            EFER if svm => return Write::Efer(value & !EFER_SVME),
            MISC_ENABLE if !svm => self.misc_enable = value & !MISC_ENABLE_UNWRITABLE,
            SMM_MONITOR_CONTROL if !svm => return Write::GeneralProtection,
            SYSTEM_TIME => return Write::SystemTime(value),
            WALL_CLOCK => return Write::WallClock(value),
            _ => {}
        }
        Write::Done
    }
}

/// Whether each of the PAT's eight memory types exists (`vmm_pat_is_valid`).
fn pat_is_valid(pat: u64) -> bool {
    pat.to_le_bytes().iter().all(|kind| matches!(kind, 0 | 1 | 4..=7))
}

/// The host's MSRs, for those that vmm reads from the processor.
#[derive(Debug)]
pub(crate) struct HostMsrs(Option<File>);

impl HostMsrs {
    /// Opens `/dev/cpu/0/msr` (module msr, root). Where that fails the MSRs read as 0, as on the
    /// emulated EPYC of the golden files.
    pub(crate) fn open() -> Self {
        Self(File::open("/dev/cpu/0/msr").ok())
    }

    /// Value of MSR `index`; `None` if the processor does not have it.
    fn read(&self, index: u32) -> Option<u64> {
        let Some(file) = &self.0 else { return Some(0) };
        let mut value = [0; 8];
        file.read_exact_at(&mut value, u64::from(index)).ok().map(|()| u64::from_le_bytes(value))
    }
}

/// Consecutive MSRs that the guest accesses without an exit to user space.
struct Direct {
    base: u32,
    count: u32,
    flags: MsrFilterRangeFlags,
}

/// The MSRs that vmm passes through (`vcpu_reset_regs_svm`, `vcpu_reset_regs_vmx`) and KVM can
/// switch: system call registers, segment bases, the TSC for reading, and on Intel EFER.
fn direct(extensions: Extensions) -> Vec<Direct> {
    let read_write = MsrFilterRangeFlags::READ | MsrFilterRangeFlags::WRITE;
    let mut direct = vec![
        Direct { base: TSC, count: 1, flags: MsrFilterRangeFlags::READ },
        Direct { base: SYSENTER_CS, count: 3, flags: read_write },
        Direct { base: STAR, count: 4, flags: read_write },
        Direct { base: FS_BASE, count: 3, flags: read_write },
    ];
    if extensions == Extensions::Vmx {
        direct.push(Direct { base: EFER, count: 1, flags: read_write });
    }
    direct
}

/// Has every access except to the direct MSRs exit to user space.
pub(crate) fn set_filter(vm: &VmFd, extensions: Extensions) -> Result<(), Error> {
    // KVM copies the bitmap in units of 8 bytes.
    let bitmap = [0xff; 8];
    let direct = direct(extensions);
    let ranges: Vec<_> = direct
        .iter()
        .map(|d| MsrFilterRange { flags: d.flags, base: d.base, msr_count: d.count, bitmap: &bitmap })
        .collect();
    vm.set_msr_filter(MsrFilterDefaultAction::DENY, &ranges)
        .map_err(Error::kvm("filter MSRs (KVM_X86_SET_MSR_FILTER)"))
}

#[cfg(test)]
mod tests {
    use vmd_release::Generation;

    use super::*;

    fn msrs(generation: Generation, extensions: Extensions) -> Msrs {
        Msrs::new(&generation.capabilities(), extensions, HostMsrs(None))
    }

    fn amd() -> Msrs {
        msrs(Generation::V7_8, Extensions::Svm)
    }

    fn intel() -> Msrs {
        msrs(Generation::V7_8, Extensions::Vmx)
    }

    #[test]
    fn syscfg_reads_0_on_amd_from_7_9_on() {
        for (extensions, expected) in [
            (
                Extensions::Svm,
                [Read::GeneralProtection, Read::GeneralProtection, Read::Value(0), Read::Value(0)],
            ),
            (Extensions::Vmx, [Read::GeneralProtection; 4]),
        ] {
            let read = Generation::ALL.map(|generation| msrs(generation, extensions).read(SYSCFG));
            assert_eq!(read, expected, "{extensions:?}");
        }
    }

    #[test]
    fn an_amd_guest_reads_what_was_recorded() {
        // golden/msr/k73.msr.txt; the system call registers and bases never come here.
        let msrs = amd();
        for (index, value) in [
            (0x17, 0),
            (0x3a, 0),
            (0x8b, 0),
            (0xc001_0015, 0),
            (0xc001_0055, 0),
            (0xc001_0064, 0),
            (0xc001_1029, 2),
        ] {
            assert_eq!(msrs.read(index), Read::Value(value), "{index:#x}");
        }
        for index in [
            0x1b,
            0x3b,
            0x48,
            0x49,
            0xce,
            0xe7,
            0xe8,
            0xfe,
            0x10a,
            0x140,
            0x179,
            0x17a,
            0x198,
            0x1a0,
            0x1d9,
            0x200,
            0x2ff,
            0x400,
            0x6e0,
            0x802,
            0xc000_0103,
            0xc001_0010,
            0xc001_001a,
            0xc001_001f,
            0xc001_0058,
            0xc001_0114,
            0xc001_0117,
            0xc001_0140,
            0xc001_011f,
            0xc001_1020,
            0xc001_1022,
            0x11,
            0x12,
            0x4b56_4d00,
            0x4b56_4d01,
            0x4b56_4d02,
            0x4000_0000,
            0x1234_5678,
        ] {
            assert_eq!(msrs.read(index), Read::GeneralProtection, "{index:#x}");
        }
    }

    #[test]
    fn unknown_writes_are_dropped() {
        let mut msrs = amd();
        for index in [0x3b, 0x4b56_4d02, 0x4b56_4d03, 0x1234_5678, 0x1a0, 0xc001_0015, 0x200] {
            assert_eq!(msrs.write(index, 0), Write::Done, "{index:#x}");
        }
    }

    #[test]
    fn the_pat_is_a_shadow_that_refuses_types_that_do_not_exist() {
        let mut msrs = amd();
        assert_eq!(msrs.read(PAT), Read::Value(OPENBSD_PAT));
        let linux = 0x0407_0506_0007_0106;
        assert_eq!(msrs.write(PAT, linux), Write::Done);
        assert_eq!(msrs.read(PAT), Read::Value(linux));
        for kind in [2, 3, 8, 0xff] {
            assert_eq!(msrs.write(PAT, kind << 40), Write::GeneralProtection);
        }
        assert_eq!(msrs.read(PAT), Read::Value(linux));
    }

    #[test]
    fn efer_keeps_svme_out_of_kvm_on_amd_and_is_direct_on_intel() {
        assert_eq!(amd().read(EFER), Read::Efer);
        assert_eq!(amd().write(EFER, 0x1d01), Write::Efer(0xd01));
        assert!(direct(Extensions::Vmx).iter().any(|d| d.base == EFER));
        assert!(!direct(Extensions::Svm).iter().any(|d| d.base == EFER));
    }

    #[test]
    fn intels_misc_enable_loses_what_vmm_hides() {
        let mut msrs = intel();
        assert_eq!(msrs.read(MISC_ENABLE), Read::Value(0x1800));
        msrs.write(MISC_ENABLE, u64::MAX);
        assert_eq!(msrs.read(MISC_ENABLE), Read::Value(!MISC_ENABLE_UNWRITABLE));
        assert_eq!(msrs.write(SMM_MONITOR_CONTROL, 1), Write::GeneralProtection);
    }

    #[test]
    fn the_pvclock_is_reached_by_its_msrs() {
        assert_eq!(intel().write(SYSTEM_TIME, 0x1001), Write::SystemTime(0x1001));
        assert_eq!(amd().write(WALL_CLOCK, 0x2000), Write::WallClock(0x2000));
    }

    #[test]
    fn vendors_have_their_extensions() {
        assert_eq!(Extensions::of_vendor(b"GenuineIntel"), Extensions::Vmx);
        assert_eq!(Extensions::of_vendor(b"AuthenticAMD"), Extensions::Svm);
        assert_eq!(Extensions::of_vendor(b"HygonGenuine"), Extensions::Svm);
    }
}
