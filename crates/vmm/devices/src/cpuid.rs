//! CPUID of a guest of vmm(4) (`vmm_handle_cpuid` in vmm_machdep.c and the VMM_*_MASK of vmmvar.h,
//! 7.7, 7.8 and September 2026).
//!
//! vmm computes every answer from the host's answer, its own masks, and the guest's CR4 and XCR0.
//! This module does the same as a pure function, and lists the answers for KVM, which needs them in
//! advance.

use std::num::NonZeroU64;

use vmd_release::Capabilities;

/// The result of CPUID: four registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leaf {
    /// EAX.
    pub eax: u32,
    /// EBX.
    pub ebx: u32,
    /// ECX.
    pub ecx: u32,
    /// EDX.
    pub edx: u32,
}

impl Leaf {
    /// A leaf of zeroes.
    pub const ZERO: Self = Self { eax: 0, ebx: 0, ecx: 0, edx: 0 };

    /// A leaf with `eax` and a signature of 12 bytes.
    const fn signature(eax: u32, text: [u8; 12]) -> Self {
        let [b0, b1, b2, b3, c0, c1, c2, c3, d0, d1, d2, d3] = text;
        Self {
            eax,
            ebx: u32::from_le_bytes([b0, b1, b2, b3]),
            ecx: u32::from_le_bytes([c0, c1, c2, c3]),
            edx: u32::from_le_bytes([d0, d1, d2, d3]),
        }
    }
}

/// Properties of the host and of the VM on which the answers depend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Profile {
    /// The emulated vmm's capabilities.
    pub capabilities: Capabilities,
    /// TSC frequency in Hz. OpenBSD knows it if and only if the TSC is invariant; with `None` the
    /// TSC is variable: the bit in leaf 0x80000007 is cleared, leaf 0x15 is not synthesised, and
    /// from 7.9 on no clock is announced ([`Capabilities::clock_bits_need_tsc_rate`]).
    pub tsc_hz: Option<NonZeroU64>,
    /// Number of the vCPU, which is its APIC ID.
    pub vcpu: u8,
    /// Number of vCPUs of the guest: 1 up to 7.9.
    pub vcpus: u8,
}

/// The guest's state on which an answer depends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuState {
    /// CR4.OSXSAVE.
    pub osxsave: bool,
    /// XCR0.
    pub xcr0: u64,
}

impl Default for CpuState {
    /// At power-on: x87 state only.
    fn default() -> Self {
        Self { osxsave: false, xcr0: 1 }
    }
}

/// An answer in the list for KVM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// EAX before CPUID.
    pub leaf: u32,
    /// ECX before CPUID, if the leaf has sub-leaves.
    pub subleaf: Option<u32>,
    /// The answer.
    pub registers: Leaf,
}

/// TSC frequency; synthesised if the host does not have it.
const LEAF_TSC: u32 = 0x15;
const LEAF_XSAVE: u32 = 0x0d;
const LEAF_CACHE: u32 = 0x04;
const LEAF_CACHE_AMD: u32 = 0x8000_001d;
const HYPERVISOR: u32 = 0x4000_0000;
const EXTENDED: u32 = 0x8000_0000;
/// The last leaf that vmm reports.
const EXTENDED_MAX: u32 = 0x8000_001f;

