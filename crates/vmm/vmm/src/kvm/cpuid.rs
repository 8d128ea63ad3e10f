//! The guest's CPUID: what vmm would show of the host's processor, limited to what KVM supports.

use std::{
    arch::x86_64::{__cpuid, __cpuid_count},
    num::NonZeroU64,
};

use devices::cpuid::{GuestCpuid, Leaf, Profile};
use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::Kvm;
use vmd_release::Capabilities;

use crate::{
    config::{Config, Vendor},
    error::Error,
    kvm::{msr::Extensions, tsc::host_tsc_hz},
};

/// CPUID leaf of SGX, which vmm gives to no guest.
const SGX: u32 = 0x12;

/// CPUID of the host's processor, read with the instruction as vmm does.
fn host_cpuid(leaf: u32, subleaf: u32) -> Leaf {
    let registers = __cpuid_count(leaf, subleaf);
    Leaf { eax: registers.eax, ebx: registers.ebx, ecx: registers.ecx, edx: registers.edx }
}

/// The host's processor.
pub(crate) struct HostCpu {
    pub(crate) extensions: Extensions,
    /// Rate of the TSC in Hz; `None` if it is not invariant, in which case OpenBSD knows no rate.
    pub(crate) tsc_hz: Option<NonZeroU64>,
    /// CPU template to apply.
    template: Option<Vendor>,
    /// CPUID that KVM supports.
    supported: CpuId,
}

impl HostCpu {
    /// The host's processor, with the TSC rate and vendor that `config` may override.
    pub(crate) fn new(kvm: &Kvm, config: &Config) -> Result<Self, Error> {
        let supported = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(Error::kvm("list the supported CPUID (KVM_GET_SUPPORTED_CPUID)"))?;
        let leaf_0 = __cpuid(0);
        let mut vendor = [0; 12];
        for (bytes, register) in vendor.chunks_exact_mut(4).zip([leaf_0.ebx, leaf_0.edx, leaf_0.ecx]) {
            bytes.copy_from_slice(&register.to_le_bytes());
        }
        let tsc_hz = if config.variable_tsc { None } else { config.tsc_hz.or_else(host_tsc_hz) };
        if tsc_hz.is_none() {
            tracing::warn!(
                "the host's TSC is not invariant: guests see no TSC rate and a pvclock multiplier of 0, as under vmm"
            );
        }
        let own = Extensions::of_vendor(&vendor);
        let template = config.vendor.filter(|vendor| vendor.extensions() != own);
        Ok(Self { extensions: template.map_or(own, Vendor::extensions), tsc_hz, template, supported })
    }

    /// CPUID of vCPU `vcpu` (from 0) of `vcpus` under a vmm with `capabilities`, without features
    /// that KVM does not support.
    pub(crate) fn guest_cpuid(
        &self,
        capabilities: Capabilities,
        vcpu: u8,
        vcpus: u8,
    ) -> Result<CpuId, Error> {
        let profile = Profile { capabilities, tsc_hz: self.tsc_hz, vcpu, vcpus };
        let host = |leaf, subleaf| {
            let own = host_cpuid(leaf, subleaf);
            self.template.map_or(own, |vendor| vendor.template(leaf, subleaf, own, self.tsc_hz))
        };
        let entries: Vec<_> = GuestCpuid::new(&host, profile)
            .table()
            .into_iter()
            // If the leaf of SGX is listed, KVM adds state components to it. Unlisted, it reads as
            // zeroes.
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
            what: "take all CPUID leaves of the guest",
            source: std::io::ErrorKind::OutOfMemory.into(),
        })
    }
}

/// Clears feature bits that KVM does not support. Keeps OSXSAVE, which follows the guest's state,
/// the hypervisor bit, which no processor has, and HTT, which describes the guest's topology.
fn limit(leaf: u32, subleaf: u32, registers: &mut Leaf, supported: Leaf) {
    const ECX1_NOT_FEATURES: u32 = 1 << 27 | 1 << 31;
    const EDX1_NOT_FEATURES: u32 = 1 << 28;
    match (leaf, subleaf) {
        (1, _) => {
            registers.ecx &= supported.ecx | ECX1_NOT_FEATURES;
            registers.edx &= supported.edx | EDX1_NOT_FEATURES;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_that_kvm_does_not_support_are_cleared() {
        let all = Leaf { eax: u32::MAX, ebx: u32::MAX, ecx: u32::MAX, edx: u32::MAX };
        let mut leaf_7 = all;
        limit(7, 0, &mut leaf_7, Leaf { ebx: 1 << 8, ..Leaf::ZERO });
        assert_eq!(leaf_7, Leaf { eax: u32::MAX, ebx: 1 << 8, ecx: 0, edx: 0 });
        let mut leaf_1 = all;
        limit(1, 0, &mut leaf_1, Leaf::ZERO);
        assert_eq!((leaf_1.ecx, leaf_1.edx), (1 << 27 | 1 << 31, 1 << 28));
        assert_eq!((leaf_1.eax, leaf_1.ebx), (u32::MAX, u32::MAX));
        // Brand string, caches: not feature bits.
        let mut name = all;
        limit(0x8000_0002, 0, &mut name, Leaf::ZERO);
        assert_eq!(name, all);
    }
}
