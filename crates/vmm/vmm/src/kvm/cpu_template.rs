//! CPU templates: the CPUID of a vendor that the host is not from.
//!
//! A kernel's behaviour depends on the vendor, model and leaves in CPUID, and under vmm on which of
//! its two halves (SVM or VMX) answers MSRs. A template changes these. The host's processor still
//! executes the guest.

use std::num::NonZeroU64;

use devices::cpuid::Leaf;

use crate::{config::Vendor, kvm::msr::Extensions};

/// Family 6, model 0x5e, stepping 3: Skylake. Its leaf 0x15 has the ratio of TSC and crystal but
/// not the crystal's rate. OpenBSD takes 24 MHz (tsc.c, `tsc_freq_cpuid`) and does not pass that on
/// to guests.
const SKYLAKE: u32 = 0x0005_06e3;
const SKYLAKE_LEVEL: u32 = 0x16;
const SKYLAKE_EXTENDED_LEVEL: u32 = 0x8000_0008;
const SKYLAKE_CRYSTAL_HZ: u64 = 24_000_000;
/// Family 0x17, model 1, stepping 2: the EPYC on which the golden files were recorded.
const EPYC: u32 = 0x0080_0f12;
const EPYC_LEVEL: u32 = 0xd;

/// LAHF, LZCNT, PREFETCHW: ECX of leaf 0x80000001 that Intel has.
const INTEL_ECX8_1: u32 = 1 << 0 | 1 << 5 | 1 << 8;
/// SYSCALL, NX, 1 GiB pages, RDTSCP, long mode: EDX of leaf 0x80000001 that Intel has.
const INTEL_EDX8_1: u32 = 1 << 11 | 1 << 20 | 1 << 26 | 1 << 27 | 1 << 29;

impl Vendor {
    /// The virtualisation extensions of this vendor, and with them the half of vmm that runs on it.
    pub(crate) const fn extensions(self) -> Extensions {
        match self {
            Self::Amd => Extensions::Svm,
            Self::Intel => Extensions::Vmx,
        }
    }

    const fn name(self) -> [u8; 12] {
        match self {
            Self::Amd => *b"AuthenticAMD",
            Self::Intel => *b"GenuineIntel",
        }
    }

    /// CPUID leaf of this vendor's processor where the host's is `host`.
    pub(crate) fn template(self, leaf: u32, subleaf: u32, host: Leaf, tsc_hz: Option<NonZeroU64>) -> Leaf {
        let level = match self {
            Self::Amd => EPYC_LEVEL,
            Self::Intel => SKYLAKE_LEVEL,
        };
        match (self, leaf) {
            (_, 0) => {
                let [b0, b1, b2, b3, d0, d1, d2, d3, c0, c1, c2, c3] = self.name();
                Leaf {
                    eax: level,
                    ebx: u32::from_le_bytes([b0, b1, b2, b3]),
                    ecx: u32::from_le_bytes([c0, c1, c2, c3]),
                    edx: u32::from_le_bytes([d0, d1, d2, d3]),
                }
            }
            (Self::Amd, 1) => Leaf { eax: EPYC, ..host },
            (Self::Intel, 1) => Leaf { eax: SKYLAKE, ..host },
            // Only refers to leaf 4 for caches.
            (Self::Intel, 2) => Leaf { eax: 0x00ff_0001, ..Leaf::ZERO },
            (Self::Intel, 4) => cache(subleaf),
            (Self::Intel, 0x15) => {
                let ratio =
                    tsc_hz.map_or(0, |hz| (2 * hz.get() + SKYLAKE_CRYSTAL_HZ / 2) / SKYLAKE_CRYSTAL_HZ);
                Leaf { eax: 2, ebx: ratio as u32, ..Leaf::ZERO }
            }
            (Self::Intel, 0x16) => {
                let mhz = tsc_hz.map_or(0, |hz| (hz.get() + 500_000) / 1_000_000) as u32;
                Leaf { eax: mhz, ebx: mhz, ecx: 100, edx: 0 }
            }
            (Self::Intel, 0x8000_0000) => Leaf { eax: SKYLAKE_EXTENDED_LEVEL, ..Leaf::ZERO },
            (Self::Intel, 0x8000_0001) => {
                Leaf { eax: 0, ebx: 0, ecx: host.ecx & INTEL_ECX8_1, edx: host.edx & INTEL_EDX8_1 }
            }
            (Self::Intel, 0x8000_0005) => Leaf::ZERO,
            (Self::Intel, 0x8000_0008) => Leaf { ebx: 0, ecx: 0, edx: 0, ..host },
            _ => host,
        }
    }
}

/// Leaf 4 of Skylake: caches of 32 KiB (data), 32 KiB (instructions), 256 KiB and 8 MiB.
fn cache(subleaf: u32) -> Leaf {
    const SELF_INITIALIZING: u32 = 1 << 8;
    const LINE: u32 = 64;
    // Cache type and level, ways, sets.
    let (kind, ways, sets) = match subleaf {
        0 => (0x21, 8, 64),
        1 => (0x22, 8, 64),
        2 => (0x43, 4, 1024),
        3 => (0x63, 16, 8192),
        _ => return Leaf::ZERO,
    };
    Leaf { eax: kind | SELF_INITIALIZING, ebx: (ways - 1) << 22 | (LINE - 1), ecx: sets - 1, edx: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Leaf = Leaf { eax: u32::MAX, ebx: u32::MAX, ecx: u32::MAX, edx: u32::MAX };

    fn intel(leaf: u32, subleaf: u32) -> Leaf {
        Vendor::Intel.template(leaf, subleaf, ALL, NonZeroU64::new(2_592_000_100))
    }

    #[test]
    fn templates_have_the_vendors_name() {
        let amd = Vendor::Amd.template(0, 0, ALL, None);
        assert_eq!((amd.ebx, amd.edx, amd.ecx), (0x6874_7541, 0x6974_6e65, 0x444d_4163));
        let intel = intel(0, 0);
        assert_eq!((intel.ebx, intel.edx, intel.ecx), (0x756e_6547, 0x4965_6e69, 0x6c65_746e));
        assert_eq!((amd.eax, intel.eax), (0xd, 0x16));
    }

    #[test]
    fn a_skylake_has_the_ratio_of_its_tsc_but_not_its_rate() {
        assert_eq!(intel(0x15, 0), Leaf { eax: 2, ebx: 216, ecx: 0, edx: 0 });
        assert_eq!(intel(0x16, 0).eax, 2592);
    }

    #[test]
    fn a_skylake_has_four_caches_and_none_of_amds_leaves() {
        let size = |n| {
            let cache = intel(4, n);
            ((cache.ebx >> 22) + 1) * 64 * (cache.ecx + 1)
        };
        assert_eq!([0, 1, 2, 3].map(size), [32 << 10, 32 << 10, 256 << 10, 8 << 20]);
        assert_eq!(intel(4, 4), Leaf::ZERO);
        assert_eq!(intel(0x8000_0000, 0).eax, 0x8000_0008);
        assert_eq!(intel(0x8000_0001, 0).ecx, 0x121);
    }
}