const ECX1_X2APIC: u32 = 1 << 21;
const ECX1_OSXSAVE: u32 = 1 << 27;
const ECX1_HYPERVISOR: u32 = 1 << 31;
/// Leaf 1 ECX, cleared: DTES64, MONITOR, DS-CPL, VMX, SMX, EST, TM2, CNXT-ID, SDBG, xTPR, PDCM,
/// PCID, DCA, x2APIC, TSC-deadline.
const ECX1_HIDDEN: u32 = bits(&[2, 3, 4, 5, 6, 7, 8, 10, 11, 14, 15, 17, 18, 21, 24]);
const EDX1_APIC: u32 = 1 << 9;
const EDX1_HTT: u32 = 1 << 28;
/// Leaf 1 EDX, cleared: MCE, APIC, MTRR, MCA, PSN, DS, ACPI, SS, HTT, TM, PBE.
const EDX1_HIDDEN: u32 = bits(&[7, 9, 12, 14, 18, 21, 22, 27, 28, 29, 31]);
/// Leaf 7 EBX, cleared: TSC_ADJUST, SGX, HLE, INVPCID, RTM, PQM, MPX, PCOMMIT, PT, and AVX-512's F,
/// DQ, IFMA, PF, ER, CD, BW, VL.
const EBX7_HIDDEN: u32 = bits(&[1, 2, 4, 10, 11, 12, 14, 16, 17, 21, 22, 25, 26, 27, 28, 30, 31]);
/// Leaf 7 ECX, passed through: UMIP and PKU. An OpenBSD host enables protection keys if it has
/// them.
const ECX7_SHOWN: u32 = bits(&[2, 3]);
const ECX7_PKU: u32 = 1 << 3;
/// Leaf 7 EDX, passed through: MD_CLEAR and IBT. An OpenBSD host enables CET if it has IBT.
const EDX7_SHOWN: u32 = bits(&[10, 20]);
/// Leaf 4 EAX, passed through: all but the numbers of threads and cores.
const EAX4_SHOWN: u32 = 0x3ff;
const LEAF_TOPOLOGY: u32 = 0x0b;
const LEAF_TOPOLOGY_V2: u32 = 0x1f;
const LEAF_TOPOLOGY_AMD: u32 = 0x8000_001e;
/// Leaf 0x80000001 ECX, cleared: SVM, MONITORX.
const ECX8_1_HIDDEN: u32 = bits(&[2, 29]);
/// Leaf 0x80000001 EDX, cleared: RDTSCP.
const EDX8_1_HIDDEN: u32 = bits(&[27]);
const EDX8_7_INVARIANT_TSC: u32 = 1 << 8;
/// Leaf 0x80000008 EBX, cleared: IBPB, IBRS, STIBP, IBRS and STIBP always on, IBRS preferred, SSBD,
/// virtual SSBD, SSBD not required.
const EBX8_8_HIDDEN: u32 = bits(&[12, 14, 15, 16, 17, 18, 24, 25, 26]);

/// Leaf 0xd, sub-leaf 1 EAX, passed through: XSAVEOPT and XGETBV with ECX = 1.
const XSAVE_FEATURES_SHOWN: u32 = bits(&[0, 2]);
/// Components of the extended state that OpenBSD manages: x87, SSE, AVX, and AVX-512's three.
const XSAVE_MANAGED: u64 = 0b1110_0111;
const XSAVE_PKRU: u64 = 1 << 9;
/// x87, SSE and the header.
const XSAVE_LEGACY_SIZE: u32 = 576;
/// Size of OpenBSD's save area in bytes, and the offset at which vmm places PKRU whatever the CPU
/// says (`sizeof(struct savefpu)`).
const SAVEFPU_SIZE: u32 = 2688;
const PKRU_SIZE: u32 = 8;

/// Leaf 0x40000000. Its EAX is 0, which says that no hypervisor leaf follows.
const VMM_SIGNATURE: Leaf = Leaf::signature(0, *b"OpenBSDVMM58");
const KVM_LEAF: u32 = HYPERVISOR + 0x100;
const KVM_SIGNATURE: Leaf = Leaf::signature(KVM_LEAF + 1, *b"KVMKVMKVM\0\0\0");
const FEATURE_NO_IO_DELAY: u32 = 1 << 1;
const FEATURE_CLOCKSOURCE2: u32 = 1 << 3;
const FEATURE_CLOCKSOURCE_STABLE: u32 = 1 << 24;

const fn bits(numbers: &[u32]) -> u32 {
    let mut value = 0;
    let mut n = 0;
    while n < numbers.len() {
        value |= 1 << numbers[n];
        n += 1;
    }
    value
}

/// EAX of a cache from 8.0 on, in a package with that many APIC IDs: without the host's topology.
/// Type 0 ends the list, and the whole register is then 0.
const fn cache(eax: u32, ids: u32) -> u32 {
    if eax.is_multiple_of(0x20) { 0 } else { eax & EAX4_SHOWN | (ids - 1) << 26 }
}

/// CPUID of a host, by leaf and sub-leaf.
pub type HostCpuid<'a> = &'a dyn Fn(u32, u32) -> Leaf;

