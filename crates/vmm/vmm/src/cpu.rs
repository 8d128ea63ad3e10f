//! The host's processor, and what of it the guest sees.

use std::{
    arch::x86_64::{__cpuid, __cpuid_count},
    num::NonZeroU64,
    time::Duration,
};

use devices::{
    clock::NANOS_PER_SEC,
    cpuid::{GuestCpuid, Leaf, Profile},
};
use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::Kvm;
use rustix::time::{ClockId, Timespec, clock_gettime};
use vmd_release::Generation;

use crate::{
    config::{Config, Vendor},
    error::Error,
    msr::Extensions,
    vcpu::rdtsc,
};

/// CPUID leaf of SGX, which no guest of vmm's has.
const SGX: u32 = 0x12;

/// CPUID of the processor that this program runs on, which is what vmm reads, too.
fn host_cpuid(leaf: u32, subleaf: u32) -> Leaf {
    let registers = __cpuid_count(leaf, subleaf);
    Leaf { eax: registers.eax, ebx: registers.ebx, ecx: registers.ecx, edx: registers.edx }
}

/// The host's processor.
pub(crate) struct Cpu {
    pub(crate) extensions: Extensions,
    /// How fast the TSC runs; `None` if it is not invariant, as OpenBSD knows no rate then.
    pub(crate) tsc_hz: Option<NonZeroU64>,
    vendor: Option<Vendor>,
    supported: CpuId,
}

impl Cpu {
    /// `config` overrides what the host says of its TSC and its maker.
    pub(crate) fn of_host(kvm: &Kvm, config: &Config) -> Result<Self, Error> {
        let supported = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(Error::kvm("to list what CPUID may say (KVM_GET_SUPPORTED_CPUID)"))?;
        let leaf_0 = __cpuid(0);
        let mut vendor = [0; 12];
        for (bytes, register) in vendor.chunks_exact_mut(4).zip([leaf_0.ebx, leaf_0.edx, leaf_0.ecx]) {
            bytes.copy_from_slice(&register.to_le_bytes());
        }
        let tsc_hz = if config.variable_tsc { None } else { config.tsc_hz.or_else(host_tsc_hz) };
        if tsc_hz.is_none() {
            tracing::warn!(
                "the host's TSC is not invariant: its rate is unknown to guests and their clock's multiplier is 0, as \
                 under vmm"
            );
        }
        // A vendor that the host has anyway needs no disguise.
        let own = Extensions::of_vendor(&vendor);
        let vendor = config.vendor.filter(|vendor| vendor.extensions() != own);
        Ok(Self { extensions: vendor.map_or(own, Vendor::extensions), tsc_hz, vendor, supported })
    }

    /// What CPUID tells a guest of `generation` on the `vcpu`th of `vcpus` virtual CPUs: what vmm would tell on this
    /// processor, but never a feature that KVM cannot give.
    pub(crate) fn guest_cpuid(&self, generation: Generation, vcpu: u8, vcpus: u8) -> Result<CpuId, Error> {
        let profile = Profile { generation, tsc_hz: self.tsc_hz, vcpu, vcpus };
        let host = |leaf, subleaf| {
            let own = host_cpuid(leaf, subleaf);
            self.vendor.map_or(own, |vendor| vendor.disguise(leaf, subleaf, own, self.tsc_hz))
        };
        let entries: Vec<_> = GuestCpuid::new(&host, profile)
            .table()
            .into_iter()
            // KVM adds to a listed leaf of SGX what the guest may have saved; not listed, it reads as zeroes.
            .filter(|entry| entry.leaf != SGX)
            .map(|entry| {
                let index = entry.subleaf.unwrap_or(0);
                let mut registers = entry.registers;
                let supported = self.supported.as_slice().iter();
                let supported = supported
                    .filter(|s| s.function == entry.leaf && s.index == index)
                    .map(|s| Leaf { eax: s.eax, ebx: s.ebx, ecx: s.ecx, edx: s.edx })
                    .next();
                limit(entry.leaf, index, &mut registers, supported.unwrap_or_default());
                kvm_cpuid_entry2 {
                    function: entry.leaf,
                    index,
                    flags: if entry.subleaf.is_some() { KVM_CPUID_FLAG_SIGNIFCANT_INDEX } else { 0 },
                    eax: registers.eax,
                    ebx: registers.ebx,
                    ecx: registers.ecx,
                    edx: registers.edx,
                    ..Default::default()
                }
            })
            .collect();
        CpuId::from_entries(&entries).map_err(|_| Error::Kvm {
            what: "as many CPUID leaves as the guest has",
            source: std::io::ErrorKind::OutOfMemory.into(),
        })
    }
}

/// Takes feature bits away that KVM does not have. Bits that follow the guest's state (OSXSAVE) or are there for no
/// processor (the hypervisor bit) stay.
fn limit(leaf: u32, subleaf: u32, registers: &mut Leaf, supported: Leaf) {
    const ECX1_NOT_FEATURES: u32 = 1 << 27 | 1 << 31;
    match (leaf, subleaf) {
        (1, _) => {
            registers.ecx &= supported.ecx | ECX1_NOT_FEATURES;
            registers.edx &= supported.edx;
        }
        (7, 0) => {
            registers.ebx &= supported.ebx;
            registers.ecx &= supported.ecx;
            registers.edx &= supported.edx;
        }
        (0xd, 0) => {
            registers.eax &= supported.eax;
            registers.edx &= supported.edx;
        }
        (0xd, 1) => registers.eax &= supported.eax,
        (0x8000_0001, _) => {
            registers.ecx &= supported.ecx;
            registers.edx &= supported.edx;
        }
        (0x8000_0008, _) => registers.ebx &= supported.ebx,
        _ => {}
    }
}