/// Computes CPUID of a guest from the host's CPUID.
#[derive(Clone, Copy)]
pub struct GuestCpuid<'a> {
    host: HostCpuid<'a>,
    profile: Profile,
}

impl<'a> GuestCpuid<'a> {
    /// CPUID of a guest on `host`.
    pub const fn new(host: HostCpuid<'a>, profile: Profile) -> Self {
        Self { host, profile }
    }

    /// The guest's answer for `leaf` and `subleaf`.
    pub fn leaf(&self, leaf: u32, subleaf: u32, state: CpuState) -> Leaf {
        // A leaf out of range gets the answer of the last basic leaf; the sub-leaf stays.
        let level = self.level();
        let leaf = match leaf {
            _ if leaf > level && leaf < HYPERVISOR => level,
            _ if leaf > EXTENDED && leaf > (self.host)(EXTENDED, 0).eax => level,
            _ => leaf,
        };
        let host = (self.host)(leaf, subleaf);
        match leaf {
            0x00 => Leaf { eax: level, ..host },
            0x01 => self.features(host, state),
            LEAF_CACHE | LEAF_CACHE_AMD if self.has_topology() => {
                Leaf { eax: cache(host.eax, self.apic_ids()), ..host }
            }
            LEAF_CACHE => Leaf { eax: host.eax & EAX4_SHOWN, ..host },
            0x02 | 0x16 | 0x8000_0002..=0x8000_0006 | LEAF_CACHE_AMD | EXTENDED_MAX => host,
            LEAF_TOPOLOGY | LEAF_TOPOLOGY_V2 if self.has_topology() => self.topology(subleaf),
            LEAF_TOPOLOGY_AMD if self.has_topology() => {
                let id = self.profile.vcpu.into();
                Leaf { eax: id, ebx: id, ..Leaf::ZERO }
            }
            0x07 if subleaf == 0 => Leaf {
                eax: 0,
                ebx: host.ebx & !EBX7_HIDDEN,
                ecx: host.ecx & ECX7_SHOWN,
                edx: host.edx & EDX7_SHOWN,
            },
            LEAF_XSAVE => self.xsave(subleaf, host, state),
            LEAF_TSC => self.tsc(host),
            HYPERVISOR => VMM_SIGNATURE,
            0x4000_0001 => Leaf { eax: self.clock_features(), ..Leaf::ZERO },
            KVM_LEAF if self.profile.capabilities.kvm_leaf => KVM_SIGNATURE,
            0x4000_0101 if self.profile.capabilities.kvm_leaf => {
                Leaf { eax: FEATURE_NO_IO_DELAY | self.clock_features(), ..Leaf::ZERO }
            }
            EXTENDED => Leaf { eax: host.eax.min(EXTENDED_MAX), ..Leaf::ZERO },
            0x8000_0001 => {
                Leaf { eax: host.eax, ebx: 0, ecx: host.ecx & !ECX8_1_HIDDEN, edx: host.edx & !EDX8_1_HIDDEN }
            }
            0x8000_0007 => {
                let invariant = if self.profile.tsc_hz.is_some() { EDX8_7_INVARIANT_TSC } else { 0 };
                Leaf { edx: invariant, ..host }
            }
            0x8000_0008 => Leaf { ebx: host.ebx & !EBX8_8_HIDDEN, ecx: self.core_count(), ..host },
            _ => Leaf::ZERO,
        }
    }

    /// All answers at power-on, for `KVM_SET_CPUID2`. KVM itself updates the bits that depend on
    /// CR4.OSXSAVE and XCR0, and answers zeroes for sub-leaves that are not listed.
    ///
    /// KVM's answers for leaves out of range cannot be set in general: it answers as vmm does for
    /// guests with vendor Intel, but zeroes for vendor AMD. Therefore some leaves after the last
    /// are listed.
    pub fn table(&self) -> Vec<Entry> {
        let state = CpuState::default();
        let extended_level = (self.host)(EXTENDED, 0).eax;
        let leaves = (0..=self.level().max(0x1f))
            .chain([HYPERVISOR, HYPERVISOR + 1, KVM_LEAF, KVM_LEAF + 1])
            .chain(EXTENDED..=extended_level.clamp(EXTENDED, EXTENDED_MAX) + 2);
        let mut table = Vec::new();
        for leaf in leaves {
            let out_of_range = leaf > self.level() && leaf < HYPERVISOR;
            let subleaves = match leaf {
                _ if out_of_range => None,
                LEAF_CACHE | LEAF_CACHE_AMD => Some(self.caches(leaf)),
                LEAF_TOPOLOGY | LEAF_TOPOLOGY_V2 if self.has_topology() => Some(3),
                0x07 => Some(1),
                LEAF_XSAVE => Some(63),
                _ => None,
            };
            let Some(count) = subleaves else {
                table.push(Entry { leaf, subleaf: None, registers: self.leaf(leaf, 0, state) });
                continue;
            };
            table.extend(
                (0..count)
                    .map(|n| Entry { leaf, subleaf: Some(n), registers: self.leaf(leaf, n, state) })
                    .filter(|entry| entry.subleaf < Some(2) || entry.registers != Leaf::ZERO),
            );
        }
        table
    }

    /// Sub-leaves of a leaf that lists caches, up to and including the end mark. CPUs have about
    /// four; a list of more than 16 is treated as unterminated.
    fn caches(&self, leaf: u32) -> u32 {
        const NO_CACHE: u32 = 0;
        (0..16).find(|n| (self.host)(leaf, *n).eax & 0x1f == NO_CACHE).map_or(16, |last| last + 1)
    }

    /// The last basic leaf: the host's, but at least the TSC leaf if the frequency is known.
    fn level(&self) -> u32 {
        let host = (self.host)(0, 0).eax;
        if self.profile.tsc_hz.is_some() { host.max(LEAF_TSC) } else { host }
    }

    /// The feature bits of the paravirtual clock in leaves 0x40000001 and 0x40000101. From 7.9 on
    /// a host that does not know its TSC's rate sets none of them: a stock kernel then takes vmm for
    /// a KVM without a clock.
    const fn clock_features(&self) -> u32 {
        if self.profile.capabilities.clock_bits_need_tsc_rate && self.profile.tsc_hz.is_none() {
            0
        } else {
            FEATURE_CLOCKSOURCE2 | FEATURE_CLOCKSOURCE_STABLE
        }
    }

    /// Whether vmm has LAPICs; it then defines the topology of processors, cores and caches itself.
    const fn has_topology(&self) -> bool {
        self.profile.capabilities.apic
    }

    /// Number of cores of the guest: one per vCPU.
    fn cores(&self) -> u32 {
        self.profile.vcpus.max(1).into()
    }

    /// Number of APIC IDs that the cores take: their number rounded up to a power of two. Leaf 1
    /// EBX and the caches' leaves count these (3 vCPUs: 4, and 4 − 1).
    fn apic_ids(&self) -> u32 {
        self.cores().next_power_of_two()
    }

    /// ECX of leaf 0x80000008 for several vCPUs: number of core bits in the APIC ID (from bit 12
    /// on), and number of cores − 1. 0 for a single vCPU.
    fn core_count(&self) -> u32 {
        if self.has_topology() { self.apic_ids().ilog2() << 12 | (self.cores() - 1) } else { 0 }
    }

    /// Topology: one thread per core, all cores in one package. The package number is the APIC ID
    /// without the core bits.
    fn topology(&self, level: u32) -> Leaf {
        let (shift, count, kind) = match level {
            0 => (0, 1, 1 << 8),
            1 => (self.apic_ids().ilog2(), self.cores(), 2 << 8),
            _ => (0, 0, 0),
        };
        Leaf { eax: shift, ebx: count, ecx: kind | level, edx: self.profile.vcpu.into() }
    }

    fn features(&self, host: Leaf, state: CpuState) -> Leaf {
        // vmm implements x2APIC mode itself, whether or not the host has it.
        let (x2apic, apic, count) =
            if self.has_topology() { (ECX1_X2APIC, EDX1_APIC, self.apic_ids() << 16) } else { (0, 0, 0) };
        // vmm sets HTT for several vCPUs, whether or not the host has it.
        let htt = if self.has_topology() && self.cores() > 1 { EDX1_HTT } else { 0 };
        let ecx = (host.ecx | ECX1_HYPERVISOR) & !(ECX1_HIDDEN | ECX1_OSXSAVE) | x2apic;
        Leaf {
            eax: host.eax,
            ebx: host.ebx & 0xffff | count | u32::from(self.profile.vcpu) << 24,
            ecx: if state.osxsave { ecx | ECX1_OSXSAVE } else { ecx },
            edx: host.edx & !(EDX1_HIDDEN & !apic) | htt,
        }
    }