/// The rate of this host's TSC in Hz if that is invariant: from CPUID leaf 0x15, which is exact and where OpenBSD has
/// it from, else measured against CLOCK_MONOTONIC_RAW for 50 ms, which finds what the kernel takes it for to within a
/// few ppm.
///
/// A machine inside a virtual machine on this host whose TSC is this host's, but whose CPUID does not say that it is
/// invariant (as QEMU's without KVM), is to be given this as [`crate::Config::tsc_hz`].
pub fn host_tsc_hz() -> Option<NonZeroU64> {
    const EXTENDED: u32 = 0x8000_0000;
    const POWER: u32 = 0x8000_0007;
    const INVARIANT: u32 = 1 << 8;
    const TSC: u32 = 0x15;
    if __cpuid(EXTENDED).eax < POWER || __cpuid(POWER).edx & INVARIANT == 0 {
        return None;
    }
    if __cpuid(0).eax >= TSC
        && let Some(hz) = leaf_15_hz(host_cpuid(TSC, 0))
    {
        return Some(hz);
    }
    let start = TscReading::now_both();
    std::thread::sleep(Duration::from_millis(50));
    let hz = TscReading::now_both().rate_since(&start);
    // The guest is told this rate and the machine's clocks count with it, so that they agree whatever it is.
    tracing::debug!(hz, "CPUID does not tell the TSC's rate: it was measured, to within a few ppm");
    NonZeroU64::new(hz)
}

/// TSC and clock at the same time.
struct TscReading {
    tsc: u64,
    nanos: u64,
}

impl TscReading {
    /// The best of some readings: the one in which the least time passed between TSC, clock and TSC.
    fn now_both() -> Self {
        let readings = (0..16).map(|_| {
            let before = rdtsc();
            let Timespec { tv_sec, tv_nsec } = clock_gettime(ClockId::MonotonicRaw);
            let width = rdtsc().wrapping_sub(before);
            let nanos = tv_sec.cast_unsigned() * NANOS_PER_SEC + tv_nsec.cast_unsigned();
            (width, Self { tsc: before + width / 2, nanos })
        });
        readings.min_by_key(|(width, _)| *width).map(|(_, moment)| moment).expect("there are 16")
    }

    fn rate_since(&self, start: &Self) -> u64 {
        let nanos = u128::from(self.nanos.saturating_sub(start.nanos).max(1));
        (u128::from(self.tsc.wrapping_sub(start.tsc)) * u128::from(NANOS_PER_SEC) / nanos) as u64
    }
}

/// The TSC's rate: the crystal's (ECX) times EBX / EAX.
fn leaf_15_hz(leaf: Leaf) -> Option<NonZeroU64> {
    let product = u64::from(leaf.ecx) * u64::from(leaf.ebx);
    NonZeroU64::new(product.checked_div(u64::from(leaf.eax))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_crystal_and_the_ratio_make_the_rate() {
        let leaf = |eax, ebx, ecx| leaf_15_hz(Leaf { eax, ebx, ecx, edx: 0 });
        assert_eq!(leaf(2, 216, 24_000_000), NonZeroU64::new(2_592_000_000));
        assert_eq!(leaf(1, 100, 25_961_400), NonZeroU64::new(2_596_140_000));
        for unknown in [leaf(0, 216, 24_000_000), leaf(2, 0, 24_000_000), leaf(2, 216, 0)] {
            assert_eq!(unknown, None);
        }
    }

    #[test]
    fn a_rate_is_ticks_per_second() {
        let start = TscReading { tsc: u64::MAX - 999, nanos: 1_000 };
        let end = TscReading { tsc: 99_999_000, nanos: 50_001_000 };
        assert_eq!(end.rate_since(&start), 2_000_000_000);
    }

    #[test]
    fn a_feature_that_kvm_does_not_have_is_not_shown() {
        let all = Leaf { eax: u32::MAX, ebx: u32::MAX, ecx: u32::MAX, edx: u32::MAX };
        let mut leaf_7 = all;
        limit(7, 0, &mut leaf_7, Leaf { ebx: 1 << 8, ..Leaf::ZERO });
        assert_eq!(leaf_7, Leaf { eax: u32::MAX, ebx: 1 << 8, ecx: 0, edx: 0 });
        let mut leaf_1 = all;
        limit(1, 0, &mut leaf_1, Leaf::ZERO);
        assert_eq!(leaf_1.ecx, 1 << 27 | 1 << 31);
        assert_eq!((leaf_1.eax, leaf_1.ebx), (u32::MAX, u32::MAX));
        // Brand string, caches: not feature bits.
        let mut name = all;
        limit(0x8000_0002, 0, &mut name, Leaf::ZERO);
        assert_eq!(name, all);
    }
}