    fn tsc(&self, host: Leaf) -> Leaf {
        match self.profile.tsc_hz {
            // The crystal's frequency is a hundredth of the TSC's, the ratio 100.
            Some(hz) if (self.host)(0, 0).eax < LEAF_TSC => {
                Leaf { eax: 1, ebx: 100, ecx: (hz.get() / 100) as u32, edx: 0 }
            }
            _ => host,
        }
    }

    fn xsave(&self, subleaf: u32, host: Leaf, state: CpuState) -> Leaf {
        let all = (self.host)(LEAF_XSAVE, 0);
        // x87 and SSE are always managed.
        let managed = (u64::from(all.eax) | u64::from(all.edx) << 32) & XSAVE_MANAGED | 0b11;
        // vmm saves PKRU for its guests from 7.8 on.
        let pkru = self.profile.capabilities.protection_keys && (self.host)(7, 0).ecx & ECX7_PKU != 0;
        match subleaf {
            0 => {
                let mut leaf = Leaf {
                    eax: managed as u32,
                    ebx: self.xsave_size(state.xcr0),
                    ecx: self.xsave_size(managed),
                    edx: (managed >> 32) as u32,
                };
                if pkru {
                    leaf.eax |= XSAVE_PKRU as u32;
                    leaf.ecx = SAVEFPU_SIZE + PKRU_SIZE;
                    if state.xcr0 & XSAVE_PKRU != 0 {
                        leaf.ebx = leaf.ecx;
                    }
                }
                leaf
            }
            1 => Leaf { eax: host.eax & XSAVE_FEATURES_SHOWN, ..Leaf::ZERO },
            9 if pkru => Leaf { eax: PKRU_SIZE, ebx: SAVEFPU_SIZE, ..Leaf::ZERO },
            2..=62 if managed >> subleaf & 1 != 0 => Leaf { ecx: 0, ..host },
            _ => Leaf::ZERO,
        }
    }

    /// Size in bytes of the save area for the components in `xcr0`: the end of the last one.
    fn xsave_size(&self, xcr0: u64) -> u32 {
        (2..63)
            .filter(|part| xcr0 >> part & 1 != 0)
            .map(|part| (self.host)(LEAF_XSAVE, part))
            .map(|part| part.eax.saturating_add(part.ebx))
            .fold(XSAVE_LEGACY_SIZE, u32::max)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;
    use vmd_release::Generation;

    use super::*;
    use crate::testing;

    type Recorded = HashMap<(u32, u32), Leaf>;

    /// The lines of the recording: leaf, sub-leaf, registers.
    fn golden() -> Recorded {
        let text = include_str!("../../../../tests/golden/cpuid/k73.cpuid.txt");
        text.lines()
            .filter(|line| !line.starts_with('#'))
            .map(|line| {
                let hex = |text: &str| u32::from_str_radix(text, 16).unwrap();
                let (leaf, rest) = line.split_once('.').unwrap();
                let (subleaf, rest) = rest.split_once(':').unwrap();
                let mut registers = rest.split('=').skip(1).map(|value| hex(&value[..8]));
                let mut next = || registers.next().unwrap();
                ((hex(leaf), hex(subleaf)), Leaf { eax: next(), ebx: next(), ecx: next(), edx: next() })
            })
            .collect()
    }

    /// The host of the recording, an EPYC without leaf 0x15: the guest's answers with all bits set
    /// that vmm hides.
    fn host(recorded: &Recorded, leaf: u32, subleaf: u32) -> Leaf {
        if leaf > 0x0d && leaf < EXTENDED {
            return Leaf { eax: 0xbad, ebx: 0xbad, ecx: 0xbad, edx: 0xbad };
        }
        let mut host = recorded.get(&(leaf, subleaf)).copied().unwrap_or_default();
        match leaf {
            0 => host.eax = 0x0d,
            1 => {
                host.ebx |= 0x0308_0000;
                host.ecx = host.ecx & !(ECX1_HYPERVISOR | ECX1_OSXSAVE) | ECX1_HIDDEN;
                host.edx |= EDX1_HIDDEN;
            }
            3 | 5 | 6 | 9 | 0x0a | 0x0b | 0x8000_0009..=0x8000_001c | 0x8000_001e => host.eax = 0xbad,
            4 => host.eax |= !EAX4_SHOWN,
            7 => {
                host.eax = 2;
                host.ebx |= EBX7_HIDDEN;
                host.ecx |= !ECX7_SHOWN;
                host.edx |= !EDX7_SHOWN;
            }
            0x0d if subleaf == 0 => {
                host.eax |= 0x0006_0000;
                host.ecx = 0x2000;
            }
            0x0d if subleaf == 1 => {
                host.eax |= 0xa;
                host.ebx = 0x340;
            }
            0x0d if subleaf > 2 => host = Leaf { eax: 0x40, ebx: 0x1000, ecx: 2, edx: 0 },
            0x8000_0001 => {
                host.ebx = 0x7000_0000;
                host.ecx |= ECX8_1_HIDDEN;
                host.edx |= EDX8_1_HIDDEN;
            }
            0x8000_0007 => host.edx |= 0xff,
            0x8000_0008 => {
                host.ebx |= EBX8_8_HIDDEN;
                host.ecx = 0x7007;
            }
            _ => {}
        }
        host
    }

    /// CR4 and XCR0 of Linux at the time of the recording.
    const LINUX: CpuState = CpuState { osxsave: true, xcr0: 7 };

    fn profile(generation: Generation) -> Profile {
        let tsc_hz = NonZeroU64::new(0x018c_2399 * 100 + 42);
        Profile { capabilities: generation.capabilities(), tsc_hz, vcpu: 0, vcpus: 1 }
    }

    #[test]
    fn every_recorded_leaf_is_reproduced() {
        let recorded = golden();
        assert!(recorded.len() > 600);
        let host = |leaf, subleaf| host(&recorded, leaf, subleaf);
        let guest = GuestCpuid::new(&host, profile(Generation::V7_8));
        for ((leaf, subleaf), expected) in &recorded {
            assert_eq!(guest.leaf(*leaf, *subleaf, LINUX), *expected, "leaf {leaf:#x}.{subleaf}");
        }
    }

    #[test]
    fn the_list_agrees_at_power_on() {
        let recorded = golden();
        let host = |leaf, subleaf| host(&recorded, leaf, subleaf);
        let guest = GuestCpuid::new(&host, profile(Generation::V7_8));
        let table = guest.table();
        assert!(table.len() < 100, "KVM takes 256");
        for entry in &table {
            let state = CpuState::default();
            assert_eq!(guest.leaf(entry.leaf, entry.subleaf.unwrap_or(0), state), entry.registers);
        }
        let find = |leaf, subleaf| {
            let mut found = table.iter().filter(|entry| (entry.leaf, entry.subleaf) == (leaf, subleaf));
            let entry = found.next().unwrap_or_else(|| panic!("no {leaf:#x}.{subleaf:?}"));
            assert!(found.next().is_none(), "{leaf:#x}.{subleaf:?} twice");
            entry.registers
        };
        // Unlisted sub-leaves are zero.
        for ((leaf, subleaf), expected) in &recorded {
            let listed = table
                .iter()
                .find(|entry| entry.leaf == *leaf && entry.subleaf.is_none_or(|listed| listed == *subleaf));
            let same_at_power_on = !matches!((leaf, subleaf), (1 | 0x0d, 0));
            let at_the_end = *leaf < 0x20 || (HYPERVISOR..EXTENDED + 0x21).contains(leaf);
            if same_at_power_on && at_the_end {
                assert_eq!(
                    listed.map_or(Leaf::ZERO, |entry| entry.registers),
                    *expected,
                    "{leaf:#x}.{subleaf}"
                );
            }
        }
        assert_eq!(find(1, None).ecx & ECX1_OSXSAVE, 0);
        assert_eq!(find(0x0d, Some(0)).ebx, XSAVE_LEGACY_SIZE);
        assert_eq!(find(0x16, None), find(0x15, None));
    }

    #[test]
    fn hypervisor_leaves_by_generation() {
        const CLOCK: u32 = 0x0100_0008;
        let recorded = golden();
        let host = |leaf, subleaf| host(&recorded, leaf, subleaf);
        // vmm's features and KVM's (`None` for no KVM leaf) without a known TSC rate.
        for (generation, vmm, kvm) in [
            (Generation::V7_7, CLOCK, None),
            (Generation::V7_8, CLOCK, Some(CLOCK | FEATURE_NO_IO_DELAY)),
            (Generation::V7_9, 0, Some(FEATURE_NO_IO_DELAY)),
            (Generation::V8_0, 0, Some(FEATURE_NO_IO_DELAY)),
        ] {
            let known = kvm.map(|features| features | CLOCK);
            for (tsc_hz, vmm, kvm) in [(profile(generation).tsc_hz, CLOCK, known), (None, vmm, kvm)] {
                let guest = GuestCpuid::new(&host, Profile { tsc_hz, ..profile(generation) });
                let leaf = |leaf| guest.leaf(leaf, 0, LINUX);
                let signature = if kvm.is_some() { KVM_SIGNATURE } else { Leaf::ZERO };
                assert_eq!(leaf(KVM_LEAF), signature, "{generation} {tsc_hz:?}");
                assert_eq!(leaf(KVM_LEAF + 1).eax, kvm.unwrap_or(0), "{generation} {tsc_hz:?}");
                assert_eq!(leaf(HYPERVISOR), VMM_SIGNATURE);
                assert_eq!(leaf(HYPERVISOR + 1).eax, vmm, "{generation} {tsc_hz:?}");
            }
        }
    }

    #[test]
    fn without_invariant_tsc_there_is_no_leaf_15_and_no_bit() {
        let recorded = golden();
        let host = |leaf, subleaf| host(&recorded, leaf, subleaf);
        let guest = GuestCpuid::new(&host, Profile { tsc_hz: None, ..profile(Generation::V7_8) });
        assert_eq!(guest.leaf(0, 0, LINUX).eax, 0x0d);
        assert_eq!(guest.leaf(0x15, 0, LINUX), guest.leaf(0x0d, 0, LINUX), "out of range");
        assert_eq!(guest.leaf(0x15, 1, LINUX), guest.leaf(0x0d, 1, LINUX), "the sub-leaf stays");
        assert_eq!(guest.leaf(0x8000_0007, 0, LINUX).edx, 0);
    }

    #[test]
    fn leaves_15_and_16_of_the_host_are_passed_through() {
        let host = |leaf, _| match leaf {
            0 => Leaf { eax: 0x20, ..Leaf::ZERO },
            0x15 => Leaf { eax: 2, ebx: 216, ecx: 24_000_000, edx: 0 },
            0x16 => Leaf { eax: 2600, ebx: 4500, ecx: 100, edx: 0 },
            _ => Leaf { eax: 0xbad, ..Leaf::ZERO },
        };
        let guest = GuestCpuid::new(&host, profile(Generation::V7_8));
        assert_eq!(guest.leaf(0, 0, LINUX).eax, 0x20);
        assert_eq!(guest.leaf(0x15, 0, LINUX).ebx, 216);
        assert_eq!(guest.leaf(0x16, 0, LINUX).eax, 2600);
        assert_eq!(guest.leaf(0x1f, 0, LINUX), Leaf::ZERO, "topology is hidden");
    }

    #[test]
    fn protection_keys_follow_openbsds_save_area_from_7_8_on() {
        let recorded = golden();
        let host = |leaf, subleaf| {
            let mut host = host(&recorded, leaf, subleaf);
            if leaf == 7 {
                host.ecx |= ECX7_PKU;
            }
            host
        };
        let guest = GuestCpuid::new(&host, profile(Generation::V7_8));
        let state = CpuState { xcr0: 7 | XSAVE_PKRU, ..LINUX };
        assert_eq!(guest.leaf(0x0d, 0, state), Leaf { eax: 0x207, ebx: 2696, ecx: 2696, edx: 0 });
        assert_eq!(guest.leaf(0x0d, 9, state), Leaf { eax: 8, ebx: 2688, ecx: 0, edx: 0 });
        let old = GuestCpuid::new(&host, profile(Generation::V7_7));
        assert_eq!(old.leaf(0x0d, 0, LINUX).eax, 7);
        assert_eq!(old.leaf(7, 0, LINUX).ecx & ECX7_PKU, ECX7_PKU, "shown all the same");
    }

    #[test]
    fn the_apic_bit_is_set_from_8_0_on() {
        let recorded = golden();
        let host = |leaf, subleaf| host(&recorded, leaf, subleaf);
        for generation in Generation::ALL {
            let guest = GuestCpuid::new(&host, Profile { vcpu: 3, ..profile(generation) });
            let leaf = guest.leaf(1, 0, LINUX);
            let apic = generation == Generation::V8_0;
            assert_eq!((leaf.edx & EDX1_APIC != 0, leaf.ecx & ECX1_X2APIC != 0), (apic, apic));
            assert_eq!(leaf.ebx, if apic { 0x0301_0800 } else { 0x0300_0800 });
            let topology = if apic { Leaf { eax: 0, ebx: 1, ecx: 0x201, edx: 3 } } else { Leaf::ZERO };
            let level = 0x15;
            assert_eq!(guest.level(), level);
            assert_eq!(guest.leaf(LEAF_TOPOLOGY, 1, LINUX), topology);
            assert_eq!(guest.leaf(LEAF_TOPOLOGY_AMD, 0, LINUX).eax, if apic { 3 } else { 0 });
        }
    }

    #[test]
    fn each_cpu_is_a_core_of_one_package() {
        let recorded = golden();
        let host = |leaf, subleaf| host(&recorded, leaf, subleaf);
        // Number of cores, and number of bits of the core number.
        for (vcpus, bits) in [(1, 0), (2, 1), (3, 2), (4, 2), (64, 6)] {
            let vcpu = vcpus - 1;
            let guest = GuestCpuid::new(&host, Profile { vcpu, vcpus, ..profile(Generation::V8_0) });
            let (id, count) = (u32::from(vcpu), u32::from(vcpus));
            assert_eq!(guest.leaf(1, 0, LINUX).ebx >> 16, id << 8 | 1 << bits, "APIC ID, and number of IDs");
            assert_eq!(guest.leaf(1, 0, LINUX).edx & EDX1_HTT != 0, vcpus > 1);
            let threads = Leaf { eax: 0, ebx: 1, ecx: 0x100, edx: id };
            let cores = Leaf { eax: bits, ebx: count, ecx: 0x201, edx: id };
            assert_eq!([0, 1].map(|level| guest.leaf(LEAF_TOPOLOGY, level, LINUX)), [threads, cores]);
            assert_eq!(guest.leaf(LEAF_CACHE_AMD, 0, LINUX).eax >> 26, (1 << bits) - 1);
            assert_eq!(guest.leaf(0x8000_0008, 0, LINUX).ecx, bits << 12 | (count - 1));
        }
    }

    proptest! {
        #![proptest_config(testing::config())]

        /// For every host the list has no leaf twice and fits KVM.
        #[test]
        fn any_host_makes_a_table_that_kvm_takes(seed: u64, level in 0u32..0x30, extended in 0u32..0x30, known: bool) {
            let host = |leaf: u32, subleaf: u32| {
                let mix = |n: u64| {
                    let value = (seed ^ u64::from(leaf) << 32 ^ u64::from(subleaf) ^ n).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                    (value >> 17) as u32
                };
                match leaf {
                    0 => Leaf { eax: level, ..Leaf::ZERO },
                    EXTENDED => Leaf { eax: EXTENDED + extended, ..Leaf::ZERO },
                    _ => Leaf { eax: mix(1), ebx: mix(2), ecx: mix(3), edx: mix(4) },
                }
            };
            for generation in Generation::ALL {
                let tsc_hz = known.then_some(NonZeroU64::MAX);
                let table = GuestCpuid::new(&host, Profile { tsc_hz, ..profile(generation) }).table();
                prop_assert!(table.len() <= 256);
                let mut keys: Vec<_> = table.iter().map(|entry| (entry.leaf, entry.subleaf)).collect();
                keys.sort_unstable();
                keys.dedup();
                prop_assert_eq!(keys.len(), table.len());
            }
        }
    }
}
